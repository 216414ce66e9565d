"""Softmax regression: its gradient against differences, its steps by hand, what it learns against the optimum, wild input."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from millrace.learners.errors import BadInputError, LearnerError
from millrace.learners.linear.scale import Scale
from millrace.learners.linear.servable import softmax
from millrace.learners.linear.softmax import Softmax, SoftmaxConfig, gradient
from millrace.learners.protocol import Batch, Floats

NAMES = np.array(["a", "b", "c"], dtype=object)


def rows(count: int, seed: int = 0, d: int = 3) -> Batch:
    """Rows of three classes that overlap, with weights."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, count)
    x = rng.normal(size=(count, d)) + 1.5 * np.eye(3, d)[label]
    return Batch(x, NAMES[label], weight=rng.uniform(0.5, 2.0, count))


def model(d: int = 3, **config: object) -> Softmax:
    """An untaught one."""
    return Softmax(SoftmaxConfig(**config), d, seed=0)  # type: ignore[arg-type]


def loss(weights: Floats, intercept: Floats, z: Floats, columns: np.ndarray, weight: Floats) -> float:
    """Mean cross-entropy (4.108)."""
    return float(-(weight * np.log(softmax(z @ weights + intercept)[np.arange(len(z)), columns])).mean())


@pytest.mark.parametrize("seed", range(5))
def test_the_gradient_is_that_of_the_cross_entropy(seed: int) -> None:
    """To 1e-8 of what central differences give, for W and for b, with weights."""
    rng = np.random.default_rng(seed)
    weights, intercept, z = rng.normal(size=(3, 4)), rng.normal(size=4), rng.normal(size=(11, 3))
    columns, weight = rng.integers(0, 4, 11), rng.uniform(0.0, 3.0, 11)
    of_weights, of_intercept = gradient((weights, intercept), z, columns, weight)
    h = 1e-5
    for array, slope in ((weights, of_weights), (intercept, of_intercept)):
        for place in np.ndindex(array.shape):
            ends = []
            for sign in (h, -h):
                array[place] += sign
                ends.append(loss(weights, intercept, z, columns, weight))
                array[place] -= sign
            assert abs((ends[0] - ends[1]) / (2 * h) - slope[place]) < 1e-8


def test_one_step_by_hand() -> None:
    """Two rows at -1 and 3, so z is -1 and 1; every p is a half, and the gradient too; weights and the penalty count."""
    learner = model(d=1, rate=0.4, step_rows=2, l2=0.5)
    learner.learn_many(Batch(np.array([[-1.0], [3.0]]), NAMES[:2]))
    truth = learner.state_dict().truth
    w = 0.4 * 0.5 / (1 + 0.4 * 0.5)  # W is 0 - 0.4 * [[-0.5, 0.5]], shrunk
    assert np.allclose(truth["weights"], [[-w, w]], rtol=0.0, atol=1e-15)
    assert np.allclose(truth["intercept"], [0.0, 0.0], rtol=0.0, atol=1e-15)
    assert np.allclose(learner.predict_many(Batch(np.array([[1.0]]))), [[0.5, 0.5]], rtol=0.0, atol=1e-15)  # x = 1 is z = 0
    share = 1 / (1 + np.exp(-2 * w))
    assert np.allclose(learner.predict_many(Batch(np.array([[3.0]]))), [[1 - share, share]], rtol=0.0, atol=1e-15)
    heavy = model(d=1, rate=0.4, step_rows=2)
    heavy.learn_many(Batch(np.array([[-1.0], [3.0]]), NAMES[:2], weight=np.array([1.0, 3.0])))
    assert np.allclose(heavy.state_dict().truth["intercept"], [-0.2, 0.2], rtol=0.0, atol=1e-15)  # 0.4 * (3 - 1) / 2 / 2


