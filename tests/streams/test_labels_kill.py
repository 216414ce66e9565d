"""Late labels through real `kill -9` of `millrace run`: none is lost, none is learned twice, and `verify` proves it."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from millrace.services.config import load_pipeline
from millrace.services.instance import Instance
from millrace.streams.branch import load_checkpoint
from millrace.streams.journal import summarise
from millrace.streams.records import Record
from millrace.streams.served import LateLabel, Prediction, encode, encode_row

pytestmark = pytest.mark.slow

ROWS = 1500
PIPELINE = """
name = "late"
fields = [{ name = "x", size = 2 }]
label = { name = "y", type = "integer" }
learner = { kind = "ridge", solve_rows = 100 }
labels = { memory_rows = 2000 }
batch = { rows = 50, wait_ms = 50 }
worker = { step_rows = 64, step_ms = 0, checkpoint_rows = 300 }
"""


def records() -> list[Record]:
    """Every id predicted, some twice; every label, before or after, once or twice; one in fifty contradicts itself."""
    chance, found = random.Random(3), []
    for at in range(ROWS):
        asked = Prediction(f"r{at}", encode_row({"x": [at, at % 7]}), "main", 1, 2, ("0", "1"), (0.5, 0.5))
        for one in [asked] * chance.choice([1, 1, 2]) + [LateLabel(f"r{at}", at % 2)] * chance.choice([1, 2]):
            found.append((at + chance.uniform(0, 100), one))
        if at % 50 == 0:
            found.append((at + 200, LateLabel(f"r{at}", 1 - at % 2)))
    ordered = [one for _, one in sorted(found, key=lambda pair: pair[0])]
    return [Record(encode(one), one.id.encode()) for one in ordered]


def test_labels_through_kill_nine_are_neither_lost_nor_learned_twice(tmp_path: Path):
    """Killed at eight seeded moments while records keep coming; sums and counts are those of every row once."""
    pipeline = tmp_path / "late.toml"
    pipeline.write_text(PIPELINE)
    instance = Instance(load_pipeline(pipeline), tmp_path / "late")
    log, sent = instance.log(), records()

    def keep_sending() -> None:
        for at in range(0, len(sent), 50):
            log.append("late.served", sent[at : at + 50])
            time.sleep(0.08)

    command = [sys.executable, "-c", "from millrace.services.cli import main; main()"]
    words = [pipeline, "--home", tmp_path, "--output", "json"]
    producer = threading.Thread(target=keep_sending)
    producer.start()
    chance = random.Random(5)
    for _ in range(8):
        child = subprocess.Popen([*command, "run", *words, "--follow"], stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.7, 1.6))
        child.send_signal(signal.SIGKILL)
        assert child.wait(timeout=60) == -signal.SIGKILL
    producer.join()
    for verb in ("run", "verify"):
        done = subprocess.run([*command, verb, *words], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["records"] == len(sent)
    state = load_checkpoint(instance.store(), summarise(instance.journal("main"), "main").marks[-1])
    x = np.array([[at, at % 7] for at in range(ROWS)], dtype=float)
    gram = x.T @ x
    assert state["learner"]["gram"].tolist() == [gram[0, 0], gram[1, 0], gram[1, 1]]
    counts = state["join"]["counts"]
    assert (counts["joined"], counts["conflicts"], state["learner"]["rows"]) == (ROWS, ROWS // 50, ROWS)
    assert counts["joined"] + counts["repeated"] + counts["conflicts"] + counts["repeated_predictions"] == len(sent) - ROWS
