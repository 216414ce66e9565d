"""What learners of sums should answer, by batch formulas of NumPy from the rows, centred in extended precision first."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from millrace.learners.protocol import Array, Floats

Answers = Callable[[Floats], Floats]  # rows (n, d) -> scores (n, C), of numbers less their mean


class Rows:
    """Rows that weigh, as seen from their mean and in deviations; a feature that never varies is left at 0."""

    def __init__(self, x: Floats, weight: Floats) -> None:
        long, w = x.astype(np.longdouble), weight.astype(np.longdouble)
        self.weight, self.n = weight, float(weight.sum())
        self.mean = w @ long / w.sum()
        self.x: Floats = (long - self.mean).astype(np.float64)
        deviation = np.sqrt(weight @ self.x**2 / self.n)
        self.scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0.0)

    def scaled(self, x: Floats) -> Floats:
        """Other rows as seen from there."""
        away: Floats = (x.astype(np.longdouble) - self.mean).astype(np.float64)
        return away * self.scale


def regression(x: Floats, y: Floats, weight: Floats, gamma: float = 1.0) -> tuple[Floats, Rows, Floats]:
    """Ridge: W (d, C) of rows in deviations, those rows, and the mean of y (C,), by least squares with rows of the penalty."""
    rows = Rows(x, weight)
    long = y.astype(np.longdouble)
    mean = weight.astype(np.longdouble) @ long / weight.astype(np.longdouble).sum()
    root = np.sqrt(weight)[:, None]
    left = np.vstack([rows.x * rows.scale * root, np.sqrt(gamma) * np.eye(x.shape[1])])
    right = np.vstack([(long - mean).astype(np.float64) * root, np.zeros((x.shape[1], y.shape[1]))])
    return np.linalg.lstsq(left, right, rcond=None)[0], rows, mean.astype(np.float64)


def one_hot(y: Array, names: tuple[str, ...]) -> Floats:
    """(n, C) in the order of ``names``."""
    return np.asarray(y[:, None] == np.array(names, dtype=object), dtype=np.float64)


def ridge(x: Floats, y: Array, names: tuple[str, ...], weight: Floats) -> Answers:
    """Scores of the ridge regression on one-hot classes."""
    w, rows, mean = regression(x, one_hot(y, names), weight)
    return lambda asked: rows.scaled(asked) @ w + mean


def air(x: Floats, y: Array, names: tuple[str, ...], weight: Floats) -> Answers:
    """The same with each class weighing as much as another, 1 on average over classes."""
    share = np.array([1.0 / max(1.0, weight[y == name].sum()) for name in names])
    share /= share.mean()
    return ridge(x, y, names, weight * (one_hot(y, names) @ share))


def aef_ocl(x: Floats, y: Array, names: tuple[str, ...], weight: Floats) -> Answers:
    """The same with rows drawn for each class, by seed 3, until it weighs as much as the largest."""
    rows, totals = Rows(x, weight), [weight[y == name].sum() for name in names]
    pieces, columns, weights = [rows.x], [one_hot(y, names)], [weight]
    for column, (name, total) in enumerate(zip(names, totals, strict=True)):
        lacks = max(totals) - total
        count = min(round(lacks), 1024)
        if not count:
            continue
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        eps = np.random.Generator(np.random.PCG64([3, seed, len(x)])).standard_normal((count, x.shape[1]))
        own, w = rows.x[y == name], weight[y == name]
        mean = w @ own / total
        spread = np.sqrt(w @ (own - mean) ** 2 / max(total - 1.0, 0.5 * total))
        pieces.append(mean + spread * eps)
        columns.append(np.tile(np.eye(len(names))[column], (count, 1)))
        weights.append(np.full(count, lacks / count))
    w_, drawn, mean_ = regression(np.vstack(pieces), np.vstack(columns), np.concatenate(weights))
    zero = rows.mean
    return lambda asked: drawn.scaled((asked.astype(np.longdouble) - zero).astype(np.float64)) @ w_ + mean_


def class_means(rows: Rows, y: Array, names: tuple[str, ...]) -> Floats:
    """(C, d), in deviations from the mean of all."""
    means = [rows.weight[y == name] @ rows.x[y == name] / rows.weight[y == name].sum() for name in names]
    return np.stack(means) * rows.scale


def slda(x: Floats, y: Array, names: tuple[str, ...], weight: Floats) -> Answers:
    """Linear discriminants with equal priors and one covariance within classes, shrunk by 1e-4 towards variances of all."""
    rows = Rows(x, weight)
    mu, z = class_means(rows, y, names), rows.x * rows.scale
    apart = z - one_hot(y, names) @ mu
    within = apart.T @ (apart * weight[:, None]) / (rows.n - len(names))
    inverse = np.linalg.inv((1.0 - 1e-4) * within + 1e-4 * np.eye(x.shape[1]))
    level = -0.5 * np.einsum("cd,de,ce->c", mu, inverse, mu) - np.log(len(names))
    return lambda asked: rows.scaled(asked) @ inverse @ mu.T + level


def ncm(x: Floats, y: Array, names: tuple[str, ...], weight: Floats) -> Answers:
    """Distances to class means in deviations, less what is the same for every class."""
    rows = Rows(x, weight)
    mu = class_means(rows, y, names)
    return lambda asked: rows.scaled(asked) @ mu.T - 0.5 * (mu**2).sum(axis=1)


BATCH: dict[str, Callable[[Floats, Array, tuple[str, ...], Floats], Answers]] = {
    "ridge": ridge,
    "aef-ocl": aef_ocl,
    "air": air,
    "slda": slda,
    "ncm": ncm,
}


def miss(ours: Any, theirs: Any) -> float:
    """The largest difference, relative to the largest of theirs."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
