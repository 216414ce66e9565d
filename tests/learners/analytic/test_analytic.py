"""AEF-OCL and AIR against their batch formulas, and without the defects of public code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from family import NAMES, ONCE, class_accuracy, imbalanced, made, same, taught, toy
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.learners.analytic.aef_ocl import AefOclConfig, aef_ocl, balanced, missing
from millrace.learners.analytic.air import AirConfig, air, weights
from millrace.learners.analytic.class_statistics import ClassMoments
from millrace.learners.analytic.exact import with_prior
from millrace.learners.analytic.normal_equations import Sums, solve
from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.learners.errors import BadInputError, ConfigError, LearnerError
from millrace.learners.linear.servable import LinearServable, expanded, to_onnx
from millrace.learners.protocol import Array, Batch, Floats
from millrace.learners.table import LEARNERS

# --- class statistics -------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.lists(st.integers(0, 40), max_size=5), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_moments_of_any_split_are_those_of_all_rows(rows: int, cuts: list[int], seed: int) -> None:
    """Weight, mean and squared distances, with weights and a large offset."""
    rng = np.random.default_rng(seed)
    x, w, c = rng.normal(1e3, 1.0, size=(rows, 3)), rng.uniform(0.5, 2.0, rows), rng.integers(0, 3, rows)
    moments = ClassMoments(3)
    moments.grow(3)
    edges = [0, *sorted(min(cut, rows) for cut in cuts), rows]
    for start, stop in zip(edges, edges[1:], strict=False):
        moments.add(x[start:stop], x[start:stop], c[start:stop], w[start:stop], 1.0)
    for at in np.unique(c):
        mean = np.average(x[c == at], axis=0, weights=w[c == at])
        scatter = w[c == at] @ (x[c == at] - mean) ** 2
        assert np.allclose(moments.mean[at], mean, rtol=1e-13)
        assert np.allclose(moments.scatter[at], scatter, rtol=1e-9, atol=1e-9)


def naive_deviation(x: Floats) -> Floats:
    """The reference code's: E[x^2] - E[x]^2, by n / (n - 1)."""
    n = len(x)
    variance: Floats = (np.cumsum(x**2)[-1:] / n - (np.cumsum(x)[-1:] / n) ** 2) * n / (n - 1)
    return variance


def test_a_constant_feature_has_no_negative_variance() -> None:
    """In none of 500 trials, where the reference formula has one in some; a class of one row deviates by 0."""
    rng, negative = np.random.default_rng(0), 0
    for _ in range(500):
        rows = int(rng.integers(2, 50))
        x = np.full((rows, 1), rng.normal())
        moments = ClassMoments(1)
        moments.grow(2)
        moments.add(x, x, np.zeros(rows, dtype=int), np.ones(rows), 1.0)
        moments.add(x[:1], x[:1], np.ones(1, dtype=int), np.ones(1), 1.0)
        assert moments.scatter.min() >= 0.0 and np.isfinite(moments.deviation()).all()
        assert moments.deviation()[0, 0] <= 1e-14 and moments.deviation()[1, 0] == 0.0
        negative += bool((naive_deviation(x[:, 0]) < 0.0).any())
    assert negative > 50  # the defect is real, so the trials could have shown it


@pytest.mark.parametrize("left", [1.5, 1.001, 1e-6])
def test_a_fading_class_keeps_its_deviation(left: float) -> None:
    """To within the factor that n / 2 makes; by n - 1 alone, rows that have faded to 1.001 would scatter 30 times as far."""
    x = np.random.default_rng(18).normal(size=(400, 2))
    moments = ClassMoments(2)
    moments.grow(1)
    moments.add(x, x, np.zeros(400, dtype=int), np.ones(400), 1.0)
    moments.add(x[:0], x[:0], np.zeros(0, dtype=int), np.zeros(0), left / 400)
    assert np.allclose(moments.weight, left)
    assert (moments.deviation() / x.std(axis=0) < 1.5).all() and (moments.deviation() / x.std(axis=0) > 0.9).all()


# --- AEF-OCL ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expand", [0, 20])
def test_without_pseudo_features_aef_ocl_is_the_joint_ridge(expand: int) -> None:
    """To 1e-9, after many balanced solves on the way: none of them left a trace."""
    x, y = imbalanced(1)
    ours = taught(made("aef-ocl", 5, solve_rows=7, expand=expand), x, y, (50, 51, 200))
    ridge = taught(made("ridge", 5, solve_rows=ONCE, expand=expand), x, y)
    assert same(with_prior(ours, "as-seen"), ridge.servable(), 1e-9)
    assert not same(ours.servable(), ridge.servable(), 1e-3)


