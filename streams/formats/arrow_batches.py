"""Arrow record batches into columns, as strictly as JSON rows: the same rows give the same columns, bit for bit.

A message with a batch whose columns are not the declared fields is refused as a whole, and all its rows count as refused. A bad
row in a good batch is refused by its number, and the others are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.learners.linear.decoded import NEWEST
from millrace.learners.protocol import Array, Floats, within
from millrace.streams.formats.arrow import BATCH_BYTES, Batch, integers, kind_of, milliseconds, read_batches, settled
from millrace.streams.formats.cloudevents import without_content_type
from millrace.streams.formats.json_rows import (
    Refused,
    Rows,
    checked_images,
    number_range,
    outside_range,
    range_words,
)
from millrace.streams.formats.meaning import (
    INT64,
    REVISION,
    TAKES,
    RecordError,
    as_row,
    declared_types,
    moment_of,
    taken,
    text_of,
    ticks_of,
    whole_of,
    zone_ns,
)
from millrace.streams.records import Event
from millrace.streams.schema import LARGEST, UNITS_NS, Field, Label, Schema, Unknown

TIMESTAMP = "timestamp"  # a column of a row's own time, where no field has this name; never past its message's
EVERYTHING = (-LARGEST, LARGEST)
SINGLE = {np.dtype(np.float32)}
NEAR = 1000  # between the least and the largest of a column of integers that are looked up by their difference


@dataclass(slots=True)
class Faults:
    """Which rows of a batch are refused, and why; the first reason counts."""

    good: NDArray[np.bool_]  # (n,) rows with which nothing is wrong so far
    revision: int = REVISION  # of what values mean
    why: dict[int, tuple[str, str]] = field(default_factory=dict)  # row -> reason, and why in a sentence

    def say(self, wrong: NDArray[np.bool_], reason: str, detail: str) -> None:
        """Refuse the rows ``wrong`` (n,), unless something was wrong with them before."""
        fresh = wrong & self.good
        if fresh.any():
            self.good &= ~wrong
            self.why |= dict.fromkeys(np.flatnonzero(fresh).tolist(), (reason, detail))


class BatchCodec:
    """Decodes the batches of one schema."""

    def __init__(
        self, schema: Schema, max_bytes: int = BATCH_BYTES, unknown: Unknown = "reject", revision: int = REVISION
    ) -> None:
        self._schema = schema
        self._types = declared_types(schema)
        self._revision = revision  # of what values mean
        self._max_bytes = max_bytes  # of a message, as it lies in the log and decompressed
        self._names = [field.name for field in schema.fields]
        self._required = [field.name for field in schema.fields if field.missing == "reject"]
        self._plain = schema.plain
        self._unknown: Unknown = unknown
        self._read = None if unknown == "reject" else schema.names | {TIMESTAMP}  # columns; None: all, none may be unknown

    def of_revision(self, revision: int) -> BatchCodec:
        """This codec with the meaning that values had for a branch which was begun under an older revision."""
        return BatchCodec(self._schema, self._max_bytes, self._unknown, revision)

    def decode(self, event: Event) -> tuple[list[Rows], list[Refused]]:
        """The rows of a message that can be read, batch by batch, and those that cannot, each with its number.

        Raises: RecordError where the message as a whole cannot be read.
        """
        batches = read_batches(event.value or b"", self._max_bytes, self._read)
        try:
            return self._decoded(batches, event)
        except RecordError as error:
            rows = sum(batch.num_rows for batch in batches)
            detail = error.detail if rows < 2 else f"{error.detail}; the message's {rows} rows are refused with it"
            raise RecordError(error.reason, detail, max(rows, 1)) from error

    def _decoded(self, batches: Sequence[Batch], event: Event) -> tuple[list[Rows], list[Refused]]:
        pieces, refused, first = [], list[Refused](), 0
        for batch in batches:
            self._check_columns(batch.schema)
            rows, faults = self._rows(batch, event)
            refused += _refused_rows(batch, faults, event, self._types, first)
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
        present = set(columns.names)
        for name in self._required:
            if name not in present:
                raise RecordError("missing-field", f"there is no column {name}")

    def _settled(self, batch: Batch) -> dict[str, Any]:
        """The declared columns that are there, of types that they take. Raises: RecordError."""
        columns = dict[str, Any]()
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if name in self._types:
                columns[name] = settled(column, TAKES[self._types[name]])
                if (kind := kind_of(columns[name].type)) != "null":
                    taken(self._types[name], kind, name, column.type)
                if kind == "list" and (items := kind_of(column.type.value_type)) != "null":
                    taken("numeric", items, name, column.type)
        return columns

    def _rows(self, batch: Batch, event: Event) -> tuple[Rows, Faults]:
        """Every row, those in ``Faults`` with whatever stands there."""
        n, faults = batch.num_rows, Faults(np.ones(batch.num_rows, dtype=bool), self._revision)
        cells = self._settled(batch)
        plain = None
        if self._plain:
            numbers = [_plain_numbers(cells[name], name, faults) for name in self._names]
            with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
                plain = np.array(numbers).T.astype(np.float64, order="C")
            if within(plain, *EVERYTHING):
                NEWEST.note(plain, single={values.dtype for values in numbers} == SINGLE)
            else:
                self._refuse_numbers(plain, faults)
            columns = tuple(plain[:, at : at + 1] for at in range(len(self._names)))
        else:
            columns = tuple(_column(field, cells.get(field.name), n, faults) for field in self._schema.fields)
            for field, column in zip(self._schema.fields, columns, strict=True):
                if (outside := outside_range(field, column)) is not None:
                    faults.say(outside, "out-of-range", range_words(field))
        y = _labels(self._schema.label, cells.get(self._schema.label.name), n, faults)
        weight = _weights(cells.get(self._schema.weight or ""), n, faults)
        t = self._times(batch, event, faults)
        key = np.full(n, event.key, dtype=object)
        return Rows(columns, y, weight, key, t, plain, offset=np.full(n, event.offset, dtype=np.int64)), faults

    def _refuse_numbers(self, plain: Floats, faults: Faults) -> None:
        """Refuse rows with a number that is missing, or out of bounds."""
        if faults.revision > 1:
            for at, name in enumerate(self._names):
                faults.say(np.isnan(plain[:, at]), "missing-field", f"{name} is NaN, a missing number")
        _within(plain, EVERYTHING, "a number", faults)

    def _times(self, batch: Batch, event: Event, faults: Faults) -> NDArray[np.int64]:
        t = np.full(batch.num_rows, event.timestamp_ms, dtype=np.int64)
        if TIMESTAMP in self._types or TIMESTAMP not in batch.schema.names:
            return t
        column = settled(batch.column(TIMESTAMP))
        if kind_of(column.type) == "null":
            return t
        if kind_of(column.type) != "timestamp":
            raise RecordError("wrong-type", f"{TIMESTAMP} is {column.type}, not a timestamp")
        own: Array = np.where(_nulls(column), t, milliseconds(column))
        faults.say(np.greater(own, event.timestamp_ms), "ahead-of-time", "its timestamp is past that of its message")
        return np.minimum(own, t)


def _nulls(column: Any) -> NDArray[np.bool_]:
    if not column.null_count:
        return np.zeros(len(column), dtype=bool)
    return np.asarray(column.is_null().to_numpy(zero_copy_only=False), dtype=bool)


def _floats(column: Any) -> Floats:
    """The numbers of a column (n,), widened, a boolean as 1 or 0; null is NaN."""
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)


def _refuse_beyond_int64(column: Any, name: str, faults: Faults) -> None:
    if faults.revision > 1 and str(column.type) == "uint64":
        faults.say(_beyond_int64(column), "wrong-type", f"{name} is an integer beyond int64")


def _beyond_int64(column: Any) -> NDArray[np.bool_]:
    """Which integers of a column of uint64 int64 does not have (n,)."""
    return np.asarray(column.fill_null(0).to_numpy(zero_copy_only=False) >= np.uint64(INT64))


def _numbers(column: Any, name: str, faults: Faults) -> Floats:
    """The same, without integers that int64 does not have."""
    _refuse_beyond_int64(column, name, faults)
    return _floats(column)


def _moments(field: Field, column: Any, faults: Faults) -> Floats:
    """Times (n,) in their field's unit; null is NaN."""
    kind = kind_of(column.type)
    if kind == "text":
        texts = _coded(column, field.name, partial(moment_of, field), faults)
        return np.array([math.nan if moment is None else moment for moment in texts.tolist()], dtype=np.float64)
    if kind != "timestamp":
        return _numbers(column, field.name, faults)
    ahead_ns = 0 if column.type.tz else zone_ns(field)
    moments = [
        math.nan if count is None else ticks_of(field, count * UNITS_NS[column.type.unit] - ahead_ns)
        for count in integers(column).to_pylist()
    ]
    return np.array(moments, dtype=np.float64)


