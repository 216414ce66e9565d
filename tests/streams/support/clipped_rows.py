"""What clipping a feature comes to, one row at a time in plain Python; nothing of ours takes part."""

from __future__ import annotations

import math


class RowByRow:
    """One feature; every value is kept, and statistics are taken from all of them. Source: docs/design/overview.md#scale."""

    def __init__(self) -> None:
        self.counted: list[tuple[float, bool]] = []  # what counts of each row up to the last look, and whether for the range
        self.recent: list[tuple[float, float]] = []  # since then: as it came, as it was clipped
        self.low, self.high = -math.inf, math.inf
        self.last, self.changes, self.sparse = math.nan, 0, False

    def row(self, value: float) -> float:
        """What the learner gets."""
        kept = min(max(value, self.low), self.high)
        self.changes, self.last = self.changes + (value != self.last), value
        self.recent.append((value, kept))
        rows = len(self.counted) + len(self.recent)
        if rows % 256 == 0 or (rows < 256 and rows & (rows - 1) == 0):
            self.look()
        return kept

    def look(self) -> None:
        """Take in the recent rows; new bounds."""
        moved = sum(came != kept for came, kept in self.recent) > 0.05 * len(self.recent)
        self.counted += [(came, True) if moved else (kept, came == kept or self.sparse) for came, kept in self.recent]
        self.recent = []
        values = [value for value, _ in self.counted]
        mean = math.fsum(values) / len(values)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        if len(values) < 256 or deviation <= 1e-15 * abs(mean):
            return
        low, high = min(v for v, ranged in self.counted if ranged), max(v for v, ranged in self.counted if ranged)
        self.sparse = self.changes <= 0.5 * len(values)
        room = (high - low) * (1000 if self.sparse else 1)
        self.low, self.high = min(mean - 10 * deviation, low - room), max(mean + 10 * deviation, high + room)
