"""The ridge at its edges: before the first lesson, without rows or weight, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from millrace.learners.analytic.normal_equations import Sums, solve
from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.learners.errors import BadInputError, LearnerError
from millrace.learners.protocol import Batch, State

NAMES = np.array(["ant", "bee"], dtype=object)


def test_before_the_first_lesson_answers_are_empty_or_zero() -> None:
    """No class seen: no column. Regression: one column of zeros until the number of outputs is known."""
    rows = Batch(np.ones((3, 2)))
    assert Ridge(RidgeConfig(), 2, seed=0).predict_many(rows).shape == (3, 0)
    assert Ridge(RidgeConfig(task="regress"), 2, seed=0).predict_many(rows).tolist() == [[0.0]] * 3


def test_rows_of_no_weight_are_counted_and_change_no_answer() -> None:
    """Even when they are the first ones, and there is nothing yet to divide by."""
    x = np.random.default_rng(19).normal(size=(6, 2))
    ridge = Ridge(RidgeConfig(solve_rows=1), 2, seed=0)
    ridge.learn_many(Batch(x, NAMES[[0, 1, 0, 1, 0, 1]], weight=np.zeros(6)))
    assert ridge.rows == 6 and ridge.predict_many(Batch(x)).tolist() == [[0.0, 0.0]] * 6
    ridge.learn_many(Batch(x, NAMES[[0, 1, 0, 1, 0, 1]]))
    before = ridge.predict_many(Batch(x))
    ridge.learn_many(Batch(x + 5.0, NAMES[[0, 0, 0, 0, 0, 0]], weight=np.zeros(6)))
    assert np.array_equal(ridge.predict_many(Batch(x)), before)


def test_an_empty_batch_does_nothing() -> None:
    """No rows, no solve, no class."""
    ridge = Ridge(RidgeConfig(), 2, seed=0)
    served = ridge.servable()
    ridge.learn_many(Batch(np.zeros((0, 2)), np.zeros(0, dtype=object)))
    assert ridge.rows == 0 and ridge.servable() is served


GOOD = Batch(np.ones((2, 3)), np.array(["a", "b"], dtype=object))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (Batch(np.ones((2, 4)), GOOD.y), r"column x: expected numbers \(n, 3\), got float64 \(2, 4\)"),
        (Batch(np.ones(3), GOOD.y), r"column x: expected numbers \(n, 3\)"),
        (Batch(np.array([["1", "2", "3"]] * 2), GOOD.y), "column x: expected numbers"),
        (Batch(np.array([[0, 0, 0], [0, np.inf, 0]]), GOOD.y), r"column x: .* got inf at \[1, 1\]"),
        (Batch(np.array([[0, 0, 1e200], [0, 0, 0]]), GOOD.y), r"column x: .* got 1e\+200 at \[0, 2\]"),
        (Batch(np.ones((2, 3))), "column y: expected 2 labels, got None"),
        (Batch(np.ones((2, 3)), np.array(["a"], dtype=object)), r"column y: expected 2 labels, got \(1,\)"),
        (Batch(np.ones((2, 3)), np.array(["a", None], dtype=object)), r"column y: expected class names .* \[None\]"),
        (Batch(np.ones((2, 3)), np.array([1.0, 2.0])), "column y: expected class names"),
        (Batch(np.ones((2, 3)), GOOD.y, weight=np.array([1.0, -1.0])), "column weight: .* least -1"),
        (Batch(np.ones((2, 3)), GOOD.y, weight=np.ones(3)), "column weight: expected 2 numbers"),
        (Batch(np.ones((2, 3)), GOOD.y, weight=np.array([1.0, np.nan])), "column weight: .* got nan"),
    ],
)
def test_bad_input_is_named_by_column_with_what_was_expected(batch: Batch, message: str) -> None:
    """One sentence that says where to look, and nothing learned."""
    ridge = Ridge(RidgeConfig(), 3, seed=0)
    with pytest.raises(BadInputError, match=message):
        ridge.learn_many(batch)
    assert ridge.rows == 0 and ridge.servable().classes == ()


def test_regression_refuses_another_number_of_outputs() -> None:
    """Two outputs once, two outputs ever; no output at all is none to learn."""
    ridge = Ridge(RidgeConfig(task="regress"), 3, seed=0)
    with pytest.raises(BadInputError, match="column y"):
        ridge.learn_many(Batch(np.ones((2, 3)), np.ones((2, 0))))
    ridge.learn_many(Batch(np.ones((2, 3)), np.ones((2, 2))))
    for y in (np.ones(2), np.ones((2, 3)), np.array([[1.0, math.nan]] * 2)):
        with pytest.raises(BadInputError, match="column y"):
            ridge.learn_many(Batch(np.ones((2, 3)), y))
    assert ridge.rows == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("task", "rank"),
        ("gamma", 0.0),
        ("gamma", math.nan),
        ("solve_rows", 0),
        ("decay", 0.0),
        ("decay", 1.1),
        ("expand", -1),
    ],
)
def test_a_config_out_of_range_is_refused_by_key_and_value(key: str, value: Any) -> None:
    """With what is allowed in the same sentence."""
    with pytest.raises(ValueError, match=rf"{key} = {value!r}: must be"):
        RidgeConfig(**{key: value})


def test_a_state_of_another_shape_or_learner_is_refused_naming_both() -> None:
    """A wider ridge, one of another task, and something that is no ridge."""
    state = Ridge(RidgeConfig(), 3, seed=0).state_dict()
    for ridge in (
        Ridge(RidgeConfig(), 4, 0),
        Ridge(RidgeConfig(task="regress"), 3, 0),
        Ridge(RidgeConfig(expand=3), 3, 0),
    ):
        with pytest.raises(LearnerError, match=r"'d': 3.* and this learner is .*'d': "):
            ridge.load_state_dict(state)
    with pytest.raises(LearnerError, match="'kind': None"):
        Ridge(RidgeConfig(), 3, 0).load_state_dict(State({"means": np.ones(3)}))


def test_sums_that_have_overflowed_stop_the_learner() -> None:
    """A solution that is not finite is never served."""
    sums = Sums.empty(2)
    sums.grow(1)
    sums.add(np.ones((3, 2)), np.ones((3, 1)), None, 1.0)
    sums.gram[0, 0] = np.nan
    with pytest.raises(LearnerError, match="not finite"):
        solve(sums, 1.0, True, True)


def test_the_state_is_the_truth_in_packed_form() -> None:
    """G by its lower triangle (bit for bit for whole numbers), Q and the sums, all of every row, as seen from the first."""
    x = np.array([[1.0, 2.0], [3.0, -1.0], [0.0, 5.0]])
    ridge = Ridge(RidgeConfig(), 2, seed=0)
    ridge.learn_many(Batch(x, NAMES[[0, 1, 0]]))
    truth, away = ridge.state_dict().truth, x - x[0]
    gram = away.T @ away
    assert truth["centre"].tolist() == x[0].tolist() and truth["centre_targets"].tolist() == [0.0, 0.0]
    assert truth["gram"].tolist() == [gram[0, 0], gram[1, 0], gram[1, 1]]
    assert truth["cross"].tolist() == [[-1.0, 3.0], [2.0, -3.0]]
    assert (truth["features"].tolist(), truth["targets"].tolist(), truth["weight"]) == ([1.0, 0.0], [2.0, 1.0], 3.0)
    assert (truth["squares"].tolist(), truth["rows"], truth["classes"]) == ([2.0, 1.0], 3, ["ant", "bee"])


def test_a_restored_ridge_knows_how_far_it_had_got() -> None:
    """Rows learned and solved, how far to believe the last solution, and what its seed drew are part of the state."""
    rng, config = np.random.default_rng(20), RidgeConfig(solve_rows=7, expand=5)
    first, second = Ridge(config, 2, seed=0), Ridge(config, 2, seed=1)
    first.learn_many(Batch(rng.normal(size=(10, 2)), NAMES[rng.integers(0, 2, 10)]))
    first.learn_many(Batch(rng.normal(size=(5, 2)), NAMES[rng.integers(0, 2, 5)]))
    first.state_dict().truth["counts"][:] = 0  # a copy, so of no consequence
    second.load_state_dict(first.state_dict())
    assert second.state_dict().truth["counts"].sum() == 15
    assert (second.rows, second.solved_rows) == (first.rows, first.solved_rows) == (15, 14)
    assert second.residual == first.residual > 0.0
    rows = Batch(rng.normal(size=(6, 2)), NAMES[[0, 1] * 3])
    first.learn_many(rows)
    second.learn_many(rows)
    assert second.solved_rows == 21 and np.array_equal(first.predict_many(rows), second.predict_many(rows))
