"""Features and targets far from zero: every learner of sums against the batch formulas on rows that were centred first."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from centred import BATCH, miss, regression
from family import NAMES, ONCE, imbalanced, made
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.learners.analytic.centre import LONGEST, next_look
from millrace.learners.analytic.exact import forget, merge, relabel, seen_from_zero
from millrace.learners.analytic.ridge import Ridge
from millrace.learners.linear.servable import LinearServable, to_onnx
from millrace.learners.protocol import Array, Batch, Floats

D = 4
UNITS = np.array([1.0, 1e-3, 1e4, 60.0])  # deviations of the features


def fading(rows: int, decay: float) -> Floats:
    """What each row weighs when all are learned, (n,)."""
    faded: Floats = np.power(decay, np.arange(rows - 1, -1, -1, dtype=np.float64))
    return faded


def learned(learner: Ridge, batch: Batch, size: int = 37) -> Ridge:
    """``learner`` after a batch in parts of so many rows, solved."""
    for start in range(0, len(batch), size):
        learner.learn_many(batch.rows(start, min(start + size, len(batch))))
    learner.solve_now()
    return learner


def numbers(rows: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Rows in deviations, and targets that follow from them and a little noise."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(rows, D))
    return z, (z @ [1.0, -2.0, 0.5, 0.1] + 0.1 * rng.normal(size=rows))[:, None]


def wrong(learner: Ridge, batch: Batch, weight: Floats, asked: Floats) -> float:
    """How far values lie from those of the batch regression, relative to how far those lie from their mean."""
    assert batch.y is not None
    w, rows, mean = regression(batch.x, batch.y, weight)
    return miss(learner.predict_many(Batch(asked)) - mean, rows.scaled(asked) @ w)


def regress(**config: Any) -> Ridge:
    """An untaught ridge of numbers that solves when it is asked."""
    return made("ridge", D, task="regress", solve_rows=ONCE, **config)


def far_classes(kind: str, ratio: float, revision: int, decay: float = 1.0) -> float:
    """How far scores of a kind lie from the batch formula, with means of so many deviations, and rows that weigh."""
    x, y = imbalanced(1, d=D)
    x, rng = UNITS * (x + ratio * np.array([1.0, -1.0, 1.0, 0.3])), np.random.default_rng(2)
    weight = rng.uniform(0.5, 2.0, len(x))
    learner = made(kind, D, solve_rows=ONCE, decay=decay)
    learner.as_of(revision)
    learned(learner, Batch(x, y, weight=weight))
    expected = BATCH[kind](x, y, learner.servable().classes, weight * fading(len(x), decay))
    return miss(learner.predict_many(Batch(x)), expected(x))


@pytest.mark.parametrize("decay", [1.0, 0.99])
@pytest.mark.parametrize("ratio", [0.0, 1e3, 1e6, 1e9])
@pytest.mark.parametrize("kind", BATCH)
def test_a_mean_of_a_billion_deviations_costs_no_answer(kind: str, ratio: float, decay: float) -> None:
    """Within 1e-6 of the batch formula on centred rows, weights and fading included."""
    assert far_classes(kind, ratio, 2, decay) <= 1e-6


@pytest.mark.parametrize("kind", BATCH)
def test_sums_from_zero_fail_where_means_are_far(kind: str) -> None:
    """Revision 1 is near where means are near, and gives a feature of 1e6 deviations no weight; so the test above can fail."""
    assert far_classes(kind, 1.0, 1) <= 1e-6 < far_classes(kind, 1e6, 1)


@pytest.mark.parametrize("kind", BATCH)
def test_expanded_features_are_centred_too(kind: str) -> None:
    """Random features of rows at 1e6 deviations, each far from zero itself."""
    x, y = imbalanced(3, d=D)
    x = x + 1e6
    learner = learned(made(kind, D, solve_rows=ONCE, expand=9), Batch(x, y))
    projection = learner.known().projection
    assert projection is not None
    phi = np.maximum(x @ projection.T, 0.0)
    expected = BATCH[kind](phi, y, learner.servable().classes, np.ones(len(x)))(phi)
    if kind == "aef-ocl":  # pseudo-features are drawn before they are expanded: the same ridge, where none lacks anything
        learner = learned(made("aef-ocl", D, solve_rows=ONCE, expand=9, prior="as-seen"), Batch(x, y))
        expected = BATCH["ridge"](phi, y, learner.servable().classes, np.ones(len(x)))(phi)
    assert miss(learner.predict_many(Batch(x)), expected) <= 1e-6


@pytest.mark.parametrize(("shift", "unit"), [(0.0, 1.0), (1e9, 1.0), (1e12, 3.0)])
def test_targets_far_from_zero(shift: float, unit: float) -> None:
    """Weights within 1e-6, of features at 1e9 deviations, and values to the last digits that numbers of this size have."""
    z, y = numbers(3000)
    batch = Batch(UNITS * (z + 1e9), shift + unit * y)
    learner = learned(regress(), batch)
    assert batch.y is not None
    w, rows, mean = regression(batch.x, batch.y, np.ones(3000))
    assert miss(learner.servable().weights, rows.scale[:, None] * w) <= 1e-6
    values = rows.scaled(batch.x) @ w + mean
    assert np.abs(learner.predict_many(Batch(batch.x)) - values).max() <= 2.0 * np.spacing(shift) + 1e-6 * unit


def test_unix_seconds_over_six_hours() -> None:
    """The scikit-learn ridge on scaled rows has the same R2; the feature has its weight."""
    linear, scaling = pytest.importorskip("sklearn.linear_model"), pytest.importorskip("sklearn.preprocessing")
    rng = np.random.default_rng(4)
    seconds, b = 1_700_000_000 + np.sort(rng.integers(0, 6 * 3600, 2000)), rng.normal(size=2000)
    x = np.column_stack([seconds, b]).astype(np.float64)
    y = 5.0 * (x[:, 0] - x[:, 0].mean()) / x[:, 0].std() + b + 0.1 * rng.normal(size=2000)
    z = scaling.StandardScaler().fit_transform(x - x[0])
    expected = linear.Ridge(alpha=1.0).fit(z, y).predict(z)
    ridge = learned(made("ridge", 2, task="regress", solve_rows=1), Batch(x, y))
    assert miss(ridge.predict_many(Batch(x))[:, 0], expected) <= 1e-9
    assert 1.0 - np.var(y - ridge.predict_many(Batch(x))[:, 0]) / np.var(y) > 0.999


def moving(case: str, rows: int) -> Floats:
    """Rows whose first feature does not stay where it began."""
    x = numbers(rows)[0]
    x[:, 0] = {
        "zero for a hundred rows": np.where(np.arange(rows) < 100, 0.0, 1e5 + x[:, 0]),
        "a year of unix time": 1.7e9 + np.arange(rows) * (365 * 86400.0 / rows),
        "one value, then a little more": np.where(np.arange(rows) < 300, 5e8, 5e8 + 1e-3 * x[:, 0]),
        "an outlier first": np.where(np.arange(rows) < 1, 1e9, x[:, 0]),
        "a step of a thousand deviations": np.where(np.arange(rows) < rows / 2, x[:, 0], x[:, 0] + 1e3),
        "back and forth": 1e5 * np.sin(np.arange(rows) / 400.0) + x[:, 0],
    }[case]
    return x


@pytest.mark.parametrize("decay", [1.0, 0.999, 0.99, 0.7])
@pytest.mark.parametrize(
    "case",
    [
        "zero for a hundred rows",
        "a year of unix time",
        "one value, then a little more",
        "an outlier first",
        "a step of a thousand deviations",
        "back and forth",
    ],
)
def test_a_feature_that_does_not_stay_where_it_began(case: str, decay: float) -> None:
    """Whether rows fade or not, and what came first has all but faded: within 1e-6 of the batch formula."""
    x, y = moving(case, 9000), numbers(9000)[1]
    learner = learned(regress(decay=decay), Batch(x, y))
    assert wrong(learner, Batch(x, y), fading(9000, decay), x[-300:]) <= 1e-6
    assert learner.warnings() == {}


@pytest.mark.parametrize("far", [1e3, 1e6])
def test_an_outlier_that_came_first_is_forgotten(far: float) -> None:
    """The others keep their digits, since the centre left it after a few rows."""
    x, y = numbers(9000)
    x[0, 0] = far
    learner = learned(regress(), Batch(x, y))
    forget(learner, Batch(x[:1], y[:1]))
    assert wrong(learner, Batch(x[1:], y[1:]), np.ones(8999), x[1:]) <= 1e-6


def test_what_an_outlier_has_cost_for_good_is_named() -> None:
    """At 1e9 deviations float64 has no digits left for the others: the feature is dropped, with the way out; others stay."""
    x, y = numbers(3000)
    x[0, 0] = 1e9
    learner = learned(regress(), Batch(x, y))
    assert learner.warnings() == {}
    forget(learner, Batch(x[:1], y[:1]))
    assert learner.warnings().keys() == {0} and learner.warnings()[0].startswith("lost: ")
    assert learner.servable().weights[0] == 0.0
    assert wrong(learner, Batch(x[1:] * [0.0, 1.0, 1.0, 1.0], y[1:]), np.ones(2999), x[1:] * [0.0, 1.0, 1.0, 1.0]) <= 1e-6


# --- merged, forgotten, relabelled, discounted ------------------------------------------------------------------------


def apart(seed: int) -> tuple[Batch, Batch]:
    """Rows of two shards, whose means lie a thousand deviations from each other and a million from zero."""
    x, y = imbalanced(seed, d=D)
    first, second = Batch(x[::2] + 1e6, y[::2]), Batch(x[1::2] + 1e6 + 1e3 * np.array([1.0, -1.0, 0.5, 0.0]), y[1::2])
    return first, second


def together(first: Batch, second: Batch) -> Batch:
    """Rows of both."""
    assert first.y is not None and second.y is not None
    return Batch(np.vstack([first.x, second.x]), np.concatenate([first.y, second.y]))


@pytest.mark.parametrize("kind", BATCH)
def test_shards_a_thousand_deviations_apart_merge_into_the_joint_one(kind: str) -> None:
    """Within 1e-9 of the learner of all rows, whichever shard's centre is taken, and 1e-6 of the batch formula."""
    first, second = apart(5)
    whole = together(first, second)
    joint = learned(made(kind, D, solve_rows=ONCE), whole)
    for names in (("a", "b"), ("b", "a")):
        shards = [learned(made(kind, D, solve_rows=ONCE), piece) for piece in (first, second)]
        merged, certificate = merge(dict(zip(names, shards, strict=True)))
        order = [merged.servable().classes.index(name) for name in joint.servable().classes]
        assert certificate.holds
        assert miss(merged.predict_many(Batch(whole.x))[:, order], joint.predict_many(Batch(whole.x))) <= 1e-9
        assert whole.y is not None
        expected = BATCH[kind](whole.x, whole.y, joint.servable().classes, np.ones(len(whole)))
        assert miss(merged.predict_many(Batch(whole.x))[:, order], expected(whole.x)) <= 1e-6


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", BATCH)
def test_forgetting_rows_a_thousand_deviations_away(kind: str, turned: bool) -> None:
    """Within 1e-9 of the learner that never knew them, also where they came first and the centre was one of them."""
    kept, gone = apart(6)[:: -1 if turned else 1]
    learner = learned(made(kind, D, solve_rows=ONCE), together(*((gone, kept) if turned else (kept, gone))))
    forget(learner, gone)
    never = learned(made(kind, D, solve_rows=ONCE), kept)
    order = [learner.servable().classes.index(name) for name in never.servable().classes]
    assert miss(learner.predict_many(Batch(kept.x))[:, order], never.predict_many(Batch(kept.x))) <= 1e-9


