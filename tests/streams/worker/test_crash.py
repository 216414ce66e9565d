"""docs/design/journal.md, test 1: crash before every event and between every two steps, and nothing is different afterwards."""

from __future__ import annotations

import itertools
import json

import pytest
from branches import SMALL, Rooms, dies, everything, fold_spec, make_events, run_to_end
from crashes import CrashRuns
from dying_storage import DyingStore
from lossy import WithoutRemainder

from millrace.streams.branch.branch import refold, restore
from millrace.streams.journal.entries import Step
from millrace.streams.journal.journal import Cursor, counted, summarise
from millrace.streams.parts import pack
from millrace.streams.source import Crash
from millrace.streams.state.fold import Fold
from millrace.streams.worker.worker import Worker

ROWS = 60
EVENTS = make_events(ROWS)
RUNS = CrashRuns(EVENTS, fold_spec)


class Forgetful(Worker):
    """Broken: goes on from its checkpoint and does not fold what was journaled after it."""

    def _fold_on(self, seq: int) -> None:
        pass


def outputs(rooms: Rooms) -> dict[int, bytes]:
    """What left, by seq; one that left twice must be the same both times."""
    left: dict[int, bytes] = {}
    for record in rooms.producer.records.get("small.scores", []):
        seq = json.loads(record.value)["seq"]
        assert left.setdefault(seq, record.value) == record.value
    return left


def contiguous(rooms: Rooms) -> bool:
    """Whether the steps that count read every offset once, in order."""
    at = 0
    for entry in counted(rooms.journal, "main", Cursor()):
        for _, start, stop, _, _ in entry.reads if isinstance(entry, Step) else []:
            if start != at:
                return False
            at = stop
    return at == ROWS


def as_if_nothing_happened(rooms: Rooms) -> bool:
    """The promise: the same bytes, and a journal without a gap or an overlap."""
    return rooms.result == WHOLE and contiguous(rooms)


def reference() -> tuple[dict[str, bytes], int, int]:
    """The state that nothing ever interrupted, the phases of its steps and marks, and the blobs it stored."""
    rooms = Rooms(EVENTS, store=DyingStore(0))
    worker = rooms.worker()
    phases = itertools.count(1)
    while sum(worker.fold.position.values()) < ROWS:
        dies(worker, phases, 0)
    return everything(worker), next(phases) - 1, -rooms.store.left


WHOLE, PHASES, BLOBS = reference()


@pytest.mark.parametrize("event", range(ROWS + 1))
def test_a_crash_before_any_event_changes_nothing(event):
    """Learner, join of batches, tables, scores and clock are those of the uninterrupted run, bit for bit."""
    rooms = RUNS.crash_before(event)
    assert rooms.result == WHOLE
    assert contiguous(rooms)
    outputs(rooms)


@pytest.mark.parametrize("phase", range(1, PHASES + 1))
def test_a_crash_after_any_phase_of_a_step_changes_nothing(phase):
    """Read, checked, appended, learned, acknowledged, emitted, marked: wherever the process ends, the state is the same."""
    rooms = RUNS.crash_after_phase(phase)
    assert rooms.died
    assert rooms.result == WHOLE
    assert contiguous(rooms)
    steps = [entry.seq for entry in counted(rooms.journal, "main", Cursor()) if isinstance(entry, Step)]
    assert sorted(outputs(rooms)) == steps, "every step that counts let its scores out, and no other did"


@pytest.mark.parametrize("blob", range(1, BLOBS + 1))
def test_a_crash_while_a_checkpoint_is_written_changes_nothing(blob):
    """Orphan parts do not count; the mark before does."""
    rooms = Rooms(EVENTS, store=DyingStore(blob))
    assert everything(RUNS.survive(rooms)) == WHOLE
    assert rooms.store.left < 0, "nobody died"


@pytest.mark.parametrize("read_rows", [1, 2, 3, 13, 60])
def test_no_state_and_no_score_depends_on_the_size_of_reads(read_rows):
    """The same rows in other reads and steps lead to the same bytes, scores included."""
    rooms = Rooms(EVENTS, read_rows=read_rows)
    worker = rooms.worker()
    run_to_end(worker, ROWS)
    assert everything(worker) == WHOLE


def test_two_crashes_at_any_two_events_change_nothing():
    """A second crash while the first is being made good is no different."""
    for first, second in itertools.combinations(range(0, ROWS, 7), 2):
        rooms = Rooms([*EVENTS[:first], Crash(), *EVENTS[first:second], Crash(), *EVENTS[second:]])
        assert everything(RUNS.survive(rooms)) == WHOLE


@pytest.mark.parametrize("twin", [Forgetful, WithoutRemainder])
def test_a_worker_that_loses_something_at_a_crash_fails_these_tests(twin):
    """The comparison notices a broken twin, both before events and between phases."""
    assert not all(as_if_nothing_happened(RUNS.crash_before(event, twin)) for event in range(ROWS))
    assert not all(as_if_nothing_happened(RUNS.crash_after_phase(phase, twin)) for phase in range(1, PHASES + 1))


def test_every_record_is_learned_passed_rejected_or_waiting():
    """The four add up to what was read, at every step."""
    worker = Rooms(EVENTS).worker()
    while worker.fold.records < ROWS:
        list(worker.step())
        read = sum(worker.fold.position.values())
        assert worker.fold.records == read
    assert worker.fold.counts.rejected > 0
    assert worker.fold.counts.passed > 0


def test_a_part_of_a_batch_is_released_by_the_clock_alone():
    """When the source has nothing for long enough, an empty step moves the clock and the waiting rows are learned."""
    rooms = Rooms(EVENTS[:10])
    worker = rooms.worker()
    worker.run(Worker.caught_up)
    assert worker.fold.batches.waiting == 0
    entries = [entry for entry in counted(rooms.journal, "main", Cursor()) if isinstance(entry, Step)]
    assert entries[-1].reads == []
    assert entries[-1].clock_ms > entries[-2].clock_ms


def test_recovery_passes_by_a_checkpoint_that_does_not_verify():
    """A damaged newest checkpoint costs time, not truth: the one before is taken and more is folded again."""
    rooms = Rooms(EVENTS)
    run_to_end(rooms.worker(), ROWS)
    newest = summarise(rooms.journal, "main").marks[-1]
    del rooms.store.blobs["main", newest.checkpoint]
    restored = restore(fold_spec(), rooms.backends(), summarise(rooms.journal, "main"))
    assert restored.state_seq < newest.state_seq
    assert everything(rooms.worker()) == WHOLE


def test_a_checkpoint_and_a_fold_from_the_start_are_the_same_state():
    """Folding the journal from the fork gives each marked state, byte for byte."""
    rooms = Rooms(EVENTS)
    run_to_end(rooms.worker(), ROWS)
    summary = summarise(rooms.journal, "main")
    fold: Fold = fold_spec().fold(summary.fork)
    list(refold(fold, counted(rooms.journal, "main", Cursor()), rooms.backends().source, fold_spec().codec))
    assert {name: pack(part) for name, part in fold.parts().items()} == WHOLE
    assert len(summary.marks) >= ROWS // SMALL.checkpoint_rows - 1