def test_a_raised_step_is_as_many_times_as_large_and_one_in_part_raised_as_much_as_its_rows_say() -> None:
    """All of it, penalty included; half of it; then none."""

    def moved(factor: float, raised: int, l2: float = 0.0) -> Floats:
        learner = model(rate=0.01, step_rows=4, l2=l2)
        learner.learn_many(rows(400))
        before = learner.state_dict().truth["weights"]
        learner.raise_rate(factor, raised)
        learner.learn_many(rows(4, seed=1))
        return np.asarray(learner.state_dict().truth["weights"] - before)

    plain = moved(1.0, 9)
    assert np.abs(moved(5.0, 9) - 5 * plain).max() < 1e-14
    shrunk = model(rate=0.05, step_rows=4, l2=0.3)
    raised = model(rate=0.01, step_rows=4, l2=0.3)
    raised.load_state_dict(shrunk.state_dict())
    raised.raise_rate(5.0, 100)
    for learner in (shrunk, raised):
        learner.learn_many(rows(20))
    assert np.abs(shrunk.state_dict().truth["weights"] - raised.state_dict().truth["weights"]).max() < 1e-14
    per_row = model(rate=0.01, step_rows=4)
    per_row.learn_many(rows(400))
    before, last = per_row.state_dict().truth["weights"], rows(4, seed=1)
    per_row.learn_many(Batch(last.x, last.y, weight=last.weight * [5.0, 5.0, 1.0, 1.0]))
    assert np.abs(moved(5.0, 2) - (per_row.state_dict().truth["weights"] - before)).max() < 1e-15
    left = model(step_rows=4)
    left.raise_rate(5.0, 6)
    left.learn_many(rows(4))
    assert left.state_dict().truth["raised_rows"] == 2


@given(cuts=st.lists(st.integers(0, 150), max_size=8), step_rows=st.integers(1, 40), warm_up_rows=st.integers(1, 200))
def test_rows_in_any_pieces_give_the_same_bits(cuts: list[int], step_rows: int, warm_up_rows: int) -> None:
    """Steps are cut by rows, and what does not fill one waits in the state."""
    whole, pieces = (model(step_rows=step_rows, warm_up_rows=warm_up_rows) for _ in range(2))
    lesson = rows(150)
    whole.learn_many(lesson)
    for start, stop in pairwise([0, *sorted(cuts), 150]):
        again = model(step_rows=step_rows, warm_up_rows=warm_up_rows)
        again.load_state_dict(pieces.state_dict())
        again.learn_many(lesson.rows(start, stop))
        pieces = again
    for name, value in whole.state_dict().truth.items():
        assert np.array_equal(value, pieces.state_dict().truth[name]), name


def test_many_steps_come_to_the_optimum() -> None:
    """With a penalty the optimum is one; scipy finds the same one, from the same scaled rows."""
    lesson = rows(60)
    learner = model(rate=0.5, step_rows=60, l2=0.05, warm_up_rows=60)
    for _ in range(4000):
        learner.learn_many(lesson)
    truth = learner.state_dict().truth
    deviation = np.sqrt(truth["squares"] / truth["scaled_rows"])
    z, columns = (
        (lesson.x - truth["first"] - truth["offset"]) / deviation,
        np.array([truth["classes"].index(name) for name in lesson.y]),
    )

    def penalised(flat: Floats) -> float:
        weights, intercept = flat[:9].reshape(3, 3), flat[9:]
        return loss(weights, intercept, z, columns, lesson.weight) + 0.025 * float((weights**2).sum())

    best = minimize(penalised, np.zeros(12), method="BFGS", options={"gtol": 1e-9})
    assert penalised(np.append(truth["weights"].ravel(), truth["intercept"])) < best.fun + 1e-9
    assert np.abs(truth["weights"].ravel() - best.x[:9]).max() < 1e-4


def test_the_scale_is_that_of_the_first_rows_and_then_frozen() -> None:
    """To 1e-12 of NumPy's mean and deviation, also far from 0; a feature that did not vary is not scaled."""
    rng = np.random.default_rng(2)
    x = np.column_stack([rng.normal(1e6, 2.0, 300), rng.normal(-3.0, 1e-5, 300), np.full(300, 7.0)])
    scale = Scale(3, 100)
    for start in range(0, 300, 8):
        scale.take(x[start : start + 8])
    first = x[:104]
    assert np.allclose(scale.mean, first.mean(axis=0), rtol=1e-12, atol=0.0)
    assert np.allclose(scale.deviation[:2], first.std(axis=0)[:2], rtol=1e-9, atol=0.0) and scale.deviation[2] == 1.0


