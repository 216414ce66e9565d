"""Arrow record batches into columns, as strictly as JSON rows: the same rows give the same columns, bit for bit.

A batch whose columns are not the declared fields is refused as a whole; a bad row in a good batch is refused by its number,
and the others are taken.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.learners.protocol import Array, Floats, within
from millrace.streams.formats.arrow import BATCH_BYTES, Batch, kind_of, milliseconds, read_batches
from millrace.streams.formats.cloudevents import without_content_type
from millrace.streams.formats.json_rows import RecordError, Refused, Rows, checked_images, number_range
from millrace.streams.records import Event
from millrace.streams.schema import LARGEST, Field, Label, Schema, Unknown

TIMESTAMP = "timestamp"  # a column of a row's own time, where no field has this name; never past its message's
EVERYTHING = (-LARGEST, LARGEST)


@dataclass(slots=True)
class Faults:
    """Which rows of a batch are refused, and why; the first reason counts."""

    good: NDArray[np.bool_]  # (n,) rows with which nothing is wrong so far
    why: dict[int, tuple[str, str]] = field(default_factory=dict)  # row -> reason, and why in a sentence

    def say(self, wrong: NDArray[np.bool_], reason: str, detail: str) -> None:
        """Refuse the rows ``wrong`` (n,), unless something was wrong with them before."""
        fresh = wrong & self.good
        if fresh.any():
            self.good &= ~wrong
            self.why |= dict.fromkeys(np.flatnonzero(fresh).tolist(), (reason, detail))


class BatchCodec:
    """Decodes the batches of one schema."""

    def __init__(self, schema: Schema, max_bytes: int = BATCH_BYTES, unknown: Unknown = "reject") -> None:
        self._schema = schema
        self._max_bytes = max_bytes  # of a message, as it lies in the log and decompressed
        self._names = [field.name for field in schema.fields]
        self._read = None if unknown == "reject" else schema.names | {TIMESTAMP}  # columns; None: all, none may be unknown

    def decode(self, event: Event) -> tuple[list[Rows], list[Refused]]:
        """The rows of a message that can be read, batch by batch, and those that cannot, each with its number.

        Raises: RecordError where the message as a whole cannot be read.
        """
        pieces, refused, first = [], list[Refused](), 0
        for batch in read_batches(event.value or b"", self._max_bytes, self._read):
            self._check_columns(batch.schema)
            rows, faults = self._rows(batch, event)
            refused += _refused_rows(batch, faults, event, first)
            pieces.append(rows if faults.good.all() else rows.only(faults.good))
            first += batch.num_rows
        return pieces, refused

    def _check_columns(self, columns: Any) -> None:
        """Exactly the declared fields, label and weight, those that may be missing left out or not."""
        label, weight = self._schema.label.name, self._schema.weight
        allowed = {*self._names, label, weight, TIMESTAMP}
        for name in columns.names:
            if name not in allowed and self._read is None:
                raise RecordError("unknown-field", f"{name} is no field of the pipeline")
        for declared in self._schema.fields:
            if declared.missing == "reject" and declared.name not in columns.names:
                raise RecordError("missing-field", f"there is no column {declared.name}")

    def _rows(self, batch: Batch, event: Event) -> tuple[Rows, Faults]:
        """Every row, those in ``Faults`` with whatever stands there."""
        n, faults = batch.num_rows, Faults(np.ones(batch.num_rows, dtype=bool))
        plain = np.empty((n, self._schema.width)) if self._schema.plain else None
        if plain is not None:
            with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
                for at, name in enumerate(self._names):
                    plain[:, at] = _plain_numbers(batch.column(name), name, faults)
            _within(plain, EVERYTHING, "a number", faults)
            columns = tuple(plain[:, at : at + 1] for at in range(len(self._names)))
        else:
            columns = tuple(_column(field, _named(batch, field.name), n, faults) for field in self._schema.fields)
        y = _labels(self._schema.label, _named(batch, self._schema.label.name), n, faults)
        weight = _weights(_named(batch, self._schema.weight), n, faults)
        t = self._times(batch, event, faults)
        key = np.full(n, event.key, dtype=object)
        return Rows(columns, y, weight, key, t, plain, offset=np.full(n, event.offset, dtype=np.int64)), faults

    def _times(self, batch: Batch, event: Event, faults: Faults) -> NDArray[np.int64]:
        t = np.full(batch.num_rows, event.timestamp_ms, dtype=np.int64)
        column = None if {TIMESTAMP} & {*self._names, self._schema.label.name} else _named(batch, TIMESTAMP)
        if column is None:
            return t
        if kind_of(column.type) != "timestamp":
            raise RecordError("wrong-type", f"{TIMESTAMP} is {column.type}, not a timestamp")
        own: Array = np.where(_nulls(column), t, milliseconds(column))
        faults.say(np.greater(own, event.timestamp_ms), "ahead-of-time", "its timestamp is past that of its message")
        return np.minimum(own, t)


def _named(batch: Batch, name: str | None) -> Any:
    """The column of this name, or None."""
    at = -1 if name is None else batch.schema.get_field_index(name)
    return None if at < 0 else batch.column(at)


def _nulls(column: Any) -> NDArray[np.bool_]:
    if not column.null_count:
        return np.zeros(len(column), dtype=bool)
    return np.asarray(column.is_null().to_numpy(zero_copy_only=False), dtype=bool)


def _number_kind(column: Any, name: str) -> None:
    if kind_of(column.type) not in ("number", "integer"):
        raise RecordError("wrong-type", f"{name} is {column.type}, not a number")


def _floats(column: Any) -> Floats:
    """The numbers of a column (n,), widened; null is NaN."""
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)


def _plain_numbers(column: Any, name: str, faults: Faults) -> Array:
    """The numbers of a column (n,) as they come; null is NaN."""
    _number_kind(column, name)
    if column.null_count:
        faults.say(_nulls(column), "missing-field", f"{name} is null")
    numbers: Array = column.to_numpy(zero_copy_only=False)
    return numbers


def _within(block: Floats, bounds: tuple[float, float], name: str, faults: Faults, absent: Array | None = None) -> Floats:
    """Refuse rows of ``block`` (n, k) with a number out of bounds; those ``absent`` (n,) have none. NaN is in no bounds."""
    low, high = bounds
    if not within(block, low, high):
        wrong = np.asarray(~((low <= block) & (block <= high)).all(axis=1))
        faults.say(wrong if absent is None else wrong & ~absent, "not-finite", f"{name} is not within {low:g} to {high:g}")
    return block


def _column(field: Field, column: Any, rows: int, faults: Faults) -> Array:
    """One field's cells: (n, size) float64, or (n,) texts and None."""
    if column is None:
        return np.full((rows, 1), math.nan) if field.type == "numeric" else np.full(rows, None, dtype=object)
    absent = _nulls(column)
    if field.missing == "reject":
        faults.say(absent, "missing-field", f"{field.name} is null")
    if field.type == "categorical":
        return _categories(field, column, faults)
    if field.type == "image":
        return _images(field, column, absent, faults)
    if field.size > 1:
        return _within(_lists(field, column, absent, faults), number_range(field), field.name, faults)
    _number_kind(column, field.name)
    return _within(_floats(column).reshape(-1, 1), number_range(field), field.name, faults, absent)


