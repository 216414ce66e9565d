"""Rows per second through the whole worker on the SQLite log, against a bare read, a parser and a NumPy matrix of the same log.

JSON rows against orjson; Arrow batches of float32, in messages near 1 MB, against pyarrow. Cases with the scale have it before
the learner, as `millrace run` has before a ridge of one shard; those without are as before there was one.

python tests/bench/bench_loop.py [--rows 65536] [--repeats 5] [--processor-time]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import numpy as np
import orjson
import pyarrow as pa

from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.learners.protocol import Scaling
from millrace.streams.branch.branch import Backends, FoldSpec
from millrace.streams.branch.host import this_host, use_threads
from millrace.streams.formats.arrow import stream_bytes
from millrace.streams.formats.contents import Contents
from millrace.streams.journal.store import FolderStore
from millrace.streams.records import Record
from millrace.streams.schema import Field, Label, Schema
from millrace.streams.sqlite.log import SqliteLog, SqliteSource
from millrace.streams.sqlite.stream import SqliteStream
from millrace.streams.stream import Stored
from millrace.streams.worker.config import WorkerConfig
from millrace.streams.worker.worker import Worker, WorkerIdentity

D = 64
STEP_ROWS = 4096
ARRAYS = Schema((Field("x", size=D),), Label("y", "integer"))
NAMED = Schema(tuple(Field(f"f{at}") for at in range(D)), Label("y", "integer"))
SHAPES = {"array of 64": ARRAYS, "64 named fields": NAMED, "array of 64, Arrow": ARRAYS, "64 named fields, Arrow": NAMED}
CASES = (*((shape, False) for shape in SHAPES), ("array of 64", True), ("array of 64, Arrow", True))  # with the scale or not
PROCESSOR = "--processor-time"
MESSAGE_ROWS = 3840  # of 64 float32 each: near 1 MB
READ_MESSAGES = 8  # at a time, as the log itself gives them


def clock_s() -> float:
    """Seconds, of the wall or, as the command asks, of the processor: for a machine that has other work, too."""
    return time.process_time() if PROCESSOR in sys.argv else time.perf_counter()


class Timed:
    """Another object's calls, with the time spent in them."""

    def __init__(self, inner: object) -> None:
        self.inner = inner
        self.seconds = 0.0

    def call(self, name: str, *arguments: object) -> object:
        """One timed call."""
        start_s = clock_s()
        try:
            return getattr(self.inner, name)(*arguments)
        finally:
            self.seconds += clock_s() - start_s