@pytest.mark.parametrize("kind", BATCH)
def test_relabelling_far_from_zero(kind: str) -> None:
    """Within 1e-9 of the learner that learned the other labels, and G stays bit for bit."""
    batch = together(*apart(7))
    assert batch.y is not None
    y = batch.y.copy()
    y[40:60] = np.roll(NAMES[:3], 1)[np.searchsorted(NAMES[:3].astype(str), y[40:60].astype(str))]
    learner = learned(made(kind, D, solve_rows=ONCE), batch)
    before = learner.state_dict().truth["gram"]
    relabel(learner, batch.rows(40, 60), y[40:60])
    assert np.array_equal(learner.state_dict().truth["gram"], before)
    other = learned(made(kind, D, solve_rows=ONCE), Batch(batch.x, y))
    order = [learner.servable().classes.index(name) for name in other.servable().classes]
    assert miss(learner.predict_many(Batch(batch.x))[:, order], other.predict_many(Batch(batch.x))) <= 1e-9


@pytest.mark.parametrize("kind", BATCH)
def test_a_discount_far_from_zero(kind: str) -> None:
    """What is discounted between two shards a thousand deviations apart weighs as the batch formula has it."""
    first, second = apart(8)
    learner = learned(made(kind, D, solve_rows=ONCE), first)
    learner.discount(0.13)
    learned(learner, second)
    whole, weight = together(first, second), np.concatenate([np.full(len(first), 0.13), np.ones(len(second))])
    assert whole.y is not None
    expected = BATCH[kind](whole.x, whole.y, learner.servable().classes, weight)
    assert miss(learner.predict_many(Batch(whole.x)), expected(whole.x)) <= 1e-6