def test_pseudo_features_leave_the_sums_bit_for_bit() -> None:
    """A learner that balanced a hundred times has the sums, and the moments, of one that did so once."""
    x, y = imbalanced(2)
    often, once = made("aef-ocl", 5, solve_rows=10**6), made("aef-ocl", 5, solve_rows=10**6)
    for start in range(0, len(x), 4):
        often.learn_many(Batch(x[start : start + 4], y[start : start + 4]))
        once.learn_many(Batch(x[start : start + 4], y[start : start + 4]))
        often.solve_now()
    once.solve_now()
    ours, theirs = often.state_dict().truth, once.state_dict().truth
    assert all(np.array_equal(ours[key], theirs[key]) for key in ("gram", "cross", "features", "class_scatter"))
    assert np.array_equal(often.servable().weights, once.servable().weights)


def keeps_pseudo_features(learner: Ridge) -> None:
    """The broken twin: what was drawn stays in the sums, as where a snapshot is not put back."""
    config, known = learner.head.config, learner.known()
    pseudo = balanced(config, known)
    known.sums.gram[...], known.sums.cross[...] = pseudo.gram, pseudo.cross
    known.sums.features, known.sums.targets, known.sums.weight = pseudo.features, pseudo.targets, pseudo.weight


def test_a_twin_that_keeps_its_pseudo_features_is_not_the_joint_ridge() -> None:
    """So the two tests above can fail."""
    x, y = imbalanced(2)
    broken, ridge = taught(made("aef-ocl", 5, solve_rows=ONCE), x, y), taught(made("ridge", 5, solve_rows=ONCE), x, y)
    keeps_pseudo_features(broken)
    assert not same(with_prior(broken, "as-seen"), ridge.servable(), 1e-3)


def test_pseudo_features_have_the_moments_of_their_class() -> None:
    """Every class weighs as much as the largest, with the mean and the variances of its own rows."""
    x, y = imbalanced(3, (40_000, 500, 500))
    learner = taught(made("aef-ocl", 5, solve_rows=ONCE, pseudo_rows=10**6), x, y)
    sums = balanced(AefOclConfig(pseudo_rows=10**6), learner.known())
    assert sums.targets.tolist() == [40_000.0] * 3 and sums.weight == 120_000.0
    for column, name in enumerate(learner.servable().classes):
        rows = x[y == name]
        assert np.abs(sums.centre + sums.cross[column] / 40_000 - rows.mean(axis=0)).max() < 0.03
    away = x - sums.centre
    spread = sum(40_000 * (np.diag(np.cov(x[y == n].T)) + away[y == n].mean(axis=0) ** 2) for n in np.unique(y))
    assert np.allclose(np.diag(sums.gram), spread, rtol=0.02)


def test_a_capped_class_weighs_as_much_with_fewer_rows() -> None:
    """Ten rows of pseudo-features stand for what 288 would."""
    x, y = imbalanced(4)
    learner = taught(made("aef-ocl", 5, solve_rows=ONCE), x, y)
    sums = balanced(AefOclConfig(pseudo_rows=10), learner.known())
    assert np.allclose(sums.targets, 300.0, rtol=1e-12)


def test_pseudo_features_are_drawn_by_seed_class_and_rows_alone() -> None:
    """Another order of classes draws the same; another seed or one row more does not."""
    x, y = imbalanced(5)
    order = np.argsort(y, kind="stable")
    learner = taught(made("aef-ocl", 5, solve_rows=ONCE), x, y)
    other = taught(made("aef-ocl", 5, solve_rows=ONCE), x[order], y[order])
    assert same(learner.servable(), other.servable(), 1e-9)
    seeded = taught(aef_ocl(AefOclConfig(solve_rows=ONCE), 5, 4), x, y)
    assert not same(learner.servable(), seeded.servable(), 1e-5)


@pytest.mark.parametrize(
    ("prior", "expected"),
    [("uniform", [0, 240, 288]), ("as-seen", [0, 0, 0]), ({"cat": 0.5, "bee": 0.1, "ant": 0.4}, [0, 15, 363])],
)
def test_what_a_class_lacks_of_its_prior(prior: Any, expected: list[int]) -> None:
    """max n - n_c for the paper's uniform prior; as many as the shares ask for where no real row may be left out."""
    assert np.allclose(missing(prior, ("ant", "bee", "cat"), np.array([300.0, 60.0, 12.0])), expected, atol=1e-9)


# --- AIR --------------------------------------------------------------------------------------------------------------


def joint_weighted(x: Floats, y: Array, pi: dict[str, float]) -> LinearServable:
    """Plain ridge on rows that weigh what their class does."""
    learner = Ridge(RidgeConfig(gamma=1.0, solve_rows=ONCE), x.shape[1], 3)
    learner.learn_many(Batch(x, y, weight=np.array([pi[name] for name in y])))
    learner.solve_now()
    return learner.servable()


