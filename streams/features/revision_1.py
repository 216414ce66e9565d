"""The feature stage of folds of revision 1, so that a branch begun under it goes on, bit for bit.

A row is completed when it is read, whether it is learned or not, and the tables take it in then. Numbers are as they came. So
even a row that has no label moves the mean that stands in for missing numbers; therefore new branches begin with a later stage.

Source: CHANGELOG.md, fold_revision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from millrace.learners.protocol import Array, Batch, Floats, Scaling, Value
from millrace.streams.features.columns import Features
from millrace.streams.features.mean import Mean
from millrace.streams.formats.json_rows import Rows
from millrace.streams.schema import Field, Schema


class FeaturesOfRevision1(Features):
    """The stage of one schema; means are of values, and not yet centred."""

    def __init__(self, schema: Schema, _scaling: Scaling = "none") -> None:
        super().__init__(schema, "none")

    def encode(self, rows: Rows, _past: Floats | None = None) -> Batch:
        """The rows as they are learned and answered."""
        if rows.plain is not None:
            return rows.batch(rows.plain)
        for place, column in zip(self.places, rows.columns, strict=True):
            if place.field.categories == "grow":
                self.grow(place, column.tolist())
        filled = [self._filled_column(place.field, column) for place, column in zip(self.places, rows.columns, strict=True)]
        x, names = self.encoded(filled)
        return super().answer(rows.batch(x, names))

    def _filled_column(self, field: Field, column: Array) -> Array:
        return _filled(self.means[field.name], column[:, 0])[:, None] if field.missing == "mean" else column

    def answer(self, batch: Batch) -> Batch:
        """Rows that are complete already."""
        return batch

    def learn(self, batch: Batch) -> Batch:
        """Rows that are complete already, and that the tables have."""
        return batch

    def retabled(self, rows: Batch, before: Mapping[str, Value]) -> Batch:
        """Complete rows that other tables made, as these do; a category without a slot is ``other``."""
        x = rows.x.copy()
        for place in self.places:
            if place.field.categories == "grow":
                cut, name = slice(place.start, place.stop), place.field.name
                x[:, cut] = _moved(place.field, x[:, cut], before["slots"][name], self.slots[name])
        return replace(rows, x=x)

    def state(self) -> dict[str, Value]:
        """The tables."""
        means = {name: [mean.total, mean.count] for name, mean in self.means.items()}
        return {"means": means, "slots": {name: list(table) for name, table in self.slots.items()}}

    def load(self, state: Mapping[str, Value]) -> None:
        """Become the stage that gave ``state``."""
        self.means = {name: Mean(*pair) for name, pair in state["means"].items()}
        self.slots = {name: list(table) for name, table in state["slots"].items()}


def _filled(mean: Mean, values: Floats) -> Floats:
    """Missing values replaced by the mean of all present ones before them (0 before the first), summed from 0."""
    absent = np.isnan(values)
    totals = np.cumsum(np.concatenate(([mean.total], np.where(absent, 0.0, values))))
    counts = mean.count + np.concatenate(([0], np.cumsum(~absent)))
    mean.total, mean.count = float(totals[-1]), int(counts[-1])
    return np.where(absent, totals[:-1] / np.maximum(counts[:-1], 1), values)


def _moved(field: Field, block: Floats, before: Sequence[str], after: Sequence[str]) -> Floats:
    """One-hot columns (n, width) of slots ``before``, in the order of slots ``after``."""
    slots = {name: slot for slot, name in enumerate(after)}
    targets = [slots.get(name, field.max) for name in before] + list(range(len(before), field.width))
    moved = np.zeros_like(block)
    for column, target in enumerate(targets):
        moved[:, target] += block[:, column]  # of ones and zeros, so nothing is rounded
    return moved