def test_the_answers_do_not_hang_on_the_unit_of_a_feature() -> None:
    """A feature in millimetres, and one counted from elsewhere, lead to the same probabilities."""
    lesson, asked = rows(500), rows(50, seed=1).x
    plain, other = model(), model()
    plain.learn_many(lesson)
    other.learn_many(Batch(lesson.x * [1000.0, 1.0, 0.01] + [0.0, 50.0, 0.0], lesson.y, weight=lesson.weight))
    answers = other.predict_many(Batch(asked * [1000.0, 1.0, 0.01] + [0.0, 50.0, 0.0]))
    assert np.abs(answers - plain.predict_many(Batch(asked))).max() < 1e-9
    assert np.allclose(answers.sum(axis=1), 1.0, rtol=0.0, atol=1e-12)


def test_wild_rows_harm_little_and_no_number_overflows() -> None:
    """One row a million deviations off, and numbers as large as are taken at all, leave the others' answers right."""
    lesson, asked = rows(3000), rows(500, seed=1)
    calm, shaken = model(), model()
    for learner in (calm, shaken):
        learner.learn_many(lesson)
    shaken.learn_many(Batch(np.full((32, 3), 1e100), np.array(["a"] * 32, dtype=object), weight=np.ones(32)))
    shaken.learn_many(rows(64, seed=2))
    assert (calm.predict_many(asked).argmax(axis=1) == shaken.predict_many(asked).argmax(axis=1)).mean() > 0.7
    early = model()
    early.learn_many(Batch(np.vstack([np.full((31, 3), 1e100), np.zeros((1, 3))]), np.array(["a", "b"] * 16, dtype=object)))
    early.learn_many(lesson)
    assert np.isfinite(early.predict_many(Batch(np.full((2, 3), -1e100)))).all()


def test_a_class_may_come_late_and_one_alone_is_answered_with_certainty() -> None:
    """A column is added with weights of 0; before the first step there is none."""
    learner = model(step_rows=4)
    learner.learn_many(rows(3))
    assert learner.servable().classes == () and learner.predict_many(rows(2)).shape == (2, 0)
    learner = model(step_rows=4)
    learner.learn_many(Batch(np.ones((4, 3)), np.array(["z"] * 4, dtype=object)))
    assert learner.predict_many(rows(2)).tolist() == [[1.0], [1.0]]
    learner.learn_many(rows(400))
    assert learner.servable().classes[0] == "z" and set(learner.servable().classes) == {"z", "a", "b", "c"}
    answers = np.array(learner.servable().classes, dtype=object)[learner.predict_many(rows(400)).argmax(axis=1)]
    assert (answers == rows(400).y).mean() > 0.6


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"task": "regress"}, "task = 'regress': must be \"classify\""),
        ({"rate": 0.0}, "rate = 0.0: must be a finite number above 0"),
        ({"rate": float("inf")}, "rate = inf"),
        ({"step_rows": 0}, "step_rows = 0: must be a whole number from 1"),
        ({"l2": -0.1}, "l2 = -0.1: must be a finite number from 0"),
        ({"warm_up_rows": 0}, "warm_up_rows = 0"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(config: dict[str, object], says: str) -> None:
    """By key, value and what is allowed."""
    with pytest.raises(ValueError, match="must be") as refused:
        model(**config)
    assert says in str(refused.value)


def test_rows_that_do_not_fit_are_refused_by_column() -> None:
    """And nothing of them is learned, nor waits."""
    learner, good = model(step_rows=4), rows(6)
    for bad, says in (
        (Batch(good.x[:, :2], good.y), r"column x: expected numbers \(n, 3\)"),
        (Batch(good.x, None), "column y: expected 6 class names, got None"),
        (Batch(good.x, np.arange(6.0)), "column y: expected 6 class names, got float64"),
        (Batch(good.x, good.y[:5]), "column y: expected 6 class names"),
        (Batch(good.x, good.y, weight=-np.ones(6)), "column weight: expected 6 numbers >= 0"),
        (Batch(good.x, good.y, weight=np.ones(5)), "column weight: expected 6 numbers >= 0, got 5"),
    ):
        with pytest.raises(BadInputError, match=says):
            learner.learn_many(bad)
    assert learner.state_dict().truth["waiting_x"].shape == (0, 3)
    with pytest.raises(LearnerError, match="this state is of"):
        model(d=4).load_state_dict(learner.state_dict())
