"""A pipeline whose label is a number goes the same way: journaled, crashed, resumed, scored beside its baselines."""

from __future__ import annotations

import json

import numpy as np
import pytest
from branches import HOST, SMALL, START_MS, Rooms, SteppedClock, everything, run_to_end

from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.streams.branch.branch import FoldSpec
from millrace.streams.formats.json_rows import Codec
from millrace.streams.records import Event
from millrace.streams.schema import Field, Label, Schema
from millrace.streams.source import Crash, CrashError
from millrace.streams.worker.worker import Worker, WorkerIdentity

ROWS = 40
SCHEMA = Schema((Field("x", size=2),), Label("price", "number"))
HOW = FoldSpec(
    "small",
    SCHEMA,
    Codec(SCHEMA, 4096),
    "ridge",
    lambda: Ridge(RidgeConfig(task="regress", solve_rows=5), 2, 0),
    batch_rows=4,
    batch_wait_ms=1000,
    seed=0,
    config=b"{}",
)


def rows():
    """x and price = 3 x0 - x1 + 10, the third without a label."""
    x = np.random.default_rng(1).integers(-5, 6, (ROWS, 2))
    values = [{"x": pair.tolist(), "price": int(3 * pair[0] - pair[1] + 10)} for pair in x]
    del values[2]["price"]
    return [Event(at, START_MS + at, None, b"", json.dumps(value).encode()) for at, value in enumerate(values)]


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
