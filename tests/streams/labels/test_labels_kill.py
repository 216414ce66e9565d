"""Late labels through real `kill -9` of `millrace run`: none is lost, none is learned twice, and `verify` proves it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from doomed import Doomed, die_often
from pipelines import TIMEOUT_S

from millrace.learners.analytic.exact import seen_from_zero
from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.instance import Instance
from millrace.streams.branch.branch import load_checkpoint
from millrace.streams.journal.journal import summarise
from millrace.streams.labels.served import LateLabel, Prediction, encode, encode_row
from millrace.streams.records import Record

pytestmark = pytest.mark.slow

ROWS = 1500
PIPELINE = """
name = "late"
fields = [{ name = "x", size = 2 }]
label = { name = "y", type = "integer" }
learner = { kind = "ridge", solve_rows = 100 }
labels = { horizon_ms = 600000, grace_ms = 300000, default = 2, memory_rows = 2000 }
batch = { rows = 50, wait_ms = 50 }
worker = { step_rows = 64, step_ms = 0, checkpoint_rows = 300 }
"""


def records() -> tuple[list[Record], Counter[str]]:
    """Every id predicted, some twice; labels in time, early, after the horizon, never, twice, in conflict, corrected; and what
    must come of them. A second below is ten of the stream's, so no idle moment of the worker's decides anything.
    """
    chance, timed, fates = random.Random(3), list[tuple[float, Prediction | LateLabel]](), Counter[str]()
    for at in range(ROWS):
        now_s, right, fate = at / 10, at % 2, at % 25
        asked = Prediction(f"r{at}", encode_row({"x": [at, at % 7]}), "main", 1, 2, ("0", "1"), (0.5, 0.5))
        again, times = chance.choice([0, 0, 1]), chance.choice([1, 2])
        timed += [(now_s + 2 * turn, asked) for turn in range(1 + again)]
        after_s = {20: -5.0, 21: -0.1, 22: None, 23: 70.0}.get(fate, chance.uniform(0.1, 10))
        if after_s is not None:
            timed += [(now_s + after_s + turn, LateLabel(f"r{at}", right)) for turn in range(times)]
        fates.update(repeated_predictions=again, defaulted=fate in (22, 23), joined=fate not in (22, 23))
        fates.update(late=times * (fate == 23), repeated=(times - 1) * (fate not in (22, 23)), conflicts=fate == 24)
        timed += [(now_s + 15, LateLabel(f"r{at}", 1 - right))] * (fate == 24)
        if fate == 1:
            timed.append((now_s + 20, LateLabel(f"r{at}", 1 - right, 1)))
            timed += [(now_s + 21, LateLabel(f"r{at}", right, 0)), (now_s + 21, LateLabel(f"n{at}", right))]
            fates.update(corrections=1, unmatched=1, repeated=1)
    timed.append((ROWS / 10 + 200, LateLabel("the last", 0)))
    start_ms = time.time_ns() // 1_000_000 - 3_600_000
    ordered = sorted(timed, key=lambda pair: pair[0])
    return [Record(encode(item), item.id.encode(), b"", start_ms + round(10_000 * at_s)) for at_s, item in ordered], fates


def test_labels_through_kill_nine_are_neither_lost_nor_learned_twice(tmp_path: Path):
    """Killed at eight phases while records keep coming; sums and counts are those of every row once."""
    pipeline = tmp_path / "late.toml"
    pipeline.write_text(PIPELINE)
    instance = Instance(load_pipeline(pipeline), tmp_path / "late")
    log, (sent, fates) = instance.log(), records()
    command = [sys.executable, "-c", "from millrace.services.cli import main; main()"]
    words = [str(pipeline), "--home", str(tmp_path), "--output", "json"]
    doomed = Doomed(instance, [*command, "run", *words, "--follow"], "late.served", sent)
    assert die_often(doomed, 8, len(sent), random.Random(5)) == 6 and doomed.epoch >= 6
    for verb in ("run", "verify"):
        done = subprocess.run([*command, verb, *words], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["records"] == len(sent)
    state = load_checkpoint(instance.store(), summarise(instance.journal("main"), "main").marks[-1])
    x = np.array([[at, at % 7] for at in range(ROWS)], dtype=float)
    gram = x.T @ x
    assert seen_from_zero(state["learner"])["gram"].tolist() == [gram[0, 0], gram[1, 0], gram[1, 1]]
    counts = state["join"]["counts"]
    assert {name: count for name, count in counts.items() if count} == {name: count for name, count in fates.items() if count}
    assert (counts["joined"] + counts["defaulted"], state["learner"]["rows"]) == (ROWS, ROWS)
    letters = {event.value for event in log.fetch("late.dead-letters:0", 0, None, 1 << 20)[0]}
    assert len(letters) == fates["conflicts"]
