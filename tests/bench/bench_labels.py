"""Pairs of a served prediction and its late label, decoded, joined, scored and learned, against as many plain labelled rows.

python tests/bench/bench_labels.py [--rows 60000]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np

from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.streams.branch.host import this_host, use_threads
from millrace.streams.features.columns import Features
from millrace.streams.formats.json_rows import Codec, Refused, Rows
from millrace.streams.journal.entries import Step
from millrace.streams.labels.join import LabelJoin, LabelRules
from millrace.streams.labels.served import LateLabel, Prediction, Served, ServedCodec, encode, encode_row
from millrace.streams.parts import sha256
from millrace.streams.records import Event
from millrace.streams.schema import Field, Label, Schema
from millrace.streams.state.fold import Fold
from millrace.streams.state.microbatch import MicroBatches
from millrace.streams.state.stages import Owner, Stages

STEP_ROWS = 4096
DELAY_ROWS = 4000  # after so many others comes a row's label
START_MS = 1_700_000_000_000
GOAL = 0.3  # of plain rows' speed: 12 us a pair where a row takes 3.5

Decode = Callable[[list[Event]], tuple[Rows | Served, list[Refused]]]


def schema_of(width: int) -> Schema:
    """Rows of so many numbers."""
    return Schema((Field("x", size=width),), Label("y"))


def fold_of(schema: Schema, late: bool) -> Fold:
    """A ridge that has seen nothing."""
    learner = Ridge(RidgeConfig(solve_rows=1024), schema.width, 0)
    join = LabelJoin(LabelRules(), schema.label, sha256(schema.declared)) if late else None
    return Fold(schema, lambda: learner, Stages(Features(schema), MicroBatches(256, 1000), join), {}, Owner("main", "main"))


def numbers(width: int) -> list[list[float]]:
    """A thousand rows, as JSON writes them."""
    return [[round(value, 3) for value in row] for row in np.random.default_rng(0).normal(size=(1000, width)).tolist()]


def plain_events(rows: int, width: int) -> list[Event]:
    """Rows that bring their label."""
    x = numbers(width)
    values = [json.dumps({"x": x[at % 1000], "y": ("ham", "spam")[at % 2]}).encode() for at in range(rows)]
    return [Event(at, START_MS + at, None, b"", value) for at, value in enumerate(values)]


def served_events(rows: int, width: int) -> list[Event]:
    """Predictions, and their labels some while later."""
    x, told = [encode_row({"x": row}) for row in numbers(width)], list[tuple[int, Prediction | LateLabel]]()
    for at in range(rows):
        name = f"request {at}/0"
        told.append((at, Prediction(name, x[at % 1000], "main", 1, 2, ("ham", "spam"), (0.3, 0.7))))
        told.append((at + DELAY_ROWS, LateLabel(name, ("ham", "spam")[at % 2])))
    told.sort(key=lambda pair: pair[0])
    return [Event(at, START_MS + ms, message.id.encode(), b"", encode(message)) for at, (ms, message) in enumerate(told)]


def seconds(fold: Fold, decode: Decode, events: list[Event]) -> float:
    """Of the processor, a record: the median over full steps."""
    taken = []
    for at in range(0, len(events) - STEP_ROWS + 1, STEP_ROWS):
        read = events[at : at + STEP_ROWS]
        step = Step(branch="main", seq=2, epoch=1, reads=[], clock_ms=read[-1].timestamp_ms, rejected=[])
        start_s = time.process_time()
        rows, _ = decode(read)
        fold.step(step, [rows])
        taken.append((time.process_time() - start_s) / STEP_ROWS)
    return statistics.median(taken)


def compare(width: int, rows: int) -> Iterator[dict[str, object]]:
    """The two on rows of one width."""
    schema = schema_of(width)
    served = ServedCodec(schema, 1 << 20, "bench.served")
    pair_s = 2 * seconds(fold_of(schema, True), lambda read: served.decode(read, "bench.served:0"), served_events(rows, width))
    row_s = seconds(fold_of(schema, False), Codec(schema, 1 << 20).decode, plain_events(rows, width))
    yield {
        "bench": "labels",
        "case": f"{width} numbers a row",
        "unit": "us a pair",
        "ours": round(pair_s * 1e6, 1),
        "peer": round(row_s * 1e6, 1),
        "peer_name": "a plain row",
        "ratio": round(row_s / pair_s, 3),
        "goal": GOAL,
    }


def main() -> None:
    """Print one JSON line a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=60_000)
    arguments = parser.parse_args()
    use_threads(1)
    load = os.getloadavg()[0]
    print(json.dumps({"bench": "machine", "cores": os.cpu_count(), "blas": this_host(1).blas, "threads": 1, "load": load}))
    for width in (4, 64):
        for line in compare(width, arguments.rows):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
