"""What versions cost where all are kept grows with their number: records read and bytes written, counted and not timed."""

from __future__ import annotations

from branches import Rooms, fold_spec, make_events, run_to_end
from pruned_branch import Remembering, here, whole

from millrace.streams.branch.verify import verify
from millrace.streams.journal.journal import summarise
from millrace.streams.journal.retention import Retention
from millrace.streams.journal.store import ListStore
from millrace.streams.stream import ListStream
from millrace.streams.worker.config import WorkerConfig

EACH = WorkerConfig(step_rows=2, step_ms=0, checkpoint_rows=100_000, version_rows=2, keep=2)
PRUNING = WorkerConfig(step_rows=2, step_ms=0, checkpoint_rows=100_000, version_rows=2, keep=2, journal_keep_entries=4)


class Counting(ListStore):
    """A store in memory that counts what is read from it and written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.gets = self.bytes = 0

    def put(self, branch: str, blob: bytes, more_follow: bool = False) -> str:
        """Written, whether it was there or not."""
        self.bytes += len(blob)
        return super().put(branch, blob, more_follow)

    def get(self, branch: str, name: str) -> bytes:
        """Read."""
        self.gets += 1
        return super().get(branch, name)


def cost(versions: int) -> tuple[int, int]:
    """Records read and bytes written, of the journal and the store, for so many versions that are all kept."""
    rooms = Rooms(make_events(2 * versions), journal=Remembering(), store=Counting(), retention=Retention(ListStream(), 0))
    run_to_end(here(rooms, EACH, fold_spec("chain")), 2 * versions)
    marks = [mark for mark in summarise(rooms.whole_journal(), "main").marks if mark.version]
    assert len(marks) >= versions - 5
    return rooms.store.gets + rooms.journal.reads, rooms.store.bytes + sum(map(len, rooms.journal.ever))


def test_twice_the_versions_cost_twice() -> None:
    """400 against 200: at most 2.2 times the reads and the bytes; both were near 4 before."""
    (reads, size), (more_reads, more_size) = cost(200), cost(400)
    assert more_reads <= 2.2 * reads, (reads, more_reads)
    assert more_size <= 2.2 * size, (size, more_size)


def test_a_journal_that_kept_everything_can_be_pruned_later_and_nothing_is_forgotten() -> None:
    """Versions that say nothing of earlier marks stay out of what pruning leaves: it begins once enough others are there."""
    rooms = Rooms(make_events(160), journal=Remembering(), retention=Retention(ListStream(), 2))
    worker = here(rooms, EACH)
    run_to_end(worker, 60)
    worker.close()
    assert rooms.journal.first() == 0
    run_to_end(here(rooms, PRUNING), 160)
    assert rooms.journal.first() > 20
    quick, slow, released = summarise(rooms.whole_journal(), "main"), whole(rooms), rooms.retention.released()
    kept = [[mark for mark in one.marks if mark.version and mark.version not in released] for one in (quick, slow)]
    assert kept[0] == kept[1] and (quick.end, quick.position) == (slow.end, slow.position)
    report = verify(fold_spec(), rooms.backends(), "main", PRUNING.keep)
    assert report.findings == [] and report.proved
