"""The fields that are made of an entity's window: what each ``as`` is, for many rows at once.

Every one speaks of events before the row, never of the row itself. A value that is missing in an event is left out of ``mean``,
``sum``, ``count``, ``min``, ``max`` and ``deviation``. Sums go from the oldest event to the newest, so that anybody who adds in
that order gets the same bits. What goes beyond the range of its field, as a sum of the largest numbers does, is the end of that
range: a row of the stream may not hold more either.

Source: docs/how-to/entities.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from millrace.learners.protocol import Floats
from millrace.streams.entity.events import Ints, Seen
from millrace.streams.formats.json_rows import number_range
from millrace.streams.schema import Field

SECOND_MS = 1000.0


def past_of(fields: Sequence[Field], sources: Sequence[str], seen: Seen, at: Ints) -> Floats:
    """The fields (n, p) of rows at times ``at`` (n,) ms; NaN where there is no such event. ``sources`` names seen values."""
    columns = [_column(field, seen.values[:, :, sources.index(field.of)], seen, at) for field in fields]
    return in_range(fields, np.stack(columns, axis=1) if columns else np.zeros((len(at), 0)))


def in_range(fields: Sequence[Field], past: Floats) -> Floats:
    """Fields of the past (n, p), each clipped into the range that it may have; NaN stays."""
    low, high = zip(*map(number_range, fields), strict=True) if fields else ((), ())
    return np.clip(past, np.array(low), np.array(high))


def needed(field: Field) -> int:
    """How many of an entity's last events a field is made of.

    >>> needed(Field("a", of="x", as_="lag", over="2", missing="mean")), needed(Field("b", of="x", as_="count", over="3"))
    (2, 3)
    """
    return int(field.over) + (field.as_ == "change")


def _column(field: Field, values: Floats, seen: Seen, at: Ints) -> Floats:
    """One field (n,) of the values (n, depth) of its source, the newest first."""
    over = int(field.over)
    if field.as_ == "lag":
        return values[:, over - 1]
    if field.as_ == "change":
        return values[:, 0] - values[:, over]
    if field.as_ == "since":
        gone_ms = np.maximum(at - seen.at[:, over - 1], 0)
        return np.where(seen.length >= over, gone_ms / SECOND_MS, np.nan)
    newest = values[:, :over]
    there = ~np.isnan(newest)
    count: Floats = there.sum(axis=1).astype(np.float64)
    if field.as_ == "count":
        return count
    if field.as_ == "sum":
        return _sum(np.where(there, newest, 0.0))
    if field.as_ == "min":
        return _or_none(np.where(there, newest, np.inf).min(axis=1), count)
    if field.as_ == "max":
        return _or_none(np.where(there, newest, -np.inf).max(axis=1), count)
    mean = _sum(np.where(there, newest, 0.0)) / np.maximum(count, 1.0)
    if field.as_ == "mean":
        return _or_none(mean, count)
    apart = np.where(there, newest - mean[:, None], 0.0)
    return _or_none(np.sqrt(_sum(apart * apart) / np.maximum(count, 1.0)), count)


def _sum(numbers: Floats) -> Floats:
    """Of each row (n, over), the oldest first: column by column, so that no other order of adding is taken."""
    total = np.zeros(len(numbers))
    for column in range(numbers.shape[1] - 1, -1, -1):
        total = total + numbers[:, column]
    return total


def _or_none(numbers: Floats, count: Floats) -> Floats:
    return np.where(count > 0.0, numbers, np.nan)
