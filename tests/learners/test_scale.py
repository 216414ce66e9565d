"""The scale of the first rows, against mean and deviation in extended precision: for softmax and for the networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from millrace.learners.linear.scale import Scale
from millrace.learners.protocol import Batch, Floats
from millrace.learners.table import LEARNERS

ROWS = 300


def far_rows(ratio: float) -> tuple[Floats, Floats, Floats]:
    """Rows whose means are so many deviations, and those means and deviations."""
    x = np.array([1.0, 1e-3, 1e4]) * (np.random.default_rng(0).normal(size=(ROWS, 3)) + ratio)
    long = x.astype(np.longdouble)
    return x, long.mean(axis=0), long.std(axis=0)


def missed(scale: tuple[Any, Any], mean: Any, deviation: Any) -> float:
    """How far mean and deviation lie from those, in deviations."""
    return float(max((np.abs(scale[0] - mean) / deviation).max(), np.abs(scale[1] / deviation - 1.0).max()))


@pytest.mark.parametrize("size", [1, 7, 300])
@pytest.mark.parametrize("ratio", [0.0, 1e6, 4e9])
def test_mean_and_deviation_of_rows_far_from_zero(ratio: float, size: int) -> None:
    """Within 1e-6 deviations, in any cut; a feature that deviates by less than a billionth of its mean is scaled, too."""
    x, mean, deviation = far_rows(ratio)
    scale = Scale(3, ROWS)
    for start in range(0, ROWS, size):
        scale.take(x[start : start + size])
    assert missed((scale.mean, scale.deviation), mean, deviation) <= 1e-6
    again = Scale(3, ROWS)
    again.load(scale.state())
    assert np.array_equal(again.mean, scale.mean) and np.array_equal(again.deviation, scale.deviation)


def test_a_feature_that_does_not_vary_is_left_as_it_is() -> None:
    """One that is the same in every row, and one that differs by its own rounding, deviate by 1."""
    scale = Scale(2, ROWS)
    for row in range(ROWS):
        scale.take(np.array([[0.1, 0.3 + np.spacing(0.3) * (row % 2)]]))
    assert scale.deviation.tolist() == [1.0, 1.0] and scale.mean[0] == 0.1


def test_the_networks_scale_of_rows_far_from_zero() -> None:
    """The same, of the rows that a network warms up with; learned far away, it answers as one that learned near zero."""
    pytest.importorskip("torch")
    x, mean, deviation = far_rows(1e9)
    names = np.where(x[:, 0] > mean[0].astype(float), "high", "low").astype(object)
    config = LEARNERS["er"].config(warm_up_rows=ROWS, hidden=(8,))
    far, near = (LEARNERS["er"].learner(config, 3, 0) for _ in range(2))
    centre = x[0].copy()
    for _ in range(5):
        far.learn_many(Batch(x, names))
        near.learn_many(Batch(x - centre, names))
    truth = far.state_dict().truth
    assert missed((truth["mean"], truth["deviation"]), mean, deviation) <= 1e-6
    assert np.abs(far.predict_many(Batch(x)) - near.predict_many(Batch(x - centre))).max() <= 1e-4