def test_merged_numbers_far_from_zero() -> None:
    """Targets have a centre of their own in every shard."""
    z, y = numbers(2000)
    x, y = z + 1e6 + 1e3 * (np.arange(2000) % 2)[:, None], y + 1e9 * (np.arange(2000) % 2)[:, None]
    shards = {str(at): learned(regress(), Batch(x[at::2], y[at::2])) for at in range(2)}
    merged, joint = merge(shards)[0], learned(regress(), Batch(x, y))
    assert miss(merged.predict_many(Batch(x)), joint.predict_many(Batch(x))) <= 1e-9
    assert wrong(merged, Batch(x, y), np.ones(2000), x) <= 1e-6


# --- cuts and states --------------------------------------------------------------------------------------------------


@st.composite
def whole_numbers(draw: st.DrawFn) -> tuple[Floats, Array, list[int]]:
    """Rows of whole numbers, some far from where they began, and two ways to cut them."""
    rows = draw(st.integers(2, 200))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.integers(-8, 9, (rows, D)) + np.cumsum(
        rng.integers(0, 2, (rows, D)) * draw(st.sampled_from([0, 30, 10**4])), axis=0
    )
    cuts = draw(st.lists(st.integers(0, rows), max_size=6))
    return x.astype(np.float64), rng.integers(0, 3, rows), cuts


