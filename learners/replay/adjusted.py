"""What a network takes a value for that it cannot take as it comes, and how often that was so, by feature."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.learners.protocol import Array, Floats, Value
from millrace.learners.replay.networks import FARTHEST

BRIGHTEST = 255.0  # of a pixel, which is one byte


class Adjusted:
    """Counts over the learned rows of ``d`` >= 1 features. Nothing depends on them, so they are no part of the truth.

    >>> adjusted = Adjusted(2)
    >>> adjusted.pixels(np.array([[300.0, 7.5], [7.0, 0.0]])).tolist(), adjusted.noticed()
    ([[255, 8], [7, 0]], {'clipped': {0: 1}, 'rounded': {1: 1}, 'clipped_weights': 0})
    """

    def __init__(self, d: int) -> None:
        self._clipped: NDArray[np.int64] = np.zeros(d, dtype=np.int64)  # values beyond FARTHEST deviations, or 0 to BRIGHTEST
        self._rounded: NDArray[np.int64] = np.zeros(d, dtype=np.int64)  # values of pixels that were not whole
        self._weights = 0  # weights beyond FARTHEST

    def pixels(self, x: Floats) -> Array:
        """x (n, d) as whole numbers from 0 to 255."""
        whole = np.rint(x)
        kept = np.clip(whole, 0.0, BRIGHTEST)
        self._rounded += (whole != x).sum(axis=0)
        self._clipped += (kept != whole).sum(axis=0)
        return kept.astype(np.uint8)

    def weights(self, weight: Floats) -> Floats:
        """Weights (n,) up to FARTHEST: a larger one would be a step without bounds."""
        self._weights += int((weight > FARTHEST).sum())
        return np.minimum(weight, FARTHEST)

    def count(self, x: Floats, scale: tuple[Floats, Floats]) -> None:
        """Count the values of x (n, d) that the network clips, by mean and deviation (d,)."""
        self._clipped += (np.abs((x - scale[0]) / scale[1]) > FARTHEST).sum(axis=0)

    def noticed(self) -> dict[str, Any]:
        """The counts; by column, those that are not 0."""
        columns = {"clipped": self._clipped, "rounded": self._rounded}
        by_column = {name: {int(at): int(counts[at]) for at in np.flatnonzero(counts)} for name, counts in columns.items()}
        return by_column | {"clipped_weights": self._weights}

    def state(self) -> dict[str, Value]:
        """A copy of the counts; empty where there is none, as in states that older releases wrote."""
        if not (self._clipped.any() or self._rounded.any() or self._weights):
            return {}
        return {"clipped": self._clipped.copy(), "rounded": self._rounded.copy(), "clipped_weights": self._weights}

    def load(self, state: dict[str, Value]) -> None:
        """Become what gave ``state``."""
        none = np.zeros_like(self._clipped)
        self._clipped, self._rounded = (np.array(state.get(name, none)) for name in ("clipped", "rounded"))
        self._weights = int(state.get("clipped_weights", 0))
