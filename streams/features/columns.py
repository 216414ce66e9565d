"""Decoded columns into the feature matrix x: encoded when a row is read, completed when it is learned or answered.

d is fixed by the declaration. What a row brings by itself is encoded at once. What depends on other rows is completed later,
from tables that are state: the mean that stands in for a missing number, the column of a category in order of arrival, and the
scale (scale.py). Tables take in learned rows only. So a row without a label leaves every answer as it is, and one that waits
keeps its missing numbers and category names.

Source: docs/design/overview.md#features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final
from zlib import crc32

import numpy as np

from millrace.learners.protocol import Array, Batch, Floats, Scaling, Value, join
from millrace.streams.features.backbone import backbone
from millrace.streams.features.ends import Ends, NewestEnds
from millrace.streams.features.far import FAR, ends_of_near
from millrace.streams.features.mean import Mean
from millrace.streams.features.scale import FIXED, LOOK_ROWS, Scale
from millrace.streams.formats.json_rows import Rows
from millrace.streams.schema import LARGEST, Field, Schema

RANGE_ROWS = 32  # learned rows before any value is


@dataclass(frozen=True, slots=True)
class Place:
    """Where the columns of a field are."""

    field: Field
    start: int  # its first column of x
    names: int = 0  # its column of category names, where its categories grow

    @property
    def stop(self) -> int:
        """Past its last column of x."""
        return self.start + self.field.width


class Features:
    """The feature stage of one schema, for a learner that needs its features scaled like this.

    Raises: ConfigError, BadInputError where the network of a field of images cannot be loaded.
    """

    def __init__(self, schema: Schema, scaling: Scaling = "none") -> None:
        self.places = _places(schema)
        self._own = [at for at, field in enumerate(schema.fields) if field.name not in schema.aside]  # columns that are in x
        self._numeric = np.array([column for place in self.places for column in _numeric_columns(place)], dtype=np.int64)
        self._growing = [place for place in self.places if place.field.categories == "grow"]
        self._filled = [place for place in self.places if place.field.missing in ("mean", "indicator")]
        self._only_numbers = len(self._numeric) == schema.width
        self._backbones = {field.name: backbone(field) for field in schema.fields if field.type == "image"}
        filled = [place.field for place in self._filled if scaling not in FIXED or place.field.missing == "mean"]
        self.means = {field.name: Mean() for field in filled}
        self.slots: dict[str, list[str]] = {place.field.name: [] for place in self._growing}
        self._least, self._most, self._goes_missing = _declared_range(self.places)
        self._ranged = bool(np.isfinite(self._least).any() or np.isfinite(self._most).any())
        self._written = bool(self._filled or self._growing or self._ranged or not self._only_numbers)  # whether x is, in places
        self._outside = np.zeros(len(self._numeric), dtype=np.int64)  # values of learned rows that were outside low and high
        self.scale = Scale(scaling, len(self._numeric), np.array(_declared(self.places), dtype=bool))
        self._rows = 0  # learned
        self._low, self._high = np.full(len(self._numeric), np.inf), np.full(len(self._numeric), -np.inf)  # of learned values
        self._far = np.zeros(len(self._numeric), dtype=np.int64)  # values of learned rows that were far out, by column
        self._far_ends: Ends | None = None  # beyond which values are far out; None: not known yet
        self._near_ends = self._low, self._high  # between which, by an earlier range, values are surely not
        self._ends: Final = NewestEnds()

    def encode(self, rows: Rows, past: Floats | None = None) -> Batch:
        """The rows as they wait: what stands in for a missing number is known later, and so is the column of a new category.

        ``past`` (n, p): what their entities' windows give, where there are any.
        """
        x, names = self.encoded(rows.columns, rows.plain, past)
        x.flags.writeable = False  # from here on, so that what is found out about it stays true
        return rows.batch(x, names)

    def encoded(
        self, columns: Sequence[Array], plain: Floats | None = None, past: Floats | None = None
    ) -> tuple[Floats, Array | None]:
        """x (n, d) of decoded columns, NaN for a missing number, and the names (n, g) of categories that grow, if any."""
        if plain is not None:
            return plain, None
        if past is not None:
            columns = [*(columns[at] for at in self._own), *np.hsplit(past, past.shape[1])]
        blocks = [self._block(place.field, column) for place, column in zip(self.places, columns, strict=True)]
        x = blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)
        if not self._growing:
            return x, None
        growing = (column for place, column in zip(self.places, columns, strict=True) if place.field.categories == "grow")
        return x, np.stack(list(growing), axis=1)

    def answer(self, batch: Batch) -> Batch:
        """Encoded rows as a learner answers them now; the tables stay as they are, and no row sees another.

        A category without a slot is ``other`` and gets none.
        """
        if self._complete:
            return batch
        x = self._in_range(batch.x)
        if x is batch.x and len(x) >= RANGE_ROWS:  # of few rows the ends cost more than they save
            return self._finished(batch, self.scale.applied(x, self._ends.of(x)), {})
        absent = self._absent(x)
        for place in self._filled:
            x[:, place.start] = self._mean(place).stand_in(x[:, place.start])
        return self._finished(batch, self._scaled(x, self.scale.applied), absent)

    def learn(self, batch: Batch) -> Batch:
        """Encoded rows as a learner learns them, one after the other; the tables learn them, too."""
        if not len(batch):
            return batch
        runs = _runs(batch.weight, len(batch))
        if len(runs) == 1 and self._complete and self._rows >= LOOK_ROWS and (batch.weight is None or batch.weight[0] > 0.0):
            return self._learn(batch)  # nothing is cut from here on
        pieces = [piece for start, stop in runs for piece in self._pieces(batch.rows(start, stop))]
        return join(pieces)

    def _pieces(self, run: Batch) -> Iterator[Batch]:
        """Rows that all count, or all have weight 0: those are put as they would be answered, and move nothing."""
        if run.weight is not None and run.weight[0] == 0.0:
            yield self.answer(run)
            return
        for start, stop in self.scale.cuts(len(run), self._rows):
            yield self._learn(run.rows(start, stop))

    def retabled(self, rows: Batch, _before: Mapping[str, Value]) -> Batch:
        """Encoded rows that wait, for other tables than those they were read under: they are the same for all."""
        return rows

    def far_out(self, x: Floats) -> dict[str, Array]:
        """Which encoded rows of x (n, d) have a value far outside everything learned so far, (n,), by field that has such."""
        far = self._far_values(self._of_numeric(x))
        if not far.any():
            return {}
        owners = np.array([place.field.name for place in self.places for _ in _numeric_columns(place)], dtype=object)
        return {name: np.asarray(far[:, owners == name].any(axis=1)) for name in dict.fromkeys(owners[far.any(axis=0)])}

    def counts(self) -> dict[str, dict[str, int]]:
        """How many values of learned rows were far out, and how many were clipped, by field; only fields that had some."""
        columns = {"outside": self._outside, "far_out": self._far, "clipped": self.scale.clipped}
        return {what: self._totals(counts) for what, counts in columns.items()}

    def by_field(self, reasons: Mapping[int, Any]) -> dict[str, Any]:
        """What is said of columns of x, by field and, in a field of several, by the number within it."""
        owners = [(place, at) for place in self.places for at in range(place.field.width)] if reasons else []
        named = {}
        for column, reason in reasons.items():
            place, at = owners[column]
            named[place.field.name if place.field.width == 1 else f"{place.field.name}[{at}]"] = reason
        return named

    @property
    def _complete(self) -> bool:
        """Whether encoded rows are what a learner gets."""
        return self.scale.scaling == "none" and not (self._filled or self._growing or self._ranged)

    def _learn(self, batch: Batch) -> Batch:
        """A piece as the scale cuts it."""
        came = self._of_numeric(batch.x)
        if self._complete:
            self._count(came)
            return batch
        x = self._in_range(batch.x)
        values = self._of_numeric(x)
        if self._ranged:
            self._outside = self._outside + ((values != came) & ~np.isnan(came)).sum(axis=0)
        ends = self._count(values)
        absent = self._absent(x)
        for place in self._filled:
            x[:, place.start] = self._mean(place).fill(x[:, place.start])
        for place in self._growing:
            assert batch.names is not None
            self.grow(place, batch.names[:, place.names].tolist())
        known = None if self._filled else ends  # of what was filled in, nothing is known
        return self._finished(batch, self._scaled(x, lambda numbers: self.scale.learn(numbers, known)), absent)

    def _count(self, values: Floats) -> Ends:
        """Take learned numbers (n, k) into the range; which are far out by what was learned before is counted.

        Gives their least and largest (k,).
        """
        if self._filled:
            low, high = (take.reduce(values, axis=0, initial=end) for take, end in ((np.fmin, np.inf), (np.fmax, -np.inf)))
        else:
            low, high = self._ends.of(values)
        if self._rows >= RANGE_ROWS and not self._near(low, high):
            self._far = self._far + self._far_values(values).sum(axis=0)
        self._rows += len(values)
        self._low, self._high, self._far_ends = np.minimum(self._low, low), np.maximum(self._high, high), None
        return low, high

    def _near(self, low: Floats, high: Floats) -> bool:
        """Whether numbers between these (k,) are surely not far out; not sure where a column has been constant or missing.

        The learned range only widens, so what it said earlier holds.
        """
        least, most = self._near_ends
        if np.count_nonzero((least <= low) & (high <= most)) == len(low):
            return True
        room = FAR * (self._high - self._low)
        self._near_ends = least, most = self._low - room, self._high + room
        return bool(((least <= low) & (high <= most)).all())

    def _in_range(self, x: Floats) -> Floats:
        """Encoded rows, in which values outside a field's low and high are clipped or missing, as it declares.

        A copy, unless nothing of them is written to later.
        """
        if not self._written:
            return x
        out = np.array(x)
        if self._ranged:
            values = out[:, self._numeric]
            outside = (values < self._least) | (values > self._most)
            out[:, self._numeric] = np.where(outside & self._goes_missing, np.nan, np.clip(values, self._least, self._most))
        return out

    def _absent(self, x: Floats) -> dict[str, Array]:
        """Which numbers are missing (n,), by field."""
        return {place.field.name: np.isnan(x[:, place.start]) for place in self._filled}

    def _mean(self, place: Place) -> Mean:
        """What stands in for a missing number; 0 where there is no mean, for a field that has a column to say so."""
        return self.means.get(place.field.name) or Mean()

    def _scaled(self, x: Floats, how: Callable[[Floats], Floats]) -> Floats:
        """x (n, d) with its numbers scaled, in place where there are other columns."""
        if self._only_numbers:
            return how(x)
        x[:, self._numeric] = how(x[:, self._numeric])
        return x

    def _finished(self, batch: Batch, x: Floats, absent: Mapping[str, Array]) -> Batch:
        """The rows with x (n, d), in which a missing number of a field that says so is 0, and categories have their columns."""
        if x is batch.x and batch.names is None:
            return batch
        for place in self._filled:
            if place.field.missing == "indicator":
                x[absent[place.field.name], place.start : place.stop] = (0.0, 1.0)
        for place in self._growing:
            assert batch.names is not None
            names, rows = batch.names[:, place.names].tolist(), np.arange(len(batch))
            slots = {name: slot for slot, name in enumerate(self.slots[place.field.name])}
            other, last = place.field.max, place.field.width - 1  # the last is a missing category's, where it has one
            x[rows, [place.start + (last if name is None else slots.get(name, other)) for name in names]] = 1.0
        return replace(batch, x=x, names=None)

    def grow(self, place: Place, names: Sequence[str | None]) -> None:
        """The new ones among these names take their slots in order of arrival."""
        table = self.slots[place.field.name]
        for name in dict.fromkeys(name for name in names if name is not None):
            if len(table) < place.field.max and name not in table:
                table.append(name)

    def _far_values(self, values: Floats) -> Array:
        """Which numbers (n, k) are far out; none as long as few rows were learned."""
        if self._rows < RANGE_ROWS:
            return np.zeros(values.shape, dtype=bool)
        if self._far_ends is None:
            self._far_ends = ends_of_near(self._low, self._high)
        least, most = self._far_ends
        return np.asarray((values < least) | (values > most))

    def _totals(self, counts: Array) -> dict[str, int]:
        """Counts (k,) of the numeric columns, added up by field; only fields that have some."""
        if not np.count_nonzero(counts):
            return {}
        owners = [place.field.name for place in self.places for _ in _numeric_columns(place)]
        totals = dict[str, int]()
        for name, count in zip(owners, counts.tolist(), strict=True):
            if count:
                totals[name] = totals.get(name, 0) + int(count)
        return totals

    def _of_numeric(self, x: Floats) -> Floats:
        return x if self._only_numbers else x[:, self._numeric]

    def _block(self, field: Field, column: Array) -> Floats:
        """What a column brings by itself."""
        if field.type == "image":
            return self._backbones[field.name].features(column)
        return _one_hot(field, column) if field.type == "categorical" else _numbers(field, column)

    def state(self) -> dict[str, Value]:
        """The tables."""
        means = {name: [mean.total, mean.count, mean.first] for name, mean in self.means.items()}
        learned: dict[str, Value] = {"outside": self._outside.copy()} if self._ranged else {}
        learned |= {"rows": self._rows, "low": self._low.copy(), "high": self._high.copy(), "far": self._far.copy()}
        scale = {f"scale.{name}": value for name, value in self.scale.state().items()}
        return {"fills": means, "slots": {name: list(table) for name, table in self.slots.items()}} | learned | scale

    def load(self, state: Mapping[str, Value]) -> None:
        """Become the stage that gave ``state``; one that an older release wrote knows means of values, and no more."""
        self.slots = {name: list(table) for name, table in state["slots"].items()}
        self.scale.load({name.removeprefix("scale."): value for name, value in state.items() if name.startswith("scale.")})
        if "means" in state:
            self.means |= {name: self._of_values(name, *pair) for name, pair in state["means"].items()}
            return
        self.means = {name: Mean(*pair) for name, pair in state["fills"].items()}
        self._rows, self._far = int(state["rows"]), np.array(state["far"])
        self._low, self._high, self._far_ends = np.array(state["low"]), np.array(state["high"]), None
        self._near_ends = self._low, self._high
        self._outside = np.array(state["outside"]) if "outside" in state else self._outside

    def _of_values(self, name: str, total: float, count: int) -> Mean:
        """The mean of x from a sum of values, which older states have."""
        field = next(place.field for place in self._filled if place.field.name == name)
        return Mean((total - count * field.center) / field.scale, count)


def _runs(weight: Floats | None, rows: int) -> list[tuple[int, int]]:
    """Runs of rows that count, and of rows of weight 0."""
    if weight is None or np.count_nonzero(weight) == rows:
        return [(0, rows)]
    ends = np.flatnonzero(np.diff(weight > 0.0)) + 1
    return list(pairwise([0, *ends.tolist(), rows]))


def _places(schema: Schema) -> list[Place]:
    places, start, names = list[Place](), 0, 0
    for field in schema.features:
        places.append(Place(field, start, names))
        start, names = start + field.width, names + (field.categories == "grow")
    return places


def _numeric_columns(place: Place) -> range:
    """The columns of x that hold a field's numbers: not the one that says that a number is missing."""
    numbers = place.field.size if place.field.is_number else 0
    return range(place.start, place.start + numbers)


