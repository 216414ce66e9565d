"""Mean and deviation of each feature over a stream's first rows, frozen from then on: what learners by steps scale rows with.

Rows are taken as differences to the first one, so a mean of a billion deviations loses no digits, and a constant feature
deviates by exactly 0.

Source: Chan, Golub and LeVeque, "Algorithms for Computing the Sample Variance", The American Statistician 37 (3), 1983, (2.1).
"""

from __future__ import annotations

import numpy as np

from millrace.learners.protocol import Floats, Value

SMALLEST = 8.0 * float(np.finfo(np.float64).eps)  # of the mean; a feature that deviates less differs by its own rounding only
TINIEST = 1e-100  # as a mean or a deviation; keeps quotients of numbers up to 1e100 finite


class Scale:
    """Of the first ``rows`` rows, or so many as complete what was being taken.

    >>> scale = Scale(d=2, rows=3)
    >>> scale.take(np.array([[1.0, 5.0], [3.0, 5.0]]))
    >>> scale.mean, scale.deviation
    (array([2., 5.]), array([1., 1.]))
    """

    def __init__(self, d: int, rows: int) -> None:
        self.mean = np.zeros(d)
        self.deviation = np.ones(d)  # 1 where a feature did not vary
        self._first = np.zeros(d)  # the first row, which the others are taken from
        self._offset = np.zeros(d)  # of the mean from there
        self._squares = np.zeros(d)  # sum of squared differences from the mean
        self._taken = 0
        self._rows = rows  # >= 1

    @property
    def complete(self) -> bool:
        """Whether it stands for good."""
        return self._taken >= self._rows

    def take(self, x: Floats) -> None:
        """Let rows (n, d) count, unless there were enough before."""
        if self.complete:
            return
        if not self._taken:
            self._first = x[0].copy()
        x = x - self._first
        before, rows, mean = self._taken, len(x), x.mean(axis=0)
        self._taken, apart = before + rows, mean - self._offset
        self._squares = self._squares + ((x - mean) ** 2).sum(axis=0) + apart**2 * (before * rows / self._taken)
        self._offset = self._offset + apart * (rows / self._taken)
        self._deviate()

    def _deviate(self) -> None:
        self.mean = self._first + self._offset
        spread = np.sqrt(self._squares / max(self._taken, 1))
        self.deviation = np.where(spread > np.maximum(SMALLEST * np.abs(self.mean), TINIEST), spread, 1.0)

    def state(self) -> dict[str, Value]:
        """A copy of everything."""
        mean = {"first": self._first.copy(), "offset": self._offset.copy()}
        return mean | {"squares": self._squares.copy(), "scaled_rows": self._taken}

    def load(self, state: dict[str, Value]) -> None:
        """Become what gave ``state``, on copies of its arrays."""
        self._first, self._offset = np.array(state["first"]), np.array(state["offset"])
        self._squares, self._taken = np.array(state["squares"]), state["scaled_rows"]
        self._deviate()
