"""A stream whose meaning turns over and back, with a learner that may not move: the memory answers for it, and steps back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from late_stream import driven

from millrace.services.config.config import build_pipeline
from millrace.services.decisions.status import status
from millrace.services.pipeline.instance import Instance
from millrace.streams.labels.served import Prediction

RIGHT, TURNED, BACK = 4000, 4000, 16_000  # rows
AT_ONCE = 64
DECODE = msgspec.json.Decoder(Prediction).decode


def instance_of(home: Path, more: dict[str, Any]) -> Instance:
    """A ridge of two numbers that forgets."""
    raw: dict[str, Any] = {
        "name": "turns",
        "fields": [{"name": "x", "size": 2}],
        "label": {"name": "up"},
        "learner": {"kind": "ridge", "solve_rows": 64, "decay": 0.998},
        "batch": {"rows": AT_ONCE},
        "labels": {},
        "worker": {"step_ms": 0},
    }
    return Instance(build_pipeline(raw | more), home / "turns")


def stream() -> tuple[np.ndarray, list[str]]:
    """Up with a chance that rises with the first number; then that falls; then as before: what a ridge can say."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1.0, 1.0, size=(RIGHT + TURNED + BACK, 2))
    turned = np.isin(np.arange(len(x)) // RIGHT, 1)
    chance = 0.5 + 0.4 * np.where(turned, -x[:, 0], x[:, 0])
    return x, np.where(rng.random(len(x)) < chance, "up", "down").tolist()


def played(home: Path, rows: int, more: dict[str, Any]) -> tuple[list[str], list[float]]:
    """What was answered to each row, and the strength that the status showed as each part of the stream ended."""
    instance, (x, labels), answers, strengths = instance_of(home, more), stream(), list[str](), list[float]()
    ends = {RIGHT, RIGHT + TURNED, rows}
    for records, _ in driven(instance, [x[:rows]], labels[:rows], 0, AT_ONCE):
        for prediction in (DECODE(record.value or b"") for record in records):
            scores = dict(zip(prediction.classes, prediction.scores, strict=True))
            answers.append(max(scores, key=lambda name: scores[name], default=""))
        if any(len(answers) - AT_ONCE < end <= len(answers) for end in ends):
            strengths.append(float(status(instance, "main").get("memory_strength", -1.0)))
    return answers, strengths


@pytest.mark.slow
@pytest.mark.parametrize("form", ["exact", "sketch"])
def test_a_memory_makes_up_for_a_learner_that_may_not_move_and_steps_back_when_it_is_right(form: str, tmp_path: Path) -> None:
    """Right of as many answers, within .02, as a learner that goes on learning; lambda is 0, then not, then 0 again."""
    rows = RIGHT + TURNED + BACK
    memory = {"form": form, "freeze_base_rows": RIGHT // 2}
    answers, strengths = played(tmp_path / "frozen", rows, {"memory": memory})
    live, _ = played(tmp_path / "live", RIGHT + TURNED, {})
    labels = np.array(stream()[1])
    late = slice(RIGHT + TURNED // 2, RIGHT + TURNED)
    with_memory, moving = (np.mean(np.array(given[late]) == labels[late]) for given in (answers, live))
    assert moving > 0.65 and with_memory > moving - 0.02
    assert strengths == [0.0, 0.9, 0.0]
