"""Where a branch's learner comes from: branch by branch, each up to the version at which the next one began."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from millrace.learners.errors import MillraceError
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import ENDPOINT
from millrace.services.pipeline.succession import branch_of, live_branch
from millrace.streams.branch.branch import load_part
from millrace.streams.branch.forks import learner_of
from millrace.streams.errors import DamageError
from millrace.streams.journal.entries import Fork, Mark
from millrace.streams.journal.ledger import Ledger
from millrace.streams.journal.store import Store
from millrace.streams.state.drift import RaisedAlarm

UNKNOWN = 1 << 62  # rows of a version whose parts cannot be read: it could not be served either


@dataclass(frozen=True, slots=True)
class Stretch:
    """A branch as far as what is looked at descends from it."""

    branch: str
    marks: list[Mark]  # oldest first, to where the younger branch begins
    rows: int  # of this branch that the younger one's learner has learned; ``UNKNOWN``: all, or nobody can say
    read_again: bool = False  # whether the younger one reads the records that this one had after those rows

    @property
    def versions(self) -> list[Mark]:
        """The marks that are versions."""
        return [mark for mark in self.marks if mark.version is not None]


def descent(archive: Archive, branch: str) -> Iterator[Stretch]:
    """The branch, the one that its learner comes from, and so on. Raises: MillraceError where there is no such branch."""
    store, until, rows, read_again = archive.instance.store(), UNKNOWN, UNKNOWN, False
    while True:
        summary = archive.summary(branch)
        yield Stretch(branch, [mark for mark in summary.marks if mark.state_seq <= until], rows, read_again)
        if summary.fork is None or summary.fork.parent is None:
            return
        origin = _origin(store, summary.fork)
        branch, _, seq = origin.rpartition(".")
        if not archive.instance.has_branch(branch):
            return
        until, rows = int(seq), _rows_at(archive, summary.fork, summary.marks, origin)
        read_again = summary.fork.learner_from == summary.fork.join_from


def judged_branch(archive: Archive, ledger: Ledger) -> str | None:
    """By whose alarms and versions the endpoint is judged: the live branch's, where what is served is of its past.

    Else of the branch that is served: one that has ended and is followed all the same, or a version that nothing goes on from.
    None: nothing was ever served.
    """
    target, live = ledger.serving.get(ENDPOINT), live_branch(archive, ledger)
    if target is None or live is None or branch_of(target) == live or not archive.instance.has_branch(live):
        return live
    past = (mark.version for stretch in descent(archive, live) for mark in stretch.versions)
    return live if target.version is not None and target.version in past else branch_of(target)


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
    """Whether a marked state has learned no row since the onset of an alarm of the same descent.

    A replay reads again what followed its start: of an alarm that its take-over has not closed nobody can say that it did not.
    """
    shared = shared_rows(archive, stretches, mark, raised.branch)
    if shared > raised.alarm.onset_rows:
        return False
    stretch = next((stretch for stretch in stretches if stretch.branch == raised.branch), None)
    return stretch is None or not stretch.read_again or learned_of(archive.instance.store(), mark) <= shared


def shared_rows(archive: Archive, stretches: Sequence[Stretch], mark: Mark, branch: str) -> int:
    """Of the rows that ``branch`` has learned, as it counts them, how many a marked state of the same descent has in it."""
    names = [stretch.branch for stretch in stretches]
    learned = learned_of(archive.instance.store(), mark)
    if branch not in names or mark.branch not in names or names.index(branch) <= names.index(mark.branch):
        return learned  # the branch itself, or one that goes on from it and counts on
    return stretches[names.index(branch)].rows
