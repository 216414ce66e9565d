"""A state between two marks, folded again from the mark before it: an answer may name any entry, and few are marked.

Source: docs/design/journal.md, rules 11 and 12.
"""

from __future__ import annotations

from collections.abc import Iterator

from millrace.learners.errors import MillraceError
from millrace.streams.branch.branch import (
    Backends,
    FoldSpec,
    check_start,
    load_checkpoint,
    refold,
    save_checkpoint,
    start,
    state_hash,
)
from millrace.streams.branch.host import use_threads
from millrace.streams.errors import DamageError, OffsetsGoneError
from millrace.streams.journal.entries import Entry, Fork, Mark, Merge, Open
from millrace.streams.journal.journal import Cursor, Summary, counted, place_before
from millrace.streams.state.fold import Fold


def state_between(fold_spec: FoldSpec, backends: Backends, summary: Summary, seq: int) -> Mark:
    """The state of a branch after its entry ``seq``, folded again and stored; what is returned stands in no journal.

    Its checkpoint is named by no mark that counts, so the branch's writer sweeps it in time. Who goes on from it copies it.
    Threads are set as the entries were learned with. Raises: MillraceError where the branch has no such entry;
    OffsetsGoneError where the log no longer has what the state before goes on with; DamageError.
    """
    fork = summary.fork
    if fork is None or not 1 <= seq <= summary.end.seq:
        branch = "" if fork is None else f" {fork.branch}"
        raise MillraceError(f"Branch{branch} has no entry {seq:,} by now; its last is {summary.end.seq:,}.")
    fold_spec.check(fork, backends)
    fold, after, epoch = _before(fold_spec, backends, summary, fork, seq)
    for entry in refold(fold, _span(backends, fork.branch, after, seq), backends.source, fold_spec.reader_of(fork)):
        epoch = entry.epoch
    checkpoint, manifest = save_checkpoint(backends.store, fork.branch, seq, fold.parts())
    sha256 = manifest.state_sha256
    return Mark(branch=fork.branch, seq=seq, epoch=epoch, state_seq=seq, state_sha256=sha256, checkpoint=checkpoint)


def _span(backends: Backends, branch: str, after: int, stop: int) -> Iterator[Entry]:
    """The counted entries after seq ``after`` up to ``stop``, with this process's threads as the live ones were."""
    place = place_before(backends.journal, after)
    if place is not None:
        use_threads(place.host.threads)
    for entry in counted(backends.journal, branch, Cursor.after(place) if place else Cursor()):
        if entry.seq > stop:
            return
        if isinstance(entry, Merge):
            raise MillraceError(f"Branch {branch} merges shards, and only its marks can be gone on from. Name a version.")
        if isinstance(entry, Open):
            use_threads(entry.host.threads)
        if entry.seq > after:
            yield entry


def _before(fold_spec: FoldSpec, backends: Backends, summary: Summary, fork: Fork, seq: int) -> tuple[Fold, int, int]:
    """The newest whole state at ``seq`` or before that the log can be folded on from, its seq and epoch."""
    low = {tp: oldest for tp, (oldest, _) in backends.source.bounds().items()}
    for mark in reversed([mark for mark in summary.marks if mark.state_seq <= seq and mark.checkpoint is not None]):
        fold = fold_spec.fold(fork)
        try:
            fold.load(load_checkpoint(backends.store, mark))
        except DamageError:
            continue  # swept, or damaged: the one before is whole
        if mark.state_seq == 1:
            check_start(fork, fold, state_hash(fold.parts()))
        if all(low.get(tp, 0) <= at for tp, at in fold.position.items()):
            return fold, mark.state_seq, mark.epoch
    fold = start(fold_spec, backends.store, fork)
    if all(low.get(tp, 0) <= at for tp, at in fold.position.items()):
        return fold, 0, 0
    raise OffsetsGoneError(
        f"The log no longer has what a state before {fork.branch}.{seq} goes on with, so it cannot be folded again. Name a "
        "version; `millrace versions` lists them."
    )