def _absent(column: Any, values: Floats, faults: Faults) -> NDArray[np.bool_]:
    """Which numbers are missing (n,): null, and NaN, which data frames write for it."""
    return _nulls(column) if faults.revision < 2 else np.isnan(values)


def _plain_numbers(column: Any, name: str, faults: Faults) -> Array:
    """The numbers of a column (n,) as they come; null is NaN."""
    _refuse_beyond_int64(column, name, faults)
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
        return np.full((rows, 1), math.nan) if field.is_number else np.full(rows, None, dtype=object)
    single = field.is_number and field.size == 1
    values = _moments(field, column, faults) if field.type == "time" else np.empty(0)
    values = _numbers(column, field.name, faults) if field.type == "numeric" and single else values
    absent = _absent(column, values, faults) if single else _nulls(column)
    if field.missing == "reject":
        faults.say(absent, "missing-field", f"{field.name} is null")
    if field.type == "categorical":
        return _categories(field, column, faults)
    if field.type == "image":
        return _images(field, column, absent, faults)
    if field.size > 1:
        return _lists(field, column, absent, faults)
    return _within(values.reshape(-1, 1), number_range(field), field.name, faults, absent)


def _lists(field: Field, column: Any, absent: NDArray[np.bool_], faults: Faults) -> Floats:
    """An array field's numbers (n, size); rows that have none are zeros, and refused."""
    if kind_of(column.type) == "null":
        return np.zeros((len(absent), field.size))
    wrong = absent.copy()
    if not (fixed := getattr(column.type, "list_size", None)):
        lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        wrong |= lengths != field.size
        faults.say(wrong, "wrong-shape", f"{field.name} has not {field.size} numbers")
    elif fixed != field.size:
        raise RecordError("wrong-shape", f"{field.name} has {fixed} numbers, not {field.size}")
    right = ~wrong
    cells = settled((column if right.all() else column.filter(_mask(right))).flatten(), TAKES["numeric"])
    block = _floats(cells).reshape(-1, field.size)
    if not right.all():
        block, numbers = np.zeros((len(wrong), field.size)), block
        block[right] = numbers
    unsigned = faults.revision > 1 and str(cells.type) == "uint64"
    if within(block, *number_range(field)) and not unsigned:
        NEWEST.note(block, single=str(cells.type) == "float")
        return block
    faults.say(np.asarray(np.isnan(block).any(axis=1)), "wrong-type", f"{field.name} has a null among its numbers")
    if unsigned:
        beyond = np.zeros(len(wrong), dtype=bool)
        beyond[right] = _beyond_int64(cells).reshape(-1, field.size).any(axis=1)
        faults.say(beyond, "wrong-type", f"{field.name} has an integer beyond int64")
    return _within(block, number_range(field), field.name, faults)