def same_bits(ours: Ridge, theirs: Ridge) -> bool:
    """Whether the record of truth is the same, to the bit."""
    mine, yours = ours.state_dict().truth, theirs.state_dict().truth
    return mine.keys() == yours.keys() and all(np.array_equal(mine[key], yours[key]) for key in mine)


@settings(max_examples=60, deadline=None)
@given(whole_numbers(), st.sampled_from(["ridge", "air", "numbers"]))
def test_sums_of_whole_numbers_are_exact_in_any_cut(stream: tuple[Floats, Array, list[int]], kind: str) -> None:
    """Bit for bit, wherever the centre has moved to: it moves at counts of rows, and differences of whole numbers are whole."""
    x, label, cuts = stream
    y = label[:, None].astype(np.float64) if kind == "numbers" else NAMES[label]
    whole, cut = (regress() if kind == "numbers" else made(kind, D, solve_rows=ONCE) for _ in range(2))
    whole.learn_many(Batch(x, y))
    for start, stop in pairwise([0, *sorted(cuts), len(x)]):
        cut.learn_many(Batch(x[start:stop], y[start:stop]))
    assert same_bits(whole, cut)
    sums = whole.known().sums
    away = x - sums.centre
    assert np.array_equal(np.tril(sums.gram), np.tril(away.T @ away)) and np.array_equal(sums.features, away.sum(axis=0))
    assert all(value in x[:, at] for at, value in enumerate(sums.centre))


@pytest.mark.parametrize("kind", BATCH)
def test_a_learner_restored_at_any_row_goes_on_to_the_bit(kind: str) -> None:
    """Also just before and after the centre moves."""
    batch = together(*apart(9))
    straight = made(kind, D, solve_rows=11, decay=0.98)
    resumed = made(kind, D, solve_rows=11, decay=0.98)
    for row in range(0, 150):
        straight.learn_many(batch.rows(row, row + 1))
        again = made(kind, D, solve_rows=11, decay=0.98)
        again.load_state_dict(resumed.state_dict())
        resumed = again
        resumed.learn_many(batch.rows(row, row + 1))
    assert same_bits(straight, resumed)
    assert np.array_equal(straight.predict_many(Batch(batch.x)), resumed.predict_many(Batch(batch.x)))