def _lists(field: Field, column: Any, absent: NDArray[np.bool_], faults: Faults) -> Floats:
    """An array field's numbers (n, size); rows that have none are zeros, and refused."""
    if kind_of(column.type) != "list":
        raise RecordError("wrong-type", f"{field.name} is {column.type}, not a list of {field.size} numbers")
    _number_kind(column.values, field.name)
    wrong = absent.copy()
    if not (fixed := getattr(column.type, "list_size", None)):
        lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        wrong |= lengths != field.size
        faults.say(wrong, "wrong-shape", f"{field.name} has not {field.size} numbers")
    elif fixed != field.size:
        raise RecordError("wrong-shape", f"{field.name} has {fixed} numbers, not {field.size}")
    if not wrong.any() and not column.values.null_count:
        return _floats(column.flatten()).reshape(-1, field.size)
    kept = column if not wrong.any() else column.filter(_mask(~wrong))
    cells = kept.flatten()
    block = np.zeros((len(wrong), field.size))
    block[~wrong] = _floats(cells).reshape(-1, field.size)
    if cells.null_count:
        holes = np.zeros(len(wrong), dtype=bool)
        holes[~wrong] = _nulls(cells).reshape(-1, field.size).any(axis=1)
        faults.say(holes, "wrong-type", f"{field.name} has a null among its numbers")
    return block


