"""A branch whose journal has lost its beginning, for tests that look for it."""

from __future__ import annotations

from branches import Rooms, SteppedClock, fold_spec, make_events, run_to_end

from millrace.streams.branch.branch import FoldSpec, manifest_of
from millrace.streams.branch.host import this_host
from millrace.streams.journal.journal import Summary, extend, summarise
from millrace.streams.journal.retention import Retention
from millrace.streams.journal.store import Segment
from millrace.streams.stream import ListStream
from millrace.streams.worker.config import WorkerConfig
from millrace.streams.worker.worker import Worker, WorkerIdentity

ROWS = 120
EVENTS = make_events(ROWS)
PRUNING = WorkerConfig(step_rows=5, step_ms=0, checkpoint_rows=11, version_rows=12, keep=2, journal_keep_entries=4)


def pruned_rooms(rows: int = ROWS, config: WorkerConfig = PRUNING, keep: int = 2) -> Rooms:
    """A branch that has learned so many rows, and whose journal has lost its beginning."""
    rooms = Rooms(EVENTS, journal=Remembering(), retention=Retention(ListStream(), keep))
    run_to_end(here(rooms, config), rows)
    return rooms


def here(rooms: Rooms, config: WorkerConfig = PRUNING, how: FoldSpec | None = None) -> Worker:
    """A new process's worker on this very host, so that every mark can be folded again and compared."""
    return Worker(how or fold_spec(), rooms.backends(), config, WorkerIdentity("main", this_host(1), SteppedClock()))


class Remembering(ListStream):
    """A stream that keeps for the test what it has deleted, and counts what was read."""

    def __init__(self) -> None:
        super().__init__()
        self.ever: list[bytes] = []
        self.reads = 0

    def send(self, value: bytes):
        self.ever.append(value)
        return super().send(value)

    def read(self, start: int):
        for offset, value in super().read(start):
            self.reads += 1
            yield offset, value


def whole(rooms: Rooms) -> Summary:
    """A summary of every entry there ever was."""
    summary = Summary()
    extend(summary, rooms.whole_journal(), "main")
    return summary


def segments(rooms: Rooms) -> dict[str, Segment]:
    """Of every version whose parts are there."""
    released = set() if rooms.retention is None else rooms.retention.released()
    marks = [mark for mark in summarise(rooms.whole_journal(), "main").marks if mark.version and mark.version not in released]
    return {str(mark.version): manifest_of(rooms.store, mark).segment for mark in marks}


class Older(Worker):
    """As before versions had segments."""

    def _begin_snapshot(self, version: bool) -> None:
        begin, self._snapshots.begin = self._snapshots.begin, lambda seq, parts, cut: begin(seq, parts, _Bare(self.branch, cut))
        super()._begin_snapshot(version)
        self._snapshots.begin = begin


class _Bare:
    """A cut of which nothing is kept."""

    def __new__(cls, branch: str, cut):
        return None if cut is None else super().__new__(cls)

    def __init__(self, branch: str, cut) -> None:
        self.segment = lambda store: None