@pytest.mark.parametrize("prior", ["uniform", "as-seen", {"cat": 0.7}, {"ant": 0.2, "bee": 0.3, "cat": 0.5}])
def test_air_is_the_ridge_of_re_weighted_rows(prior: Any) -> None:
    """Exactly what learning every row with weight pi of its class gives, for any prior, without learning again."""
    x, y = imbalanced(6)
    learner = taught(made("air", 5, solve_rows=ONCE), x, y, (1, 17, 200))
    names = learner.servable().classes
    counts = np.array([(y == name).sum() for name in names], dtype=float)
    pi = weights(prior, names, counts)
    assert pi.mean() == pytest.approx(1.0)
    assert same(with_prior(learner, prior), joint_weighted(x, y, dict(zip(names, pi, strict=True))), 1e-9)
    configured = taught(made("air", 5, solve_rows=ONCE, prior=prior), x, y)
    assert same(configured.servable(), with_prior(learner, prior), 1e-9)


def test_weights_of_air_by_hand() -> None:
    """(1 / n_c) / mean(1 / n_c'); a class without rows has 0 and is not in the mean."""
    pi = weights("uniform", ("a", "b", "none"), np.array([1.0, 3.0, 0.0]))
    assert pi.tolist() == [pytest.approx(1.5), pytest.approx(0.5), 0.0]
    assert weights("uniform", (), np.zeros(0)).tolist() == []


def test_air_refuses_memory_over_its_limit_with_the_numbers() -> None:
    """At the start, before a row is read; and a class more than there is room for, before it changes anything."""
    with pytest.raises(ConfigError, match=r"26,846,822,400 bytes \(25603 MiB\), more than limit_mib = 1024"):
        air(AirConfig(expand=8192), 10, 0)
    learner = made("air", 2, most_classes=2)
    with pytest.raises(BadInputError, match="3 classes; there is room for most_classes = 2"):
        learner.learn_many(Batch(np.eye(3, 2), NAMES[:3]))
    assert learner.rows == 0 and learner.servable().classes == ()


# --- the table of spec 1.4 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("correlated", [False, True])
def test_balancing_recovers_what_imbalance_costs(correlated: bool) -> None:
    """Spec 1.4: plain far behind; PFG and AIR alike where features really are diagonal, AIR ahead where they correlate."""
    got = {"ridge": [], "aef-ocl": [], "air": []}  # type: dict[str, list[float]]
    for seed in range(3):
        x, y, test_x, test_y = toy(seed, correlated)
        for kind, runs in got.items():
            learner = made(kind, 24, solve_rows=ONCE, expand=200)
            runs.append(class_accuracy(taught(learner, x, y), test_x, test_y))
    plain, pseudo, exact = (float(np.mean(runs)) for runs in got.values())
    assert min(pseudo, exact) > plain + 0.05, got
    assert exact > pseudo + 0.02 if correlated else abs(exact - pseudo) < 0.02, got


# --- rows that fade ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["aef-ocl", "air", "slda", "ncm"])
@pytest.mark.parametrize("since", [300, 480, 1000, 4000])
def test_a_class_that_has_faded_away_does_not_harm_the_others(kind: str, since: int) -> None:
    """Whether some rows' worth of it is left, about one, or next to nothing: the others are told apart as well as ever."""
    rng = np.random.default_rng(17)
    means = 4.0 * np.eye(3, 5)
    label = np.concatenate([rng.integers(0, 3, 600), rng.integers(0, 2, since)])
    learner = made(kind, 5, solve_rows=ONCE, decay=0.99)
    learner = taught(learner, means[label] + rng.normal(size=(len(label), 5)), NAMES[label], tuple(range(50, 600, 50)))
    tests = np.repeat([0, 1], 200)
    x = means[tests] + rng.normal(size=(400, 5))
    predicted = np.array(learner.servable().classes, dtype=object)[learner.predict_many(Batch(x)).argmax(axis=1)]
    assert (predicted == NAMES[tests]).mean() > 0.97
    spread = learner.servable().weights
    assert np.abs(spread).max() > 0.05  # nor are the answers flattened to nothing