def _images(field: Field, column: Any, absent: NDArray[np.bool_], faults: Faults) -> Array:
    """The bytes of each picture (n,), looked at one by one."""
    if kind_of(column.type) != "bytes":
        raise RecordError("wrong-type", f"{field.name} is {column.type}, not binary")
    pictures = np.empty(len(absent), dtype=object)
    pictures[:] = column.to_pylist()
    for at in np.flatnonzero(~absent).tolist():
        try:
            checked_images(field, [pictures[at]])
        except RecordError as error:
            faults.say(np.arange(len(absent)) == at, error.reason, error.detail)
    return pictures


def _mask(chosen: NDArray[np.bool_]) -> list[bool]:
    mask: list[bool] = chosen.tolist()
    return mask


def _texts(column: Any, name: str) -> Array:
    """A column's texts and None (n,)."""
    if kind_of(column.type) != "text":
        raise RecordError("wrong-type", f"{name} is {column.type}, not text")
    return _coded(column, lambda text: text)


def _coded(column: Any, text: Callable[[Any], str]) -> Array:
    """Each cell's text (n,), made once of each different value; of null None."""
    coded = column if hasattr(column, "dictionary") else column.dictionary_encode()
    different = [None if value is None else text(value) for value in coded.dictionary.to_pylist()]
    names = np.array([*different, None], dtype=object)
    at = coded.indices.fill_null(len(names) - 1) if coded.indices.null_count else coded.indices
    texts: Array = names[at.to_numpy(zero_copy_only=False).astype(np.int64)]
    return texts


def _categories(field: Field, column: Any, faults: Faults) -> Array:
    names = _texts(column, field.name)
    if isinstance(field.categories, tuple):
        categories = {*field.categories, None}
        wrong = np.array([name not in categories for name in names.tolist()], dtype=bool)
        faults.say(wrong, "unknown-category", f"{field.name} is none of its declared categories")
    return names


def _labels(label: Label, column: Any, rows: int, faults: Faults) -> Array:
    """As the rows' codec gives them: (n,) class names or None; (n,) float64 or NaN for regression."""
    if column is None:
        return np.full(rows, math.nan) if label.type == "number" else np.full(rows, None, dtype=object)
    kind, absent = kind_of(column.type), _nulls(column)
    fits = {"string": ("text",), "integer": ("integer",), "boolean": ("boolean",), "number": ("number", "integer")}
    if kind not in fits[label.type]:
        raise RecordError("wrong-type", f"the label {label.name} is {column.type}, not of type {label.type}")
    if label.type == "number":
        values = _floats(column)
        _within(values.reshape(-1, 1), EVERYTHING, label.name, faults, absent)
        return values
    if label.type == "string":
        return _texts(column, label.name)
    return _coded(column, lambda value: str(value).lower())


def _weights(column: Any, rows: int, faults: Faults) -> Floats:
    if column is None:
        return np.ones(rows)
    _number_kind(column, "the weight")
    weights = np.where(_nulls(column), 1.0, _floats(column))
    _within(weights.reshape(-1, 1), EVERYTHING, "the weight", faults)
    faults.say(weights < 0, "negative-weight", "a row's weight is below 0")
    return weights


def _refused_rows(batch: Batch, faults: Faults, event: Event, first: int) -> list[Refused]:
    """Each bad row as a record of its own: the row as JSON, so that it can be read, and mended and sent again alone.

    What is not a number stands there as ``NaN`` or ``Infinity``, which no JSON row may have.
    """
    if not faults.why:
        return []
    cells, headers = (
        batch.select([name for name in batch.schema.names if name != TIMESTAMP]),
        without_content_type(event.headers),
    )
    refused = []
    for at, (reason, detail) in sorted(faults.why.items()):
        value = json.dumps(cells.slice(at, 1).to_pylist()[0], default=_as_json).encode()
        alone = Event(event.offset, event.timestamp_ms, event.key, headers, value)
        refused.append(Refused(alone, reason, detail, first + at))
    return refused


def _as_json(cell: Any) -> str:
    return base64.b64encode(cell).decode() if isinstance(cell, bytes) else str(cell)