def _declared_range(places: Sequence[Place]) -> tuple[Floats, Floats, Array]:
    """Least and largest x of each numeric column that is not to be clipped or missing, and whether it is to be missing."""
    ranges = [
        (
            (field.low - field.center) / field.scale if field.outside != "reject" and field.low > -LARGEST else -np.inf,
            (field.high - field.center) / field.scale if field.outside != "reject" and field.high < LARGEST else np.inf,
            field.outside == "missing",
        )
        for place in places
        for field in [place.field] * len(_numeric_columns(place))
    ]
    least, most, goes = zip(*ranges, strict=True) if ranges else ((), (), ())
    return np.array(least, dtype=np.float64), np.array(most, dtype=np.float64), np.array(goes, dtype=bool)


def _declared(places: Sequence[Place]) -> list[bool]:
    """Whether a field declares both center and scale, by numeric column."""
    declares = ((place, place.field.scaled or (place.field.center != 0.0 and place.field.scale != 1.0)) for place in places)
    return [both for place, both in declares for _ in _numeric_columns(place)]


def _numbers(field: Field, column: Floats) -> Floats:
    """x of numbers, NaN for a missing one."""
    scaled = column if (field.center, field.scale) == (0.0, 1.0) else (column - field.center) / field.scale
    if field.missing != "indicator":
        return scaled
    return np.concatenate([scaled, np.isnan(column).astype(np.float64)], axis=1)


def _one_hot(field: Field, column: Array) -> Floats:
    """x of categories; of those that grow the columns stay 0, their names say which it will be."""
    names = column.tolist()
    x = np.zeros((len(names), field.width))
    if field.categories == "grow":
        return x
    slot, last = _slot_of(field), field.width - 1  # of a missing value, where it has a column of its own
    x[np.arange(len(names)), [last if name is None else slot(name) for name in names]] = 1.0
    return x


def _slot_of(field: Field) -> Callable[[str], int]:
    slots = {name: at for at, name in enumerate(field.categories)}
    return slots.__getitem__ if field.categories != "hash" else lambda name: crc32(name.encode()) % field.max
