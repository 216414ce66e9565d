"""The ridge against the joint solution of all rows at once, its guards, and its schedule of solves."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from millrace.learners.analytic import normal_equations
from millrace.learners.analytic.normal_equations import Sums, System, refine, solve
from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.learners.protocol import Array, Batch, Floats

NAMES = np.array(["ant", "bee", "cat", "dog", "eel"], dtype=object)


def scaled(x: Floats, weight: Floats, config: RidgeConfig) -> tuple[Floats, Floats, Floats]:
    """Rows as the penalty sees them (n, d), their mean (d,) and scale (d,), in two passes over the rows."""
    n, d = weight.sum(), x.shape[1]
    mean = weight @ x / n if config.intercept else np.zeros(d)
    deviation: Floats = np.sqrt(weight @ (x - mean) ** 2 / n)
    scale = np.zeros(d)
    scale[deviation > 0] = 1.0 / deviation[deviation > 0] if config.standardise else 1.0
    return (x - mean) * scale, mean, scale


def spectrum(x: Floats, weight: Floats, config: RidgeConfig) -> tuple[float, float]:
    """Condition number of the matrix that is factored, and its gamma with the floor."""
    z = np.sqrt(weight)[:, None] * scaled(x, weight, config)[0]
    values = np.linalg.svd(z, compute_uv=False) ** 2
    gamma = max(config.gamma, 1e-8 * values.sum() / x.shape[1])
    least = values[-1] if len(values) == x.shape[1] else 0.0
    return float((values[0] + gamma) / (least + gamma)), gamma


def joint(x: Floats, y: Floats, weight: Floats, config: RidgeConfig) -> Floats:
    """W over b, (d + 1, C), by least squares on all rows at once: rows of the penalty, last column not penalised."""
    d = x.shape[1]
    z, mean, scale = scaled(x, weight, config)
    ones = np.full((len(x), 1), 1.0 if config.intercept else 0.0)
    rows = np.sqrt(weight)[:, None] * np.hstack([z, ones])
    penalty = np.sqrt(spectrum(x, weight, config)[1]) * np.eye(d, d + 1)
    right = np.vstack([np.sqrt(weight)[:, None] * y, np.zeros((d, y.shape[1]))])
    v = np.linalg.lstsq(np.vstack([rows, penalty]), right, rcond=None)[0]
    w = scale[:, None] * v[:d]
    out: Floats = np.vstack([w, v[d] - mean @ w])
    return out


def answer(ridge: Ridge) -> Floats:
    """W over b, (d + 1, C), of the last solve."""
    served = ridge.servable()
    return np.vstack([served.weights, served.intercept])


def relative(ours: Floats, theirs: Floats) -> float:
    """|ours - theirs| / |theirs|, Frobenius."""
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def one_hot(y: Array, names: tuple[str, ...]) -> Floats:
    """(n, C) in the order of ``names``."""
    return np.asarray(y[:, None] == np.array(names, dtype=object), dtype=np.float64)


def taught(config: RidgeConfig, batch: Batch, cuts: list[int]) -> Ridge:
    """A ridge that learned the rows cut at ``cuts``."""
    ridge = Ridge(config, batch.x.shape[1], seed=0)
    edges = [0, *sorted(cuts), len(batch)]
    for start, stop in pairwise(edges):
        ridge.learn_many(batch.rows(start, stop))
    return ridge


@st.composite
def streams(draw: st.DrawFn) -> tuple[Batch, list[int], dict[str, Any]]:
    """Rows in any order with any cuts, features of any unit, and a config; the last row is one that solves."""
    n, d = draw(st.integers(3, 60)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = (rng.normal(size=(n, d)) + 3.0 * rng.normal(size=d)) * 10.0 ** rng.integers(-3, 4, d)
    weight = rng.uniform(0.1, 3.0, n) if draw(st.booleans()) else None
    config = {
        "gamma": draw(st.sampled_from([1e-3, 1.0, 50.0])),
        "intercept": draw(st.booleans()),
        "standardise": draw(st.booleans()),
        "decay": draw(st.sampled_from([1.0, 0.99, 0.8])),
        "solve_rows": n,
    }
    cuts = draw(st.lists(st.integers(0, n), max_size=6))
    return Batch(x, rng.normal(size=(n, draw(st.integers(1, 3)))), weight=weight), cuts, config


def closed_form_weights(batch: Batch, decay: float) -> Floats:
    """What each row weighs after all have been learned, (n,)."""
    own = np.ones(len(batch)) if batch.weight is None else batch.weight
    faded: Floats = np.power(decay, np.arange(len(batch) - 1, -1, -1, dtype=np.float64))
    return own * faded


@settings(max_examples=150, deadline=None)
@given(streams())
def test_any_split_of_a_regression_gives_the_joint_solution(stream: tuple[Batch, list[int], dict[str, Any]]) -> None:
    """Weights, forgetting, several outputs, with and without intercept and scaling, to 1e-8."""
    batch, cuts, settings_ = stream
    config = RidgeConfig(task="regress", **settings_)
    weight = closed_form_weights(batch, config.decay)
    assume(spectrum(batch.x, weight, config)[0] <= 1e7)
    assert batch.y is not None
    expected = joint(batch.x, batch.y, weight, config)
    assert relative(answer(taught(config, batch, cuts)), expected) <= 1e-8


@settings(max_examples=150, deadline=None)
@given(streams(), st.integers(0, 2**32 - 1), st.booleans())
def test_any_split_and_order_of_classes_gives_the_joint_solution(
    stream: tuple[Batch, list[int], dict[str, Any]], seed: int, by_class: bool
) -> None:
    """Classes appear in mid stream, in blocks or mixed, and come back; scores follow the order of first appearance."""
    batch, cuts, settings_ = stream
    config = RidgeConfig(**settings_)
    columns = np.random.default_rng(seed).integers(0, len(NAMES), len(batch))
    y = NAMES[np.sort(columns) if by_class else columns]
    ridge = taught(config, Batch(batch.x, y, weight=batch.weight), cuts)
    names = ridge.servable().classes
    assert names == tuple(dict.fromkeys(y))
    weight = closed_form_weights(batch, config.decay)
    assume(spectrum(batch.x, weight, config)[0] <= 1e7)
    expected = joint(batch.x, one_hot(y, names), weight, config)
    assert relative(answer(ridge), expected) <= 1e-8


def test_the_order_of_rows_does_not_matter() -> None:
    """Shuffled rows give the same weights under the same names."""
    rng = np.random.default_rng(5)
    x, columns, order = rng.normal(size=(300, 5)), rng.integers(0, 5, 300), rng.permutation(300)
    config = RidgeConfig(solve_rows=300)
    straight = taught(config, Batch(x, NAMES[columns]), [100])
    shuffled = taught(config, Batch(x[order], NAMES[columns[order]]), [7, 50])
    same = [shuffled.servable().classes.index(name) for name in straight.servable().classes]
    assert relative(answer(shuffled)[:, same], answer(straight)) <= 1e-12


def test_a_class_that_appears_late_and_one_that_comes_back_are_exact() -> None:
    """Absolute memorisation: a block of ants, a block of bees, then ants again, against all rows at once."""
    rng = np.random.default_rng(6)
    y = np.repeat(np.array(["ant", "bee", "ant"], dtype=object), 40)
    x = rng.normal(size=(120, 4)) + (y == "bee")[:, None]
    config = RidgeConfig(gamma=0.1, solve_rows=120)
    ridge = taught(config, Batch(x, y), [40, 80])
    expected = joint(x, one_hot(y, ("ant", "bee")), np.ones(120), config)
    assert relative(answer(ridge), expected) <= 1e-10
    assert ridge.state_dict().truth["counts"].tolist() == [80, 40]


def test_expanded_features_give_the_joint_solution_on_them() -> None:
    """The random ReLU features are those of the projection in the state, within 1 / sqrt(d), drawn by the seed."""
    rng = np.random.default_rng(7)
    batch = Batch(rng.normal(size=(200, 4)), rng.normal(size=200))
    config = RidgeConfig(task="regress", expand=30, solve_rows=200)
    ridge = taught(config, batch, [13, 150])
    projection = ridge.state_dict().truth["projection"]
    assert projection.shape == (30, 4) and np.abs(projection).max() <= 0.5
    assert not np.array_equal(projection, Ridge(config, 4, seed=1).state_dict().truth["projection"])
    phi = np.maximum(batch.x @ projection.T, 0.0)
    assert batch.y is not None
    expected = joint(phi, batch.y[:, None], np.ones(200), config)
    assert relative(answer(ridge), expected) <= 1e-8


def test_a_constant_feature_weighs_exactly_nothing() -> None:
    """Rounding in a sum of tenths is not taken for information, one row at a time or all at once."""
    rng = np.random.default_rng(8)
    x = np.column_stack([rng.normal(size=4000), np.full(4000, 0.1), np.zeros(4000)])
    batch = Batch(x, 2.0 * x[:, 0] + 1.0)
    config = RidgeConfig(task="regress", solve_rows=4000)
    assert batch.y is not None
    without = joint(x[:, :1], batch.y[:, None], np.ones(4000), config)
    for cuts in ([], list(range(1, 4000))):
        ridge = taught(config, batch, cuts)
        assert answer(ridge)[1:3].tolist() == [[0.0], [0.0]]
        assert relative(answer(ridge)[[0, 3]], without) <= 1e-12


@pytest.mark.parametrize("by_class", [False, True])
def test_a_condition_of_ten_million_keeps_eight_digits(by_class: bool) -> None:
    """Near copies of features, mixed and class-ordered (the hard case of docs/design/learners.md#ridge)."""
    rng = np.random.default_rng(9)
    n = 20_000
    columns = rng.integers(0, 5, n)
    y = NAMES[np.sort(columns) if by_class else columns]
    x = rng.normal(size=(n, 5)) + (y[:, None] == NAMES)
    x = 1e3 * np.hstack([x, x + 7e-4 * rng.normal(size=(n, 5))])
    config = RidgeConfig(gamma=1e-4, solve_rows=n)
    assert 5e6 < spectrum(x, np.ones(n), config)[0] <= 1e7
    ridge = taught(config, Batch(x, y), list(range(0, n, 256)))
    expected = joint(x, one_hot(y, ridge.servable().classes), np.ones(n), config)
    assert relative(answer(ridge), expected) <= 1e-8


@pytest.mark.parametrize("spread", [1e3, 3e3])
def test_a_spectrum_of_ten_million_keeps_eight_digits(spread: float) -> None:
    """Singular values spread so that the matrix that is factored has a condition of 1e6 and 1e7."""
    rng = np.random.default_rng(10)
    left = np.linalg.qr(rng.normal(size=(5000, 12)))[0]
    right = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    x = left * np.geomspace(1.0, spread, 12) @ right
    y = rng.normal(size=5000)
    config = RidgeConfig(task="regress", gamma=1e-2, intercept=False, standardise=False, solve_rows=5000)
    assert spread**2 / 2 < spectrum(x, np.ones(5000), config)[0] <= 1e7
    ridge = taught(config, Batch(x, y), list(range(0, 5000, 100)))
    assert relative(answer(ridge), joint(x, y[:, None], np.ones(5000), config)) <= 1e-8
    assert ridge.residual <= 1e-8


def test_a_gamma_too_small_for_float64_is_raised_to_its_floor() -> None:
    """Two copies of one feature have no solution of their own: the floor gives each half."""
    x = np.random.default_rng(11).normal(size=(500, 1))
    config = RidgeConfig(task="regress", gamma=1e-300, solve_rows=500)
    ridge = taught(config, Batch(np.hstack([x, x]), 4.0 * x[:, 0]), [])
    assert ridge.state_dict().derived["gamma"] == pytest.approx(1e-8 * 500, rel=1e-9)
    assert answer(ridge)[:2, 0] == pytest.approx([2.0, 2.0], abs=1e-6)


def test_a_matrix_made_indefinite_by_rounding_is_solved_with_more_gamma() -> None:
    """Copies of a feature far from the centre, as revision 1 has it at 0: finite and near, and the gamma needed is told."""
    rng = np.random.default_rng(12)
    clock = 1e4 + rng.normal(size=(2000, 1))
    x = np.hstack([clock + 1e-6 * rng.normal(size=(2000, 30)), 3e4 + 3.0 * (clock - 1e4)])
    config = RidgeConfig(task="regress", gamma=1e-12, solve_rows=2000)
    ridge = Ridge(config, 31, seed=0)
    ridge.as_of(1)
    for start in range(0, 2000, 64):
        ridge.learn_many(Batch(x, clock[:, 0] - 1e4).rows(start, start + 64))
    assert ridge.state_dict().derived["gamma"] > 1e-8 * 2000
    assert ridge.predict_many(Batch(x))[:, 0] == pytest.approx(clock[:, 0] - 1e4, abs=0.05)


def random_system(seed: int) -> tuple[System, Floats, Floats]:
    """A system, and its A and B written out."""
    rng = np.random.default_rng(seed)
    x, y, weight = rng.normal(size=(80, 6)) + 2.0, rng.normal(size=(80, 40)), rng.uniform(0.5, 1.0, 80)
    sums = Sums.empty(6)
    sums.grow(40)
    sums.add(x, y, weight, 1.0)
    scale, n = rng.uniform(0.5, 2.0, 6), weight.sum()
    mean = weight @ x / n
    a = scale[:, None] * ((weight[:, None] * (x - mean)).T @ (x - mean)) * scale + 0.3 * np.eye(6)
    b = scale[:, None] * ((weight[:, None] * (x - mean)).T @ y)
    return System(sums, scale, mean, 0.3), a, b


def test_the_residual_is_that_of_the_system_written_out() -> None:
    """For a v that is no solution at all, over more outputs than are handled at a time."""
    system, a, b = random_system(13)
    v = np.asfortranarray(np.random.default_rng(14).normal(size=b.shape))
    assert np.allclose(np.tril(system.matrix()), np.tril(a), rtol=1e-12)
    assert system.residual(v) == pytest.approx(np.linalg.norm(a @ v - b) / np.linalg.norm(b), rel=1e-10)


def test_one_refinement_takes_a_rough_solution_to_the_last_digits() -> None:
    """A thousandth off before, rounding after; the factor stands for one that is not exact."""
    system, a, b = random_system(15)
    exact: Floats = np.asarray(np.linalg.solve(a, b), dtype=np.float64)
    v = np.asfortranarray(exact * (1.0 + 1e-3 * np.random.default_rng(16).normal(size=b.shape)))
    assert system.residual(v) > 1e-4
    refine(system, np.asfortranarray(np.linalg.cholesky(a)), v)
    assert system.residual(v) < 1e-13 and relative(v, exact) < 1e-12


def test_a_solution_above_the_residual_limit_is_refined(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a limit that nothing meets, the refined solution differs in its last digits and is still the solution."""
    system, _, _ = random_system(15)
    plain = solve(system.sums, 0.3, True, True)
    monkeypatch.setattr(normal_equations, "RESIDUAL", -1.0)
    refined = solve(system.sums, 0.3, True, True)
    assert plain.residual < 1e-13 and refined.residual < 1e-13
    assert not np.array_equal(plain.weights, refined.weights)
    assert relative(refined.weights, plain.weights) < 1e-12


def test_the_residual_tells_digits_that_were_lost_before_the_solve() -> None:
    """A mean of 50,000 deviations, seen from 0 as by revision 1, has lost nine digits to centring; the monitor shows it."""
    rng = np.random.default_rng(16)
    x = rng.normal(size=(1000, 3)) + np.array([5e4, 0.0, 0.0])
    config = RidgeConfig(task="regress", solve_rows=1000)
    far = Ridge(config, 3, seed=0)
    far.as_of(1)
    far.learn_many(Batch(x, rng.normal(size=1000)))
    near = taught(config, Batch(x, rng.normal(size=1000)), [])
    assert near.residual < 1e-13 < far.residual


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=12), st.integers(1, 40), st.booleans())
def test_it_solves_at_every_multiple_of_solve_rows_and_never_when_asked(
    sizes: list[int], solve_rows: int, forgetful: bool
) -> None:
    """What is served changes in just the lessons that reach a multiple, and is what rows one by one would give."""
    rng = np.random.default_rng(17)
    config = RidgeConfig(task="regress", solve_rows=solve_rows, decay=0.97 if forgetful else 1.0)
    ridge, single = Ridge(config, 3, seed=0), Ridge(config, 3, seed=0)
    first = Batch(rng.normal(size=(1, 3)), rng.normal(size=1))
    ridge.learn_many(first)  # solves, being the first
    single.learn_many(first)
    for size in sizes:
        served, rows = ridge.servable(), ridge.rows
        batch = Batch(rng.normal(size=(size, 3)), rng.normal(size=size))
        ridge.learn_many(batch)
        solved = ridge.rows // solve_rows > rows // solve_rows
        assert (ridge.servable() is not served) == solved
        assert ridge.solved_rows == max(1, ridge.rows // solve_rows * solve_rows)
        served = ridge.servable()
        ridge.predict_many(Batch(batch.x))
        assert ridge.servable() is served
        for row in range(size):
            single.learn_many(batch.rows(row, row + 1))
        assert np.allclose(answer(single), answer(ridge), rtol=0.0, atol=1e-12 * np.abs(answer(ridge)).max())


def test_a_batch_that_brings_a_class_is_solved_at_its_end() -> None:
    """So that the class can be answered, and by all rows of that batch; later rows wait for the next multiple."""
    x, y = np.random.default_rng(18).normal(size=(30, 2)), np.array(["ant"] * 10 + ["bee"] * 20, dtype=object)
    ridge = Ridge(RidgeConfig(solve_rows=1000), 2, seed=0)
    solved = []
    for start in range(0, 30, 5):
        ridge.learn_many(Batch(x, y).rows(start, start + 5))
        solved.append(ridge.solved_rows)
    assert solved == [5, 5, 15, 15, 15, 15]
