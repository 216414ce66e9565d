"""How far the numbers of a feature usually lie apart, and what a learner gets in place of one that lies far outside.

A learner answers for the same x as it learns from, so one stage does this for both. What it knows is state, and moves when rows
are learned, at fixed counts of them, so that nothing depends on how rows were grouped:

- at 1, 2, 4, ... 256 learned rows and at every 256 from then on, it takes in the rows since the last such look
- from 256 rows on, a value is clipped to 10 deviations from the mean, or to the range of the learned values widened on either
  side by its own width, whichever reaches further
- a clipped value counts as it was clipped, and does not widen the range. Where over 5 % of the rows since the last look were
  clipped, the feature has moved, and they count as they came
- a feature that is the same in most rows as in the row before (a flag, a count, a pixel at the edge) is sparse: its deviation
  says little, so its range is widened by 1000 of its widths, and a clipped value widens the range
- a feature that has not varied yet has no bounds

``declared`` is for workers whose learners are merged and that must scale alike without seeing each other's rows. Only a field
that declares a center and a scale, written out or other than 0 and 1, is clipped, to 10 of its scales.

``standardise`` moves the mean to 0 and the deviation to 1 besides, and clips to 10 deviations whatever the range: for learners
by steps, whose rate would depend on units. A feature that has not varied yet is 0.

Source: Chan, Golub and LeVeque, "Algorithms for Computing the Sample Variance", The American Statistician 37 (3), 1983, (2.1);
docs/design/overview.md#scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from millrace.learners.protocol import Array, Floats, Scaling, Value

FIXED = ("none", "declared")  # ways that learn nothing

LOOK_ROWS = 256  # learned rows from one look to the next, and before anything is clipped
DEVIATIONS = 10.0  # from the mean, within which nothing is clipped
SPARSE = 0.5  # share of rows that differ from the row before, below which a feature is sparse
SPANS = 1000.0  # widths of its range that a sparse feature is let out
MOVED = 0.05  # share of clipped rows above which a feature has moved; below it, it had outliers
ARRAYS = ("mean", "squares", "low", "high")  # of Moments
ROUNDING = 4.0 * float(np.finfo(np.float64).eps)  # of the mean; a smaller deviation is none


@dataclass(slots=True)
class Moments:
    """Number, mean, sum of squared distances to the mean, and range of the rows of some features."""

    rows: int
    mean: Floats  # (width,), as are the others
    squares: Floats
    low: Floats
    high: Floats

    @classmethod
    def none(cls, width: int) -> Moments:
        """Of no rows."""
        return cls(0, np.zeros(width), np.zeros(width), np.full(width, np.inf), np.full(width, -np.inf))

    @classmethod
    def of(cls, rows: Floats, low: Floats, high: Floats) -> Moments:
        """Of rows (n, width), n >= 1, and what is to be their range."""
        mean = rows.sum(axis=0) / len(rows)
        return cls(len(rows), mean, ((rows - mean) ** 2).sum(axis=0), low, high)

    def join(self, other: Moments) -> None:
        """Take in the rows of ``other``."""
        if not other.rows:
            return
        if not self.rows:  # 0.0 is added as there would be to a mean of 0: it makes 0.0 of -0.0
            self.rows, self.mean, self.squares = other.rows, other.mean + 0.0, other.squares
            self.low, self.high = other.low, other.high
            return
        apart, before, self.rows = other.mean - self.mean, self.rows, self.rows + other.rows
        self.squares = self.squares + other.squares + apart**2 * (before * other.rows / self.rows)
        self.mean = self.mean + apart * (other.rows / self.rows)
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)

    def choose(self, chosen: Array, other: Moments) -> Moments:
        """The features ``chosen`` (width,) as ``other``, which is of as many rows, has them."""
        return Moments(self.rows, *(np.where(chosen, getattr(other, name), getattr(self, name)) for name in ARRAYS))

    @property
    def deviation(self) -> Floats:
        """(width,), 0 where the rows do not vary by more than rounding."""
        spread = np.sqrt(self.squares / max(self.rows, 1))
        return np.where(spread > ROUNDING * np.abs(self.mean), spread, 0.0)

    def state(self, prefix: str) -> dict[str, Value]:
        """Copies, under names that begin with ``prefix``."""
        return {f"{prefix}rows": self.rows} | {prefix + name: getattr(self, name).copy() for name in ARRAYS}

    @classmethod
    def of_state(cls, state: Mapping[str, Value], prefix: str) -> Moments:
        """What gave ``state``."""
        return cls(int(state[f"{prefix}rows"]), *(np.array(state[prefix + name]) for name in ARRAYS))


class Scale:
    """Of ``width`` features of one learner.

    >>> scale, rows = Scale("clip", 1), np.random.default_rng(0).standard_normal((256, 1))
    >>> scale.learn(rows[:200]).shape, scale.learn(rows[200:]).shape, scale.learn(np.array([[1e9]])).item() < 11.0
    ((200, 1), (56, 1), True)
    """

    def __init__(self, scaling: Scaling, width: int, declared: Array | None = None) -> None:
        """``declared`` (width,): whether center and scale are. Nothing learned yet."""
        self.scaling: Scaling = scaling
        self._declared = np.zeros(width, dtype=bool) if declared is None else declared
        self.clipped = np.zeros(width, dtype=np.int64)  # (width,) learned values that were clipped, ever
        self._known, self._came = Moments.none(width), Moments.none(width)  # up to the last look, and since then
        self._kept = self._came  # since then, as they count: the same object until a row is clipped
        self._outside: Array = np.zeros(width, dtype=np.int64)  # clipped values since then
        self._last, self._changes = np.full(width, np.nan), np.zeros(width, dtype=np.int64)  # rows unlike the row before
        self._bound()

    def cuts(self, rows: int, learned: int) -> Iterator[tuple[int, int]]:
        """``rows`` rows that come after ``learned`` ones, in pieces that end where a look is due."""
        at = 0
        while at < rows:
            looks = self.scaling not in FIXED or learned + at < LOOK_ROWS
            stop = min(rows, at + self._next_look(learned + at) - learned - at) if looks else rows
            yield at, stop
            at = stop

    @staticmethod
    def _next_look(learned: int) -> int:
        return 1 << learned.bit_length() if learned < LOOK_ROWS else (learned // LOOK_ROWS + 1) * LOOK_ROWS

    def applied(self, x: Floats) -> Floats:
        """What a learner gets for x (n, width); missing values, NaN, stay so."""
        return self._standardised(self._clipped(x))

    def learn(self, x: Floats, ends: tuple[Floats, Floats] | None = None) -> Floats:
        """The same for rows that are learned; they are one of the pieces that ``cuts`` gives, and have no missing values.

        ``ends`` (width,) each: their least and largest values, where they are known.
        """
        if self.scaling == "none":
            return x
        low, high = (x.min(axis=0), x.max(axis=0)) if ends is None else ends
        came, kept = Moments.of(x, low, high), x
        counted = came
        if self._bounded and not ((self._low <= low) & (high <= self._high)).all():
            kept = np.clip(x, self._low, self._high)
            same = kept == x
            widens, outside = same | self._sparse, (~same).sum(axis=0)
            low, high = np.where(widens, kept, np.inf).min(axis=0), np.where(widens, kept, -np.inf).max(axis=0)
            counted = Moments.of(kept, low, high)
            self._outside, self.clipped = self._outside + outside, self.clipped + outside
        given = self._standardised(kept)
        if self.scaling == "standardise":
            self.clipped = self.clipped + ((np.abs(given) == DEVIATIONS) & (kept == x)).sum(axis=0)
        if self.scaling not in FIXED:
            self._count(x, came, counted)
        return given

    def _clipped(self, x: Floats) -> Floats:
        """x (n, d) within the bounds; itself where it is."""
        if self._bounded and ((x < self._low) | (x > self._high)).any():
            return np.clip(x, self._low, self._high)
        return x

    def _standardised(self, kept: Floats) -> Floats:
        if self.scaling != "standardise":
            return kept
        return np.clip((kept - self._known.mean) / self._unit, -DEVIATIONS, DEVIATIONS)

    def _count(self, x: Floats, came: Moments, counted: Moments) -> None:
        """Take rows in: as they came, and as they count; look where that is due."""
        differs = x[1:] != x[:-1]
        changes = len(differs) if differs.all() else differs.sum(axis=0)
        self._changes = self._changes + changes + (x[0] != self._last)
        self._last = x[-1].copy()
        if counted is not came and self._kept is self._came:
            self._kept = replace(self._came)
        self._came.join(came)
        if self._kept is not self._came:
            self._kept.join(counted)
        rows = self._known.rows + self._came.rows
        if self._next_look(rows - 1) == rows:
            self._look()

    def _look(self) -> None:
        """Take in the rows since the last look."""
        width = len(self.clipped)
        moved = self._outside > MOVED * self._came.rows
        self._known.join(self._came if self._kept is self._came else self._kept.choose(moved, self._came))
        self._came = Moments.none(width)
        self._kept, self._outside = self._came, np.zeros(width, dtype=np.int64)
        self._bound()

    def _bound(self) -> None:
        if self.scaling in FIXED:
            most = np.where(self._declared & (self.scaling == "declared"), DEVIATIONS, np.inf)
            self._low, self._high, self._bounded = -most, most, bool(np.isfinite(most).any())
            self._sparse = np.zeros(len(most), dtype=bool)
            return
        known, deviation = self._known, self._known.deviation
        self._unit = np.where(deviation > 0.0, deviation, np.inf)
        varies = (deviation > 0.0) & (known.rows >= LOOK_ROWS)
        self._sparse = self._changes <= SPARSE * known.rows
        room = np.where(varies, known.high - known.low, 0.0) * np.where(self._sparse, SPANS, 1.0)
        low = np.minimum(known.mean - DEVIATIONS * deviation, known.low - room)
        high = np.maximum(known.mean + DEVIATIONS * deviation, known.high + room)
        self._low, self._high = np.where(varies, low, -np.inf), np.where(varies, high, np.inf)
        self._bounded = bool(varies.any())

    def state(self) -> dict[str, Value]:
        """A copy of everything; empty where nothing is scaled."""
        if self.scaling in FIXED:
            return {} if self.scaling == "none" else {"scaling": self.scaling, "clipped": self.clipped.copy()}
        recent: dict[str, Any] = {"outside": self._outside.copy(), "clipped": self.clipped.copy()}
        recent |= {"last": self._last.copy(), "changes": self._changes.copy()}
        parts = self._known.state("known.") | self._came.state("came.") | self._kept.state("kept.") | recent
        return {"scaling": self.scaling} | parts

    def load(self, state: Mapping[str, Value]) -> None:
        """Become what gave ``state``; of a release that did not scale there is none."""
        self.scaling = state.get("scaling", "none")
        if "clipped" in state:
            self.clipped = np.array(state["clipped"])
        if self.scaling in FIXED:
            self._bound()
            return
        self._known, self._came, self._kept = (Moments.of_state(state, prefix) for prefix in ("known.", "came.", "kept."))
        self._outside, self._last, self._changes = (np.array(state[name]) for name in ("outside", "last", "changes"))
        self._bound()
