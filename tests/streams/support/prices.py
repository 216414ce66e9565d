"""A pipeline in memory whose label is a number, a price, and rows whose price follows from their features."""

from __future__ import annotations

import json

import numpy as np
from branches import START_MS

from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.streams.branch.branch import FoldSpec
from millrace.streams.formats.json_rows import Codec
from millrace.streams.records import Event
from millrace.streams.schema import Field, Label, Schema

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
