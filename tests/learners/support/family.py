"""Learners of the analytic family, taught, and what their tests compare them by."""

from __future__ import annotations

from typing import Any

import numpy as np

from millrace.learners.analytic.ridge import Ridge
from millrace.learners.linear.servable import LinearServable
from millrace.learners.protocol import Array, Batch, Floats
from millrace.learners.table import LEARNERS

NAMES = np.array(["ant", "bee", "cat", "dog", "eel", "fly"], dtype=object)
ONCE = 10**9  # solve_rows that no test reaches, so that all solves are asked for


def made(kind: str, d: int, **config: Any) -> Ridge:
    """An untaught learner of the table."""
    algorithm = LEARNERS[kind]
    learner = algorithm.learner(algorithm.config(**config), d, 3)
    assert isinstance(learner, Ridge)
    return learner


def imbalanced(seed: int, counts: tuple[int, ...] = (300, 60, 12), d: int = 5) -> tuple[Floats, Array]:
    """Rows about one point for each class, in any order, and their names."""
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    return rng.normal(size=(len(label), d)) + rng.normal(0.0, 1.5, size=(len(counts), d))[label], NAMES[label]


def taught(learner: Ridge, x: Floats, y: Array, cuts: tuple[int, ...] = ()) -> Ridge:
    """``learner`` after these rows, in batches that end at ``cuts``, and solved."""
    for start, stop in zip((0, *cuts), (*cuts, len(x)), strict=True):
        learner.learn_many(Batch(x[start:stop], y[start:stop]))
    learner.solve_now()
    return learner


def same(ours: LinearServable, theirs: LinearServable, tolerance: float) -> bool:
    """Whether two servables with the same classes, in any order, give equal scores."""
    x = np.random.default_rng(7).normal(size=(50, ours.d))
    order = [theirs.classes.index(name) for name in ours.classes]
    scores, others = ours.predict_many(Batch(x)), theirs.predict_many(Batch(x))[:, order]
    return bool(np.abs(scores - others).max() <= tolerance * max(1.0, float(np.abs(scores).max())))


def sorted_columns(learner: Ridge) -> list[int]:
    """Columns in the order of the classes' names."""
    names = learner.servable().classes
    return [names.index(name) for name in sorted(names)]


def toy(
    seed: int, correlated: bool, counts: tuple[int, ...] = (12000, 6000, 2500, 400, 120, 40)
) -> tuple[Floats, Array, Floats, Array]:
    """Six Gaussian classes of 24 features, with so many rows each; and 300 test rows of each."""
    rng = np.random.default_rng(seed)
    means, scale = rng.normal(0.0, 1.0, size=(6, 24)), rng.uniform(0.5, 1.5, size=(6, 24))
    mixing = [np.eye(24) + (0.25 * rng.normal(size=(24, 24)) if correlated else 0.0) for _ in range(6)]

    def draw(counts: tuple[int, ...]) -> tuple[Floats, Array]:
        label = np.repeat(np.arange(6), counts)
        x = np.concatenate([means[c] + (rng.normal(size=(n, 24)) * scale[c]) @ mixing[c] for c, n in enumerate(counts)])
        return x, NAMES[label]

    return (*draw(counts), *draw((300,) * 6))


def class_accuracy(learner: Ridge, x: Floats, y: Array) -> float:
    """Mean over classes of the share answered correctly."""
    served = learner.servable()
    predicted = np.array(served.classes, dtype=object)[served.predict_many(Batch(x)).argmax(axis=1)]
    return float(np.mean([(predicted[y == name] == name).mean() for name in np.unique(y)]))
