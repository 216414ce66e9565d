"""How a branch begins at a version of another, and how a branch ends. Nothing ever moves a branch back: all that is a fork.

Source: journal.md, rules 2 and 9.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from millrace.learners.errors import ReplacedError
from millrace.streams.branch import Doors, Recipe, carried, load_part
from millrace.streams.entries import End, Fork, Host, Mark, Parent
from millrace.streams.exclusions import Exclusion
from millrace.streams.journal import Writer, summarise
from millrace.streams.store import Store, read_manifest
from millrace.streams.stream import Stream

END_TRIES = 5  # against openers that are faster, and appends that land late


def replay_fork(recipe: Recipe, doors: Doors, branch: str, version: Mark, exclude: Sequence[Exclusion]) -> Fork:
    """The first entry of a branch that goes on from ``version`` over the log, and leaves out what ``exclude`` names.

    Raises: DamageError where the version's parts are not whole.
    """
    return msgspec.structs.replace(
        recipe.new_fork(branch, doors.source),
        parent=Parent(version.branch, version.state_seq, version.state_sha256),
        learner_from=version.checkpoint,
        join_from=version.checkpoint,
        positions=load_part(doors.store, version, "counts")["position"],
        exclude=list(exclude),
    )


def begin_fork(recipe: Recipe, doors: Doors, fork: Fork) -> None:
    """Copy the version's parts, append the fork, mark its start; whatever of that has been done before is not done again.

    The mark has the parent's state hash, which proves where the branch begins.
    """
    for declared in (recipe.config, recipe.schema.declared):
        doors.store.put(fork.branch, declared)
    checkpoint = _copied(doors.store, fork)
    found = summarise(doors.journal, fork.branch)
    writer = Writer(doors.journal, fork.branch, found.end)
    if found.fork is None:
        writer.append(fork)
    if not found.marks and writer.cursor.epoch == 0:
        assert fork.parent is not None
        sha256 = fork.parent.state_sha256
        writer.append(
            Mark(branch=fork.branch, seq=2, epoch=0, state_seq=1, state_sha256=sha256, checkpoint=checkpoint, version=None)
        )


def _copied(store: Store, fork: Fork) -> str:
    """The name of the version's checkpoint as the new branch's own, with the parts that are carried over."""
    assert fork.parent is not None
    branch = fork.parent.branch
    manifest = read_manifest(store, branch, str(fork.learner_from))
    parts = carried(fork, manifest.parts)
    for part in parts.values():
        store.put(fork.branch, store.get(branch, part.sha256))
    own = msgspec.structs.replace(manifest, branch=fork.branch, state_seq=1, parts=parts, segment=None)
    return store.put(fork.branch, msgspec.json.encode(own))


def end_branch(journal: Stream, branch: str, host: Host, cause: str, successor: str | None) -> None:
    """Append ``end`` as the branch's next writer; its live writer stops at its next append. Done before: nothing happens.

    Raises: EndedError where the branch has ended otherwise; ReplacedError where others keep opening it.
    """
    for left in range(END_TRIES - 1, -1, -1):
        try:
            _end(journal, branch, host, cause, successor)
        except ReplacedError:  # it may have ended: by us, where an append of ours landed late, or otherwise
            if not left:
                raise
        else:
            return


def _end(journal: Stream, branch: str, host: Host, cause: str, successor: str | None) -> None:
    end = summarise(journal, branch).end
    if end.ended is not None and end.ended.successor == successor:
        return
    writer = Writer(journal, branch, end)
    epoch = writer.open(host, None)
    writer.append(End(branch=branch, seq=writer.next_seq, epoch=epoch, cause=cause, successor=successor))
