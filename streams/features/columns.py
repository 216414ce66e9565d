"""Decoded columns into the feature matrix x, with the tables that grow on the way.

d is fixed by the declaration. The tables (running means, category slots) are state. They see rows in log order, one after the
other, so that no result depends on how rows were grouped into reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from millrace.learners.protocol import Array, Floats, Value
from millrace.streams.features.backbone import backbone
from millrace.streams.formats.json_rows import Rows
from millrace.streams.schema import Field, Schema


@dataclass(slots=True)
class Mean:
    """The running mean that stands in for a missing number."""

    total: float = 0.0
    count: int = 0

    def fill(self, values: Floats) -> Floats:
        """Missing values replaced by the mean of all present ones before them (0 before the first)."""
        absent = np.isnan(values)
        totals = np.cumsum(np.concatenate(([self.total], np.where(absent, 0.0, values))))  # sequential: split as you like
        counts = self.count + np.concatenate(([0], np.cumsum(~absent)))
        self.total, self.count = float(totals[-1]), int(counts[-1])
        before = totals[:-1] / np.maximum(counts[:-1], 1)
        return np.where(absent, before, values)

    def stand_in(self, values: Floats) -> Floats:
        """Missing values replaced by the mean of all present ones so far; nothing is taken in."""
        return np.where(np.isnan(values), self.total / max(self.count, 1), values)


class Features:
    """The feature stage of one schema.

    Raises: ConfigError, BadInputError where the network of a field of images cannot be loaded.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._means = {field.name: Mean() for field in schema.fields if field.missing == "mean"}
        self._backbones = {field.name: backbone(field) for field in schema.fields if field.type == "image"}
        self._slots: dict[str, list[str]] = {field.name: [] for field in schema.fields if field.categories == "grow"}

    def transform(self, rows: Rows) -> Floats:
        """x (n, d) of the rows; the tables take the rows in."""
        if rows.plain is not None:
            return rows.plain
        return self._x(rows.columns, update=True)

    def answer(self, columns: Sequence[Array]) -> Floats:
        """x (n, d) of rows that are asked about: ``transform`` as if each came next, but the tables stay as they are.

        A category without a slot is ``other`` and gets none; no row sees another.
        """
        return self._x(columns, update=False)

    def _x(self, columns: Sequence[Array], update: bool) -> Floats:
        pairs = zip(self._schema.fields, columns, strict=True)
        blocks = [self._block(field, column, update) for field, column in pairs]
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)

    def _block(self, field: Field, column: Array, update: bool) -> Floats:
        if field.type == "image":
            return self._backbones[field.name].features(column)
        return (self._one_hot if field.type == "categorical" else self._numeric)(field, column, update)

    def _numeric(self, field: Field, column: Floats, update: bool) -> Floats:
        values = column
        if field.missing == "mean":
            mean = self._means[field.name]
            values = (mean.fill if update else mean.stand_in)(column[:, 0])[:, None]
        if field.missing == "indicator":
            absent = np.isnan(column)
            scaled = np.where(absent, 0.0, (column - field.center) / field.scale)
            return np.concatenate([scaled, absent.astype(np.float64)], axis=1)
        if field.center == 0.0 and field.scale == 1.0:
            return values
        return (values - field.center) / field.scale

    def _one_hot(self, field: Field, column: Array, update: bool) -> Floats:
        names = column.tolist()
        if update and field.categories == "grow":
            self._grow(field, names)
        slot = self._slot_of(field)
        x = np.zeros((len(names), field.width))
        last = field.width - 1  # of a missing value, where it has a column of its own
        x[np.arange(len(names)), [last if name is None else slot(name) for name in names]] = 1.0
        return x

    def _slot_of(self, field: Field) -> Callable[[str], int]:
        if field.categories == "hash":
            return lambda name: crc32(name.encode()) % field.max
        if field.categories == "grow":
            slots = {name: at for at, name in enumerate(self._slots[field.name])}
            return lambda name: slots.get(name, field.max)
        fixed = {name: at for at, name in enumerate(field.categories)}
        return fixed.__getitem__

    def _grow(self, field: Field, names: list[str | None]) -> None:
        """The new names of these rows take their slots in order of arrival."""
        table = self._slots[field.name]
        for name in dict.fromkeys(name for name in names if name is not None):
            if len(table) < field.max and name not in table:
                table.append(name)

    def state(self) -> dict[str, Value]:
        """The tables."""
        means = {name: [mean.total, mean.count] for name, mean in self._means.items()}
        return {"means": means, "slots": {name: list(table) for name, table in self._slots.items()}}

    def load(self, state: dict[str, Value]) -> None:
        """Become the stage that gave ``state``."""
        self._means = {name: Mean(*pair) for name, pair in state["means"].items()}
        self._slots = {name: list(table) for name, table in state["slots"].items()}