def _images(field: Field, column: Any, absent: NDArray[np.bool_], faults: Faults) -> Array:
    """The bytes of each picture (n,), looked at one by one."""
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


def _coded(column: Any, name: str, text: Callable[[Any], Any], faults: Faults) -> Array:
    """Each cell's text (n,), made once of each different value; of null and NaN None. Rows without any are refused."""
    if (offsets := _offsets(column)) is not None:
        low, places = offsets
        names = np.full(int(places.max()) + 1, None, dtype=object)
        for at in np.flatnonzero(np.bincount(places)).tolist():
            names[at] = text(low + at)
        few: Array = names[places]
        return few
    coded = column if hasattr(column, "dictionary") else column.dictionary_encode()
    names, why = np.full(len(coded.dictionary) + 1, None, dtype=object), dict[int, RecordError]()
    for at, value in enumerate(coded.dictionary.to_pylist()):
        try:
            names[at] = None if value is None or value != value else text(value)
        except RecordError as error:
            why[at] = error
    indices = coded.indices.fill_null(len(names) - 1) if coded.indices.null_count else coded.indices
    places = indices.to_numpy(zero_copy_only=False).astype(np.int64)
    if why:
        first = next(iter(why.values()))
        faults.say(np.isin(places, list(why)), first.reason, f"{name}: {first.detail}")
    texts: Array = names[places]
    return texts


