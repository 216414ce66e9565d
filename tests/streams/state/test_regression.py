"""A pipeline whose label is a number goes the same way: journaled, crashed, resumed, scored beside its baselines."""

from __future__ import annotations

import json

import pytest
from branches import HOST, SMALL, Rooms, SteppedClock, everything, run_to_end
from prices import HOW, ROWS, rows

from millrace.streams.source import Crash, CrashError
from millrace.streams.worker.worker import Worker, WorkerIdentity


def finish(rooms: Rooms) -> Worker:
    """A worker that has read every row."""
    worker = Worker(HOW, rooms.backends(), SMALL, WorkerIdentity("main", HOST, SteppedClock()))
    run_to_end(worker, ROWS)
    return worker


@pytest.mark.parametrize("event", range(0, ROWS, 3))
def test_a_crash_changes_nothing_for_numbers_either(event):
    """State, scores and derived parts are those of the uninterrupted run."""
    whole = everything(finish(Rooms(rows())))
    rooms = Rooms([*rows()[:event], Crash(), *rows()[event:]])
    with pytest.raises(CrashError):
        finish(rooms)
    assert everything(finish(rooms)) == whole


def test_the_error_of_every_answer_stands_beside_its_baselines():
    """An exact relation is learned, so the error falls far below that of the last value and of the mean."""
    rooms = Rooms(rows())
    worker = finish(rooms)
    totals = json.loads(rooms.producer.records["small.scores"][-1].value)["scores"]
    assert totals["rows"] == worker.fold.counts.learned
    assert worker.fold.counts.passed == 1
    assert totals["absolute_error"][0] < 0.5 * min(totals["absolute_error_last"][0], totals["absolute_error_mean"][0])
