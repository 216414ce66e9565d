"""Rows whose labels change sides at one of them, and a branch with a drift detector that learns them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
from branches import START_MS, Rooms, fold_spec

from millrace.learners.drift.alarms import DriftConfig
from millrace.streams.branch.branch import FoldSpec
from millrace.streams.journal.journal import Cursor, counted
from millrace.streams.records import Event
from millrace.streams.worker.config import WorkerConfig
from millrace.streams.worker.worker import Worker

ROWS = 1200
FLIP = 700  # from here on every label is the other one
STEPS = WorkerConfig(step_rows=50, step_ms=0, checkpoint_rows=170, keep=2, window_rows=1000)


def flipped(rows: int = ROWS, flip: int = FLIP, seed: int = 4) -> list[Event]:
    """Rows whose label follows from x, and from the other side of it after the flip."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-9, 10, (rows, 3))
    x[x[:, 0] == 0, 0] = 1
    names = [("left", "right")[int((row[0] > 0) != (at >= flip))] for at, row in enumerate(x)]
    values = [json.dumps({"x": row.tolist(), "kind": kind}).encode() for row, kind in zip(x, names, strict=True)]
    return [Event(at, START_MS + 40 * at, None, b"", value) for at, value in enumerate(values)]


def watching(act: str = "version", **more) -> FoldSpec:
    """The small pipeline with one detector; its learner has a rate where that is to be raised."""
    keys = {"relearn_rows": 70} | more
    return replace(
        fold_spec("softmax" if act == "raise-rate" else "ridge"),
        drift=DriftConfig(false_alarm_rows=2000, per_class=False, act=act, **keys),
    )


def rooms(events: list[Event] | None = None) -> Rooms:
    """Rooms with such events."""
    return Rooms(flipped() if events is None else events, read_rows=50)


def worker_in(home: Rooms, act: str = "version") -> Worker:
    """The next worker there."""
    return home.worker(config=STEPS, how=watching(act))


def entries(home: Rooms, kind: type) -> list:
    """Those that count."""
    return [entry for entry in counted(home.journal, "main", Cursor()) if isinstance(entry, kind)]


def alarms(home: Rooms) -> list[dict]:
    """What left, each once."""
    left = {json.loads(record.value)["seq"]: json.loads(record.value) for record in home.producer.records["small.scores"]}
    return [alarm for _, output in sorted(left.items()) for alarm in output["alarms"]]