def _offsets(column: Any) -> tuple[int, NDArray[np.int64]] | None:
    """The least of a column of integers that lie near each other, and how far each is above it (n,); None of any other."""
    if hasattr(column, "dictionary") or column.null_count or not len(column) or kind_of(column.type) != "integer":
        return None
    whole = column.to_numpy(zero_copy_only=False)
    low, high = int(whole.min()), int(whole.max())
    if high - low > NEAR or high >= INT64:
        return None
    return low, whole.astype(np.int64) - low


def _categories(field: Field, column: Any, faults: Faults) -> Array:
    names = _coded(column, field.name, partial(text_of, revision=faults.revision), faults)
    if isinstance(field.categories, tuple):
        categories = {*field.categories, None}
        wrong = np.array([name not in categories for name in names.tolist()], dtype=bool)
        faults.say(wrong, "unknown-category", f"{field.name} is none of its declared categories")
    return names


def _labels(label: Label, column: Any, rows: int, faults: Faults) -> Array:
    """As the rows' codec gives them: (n,) class names or None; (n,) float64 or NaN for regression."""
    if column is None:
        return np.full(rows, math.nan) if label.type == "number" else np.full(rows, None, dtype=object)
    if label.type == "number":
        values = _numbers(column, label.name, faults)
        _within(values.reshape(-1, 1), EVERYTHING, label.name, faults, _absent(column, values, faults))
        return values
    if label.type == "integer":
        return _coded(column, label.name, lambda value: str(whole_of(value, faults.revision)), faults)
    revision = REVISION if label.type == "boolean" else faults.revision
    return _coded(column, label.name, partial(text_of, revision=revision), faults)


def _weights(column: Any, rows: int, faults: Faults) -> Floats:
    if column is None:
        return np.ones(rows)
    values = _numbers(column, "the weight", faults)
    weights = np.where(_absent(column, values, faults), 1.0, values)
    _within(weights.reshape(-1, 1), EVERYTHING, "the weight", faults)
    faults.say(weights < 0, "negative-weight", "a row's weight is below 0")
    return weights


def _refused_rows(batch: Batch, faults: Faults, event: Event, types: Mapping[str, str], first: int) -> list[Refused]:
    """Each bad row as a record of its own: the row as JSON, so that it can be read, and mended and sent again alone.

    An infinity stands there as ``1e999``, and what no row may hold as an object that says what it is.
    """
    if not faults.why:
        return []
    cells = batch.select([name for name in batch.schema.names if name != TIMESTAMP])
    headers = without_content_type(event.headers)
    refused = []
    for at, (reason, detail) in sorted(faults.why.items()):
        value = as_row(cells.slice(at, 1).to_pylist()[0], types)
        alone = Event(event.offset, event.timestamp_ms, event.key, headers, value)
        refused.append(Refused(alone, reason, detail, first + at))
    return refused
