"""SLDA and NCM against their batch formulas, and without the defects of public code."""

from __future__ import annotations

import numpy as np
import pytest
from family import ONCE, imbalanced, made, sorted_columns, taught

from millrace.learners.analytic.exact import with_prior
from millrace.learners.analytic.ncm import NcmConfig
from millrace.learners.analytic.ridge import RidgeConfig
from millrace.learners.analytic.slda import SldaConfig
from millrace.learners.protocol import Array, Batch, Floats


def batch_lda(x: Floats, y: Array, shrink: float) -> Floats:
    """W over b (d + 1, C) by the paper's batch formula, classes in the order of their names."""
    names = sorted(set(y))
    mu = np.stack([x[y == name].mean(axis=0) for name in names])
    within = sum((x[y == n] - mu[c]).T @ (x[y == n] - mu[c]) for c, n in enumerate(names)) / (len(x) - len(names))
    inverse = np.linalg.inv((1.0 - shrink) * within + shrink * np.eye(x.shape[1]))
    return np.vstack([inverse @ mu.T, -0.5 * np.einsum("cd,de,ce->c", mu, inverse, mu)])


def streamed_lda(x: Floats, y: Array, shrink: float) -> Floats:
    """The broken twin, as in every public copy: the global n in the factor, and a class's first row measured from 0."""
    names, d = sorted(set(y)), x.shape[1]
    mu, n, sigma = np.zeros((len(names), d)), np.zeros(len(names)), np.zeros((d, d))
    for seen, (row, name) in enumerate(zip(x, y, strict=True)):
        c = names.index(name)
        apart = row - mu[c]
        sigma = (seen * sigma + (seen / (seen + 1)) * np.outer(apart, apart)) / (seen + 1)
        mu[c] += apart / (n[c] + 1)
        n[c] += 1
    inverse = np.linalg.inv((1.0 - shrink) * sigma + shrink * np.eye(d))
    return np.vstack([inverse @ mu.T, -0.5 * np.einsum("cd,de,ce->c", mu, inverse, mu)])


def differences(affine: Floats, x: Floats) -> Floats:
    """Scores less those of the first class, which is what decides."""
    scores: Floats = x @ affine[:-1] + affine[-1]
    return scores - scores[:, :1]


def test_slda_is_its_batch_formula_and_the_public_copies_are_not() -> None:
    """To 1e-9, for any cut of the rows; the running form of Deep_SLDA, Avalanche and pec misses by far more."""
    x, y = imbalanced(8)
    x = x + 3.0
    exact = batch_lda(x, y, 1e-4)
    for cuts in ((), (1, 2, 100), tuple(range(10, 370, 10))):
        learner = taught(made("slda", 5, solve_rows=ONCE, standardise=False), x, y, cuts)
        served, order = learner.servable(), sorted_columns(learner)
        ours = np.vstack([served.weights[:, order], served.intercept[order]])
        assert np.allclose(differences(ours, x), differences(exact, x), rtol=1e-9, atol=1e-9)
    apart = np.abs(differences(streamed_lda(x, y, 1e-4), x) - differences(exact, x)).max()
    assert apart > 0.05 * np.abs(differences(exact, x)).max()


def test_slda_does_not_depend_on_units_or_offsets() -> None:
    """With ``standardise``: features in other units, and far from 0, give the same answers."""
    x, y = imbalanced(9)
    units = np.array([1.0, 1e3, 1e-3, 7.0, 1e2])
    plain, shifted = (taught(made("slda", 5, solve_rows=ONCE), rows, y) for rows in (x, (x + 1e3) * units))
    scores, scaled = plain.predict_many(Batch(x)), shifted.predict_many(Batch((x + 1e3) * units))
    assert np.allclose(scores - scores[:, :1], scaled - scaled[:, :1], atol=1e-5)


def test_a_prior_moves_the_scores_of_slda_by_its_logarithm() -> None:
    """And nothing else; a class with no share is never the answer."""
    x, y = imbalanced(10)
    learner = taught(made("slda", 5, solve_rows=ONCE), x, y)
    plain, seen = with_prior(learner, "uniform"), with_prior(learner, "as-seen")
    counts = np.array([(y == name).sum() for name in plain.classes])
    assert np.allclose(seen.intercept - plain.intercept, np.log(counts / len(y)) - np.log(1 / 3))
    never = with_prior(learner, {"ant": 0.0, "bee": 0.5, "cat": 0.5}).predict_many(Batch(x)).argmax(axis=1)
    assert plain.classes.index("ant") not in never


@pytest.mark.parametrize("standardise", [False, True])
def test_ncm_answers_with_the_nearest_class_mean(standardise: bool) -> None:
    """By distance, or by angle, from means over all rows; with features in units of their deviation or as they come."""
    x, y = imbalanced(11)
    scale = 1.0 / x.std(axis=0) if standardise else np.ones(5)
    means = np.stack([x[y == name].mean(axis=0) for name in sorted(set(y))]) * scale
    far = (((x * scale)[:, None] - means) ** 2).sum(axis=2)
    cosine = (x * scale) @ means.T / np.linalg.norm(means, axis=1)
    for distance, best in (("euclid", far.argmin(axis=1)), ("cosine", cosine.argmax(axis=1))):
        learner = taught(made("ncm", 5, solve_rows=ONCE, standardise=standardise, distance=distance), x, y, (3, 90))
        predicted = learner.predict_many(Batch(x))[:, sorted_columns(learner)].argmax(axis=1)
        assert np.array_equal(predicted, best)


def test_what_is_not_said_is_as_in_a_ridge() -> None:
    """The keys that are a ridge's have its defaults."""
    assert NcmConfig().ridge() == SldaConfig().ridge() == RidgeConfig()
