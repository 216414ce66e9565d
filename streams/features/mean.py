"""What stands in for a missing number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from millrace.learners.protocol import Floats


@dataclass(slots=True)
class Mean:
    """The running mean that stands in for a missing number."""

    total: float = 0.0  # of the differences to ``first``, so that values far from zero lose no digits
    count: int = 0
    first: float = 0.0  # the first value that was present

    def fill(self, values: Floats) -> Floats:
        """Missing values replaced by the mean of all present ones before them (0 before the first)."""
        absent = np.isnan(values)
        if not self.count and not absent.all():
            self.first = float(values[~absent][0])
        apart = np.where(absent, 0.0, values - self.first)
        totals = np.cumsum(np.concatenate(([self.total], apart)))  # sequential: split as you like
        counts = self.count + np.concatenate(([0], np.cumsum(~absent)))
        self.total, self.count = float(totals[-1]), int(counts[-1])
        before = np.where(counts[:-1] > 0, self.first + totals[:-1] / np.maximum(counts[:-1], 1), 0.0)
        return np.where(absent, before, values)

    def stand_in(self, values: Floats) -> Floats:
        """Missing values replaced by the mean of all present ones so far; nothing is learned."""
        return np.where(np.isnan(values), self.first + self.total / max(self.count, 1), values)
