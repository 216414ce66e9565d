"""docs/design/journal.md, test 2, on SQLite: real processes, real kill -9, and a fresh process that folds what survived."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from doomed import Doomed, die_often
from pipelines import TIMEOUT_S

from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.instance import Instance
from millrace.streams.branch.branch import load_checkpoint
from millrace.streams.journal.entries import Step
from millrace.streams.journal.journal import Cursor, counted, summarise
from millrace.streams.records import Record, tp_name

pytestmark = pytest.mark.slow

CHILD = Path(__file__).parents[1] / "support" / "dying_worker.py"
D = 5
ROWS = 6000
PIPELINE = """
name = "kills"
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
checkpoint_rows = 500
version_rows = 2000
"""


def rows() -> tuple[np.ndarray, np.ndarray]:
    """Integer features, so that the Gram matrix is exact however it is summed; every row is one of a kind by its id."""
    x = np.random.default_rng(5).integers(-9, 10, (ROWS, D))
    x[:, 0] = np.arange(ROWS)
    return x, x[:, 1] % 4


@pytest.fixture
def pipeline(tmp_path):
    """A pipeline file in a folder of its own, which is its home too."""
    path = tmp_path / "kills.toml"
    path.write_text(PIPELINE)
    return path


def instance_of(pipeline: Path) -> Instance:
    """The pipeline, to look at."""
    loaded = load_pipeline(pipeline)
    return Instance(loaded, pipeline.parent / loaded.pipeline.name)


def records() -> list[Record]:
    """Every row as it lies in the log."""
    x, y = rows()
    values = [json.dumps({"x": a.tolist(), "y": int(b)}).encode() for a, b in zip(x, y, strict=True)]
    first_ms = time.time_ns() // 1_000_000 - ROWS  # a killed broker forgets producers of old records, and takes a retry twice
    return [Record(value, str(at).encode(), timestamp_ms=first_ms + at) for at, value in enumerate(values)]


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


def command(verb: str, pipeline: Path, *options: str) -> list[str]:
    """The command line of a fresh process."""
    home = ["--home", str(pipeline.parent), "--output", "json"]
    return [sys.executable, "-m", "millrace.services.cli", verb, str(pipeline), *home, *options]


def verify(pipeline: Path) -> subprocess.CompletedProcess:
    """`millrace verify` in a fresh process."""
    return subprocess.run(command("verify", pipeline), capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def what_was_learned(pipeline: Path) -> dict[str, object]:
    """Facts that hold if and only if every row was learned once, from the journal, the log and the newest version."""
    instance = instance_of(pipeline)
    backends = instance.backends("main")
    steps = [entry for entry in counted(backends.journal, "main", Cursor()) if isinstance(entry, Step)]
    ranges = [(start, stop) for step in steps for _, start, stop, _, _ in step.reads]
    read = [
        event.key for a, b in ranges for event in backends.source.read(tp_name(instance.loaded.pipeline.topic, 0), a, b).events
    ]
    state = load_checkpoint(backends.store, summarise(backends.journal, "main").marks[-1])
    x, _ = rows()
    batch_gram = np.concatenate([(x.T @ x)[at:, at] for at in range(D)]).astype(float)  # packed as LAPACK does
    return {
        "gap-free": [a for a, _ in ranges] == [0, *(b for _, b in ranges[:-1])],
        "ids": (len(read), hashlib.sha256(b",".join(read)).hexdigest()) == (ROWS, _ids_sha256()),
        "gram": float(np.abs(state["learner"]["gram"] - batch_gram).max()) <= 1e-10 * float(np.abs(batch_gram).max()),
        "rows": state["learner"]["rows"] == ROWS,
    }


def _ids_sha256() -> str:
    return hashlib.sha256(b",".join(str(at).encode() for at in range(ROWS))).hexdigest()


ALL_HOLDS = {"gap-free": True, "ids": True, "gram": True, "rows": True}


def test_twenty_deaths_between_phases_lose_nothing_and_learn_nothing_twice(pipeline):
    """Twenty seeded points between the phases of a step; a fresh process proves the journal afterwards, bit for bit."""
    append(pipeline)
    chance = random.Random(7)
    for _ in range(20):
        die_at_phase(pipeline, chance.randint(1, 45))
    die_at_phase(pipeline, 0)
    assert what_was_learned(pipeline) == ALL_HOLDS
    proof = verify(pipeline)
    assert proof.returncode == 0, proof.stderr
    assert json.loads(proof.stdout)["records"] == ROWS


def test_twenty_deaths_at_any_phase_lose_nothing_and_learn_nothing_twice(pipeline):
    """Five each in a start, after it, while rows are read and while a checkpoint is marked; rows keep coming all the while."""
    pipeline.write_text(PIPELINE.replace("checkpoint_rows = 500", "checkpoint_rows = 150"))
    took = die_often(doomed_on(pipeline), 20, ROWS, random.Random(11))
    die_at_phase(pipeline, 0)
    assert what_was_learned(pipeline) == ALL_HOLDS
    epochs = summarise(instance_of(pipeline).journal("main"), "main").end.epoch
    assert took == 15 and epochs > took, "each of them had the branch when it died, and then the last"
    proof = verify(pipeline)
    assert proof.returncode == 0, proof.stderr


def test_ten_deaths_while_versions_take_the_journal_over_lose_no_entry(pipeline):
    """Appends, segments and deletions are cut off anywhere: what is left of the journal and segments are all of it."""
    often = PIPELINE.replace("version_rows = 2000", "version_rows = 320\nkeep = 2\njournal_keep_entries = 2")
    pipeline.write_text(often.replace("checkpoint_rows = 500", "checkpoint_rows = 200") + "[versions]\nkeep = 2\n")
    append(pipeline)
    chance, firsts = random.Random(13), []
    instance = Instance(load_pipeline(pipeline), pipeline.parent / "kills")
    for _ in range(10):
        die_at_phase(pipeline, chance.randint(20, 75))
        firsts.append(instance.journal("main").first())
    die_at_phase(pipeline, 0)
    assert what_was_learned(pipeline) == ALL_HOLDS
    journal = instance.journal("main")
    assert firsts == sorted(firsts) and journal.first() > firsts[-1] > 0
    assert [offset for offset, _ in journal.read(0)] == list(range(len(list(journal.read(0)))))
    proof = verify(pipeline)
    assert proof.returncode == 0, proof.stderr
    assert (json.loads(proof.stdout)["records"], json.loads(proof.stdout)["base"]) == (ROWS, "fork")


def test_a_worker_that_forgets_its_waiting_rows_is_caught(pipeline):
    """The same facts do not hold for a broken twin, so they prove something."""
    append(pipeline)
    for phases in (111, 111, 129):
        die_at_phase(pipeline, phases, "lossy")
    start(pipeline, 0, "lossy").wait(timeout=TIMEOUT_S)
    assert what_was_learned(pipeline) != ALL_HOLDS
    assert verify(pipeline).returncode == 1