@given(st.integers(0, 10**6), st.sampled_from([1.0, 0.9999, 0.99, 0.9, 0.5, 0.01]))
def test_looks_fall_at_fixed_counts(rows: int, decay: float) -> None:
    """At most LONGEST rows apart, and never more than four windows of what fades."""
    due = next_look(rows, decay)
    assert rows < due <= rows + min(LONGEST, np.ceil(4.0 / (1.0 - decay)) if decay < 1.0 else LONGEST)
    assert all(next_look(at, decay) == due for at in {rows, (rows + due) // 2, due - 1})


# --- what is served, and what is said ---------------------------------------------------------------------------------


def test_answers_at_a_billion_deviations_are_those_of_onnx_and_of_what_is_stored() -> None:
    """The centre is served with the weights; the intercept is the one for features as they come."""
    runtime = pytest.importorskip("onnxruntime", reason="the ONNX export is checked in onnxruntime, which is not here")
    z, y = numbers(500)
    x = UNITS * (z + 1e9)
    served = learned(regress(), Batch(x, y)).servable()
    session = runtime.InferenceSession(to_onnx(served), providers=["CPUExecutionProvider"])
    assert miss(session.run(["scores"], {"x": x})[0], served.predict_many(Batch(x))) <= 1e-12
    again = LinearServable.from_arrays(served.arrays())
    assert np.array_equal(again.predict_many(Batch(x)), served.predict_many(Batch(x)))
    assert served.centre is not None and served.level is not None
    assert np.allclose(served.intercept, served.level - served.centre @ served.weights)


def test_without_an_intercept_answers_are_seen_from_zero() -> None:
    """So is the penalty: scikit-learn's ridge without an intercept gives the same, with a centre of 0."""
    linear = pytest.importorskip("sklearn.linear_model")
    z, y = numbers(400)
    x = z + 5.0
    ridge = learned(regress(intercept=False, standardise=False), Batch(x, y))
    expected = linear.Ridge(alpha=1.0, fit_intercept=False).fit(x, y[:, 0]).coef_
    assert miss(ridge.servable().weights[:, 0], expected) <= 1e-9
    assert ridge.servable().centre is None


@pytest.mark.parametrize("kind", BATCH)
def test_a_feature_that_has_no_weight_is_named(kind: str) -> None:
    """Constant ones, and one that differs by its own rounding; those that vary at 1e9 deviations are not."""
    x, y = imbalanced(10, d=D)
    x = x + 1e9
    x[:, 1] = 0.1
    x[:, 3] = 0.3 + np.spacing(0.3) * (np.arange(len(x)) % 2)
    learner = made(kind, D, solve_rows=ONCE)
    assert learner.warnings() == {}
    learned(learner, Batch(x, y))
    assert learner.warnings().keys() == {1, 3} and all(why.startswith("constant: ") for why in learner.warnings().values())
    assert not learner.servable().weights[[1, 3]].any() and learner.servable().weights[[0, 2]].any(axis=1).all()


def test_a_column_of_float32_steps_is_named() -> None:
    """Unix time that went through float32 comes in steps of 128 seconds; whole seconds, a flag and a wide column are fine."""
    rng = np.random.default_rng(11)
    seconds = 1_700_000_000.0 + rng.integers(0, 200, 600)
    x = np.column_stack([seconds.astype(np.float32), seconds, rng.integers(0, 2, 600), 1e9 + 1e5 * rng.normal(size=600)])
    x[:, 3] = x[:, 3].astype(np.float32)
    learner = learned(regress(), Batch(x, numbers(600)[1]))
    assert learner.warnings().keys() == {0} and learner.warnings()[0].startswith("float32: ")
    again = regress()
    again.load_state_dict(learner.state_dict())
    assert again.warnings() == learner.warnings()
    halves = {str(at): learned(regress(), Batch(x[at::2], numbers(600)[1][at::2])) for at in range(2)}
    assert merge(halves)[0].warnings() == learner.warnings()


@pytest.mark.parametrize("kind", BATCH)
def test_states_of_the_same_rows_agree_once_their_sums_are_seen_from_zero(kind: str) -> None:
    """Whichever row came first: G, Q and s are those of the rows themselves, to rounding."""
    x, y = imbalanced(12, d=D)
    x = x + 10.0
    states = [learned(made(kind, D, solve_rows=ONCE), Batch(x[::step], y[::step])).state_dict().truth for step in (1, -1)]
    ours, theirs = map(seen_from_zero, states)
    assert not np.array_equal(states[0]["centre"], states[1]["centre"]) and "centre" not in ours
    for truth in (ours, theirs):
        assert miss(truth["gram"], (x.T @ x).T[np.triu_indices(D)]) <= 1e-12
        assert miss(truth["features"], x.sum(axis=0)) <= 1e-12
        order = [truth["classes"].index(name) for name in NAMES[:3]]
        assert miss(truth["cross"][order], np.stack([x[y == name].sum(axis=0) for name in NAMES[:3]])) <= 1e-12
