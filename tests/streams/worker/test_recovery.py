"""What follows an alarm pays: rows from a flip of every label until answers are right again, beside a learner that goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
from branches import Rooms, run_to_end
from flipped import STEPS, flipped, watching

from millrace.learners.linear.softmax import Softmax, SoftmaxConfig
from millrace.streams.branch.branch import FoldSpec

ROWS = 2400
FLIP = 1000
RIGHT = 0.9  # of the rows of a step of 50
SLOW = SoftmaxConfig(rate=0.02, step_rows=10, warm_up_rows=100)


def pipeline(kind: str, act: str) -> FoldSpec:
    """The small pipeline with a ridge, or with a softmax regression at a low rate."""
    how = watching(act, relearn_rows=500, rate_factor=20.0, rate_rows=200)
    make = how.make_learner if kind == "ridge" else lambda: Softmax(SLOW, how.schema.width, 0)
    return replace(how, learner=kind, make_learner=make)


@cache
def rows_to_recover(kind: str, act: str, seed: int) -> int:
    """From the flip to the end of the first step with so many right answers; all that there are where none has."""
    storage = Rooms(flipped(ROWS, FLIP, seed), read_rows=50)
    run_to_end(storage.worker(config=STEPS, how=pipeline(kind, act)), ROWS)
    outputs = [json.loads(record.value) for record in storage.producer.records["small.scores"]]
    for before, after in pairwise(outputs):
        rows = after["scores"]["rows"] - before["scores"]["rows"]
        right = after["scores"]["correct"] - before["scores"]["correct"]
        if before["counts"]["learned"] >= FLIP and rows and right / rows >= RIGHT:
            return int(after["counts"]["learned"]) - FLIP
    return ROWS - FLIP


@pytest.mark.parametrize("seed", range(5))
def test_relearning_recovers_in_a_fraction_of_the_rows(seed: int) -> None:
    """Seen: 95 rows beside 1,095 to 1,400 of a ridge and 595 to 795 of a softmax regression; a discount takes 245 to 295."""
    for kind in ("ridge", "softmax"):
        assert rows_to_recover(kind, "relearn", seed) <= rows_to_recover(kind, "version", seed) / 4
    assert rows_to_recover("ridge", "relearn", seed) < rows_to_recover("ridge", "discount", seed)


@pytest.mark.parametrize("seed", range(5))
def test_a_raised_rate_recovers_in_a_fraction_of_the_rows(seed: int) -> None:
    """Seen: 145 to 195 rows beside 595 to 795."""
    assert rows_to_recover("softmax", "raise-rate", seed) <= rows_to_recover("softmax", "version", seed) / 2
