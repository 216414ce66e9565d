"""Where a branch's learner comes from: branch by branch, each up to the version at which the next one began."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from millrace.learners.errors import MillraceError
from millrace.services.pipeline.archive import Archive
from millrace.streams.branch.branch import load_part
from millrace.streams.branch.forks import learner_of
from millrace.streams.errors import DamageError
from millrace.streams.journal.entries import Fork, Mark
from millrace.streams.journal.store import Store
from millrace.streams.state.drift import RaisedAlarm

UNKNOWN = 1 << 62  # rows of a version whose parts cannot be read: it could not be served either


@dataclass(frozen=True, slots=True)
class Stretch:
    """A branch as far as what is looked at descends from it."""

    branch: str
    marks: list[Mark]  # oldest first, to where the younger branch begins
    rows: int  # of this branch that the younger one's learner has learned; ``UNKNOWN``: all, or nobody can say

    @property
    def versions(self) -> list[Mark]:
        """The marks that are versions."""
        return [mark for mark in self.marks if mark.version is not None]


def descent(archive: Archive, branch: str) -> Iterator[Stretch]:
    """The branch, the one that its learner comes from, and so on. Raises: MillraceError where there is no such branch."""
    store, until, rows = archive.instance.store(), UNKNOWN, UNKNOWN
    while True:
        summary = archive.summary(branch)
        yield Stretch(branch, [mark for mark in summary.marks if mark.state_seq <= until], rows)
        if summary.fork is None or summary.fork.parent is None:
            return
        origin = _origin(store, summary.fork)
        branch, _, seq = origin.rpartition(".")
        if not archive.instance.has_branch(branch):
            return
        until, rows = int(seq), _rows_at(archive, summary.fork, summary.marks, origin)


def _origin(store: Store, fork: Fork) -> str:
    """The version whose learner a fork begins with; where that cannot be read, its parent."""
    assert fork.parent is not None
    try:
        return str(learner_of(store, fork))
    except DamageError:
        return f"{fork.parent.branch}.{fork.parent.seq}"


def _rows_at(archive: Archive, fork: Fork, marks: list[Mark], origin: str) -> int:
    """Rows that the learner of a fork's start has learned: its own copy says, but for one that has an older learner."""
    start = [mark for mark in marks if mark.state_seq == 1] if fork.learner_from == fork.join_from else []
    try:
        return learned_of(archive.instance.store(), start[0] if start else archive.mark(origin))
    except MillraceError:  # such a version is no longer in the journal
        return UNKNOWN


def learned_of(store: Store, mark: Mark) -> int:
    """Rows that a marked state has learned."""
    try:
        return int(load_part(store, mark, "counts")["counts"]["learned"])
    except DamageError:
        return UNKNOWN


def older(archive: Archive, stretches: Sequence[Stretch], mark: Mark, raised: RaisedAlarm) -> bool:
    """Whether a marked state has learned no row since the onset of an alarm of the same descent."""
    return shared_rows(archive, stretches, mark, raised.branch) <= raised.alarm.onset_rows


def shared_rows(archive: Archive, stretches: Sequence[Stretch], mark: Mark, branch: str) -> int:
    """Of the rows that ``branch`` has learned, as it counts them, how many a marked state of the same descent has in it."""
    names = [stretch.branch for stretch in stretches]
    learned = learned_of(archive.instance.store(), mark)
    if branch not in names or mark.branch not in names or names.index(branch) <= names.index(mark.branch):
        return learned  # the branch itself, or one that goes on from it and counts on
    return stretches[names.index(branch)].rows
