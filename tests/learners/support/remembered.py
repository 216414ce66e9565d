"""An error memory written down row by row, from the paper's equations and docs/design/learners.md; slow.

It holds every row that was ever remembered, and looks at all of them for each question.
"""

from __future__ import annotations

import numpy as np

from millrace.learners.memory.config import MemoryConfig
from millrace.learners.protocol import Floats

SHARES = (0.0, 0.2, 0.4, 0.6, 0.9)


class WrittenDown:
    """Labels, answers and errors are (C,) over all classes that there will ever be, or numbers."""

    def __init__(self, config: MemoryConfig, seed: int, bounded: bool = True) -> None:
        self.config, self.seed, self.bounded = config, seed, bounded
        self.x: list[Floats] = []
        self.labels: list[Floats] = []
        self.answers: list[Floats] = []
        self.weight: list[float] = []
        self.keys: Floats | None = None  # of all rows
        self.losses, self.log_losses, self.rows_weight = dict.fromkeys(SHARES, 0.0), dict.fromkeys(SHARES, 0.0), 0.0

    def learn(self, x: Floats, label: Floats, answer: Floats, error: Floats, weight: float = 1.0) -> None:
        """A row that met its label, with what it was answered when it was asked."""
        for share in SHARES:
            moved = answer + share * error
            miss = (np.minimum(np.maximum(moved, 0.0), 1.0) if self.bounded else moved) - label
            self.losses[share] = self.losses[share] * 0.5 ** (1 / 1000) + weight * float(miss @ miss)
            loss = weight * self.log_loss(moved, label) if self.bounded else 0.0
            self.log_losses[share] = self.log_losses[share] * 0.5 ** (1 / 1000) + loss
        self.rows_weight = self.rows_weight * 0.5 ** (1 / 1000) + weight
        self.x.append(x)
        self.labels.append(label)
        self.answers.append(answer)
        self.weight.append(weight)

    @staticmethod
    def log_loss(scores: Floats, label: Floats) -> float:
        """Of scores (C,), clipped to .001 and 1 and normalised."""
        probabilities = np.minimum(np.maximum(scores, 0.001), 1.0)
        return float(-np.log(probabilities[label == 1.0][0] / probabilities.sum()))

    def figures(self) -> dict[str, float]:
        """Mean losses at lambda and without a correction; lambda is one of the five."""
        kept = {"squared_error": self.losses} | ({"log_loss": self.log_losses} if self.bounded else {})
        ends = (("", self.share), ("_uncorrected", 0.0))
        return {f"{name}{end}": of[share] / self.rows_weight for name, of in kept.items() for end, share in ends}

    @property
    def share(self) -> float:
        """lambda."""
        if self.config.strength is not None:
            return self.config.strength
        return min(SHARES, key=lambda share: (self.losses[share], share))

    def answer(self, answer: Floats, error: Floats, share: float | None = None) -> Floats:
        """What is answered, by a share of the error, else by lambda."""
        share = self.share if share is None else share
        if share == 0.0 or not error.any():
            return answer
        moved = answer + share * error
        return np.minimum(np.maximum(moved, 0.0), 1.0) if self.bounded else moved

    def error(self, x: Floats, answer: Floats) -> Floats:
        """By how much an answer to x (d,) is held to be wrong."""
        shares = self.shares(x)
        if shares is None:
            return np.zeros_like(answer)
        label, near = shares @ np.array(self.labels), shares @ np.array(self.answers)
        return self.config.gamma * (label - answer) + (1.0 - self.config.gamma) * (label - near)

    def shares(self, x: Floats) -> Floats | None:
        """How much each remembered row (m,) has to say; None where none has."""
        if len(self.x) < self.config.warm_up_rows:
            return None
        if self.keys is None or len(self.keys) < len(self.x):
            self.keys = self.key(np.array(self.x), *self.scale())
        keys, key = self.keys, self.key(x[None], *self.scale())
        weights = self.exact(keys, key[0]) if self.config.form == "exact" else self.sketch(keys, key[0])
        return weights / weights.sum() if weights.sum() > 0.0 else None

    def scale(self) -> tuple[Floats, Floats]:
        """Of the first rows."""
        first = np.array(self.x[: self.config.warm_up_rows])
        deviation = first.std(axis=0)
        return first.mean(axis=0), np.where(deviation > 0.0, deviation, 1.0)

    @staticmethod
    def key(rows: Floats, mean: Floats, deviation: Floats) -> Floats:
        """Keys (n, d + 1) of rows (n, d)."""
        z = np.minimum(np.maximum((rows - mean) / deviation, -10.0), 10.0)
        raised = np.concatenate([z, np.ones((len(z), 1))], axis=1)
        return np.asarray(raised / np.linalg.norm(raised, axis=1)[:, None])

    def exact(self, keys: Floats, key: Floats) -> Floats:
        """Of the newest rows, of those the nearest, and of equals the newer."""
        oldest = max(0, len(keys) - self.config.rows)
        cosines = np.round((keys * key).sum(axis=1) * 2.0**30) / 2.0**30
        order = np.lexsort((np.arange(oldest, len(keys)), cosines[oldest:]))[::-1][: self.config.near] + oldest
        weights = np.zeros(len(keys))
        weights[order] = np.array(self.weight)[order] * np.exp((cosines[order] - cosines[order[0]]) / self.config.tau)
        return weights

    def sketch(self, keys: Floats, key: Floats) -> Floats:
        """By the number of arrays in which a row fell into the key's cell, and by age."""
        config = self.config
        normals = np.random.default_rng([self.seed, config.bits]).standard_normal((keys.shape[1], config.arrays * config.bits))
        sides, side = (rows @ normals > 0.0 for rows in (keys, key[None]))
        same = (sides == side).reshape(len(keys), config.arrays, config.bits).all(axis=2).sum(axis=1)
        ages = np.arange(len(keys))[::-1]
        return np.asarray(same * np.array(self.weight) * 0.5 ** (ages / config.half_life_rows))
