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
from dataclasses import dataclass
from typing import Any

import numpy as np

from millrace.learners.protocol import Array, Floats, Scaling, Value
from millrace.streams.features.ends import Ends

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
        apart = rows - mean
        apart *= apart
        return cls(len(rows), mean, apart.sum(axis=0), low, high)

    def apart(self) -> Moments:
        """Others that are the same so far."""
        return Moments(self.rows, self.mean, self.squares, self.low, self.high)

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


@dataclass(frozen=True, slots=True)
class Bounds:
    """Within which nothing is clipped, (width,) each, and by what else a value is judged."""

    low: Floats
    high: Floats
    sparse: Array  # whether the feature is
    unit: Floats  # of ``standardise``: the deviation, infinite where there is none
    finite: bool  # whether any feature has bounds


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
        self._none = Moments.none(width)
        self._known, self._came = Moments.none(width), Moments.none(width)  # up to the last look, and since then
        self._kept = self._came  # since then, as they count: the same object until a row is clipped
        self._outside: Array = np.zeros(width, dtype=np.int64)  # clipped values since then
        self._last, self._changes = np.full(width, np.nan), np.zeros(width, dtype=np.int64)  # rows unlike the row before
        self._begin()

    def _begin(self) -> None:
        """Know no bounds yet."""
        self._known_changes = self._changes  # up to the last look
        self._bounds: Bounds | None = None  # None: not worked out since the last look
        self._sure = self._none.low, self._none.high  # between which, by an earlier look, values are within the bounds

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

    def applied(self, x: Floats, ends: Ends | None = None) -> Floats:
        """What a learner gets for x (n, width); missing values, NaN, stay so.

        ``ends``: their least and largest values, where they are known.
        """
        if self.scaling == "none" or (ends is not None and self._within(*ends)):
            return self._standardised(x)
        bounds = self._bounds_now()
        if bounds.finite and ((x < bounds.low) | (x > bounds.high)).any():
            x = np.clip(x, bounds.low, bounds.high)
        return self._standardised(x)

    def learn(self, x: Floats, ends: Ends | None = None) -> Floats:
        """The same for rows that are learned; they are one of the pieces that ``cuts`` gives, and have no missing values."""
        if self.scaling == "none":
            return x
        low, high = (x.min(axis=0), x.max(axis=0)) if ends is None else ends
        came, kept = Moments.of(x, low, high), x
        counted = came
        if not self._within(low, high):
            bounds = self._bounds_now()
            kept = np.clip(x, bounds.low, bounds.high)
            same = kept == x
            widens, outside = same | bounds.sparse, (~same).sum(axis=0)
            low, high = np.where(widens, kept, np.inf).min(axis=0), np.where(widens, kept, -np.inf).max(axis=0)
            counted = Moments.of(kept, low, high)
            self._outside, self.clipped = self._outside + outside, self.clipped + outside
        given = self._standardised(kept)
        if self.scaling == "standardise":
            self.clipped = self.clipped + ((np.abs(given) == DEVIATIONS) & (kept == x)).sum(axis=0)
        if self.scaling not in FIXED:
            self._count(x, came, counted)
        return given

    def _within(self, low: Floats, high: Floats) -> bool:
        """Whether values between these, (width,) each, are within the bounds.

        As a rule an earlier look says so, and bounds need not be worked out again. The range only widens, and bounds lie at
        least as far beside it as it is wide. So what lay so far beside it then is within the bounds of today.
        """
        least, most = self._sure
        if np.count_nonzero((least <= low) & (high <= most)) == len(low):
            return True
        bounds = self._bounds_now()
        return not bounds.finite or bool(((bounds.low <= low) & (high <= bounds.high)).all())

    def _standardised(self, kept: Floats) -> Floats:
        if self.scaling != "standardise":
            return kept
        return np.clip((kept - self._known.mean) / self._bounds_now().unit, -DEVIATIONS, DEVIATIONS)

    def _count(self, x: Floats, came: Moments, counted: Moments) -> None:
        """Take rows in: as they came, and as they count; look where that is due."""
        differs = x[1:] != x[:-1]
        changes = len(differs) if np.count_nonzero(differs) == differs.size else differs.sum(axis=0)
        self._changes = self._changes + changes + (x[0] != self._last)
        self._last = x[-1].copy()
        if counted is not came and self._kept is self._came:
            self._kept = self._came.apart()
        self._came.join(came)
        if self._kept is not self._came:
            self._kept.join(counted)
        rows = self._known.rows + self._came.rows
        if self._next_look(rows - 1) == rows:
            self._look()

    def _look(self) -> None:
        """Take in the rows since the last look."""
        came = self._came
        if self._kept is not came:
            came = self._kept.choose(self._outside > MOVED * came.rows, came)
            self._outside = np.zeros_like(self._outside)
        self._known.join(came)
        self._came = self._kept = self._none.apart()
        self._known_changes, self._bounds = self._changes, None

    def _bounds_now(self) -> Bounds:
        if self._bounds is None:
            self._bounds = self._fixed_bounds() if self.scaling in FIXED else self._running_bounds()
        return self._bounds

    def _fixed_bounds(self) -> Bounds:
        most = np.where(self._declared & (self.scaling == "declared"), DEVIATIONS, np.inf)
        self._sure = -most, most
        return Bounds(-most, most, np.zeros(len(most), dtype=bool), np.ones(len(most)), bool(np.isfinite(most).any()))

    def _running_bounds(self) -> Bounds:
        known, deviation = self._known, self._known.deviation
        varies = (deviation > 0.0) & (known.rows >= LOOK_ROWS)
        sparse = self._sparse_by(self._known_changes)
        span = np.where(varies, known.high - known.low, 0.0)
        self._sure = known.low - span, known.high + span
        room = span * np.where(sparse, SPANS, 1.0)
        low = np.minimum(known.mean - DEVIATIONS * deviation, known.low - room)
        high = np.maximum(known.mean + DEVIATIONS * deviation, known.high + room)
        low, high = np.where(varies, low, -np.inf), np.where(varies, high, np.inf)
        return Bounds(low, high, sparse, np.where(deviation > 0.0, deviation, np.inf), bool(varies.any()))

    def _sparse_by(self, changes: Array) -> Array:
        """Which features (width,) are sparse, by the last look and so many changes."""
        return np.asarray(changes <= SPARSE * self._known.rows)

    def state(self) -> dict[str, Value]:
        """A copy of everything; empty where nothing is scaled."""
        if self.scaling in FIXED:
            return {} if self.scaling == "none" else {"scaling": self.scaling, "clipped": self.clipped.copy()}
        recent: dict[str, Any] = {"outside": self._outside.copy(), "clipped": self.clipped.copy()}
        recent |= {"last": self._last.copy(), "changes": self._changes.copy()}
        recent["known_changes"] = self._known_changes.copy()
        parts = self._known.state("known.") | self._came.state("came.") | self._kept.state("kept.") | recent
        return {"scaling": self.scaling} | parts

    def load(self, state: Mapping[str, Value]) -> None:
        """Become what gave ``state``; of a release that did not scale there is none."""
        self.scaling = state.get("scaling", "none")
        if "clipped" in state:
            self.clipped = np.array(state["clipped"])
        if self.scaling in FIXED:
            self._begin()
            return
        self._known, self._came, self._kept = (Moments.of_state(state, prefix) for prefix in ("known.", "came.", "kept."))
        self._outside, self._last, self._changes = (np.array(state[name]) for name in ("outside", "last", "changes"))
        self._begin()
        self._known_changes = np.array(state.get("known_changes", self._changes))
