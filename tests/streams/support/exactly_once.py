"""A pipeline whose state tells whether each row was learned once, workers of it that are killed, and that proof.

Features are integers, so the Gram matrix is exact however it is summed; the first is the row's number, so rows differ.
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from doomed import Doomed
from pipelines import TIMEOUT_S

from millrace.learners.analytic.exact import seen_from_zero
from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.instance import Instance
from millrace.services.processes import COMMAND
from millrace.streams.branch.branch import Backends, load_checkpoint
from millrace.streams.journal.entries import Step
from millrace.streams.journal.journal import Cursor, counted, summarise
from millrace.streams.records import Record
from millrace.streams.source import Source

CHILD = Path(__file__).with_name("dying_worker.py")
D = 5
ROWS = 6000  # of the pipeline ``kills``
PIPELINE = """
name = "{name}"
[label]
name = "y"
type = "integer"
[[fields]]
name = "x"
size = 5
[learner]
kind = "ridge"
solve_rows = 200
[batch]
rows = 100
wait_ms = 50
[worker]
step_rows = 64
step_ms = 0
checkpoint_rows = {checkpoint_rows}
version_rows = {version_rows}
"""
KILLS = PIPELINE.format(name="kills", checkpoint_rows=500, version_rows=2000)
ALL_HOLDS = {"gap-free": True, "ids": True, "gram": True, "rows": True}
Range = tuple[str, int, int]  # a partition, its first offset, and the offset after the last

# --- rows, and what is learned of them


def row(number: int) -> tuple[list[int], int]:
    """Features and label of the row with that number."""
    x = [number, *np.random.default_rng(number).integers(-9, 10, D - 1).tolist()]
    return x, x[1] % 4


def record(number: int, first_ms: int) -> Record:
    """The row as it lies in the log, so many milliseconds after the first."""
    x, y = row(number)
    return Record(json.dumps({"x": x, "y": y}).encode(), str(number).encode(), timestamp_ms=first_ms + number)


def gram_error(learner: Mapping[str, Any], numbers: Sequence[int]) -> float:
    """How far a learner's Gram matrix is from that of these rows, relative to its largest entry."""
    x = np.array([row(number)[0] for number in numbers], dtype=np.int64).reshape(-1, D)
    gram = np.concatenate([(x.T @ x)[at:, at] for at in range(D)]).astype(float)  # packed as LAPACK does
    return float(np.abs(seen_from_zero(learner)["gram"] - gram).max()) / max(1.0, float(np.abs(gram).max()))


def ranges_read(backends: Backends) -> list[Range]:
    """What the steps of branch main that count have read, in their order."""
    steps = [entry for entry in counted(backends.journal, "main", Cursor()) if isinstance(entry, Step)]
    return [(tp, start, stop) for step in steps for tp, start, stop, _, _ in step.reads]


def keys_in(source: Source, ranges: Iterable[Range]) -> list[bytes | None]:
    """Of the records there, in order."""
    return [event.key for tp, start, stop in ranges for event in source.read(tp, start, stop).events]


# --- the pipeline ``kills``, whose file stands in its home


def instance_of(pipeline: Path) -> Instance:
    """The pipeline, to look at."""
    loaded = load_pipeline(pipeline)
    return Instance(loaded, pipeline.parent / loaded.pipeline.name)


def records() -> list[Record]:
    """Every row as it lies in the log."""
    first_ms = time.time_ns() // 1_000_000 - ROWS  # a killed broker forgets producers of old records, and takes a retry twice
    return [record(number, first_ms) for number in range(ROWS)]


def append(pipeline: Path) -> None:
    """Every row into the log."""
    instance = instance_of(pipeline)
    instance.log().append(instance.loaded.pipeline.topic, records())


def doomed_on(pipeline: Path) -> Doomed:
    """Workers that will be killed, and their rows."""
    instance = instance_of(pipeline)
    return Doomed(instance, command("run", pipeline, "--follow"), instance.loaded.pipeline.topic, records())


def start(pipeline: Path, phases: int, *how: str) -> subprocess.Popen:
    """A worker in a process of its own."""
    return subprocess.Popen([sys.executable, CHILD, pipeline, pipeline.parent, str(phases), *how])


def die_at_phase(pipeline: Path, phases: int, *how: str) -> None:
    """A worker that kills itself after so many phases, or ends before."""
    assert start(pipeline, phases, *how).wait(timeout=TIMEOUT_S) in (0, -signal.SIGKILL)


def command(verb: str, pipeline: Path, *options: str, home: Path | None = None) -> list[str]:
    """The command line of a fresh process; its home is the folder of the pipeline file where no other is named."""
    return [*COMMAND, verb, str(pipeline), "--home", str(home or pipeline.parent), "--output", "json", *options]


def verify(pipeline: Path) -> subprocess.CompletedProcess:
    """`millrace verify` in a fresh process."""
    return subprocess.run(command("verify", pipeline), capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def what_was_learned(pipeline: Path) -> dict[str, object]:
    """Facts that hold if and only if every row was learned once, from the journal, the log and the newest version."""
    backends = instance_of(pipeline).backends("main")
    ranges = ranges_read(backends)
    ids = keys_in(backends.source, ranges)
    learner = load_checkpoint(backends.store, summarise(backends.journal, "main").marks[-1])["learner"]
    return {
        "gap-free": [begin for _, begin, _ in ranges] == [0, *(end for _, _, end in ranges[:-1])],
        "ids": (len(ids), hashlib.sha256(b",".join(ids)).hexdigest()) == (ROWS, _ids_sha256()),
        "gram": gram_error(learner, range(ROWS)) <= 1e-10,
        "rows": learner["rows"] == ROWS,
    }


def _ids_sha256() -> str:
    return hashlib.sha256(b",".join(str(number).encode() for number in range(ROWS))).hexdigest()
