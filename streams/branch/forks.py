"""How a branch begins at a version of another, and how a branch ends. Nothing ever moves a branch back: all that is a fork.

Source: docs/design/journal.md, rules 2 and 9.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from millrace.streams.branch.branch import Backends, FoldSpec, carried, load_part, save_checkpoint, start
from millrace.streams.branch.learner_rollback import is_learned
from millrace.streams.errors import ReplacedError
from millrace.streams.journal.entries import Fork, Host, Mark, Parent
from millrace.streams.journal.exclusions import Exclusion
from millrace.streams.journal.journal import Summary, Writer, summarise
from millrace.streams.journal.store import Store, read_checkpoint
from millrace.streams.source import Position, Source
from millrace.streams.stream import Stream

END_TRIES = 5  # against openers that are faster, and appends that land late


def excluded(store: Store, summary: Summary, version: Mark | None = None) -> list[Exclusion]:
    """What a branch leaves out: what its fork says and no act has ended, as of now or of one of its versions.

    Raises: DamageError where the state cannot be read that says so.
    """
    fork, mark = summary.fork, version or (summary.marks[-1] if summary.marks else None)
    if fork is None or not fork.exclude:
        return []
    included = set(summary.included) if version is None else set[int]()
    if mark is not None:
        included |= set(load_part(store, mark, "counts").get("included", {}).get(fork.branch, ()))
    return [exclusion for number, exclusion in enumerate(fork.exclude) if number not in included]


def replay_fork(fold_spec: FoldSpec, backends: Backends, branch: str, version: Mark, exclude: Sequence[Exclusion]) -> Fork:
    """The first entry of a branch that goes on from ``version`` over the log, and leaves out what ``exclude`` names.

    Raises: DamageError where the version's parts are not whole.
    """
    return msgspec.structs.replace(
        fold_spec.new_fork(branch, backends.source),
        parent=Parent(version.branch, version.state_seq, version.state_sha256),
        learner_from=version.checkpoint,
        join_from=version.checkpoint,
        positions=load_part(backends.store, version, "counts")["position"],
        exclude=list(exclude),
    )


def empty_fork(fold_spec: FoldSpec, source: Source, branch: str, positions: Position, exclude: Sequence[Exclusion]) -> Fork:
    """The first entry of a branch that begins with nothing, at ``positions`` of the log."""
    return msgspec.structs.replace(fold_spec.new_fork(branch, source), positions=positions, exclude=list(exclude))


def reading_first(fork: Fork, source: Source) -> Fork:
    """The same fork of a branch that first reads to their end the topics of ``source``, which others do not read."""
    positions = {tp: low for tp, (low, _) in source.bounds().items()}
    return msgspec.structs.replace(fork, topics=fork.topics | source.topics(), positions=fork.positions | positions)


def rewound_fork(
    fold_spec: FoldSpec, backends: Backends, branch: str, newest: Mark, version: Mark, exclude: Sequence[Exclusion]
) -> Fork:
    """The first entry of a branch that goes on where ``newest`` is, with the learner of ``version``, an earlier one.

    ``exclude`` is what the branch of ``newest`` leaves out. The parent is ``newest``: join, positions, clock, detectors and
    counts are its own; see ``streams/branch/learner_rollback.py``.

    Raises: DamageError where parts of ``newest`` are not whole.
    """
    return msgspec.structs.replace(
        fold_spec.new_fork(branch, backends.source),
        parent=Parent(newest.branch, newest.state_seq, newest.state_sha256),
        learner_from=version.checkpoint,
        join_from=newest.checkpoint,
        detector_from=newest.checkpoint,
        positions=load_part(backends.store, newest, "counts")["position"],
        exclude=list(exclude),
    )


def learner_of(store: Store, fork: Fork) -> str | None:
    """The version whose learner a branch began with; None: it began with nothing. Raises: DamageError."""
    if fork.parent is None or fork.learner_from == fork.join_from:
        return None if fork.parent is None else f"{fork.parent.branch}.{fork.parent.seq}"
    learner = read_checkpoint(store, fork.branch, str(fork.learner_from))
    return f"{learner.branch}.{learner.state_seq}"


def begin_fork(fold_spec: FoldSpec, backends: Backends, fork: Fork, version: str | None = None) -> None:
    """Copy the version's parts, append the fork, mark its start; whatever of that has been done before is not done again.

    The mark has the parent's state hash, which proves where the branch begins. Where the learner is of an earlier version, it
    has the hash of both together, and ``version`` is the branch where that one lies. Without a parent nothing is marked.
    """
    for declared in (fold_spec.config, fold_spec.schema.declared):
        backends.store.put(fork.branch, declared)
    start_of = None
    if fork.parent is not None:
        start_of = _copied(backends.store, fork) if version is None else compose(fold_spec, backends.store, fork, version)
    summary = summarise(backends.journal, fork.branch)
    writer = Writer(backends.journal, fork.branch, summary.end)
    if summary.fork is None:
        writer.append(fork)
    if start_of is not None and not summary.marks and writer.cursor.epoch == 0:
        checkpoint, sha256 = start_of
        writer.append(
            Mark(branch=fork.branch, seq=2, epoch=0, state_seq=1, state_sha256=sha256, checkpoint=checkpoint, version=None)
        )


def _copied(store: Store, fork: Fork) -> tuple[str, str]:
    """The name of the version's checkpoint as the new branch's own, with the parts that are carried over; its hash."""
    assert fork.parent is not None
    branch = fork.parent.branch
    manifest = read_checkpoint(store, branch, str(fork.learner_from))
    parts = carried(fork, manifest.parts)
    for part in parts.values():
        store.put(fork.branch, store.get(branch, part.sha256))
    fork_checkpoint = msgspec.structs.replace(manifest, branch=fork.branch, state_seq=1, parts=parts, segment=None)
    return store.put(fork.branch, msgspec.json.encode(fork_checkpoint)), fork.parent.state_sha256


def compose(fold_spec: FoldSpec, store: Store, fork: Fork, version: str) -> tuple[str, str]:
    """The learner of a version of branch ``version``, copied as it lies there; then the start of the fork and its hash."""
    name = str(fork.learner_from)
    manifest = read_checkpoint(store, version, name)
    for blob in [part.sha256 for part_name, part in manifest.parts.items() if is_learned(part_name)] + [name]:
        store.put(fork.branch, store.get(version, blob))
    checkpoint, fork_manifest = save_checkpoint(store, fork.branch, 1, start(fold_spec, store, fork).parts())
    return checkpoint, fork_manifest.state_sha256


def end_branch(journal: Stream, branch: str, host: Host, cause: str, successor: str | None) -> None:
    """Append ``end`` as the branch's next writer; its live writer stops at its next append. Done before: nothing happens.

    Raises: EndedError where the branch has ended otherwise; ReplacedError where others keep opening it.
    """
    for tries_left in range(END_TRIES - 1, -1, -1):
        try:
            _end(journal, branch, host, cause, successor)
        except ReplacedError:  # it may have ended: by us, where an append of ours landed late, or otherwise
            if not tries_left:
                raise
        else:
            return


def _end(journal: Stream, branch: str, host: Host, cause: str, successor: str | None) -> None:
    end = summarise(journal, branch).end
    if end.ended is not None and end.ended.successor == successor:
        return
    writer = Writer(journal, branch, end)
    writer.open(host, None)
    writer.end(cause, successor)