# --- bad and thin input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ridge", "aef-ocl", "air", "slda", "ncm"])
@pytest.mark.parametrize("expand", [0, 8])
def test_thin_input_gives_finite_answers(kind: str, expand: int) -> None:
    """One row; one class; a constant feature; a class of one row; rows of no weight; a new class late; float32."""
    if kind != "ridge" and expand:
        expand = 9
    learner = made(kind, 3, solve_rows=1, expand=expand)
    x = np.random.default_rng(12).normal(size=(6, 3)).astype(np.float32)
    x[:, 1] = 0.1
    for rows, names in ((x[:1], NAMES[:1]), (x, NAMES[[0] * 6]), (x[:1], NAMES[1:2]), (x[:3], NAMES[[0, 1, 2]])):
        learner.learn_many(Batch(rows, names))  # type: ignore[arg-type]  # float32 is what is tried
        assert np.isfinite(learner.predict_many(Batch(np.ones((2, 3))))).all()
    learner.learn_many(Batch(np.ones((2, 3)), NAMES[[3, 3]], weight=np.zeros(2)))
    assert np.isfinite(learner.predict_many(Batch(np.ones((2, 3))))).all()
    assert learner.known().sums.gram.dtype == np.float64


@pytest.mark.parametrize("kind", ["ridge", "aef-ocl", "air", "slda", "ncm"])
def test_float32_rows_are_widened_before_they_are_summed(kind: str) -> None:
    """The answers are those of the same numbers as float64, bit for bit; sums in float32 would miss by 1e-7."""
    x, y = imbalanced(13)
    narrow = x.astype(np.float32)
    in_float32, in_float64 = (taught(made(kind, 5, solve_rows=ONCE), rows, y) for rows in (narrow, narrow.astype(np.float64)))  # type: ignore[arg-type]
    assert np.array_equal(in_float32.servable().weights, in_float64.servable().weights)


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("air", {"task": "regress"}, "air names classes"),
        ("aef-ocl", {"task": "regress"}, "aef-ocl names classes"),
        ("slda", {"task": "regress"}, "slda names classes"),
        ("ncm", {"task": "regress"}, "task = 'regress'"),
        ("ncm", {"distance": "city"}, "distance = 'city'"),
        ("air", {"prior": "even"}, "prior = 'even': must be"),
        ("slda", {"prior": {"a": 1.5}}, "add up to more than 0 and at most 1"),
        ("slda", {"shrink": 0.0}, "shrink = 0.0: must be"),
        ("air", {"gamma": 0.0}, "gamma = 0.0: must be"),
        ("aef-ocl", {"pseudo_rows": 0}, "pseudo_rows = 0"),
        ("air", {"most_classes": 0}, "most_classes = 0"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_by_key(kind: str, config: dict[str, Any], message: str) -> None:
    """Before a row is read."""
    with pytest.raises(ValueError, match=message):
        LEARNERS[kind].config(**config)


def test_learners_without_a_prior_say_so() -> None:
    """A plain ridge keeps nothing of each class; distances have no prior; an unusable prior is named."""
    x, y = imbalanced(14)
    for kind, message in (("ridge", "use kind air or aef-ocl"), ("ncm", "use kind slda")):
        with pytest.raises(LearnerError, match=message):
            with_prior(taught(made(kind, 5), x, y), "uniform")
    with pytest.raises(BadInputError, match="leaves no share to any class"):
        with_prior(taught(made("air", 5), x, y), {"zebra": 1.0})


@pytest.mark.parametrize(("kind", "expand"), [("aef-ocl", 0), ("air", 9), ("slda", 9), ("ncm", 0)])
def test_every_head_is_exported_to_onnx(kind: str, expand: int) -> None:
    """The same labels and scores in another runtime."""
    runtime = pytest.importorskip("onnxruntime", reason="the ONNX export is checked in onnxruntime, which is not here")
    pytest.importorskip("onnx", reason="the ONNX export is written by the package onnx, which is not here")
    x, y = imbalanced(15)
    served = taught(made(kind, 5, expand=expand), x, y).servable()
    session = runtime.InferenceSession(to_onnx(served), providers=["CPUExecutionProvider"])
    scores, label = session.run(["scores", "label"], {"x": x})
    assert np.abs(scores - served.predict_many(Batch(x))).max() <= 1e-9
    assert label.tolist() == [served.classes[at] for at in served.predict_many(Batch(x)).argmax(axis=1)]


def test_class_grams_add_up_to_the_gram_of_all_rows() -> None:
    """So as-seen AIR is the plain ridge, and the packed halves hold what they should."""
    x, y = imbalanced(16)
    learner = taught(made("air", 5, expand=7, solve_rows=ONCE), x, y, (30,))
    known = learner.known()
    phi = expanded(x, known.projection) - known.sums.centre
    for column, name in enumerate(known.names):
        rows = phi[y == name]
        assert np.allclose(known.per_class.gram(column), np.tril(rows.T @ rows), atol=1e-10)  # type: ignore[union-attr]
    plain = Sums.empty(7)
    plain.grow(1)
    plain.add(phi, np.ones((len(x), 1), order="F"), None, 1.0)
    assert np.allclose(known.sums.gram, plain.gram) and solve(plain, 1.0, True, True).residual < 1e-8