class TimedStream(Timed):
    """A journal whose appends are timed."""

    def send(self, value: bytes) -> Stored:
        """Append."""
        return self.call("send", value)  # type: ignore[return-value]

    def read(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Read."""
        return self.inner.read(start)  # type: ignore[attr-defined]


class TimedWorker(Worker):
    """A worker that times what a checkpoint costs its learning thread."""

    checkpoint_s = 0.0

    def mark_when_due(self, wait: bool = False) -> None:
        """As the worker, timed."""
        start_s = clock_s()
        super().mark_when_due(wait)
        self.checkpoint_s += clock_s() - start_s


def value(shape: str, x: list[float], y: int) -> bytes:
    """One record."""
    return orjson.dumps({"x": x, "y": y} if shape == "array of 64" else {f"f{at}": v for at, v in enumerate(x)} | {"y": y})


def arrow_values(shape: str, x: np.ndarray, y: np.ndarray) -> list[bytes]:
    """The rows (n, 64) as Arrow IPC streams of ``MESSAGE_ROWS`` each, numbers as float32."""
    values = []
    for at in range(0, len(x), MESSAGE_ROWS):
        part = x[at : at + MESSAGE_ROWS].astype(np.float32)
        columns = {f"f{number}": pa.array(part[:, number]) for number in range(D)}
        if SHAPES[shape] is ARRAYS:
            columns = {"x": pa.FixedSizeListArray.from_arrays(part.ravel(), D)}
        values.append(stream_bytes(pa.record_batch(columns | {"y": pa.array(y[at : at + MESSAGE_ROWS])})))
    return values


def fill(log: SqliteLog, shape: str, rows: int) -> None:
    """The log with every row in it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, D)).round(6)
    y = (x[:, :10]).argmax(axis=1)
    for name in ("bench", "bench.scores", "bench.dead-letters"):
        log.create_topic(name)
    arrow = shape.endswith("Arrow")
    values = arrow_values(shape, x, y) if arrow else [value(shape, a, b) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    for at in range(0, len(values), STEP_ROWS):
        log.append("bench", [Record(v, timestamp_ms=1 + at) for v in values[at : at + STEP_ROWS]])


def bare(path: Path, shape: str) -> float:
    """Seconds to read every value, parse it and put it into matrices, and nothing else."""
    start_s = clock_s()
    connection = apsw.Connection(str(path))
    table = connection.execute("select log_table from partitions where tp = 'bench:0'").fetchall()[0][0]
    most, at = READ_MESSAGES if shape.endswith("Arrow") else STEP_ROWS, 0
    query = f"select value from {table} where offset >= ? order by offset limit {most}"
    names = [f"f{number}" for number in range(D)]
    while stored := connection.execute(query, (at,)).fetchall():
        if shape.endswith("Arrow"):
            matrices = [bare_matrices(row[0]) for row in stored]
            at += len(matrices)
            continue
        rows = [orjson.loads(row[0]) for row in stored]
        np.array([row["x"] if shape == "array of 64" else [row[name] for name in names] for row in rows])
        np.array([row["y"] for row in rows])
        at += len(stored)
    return clock_s() - start_s


def bare_matrices(message: bytes) -> tuple[np.ndarray, np.ndarray]:
    """A message's x (n, 64) as float64, and y (n,)."""
    table = pa.ipc.open_stream(message).read_all()
    y = table["y"].to_numpy()
    if "x" in table.column_names:
        return table["x"].combine_chunks().flatten().to_numpy().reshape(-1, D).astype(np.float64), y
    return np.column_stack([table[name].to_numpy() for name in table.column_names[:-1]]).astype(np.float64), y


def ours(log: SqliteLog, shape: str, folder: Path, rows: int, scaling: Scaling = "none") -> dict[str, float]:
    """Seconds of the whole worker on a fresh branch once it is open, and the shares of journal and checkpoints in them."""
    schema = SHAPES[shape]
    codec = Contents(schema, 1 << 20)
    make = lambda: Ridge(RidgeConfig(solve_rows=4096), D, 0)  # noqa: E731  # a factory of one line
    fold_spec = FoldSpec("bench", schema, codec, "ridge", make, 256, 1000, 0, b"{}", scaling=scaling)
    journal = TimedStream(SqliteStream(folder / "journal.sqlite"))
    backends = Backends(SqliteSource(log, ["bench"]), log, journal, FolderStore(folder / "store"))
    config = WorkerConfig(step_rows=STEP_ROWS, checkpoint_rows=16384)
    worker = TimedWorker(fold_spec, backends, config, WorkerIdentity(folder.name, this_host(1)))
    journal.seconds, start_s = 0.0, clock_s()
    while worker.fold.records < rows:
        list(worker.step())
        worker.mark_when_due()
    seconds = clock_s() - start_s
    worker.close()
    return {"seconds": seconds, "journal": journal.seconds / seconds, "checkpoints": worker.checkpoint_s / seconds}


def decoded(log: SqliteLog, shape: str) -> tuple[float, float]:
    """Seconds to decode every Arrow message of the log strictly, and as the peer does."""
    events = SqliteSource(log, ["bench"]).read("bench:0", 0, log.bounds("bench:0")[1]).events
    contents = Contents(SHAPES[shape], 1 << 20)
    start_s = clock_s()
    for event in events:
        contents.decode([event])
    ours_s, start_s = clock_s() - start_s, clock_s()
    for event in events:
        bare_matrices(event.value or b"")
    return ours_s, clock_s() - start_s


def compare(shape: str, scaled: bool, rows: int, repeats: int) -> Iterator[dict[str, object]]:
    """The two in turn on one log; medians, and the median of the ratios pair by pair."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.sqlite"
        log = SqliteLog(path)
        fill(log, shape, rows)
        bare(path, shape)  # the file's pages are in memory from here on, for both
        scaling: Scaling = "clip" if scaled else "none"
        pairs = [
            (ours(log, shape, Path(folder) / f"branch-{turn}", rows, scaling), bare(path, shape)) for turn in range(repeats)
        ]
        decodes = [decoded(log, shape) for _ in range(repeats)] if shape.endswith("Arrow") and not scaled else []
    arrow = shape.endswith("Arrow")
    parser = "pyarrow" if arrow else "orjson"
    line = {"bench": "loop", "unit": "rows/s", "peer_name": f"bare read + {parser} + NumPy matrix"}
    speeds = (rows / statistics.median(mine["seconds"] for mine, _ in pairs), rows / statistics.median(b for _, b in pairs))
    ratios = sorted(peer / mine["seconds"] for mine, peer in pairs)
    case = f"{shape}, with the scale" if scaled else shape
    yield line | {
        "case": case,
        "ours": round(speeds[0]),
        "peer": round(speeds[1]),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "goal": 0.5 if arrow else 0.8,
    }
    if decodes:
        mine, theirs = (rows / statistics.median(side) for side in zip(*decodes, strict=True))
        ratio = round(statistics.median(theirs_s / mine_s for mine_s, theirs_s in decodes), 3)
        told = {"peer_name": "pyarrow + NumPy matrix", "ours": round(mine), "peer": round(theirs)}
        yield line | {"case": f"{case}: decode alone"} | told | {"ratio": ratio, "goal": None}
    for part in ("journal", "checkpoints"):
        share = statistics.median(mine[part] for mine, _ in pairs)
        told = {"unit": "share of the worker's time", "ours": round(share, 4), "peer": None, "peer_name": None}
        yield line | {"case": f"{case}: {part}"} | told | {"ratio": None, "goal": None}


def main() -> None:
    """Print one JSON line a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=65536)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(PROCESSOR, action="store_true", help="rows a second of the processor's time, in all threads")
    arguments = parser.parse_args()
    use_threads(1)
    host = this_host(1)
    load = os.getloadavg()[0]
    print(json.dumps({"bench": "machine", "cores": os.cpu_count(), "blas": host.blas, "threads": 1, "load": load}))
    for shape, scaled in CASES:
        for line in compare(shape, scaled, arguments.rows, arguments.repeats):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
