"""One JSON row into columns, strictly: the only place where a record's bytes end.

What a value means to a declared type stands in ``meaning.py``. Nothing else is coerced: ``"1.5"`` for a number, an unknown key,
a key twice, a NaN or an infinity are all refused. The fast path decodes a whole read with one typed call a record, first of the
types that nearly all rows have, then of all that are taken. Only where that raises too is each record looked at.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, fields
from itertools import chain
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from millrace.learners.linear.decoded import NEWEST
from millrace.learners.protocol import COLUMNS, Array, Batch, Floats, within
from millrace.streams.formats.images import UnreadableImageError, check
from millrace.streams.formats.meaning import (
    INT64,
    REVISION,
    RecordError,
    declared_types,
    json_type,
    moment_of,
    names_of,
    refuse_integers_beyond,
    whole_of,
)
from millrace.streams.records import Event
from millrace.streams.schema import LARGEST, Field, Schema, Unknown

BROKEN = (RecordError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError)  # what a record raises that cannot be read
Decode = Callable[[bytes], Any]
TEXTS = {str, bytes}  # that stand between quotation marks
AT_ONCE = 256  # values in which these are counted together


@dataclass(frozen=True, slots=True)
class Rows:
    """Decoded records, one column a field; missing numbers are NaN, missing categories None."""

    columns: tuple[Array, ...]  # numeric (n, size) float64; categorical (n,) str objects
    y: Array  # (n,) str objects or None for classes; (n,) float64 or NaN for regression
    weight: Floats  # (n,)
    key: Array  # (n,) bytes | None objects
    t: np.ndarray[Any, np.dtype[np.int64]]  # (n,) ms
    plain: Floats | None = None  # (n, d) where the fields are x as they stand; the columns are then its views
    left_out: int = 0  # rows of the same read that the branch excludes
    offset: NDArray[np.int64] | None = None  # (n,) of each row's message; None: one row a record, in order
    sequences: Array | None = None  # (n,) bytes objects: completions of a language model, in pipelines of those

    def __len__(self) -> int:
        return len(self.t)

    def only(self, chosen: NDArray[Any]) -> Rows:
        """The rows that a mask (n,) or indices choose, as copies."""
        columns = tuple(column[chosen] for column in self.columns)
        others = ((name, getattr(self, name)) for name in PER_ROW)
        kept: dict[str, Any] = {name: None if whole is None else whole[chosen] for name, whole in others}
        return Rows(columns, **kept)

    def batch(self, x: Floats, names: Array | None = None) -> Batch:
        """The rows with their features (n, d), and the names (n, g) of categories that have no column yet."""
        return Batch(x, names=names, **{name: getattr(self, name) for name in SHARED})


PER_ROW = tuple(column.name for column in fields(Rows) if column.name not in ("columns", "left_out"))
SHARED = tuple(name for name in PER_ROW if name in COLUMNS)  # columns of a batch that a record brings


@dataclass(frozen=True, slots=True)
class Refused:
    """A record, or a row of a columnar message, that could not be read: why in a word, and why in a sentence."""

    event: Event  # of a row: the message's, with the row alone as its value
    reason: str
    detail: str
    row: int | None = None  # within its message; None: the record as a whole
    rows: int = 1  # that are refused with it: more where it is a message of many


class Codec:
    """Decodes the rows of one schema."""

    def __init__(self, schema: Schema, max_bytes: int, unknown: Unknown = "reject", revision: int = REVISION) -> None:
        self._schema = schema
        self._max_bytes = max_bytes
        self.revision = revision  # of what values mean
        members = _members(schema)
        self._names = [name for name, _, _ in members]  # the order of a decoded row's cells: required ones first
        self._required = sum(needed for _, _, needed in members)
        self._plain = schema.plain
        leading = schema.fields if self._plain else [field for field in schema.fields if field.size > 1]
        self._packed = len(leading)  # leading cells whose numbers go straight into a matrix
        self._sizes = [field.size for field in leading]
        self._width = len(members) - self._packed + bool(self._packed)  # cells of a row once those are packed into one
        self._pack = struct.Struct(f"{sum(self._sizes)}d").pack
        self._bounds = np.array([bound for field in leading for bound in [number_range(field)] * field.size]).reshape(-1, 2)
        self._least, self._most = self._bounds[:, 0].max(initial=-LARGEST), self._bounds[:, 1].min(initial=LARGEST)
        few = _members(schema, most=False)
        self._few, self._all = (_decoder(each, unknown == "reject") for each in (few, members))
        self._few_ignoring, self._all_ignoring = (_decoder(each, False) for each in (few, members))

    @property
    def without_limit(self) -> Codec:
        """This codec for records that were let in when they were first read: what is let in may have changed since."""
        other = copy(self)
        other._max_bytes, other._few, other._all = sys.maxsize, self._few_ignoring, self._all_ignoring
        return other

    def of_revision(self, revision: int) -> Codec:
        """This codec with the meaning that values had for a branch which was begun under an older revision."""
        other = copy(self)
        other.revision = revision
        return other

    def decode(self, events: Sequence[Event], _tp: str = "") -> tuple[Rows, list[Refused]]:
        """Columns of the events that can be read, in order, and the events that cannot; the same for every partition."""
        for decode in (self._few, self._all):
            with suppress(*BROKEN):
                return self._columns(events, decode), []
        good, refused = self._sorted_out(events)
        return self._columns(good, self._all), refused

    def _sorted_out(self, events: Sequence[Event]) -> tuple[list[Event], list[Refused]]:
        good, refused = [], []
        for event in events:
            try:
                self._columns([event], self._all)
                good.append(event)
            except BROKEN as error:
                refused.append(refusal(event, error))
        return good, refused

    def _columns(self, events: Sequence[Event], decode: Decode) -> Rows:
        values = self._values(events)
        rows = self._rows(values, decode)
        cells: list[Sequence[Any]] = list(zip(*rows, strict=True)) or [()] * self._width
        block = self._block(cells.pop(0), len(rows)) if self._packed else np.empty((len(rows), 0))
        required = self._required - self._packed
        _refuse_duplicates(values, cells, required, self._required)
        cells = cells[:required] + [_absent_as_none(column) for column in cells[required:]]
        by_name = dict(zip(self._names[self._packed :], cells, strict=True))
        ends = np.cumsum([0, *self._sizes]).tolist()
        packed = {name: block[:, a:b] for name, a, b in zip(self._names, ends, ends[1:], strict=False)}
        fields = tuple(
            packed[field.name] if field.name in packed else _column(field, by_name[field.name], self.revision)
            for field in self._schema.fields
        )
        for field, column in zip(self._schema.fields, fields, strict=True):
            if outside_range(field, column) is not None:
                raise RecordError("out-of-range", range_words(field))
        weight = _weights(by_name[self._schema.weight]) if self._schema.weight else np.ones(len(values))
        t = np.array([event.timestamp_ms for event in events], dtype=np.int64)
        y = self._labels(by_name[self._schema.label.name])
        if self.revision > 1:
            others = [column for field, column in zip(self._schema.fields, fields, strict=True) if field.name not in packed]
            _refuse_beyond_int64(values, [block, weight, y, *others])
        return Rows(fields, y, weight, _objects([event.key for event in events]), t, block if self._plain else None)

    def _rows(self, values: Sequence[bytes], decode: Decode) -> list[tuple[Any, ...]]:
        """The cells of each row, the leading numbers packed into one cell.

        struct packs them twice as fast as NumPy reads lists, and each row's numbers are freed before the next is decoded.
        """
        pack, packed = self._pack, self._packed
        if packed == 1 and len(self._names) == 2 and not self._plain:  # an array and a label: a tuple less for each row
            return [(pack(*row.c0), row.c1) for row in map(decode, values)]
        rows = map(msgspec.structs.astuple, map(decode, values))
        if self._plain:
            return [(pack(*row[:packed]), *row[packed:]) for row in rows]
        if packed == 1:
            return [(pack(*row[0]), *row[1:]) for row in rows]
        if packed:
            return [(pack(*chain.from_iterable(row[:packed])), *row[packed:]) for row in rows]
        return list(rows)

    def _block(self, cells: Sequence[bytes], rows: int) -> Floats:
        """The packed cells as a matrix (rows, numbers), each column within its field's range."""
        block = np.frombuffer(b"".join(cells)).reshape(rows, len(self._bounds))
        if within(block, self._least, self._most):  # then each column is
            NEWEST.note(block, single=False)
        elif not ((self._bounds[:, 0] <= block.min(axis=0)) & (block.max(axis=0) <= self._bounds[:, 1])).all():
            raise RecordError("not-finite", f"a number is not finite, or beyond {LARGEST:g}")  # NaN fails both
        return block

    def _values(self, events: Sequence[Event]) -> list[bytes]:
        values = [event.value for event in events if event.value is not None]
        if len(values) < len(events):
            raise RecordError("unreadable", "the record has no value")
        if values and max(map(len, values)) > self._max_bytes:
            raise RecordError("oversized", f"over {self._max_bytes} bytes, the pipeline's log.max_bytes")
        return values

    def _labels(self, cells: Sequence[Any]) -> Array:
        kind = self._schema.label.type
        if kind == "number":
            return _numbers([math.nan if cell is None else cell for cell in cells], [cell is None for cell in cells])
        if kind == "boolean":
            return _objects([None if cell is None else str(cell).lower() for cell in cells])
        if kind == "string":
            return _objects(names_of(cells, self.revision))
        # 1 and 1.0 are one name, and a boolean has not come this far
        names = {cell: None if cell is None else str(whole_of(cell, self.revision)) for cell in set(cells)}
        return _objects([names[cell] for cell in cells])


def _members(schema: Schema, most: bool = True) -> list[tuple[str, Any, bool]]:
    """Key, type and whether it must be there: arrays of numbers first, then what else is required, then the rest."""
    types = declared_types(schema)
    members = [(field.name, _cell_type(field, most), field.missing == "reject") for field in schema.fields]
    members += [(name, json_type(types[name], most), False) for name in (schema.label.name, schema.weight) if name]
    arrays = {field.name for field in schema.fields if field.size > 1}
    return sorted(members, key=lambda member: (member[0] not in arrays, not member[2]))


def _cell_type(field: Field, most: bool) -> Any:
    if field.size > 1:
        number: Any = json_type("numeric", most)
        return Annotated[list[number], msgspec.Meta(min_length=field.size, max_length=field.size)]
    return bytes if field.type == "image" else json_type(field.type, most)


def _row_type(members: list[tuple[str, Any, bool]], exactly: bool) -> type[msgspec.Struct]:
    """A msgspec record with these keys, and ``exactly`` these or others beside them."""
    cells: list[Any] = [
        (f"c{at}", kind) if needed else (f"c{at}", kind | None | msgspec.UnsetType, msgspec.UNSET)
        for at, (_, kind, needed) in enumerate(members)
    ]
    keys = {f"c{at}": name for at, (name, _, _) in enumerate(members)}
    return msgspec.defstruct("Row", cells, rename=keys, forbid_unknown_fields=exactly, gc=False)


def _decoder(members: list[tuple[str, Any, bool]], exactly: bool) -> Decode:
    return msgspec.json.Decoder(_row_type(members, exactly)).decode


def has_label(rows: Rows) -> NDArray[np.bool_]:
    """Which rows carry a label (n,); 0, "" and false are labels, and a completion is its own."""
    if rows.sequences is not None or (rows.y.dtype == object and None not in rows.y.tolist()):
        return np.ones(len(rows), dtype=bool)
    return np.array([label is not None for label in rows.y.tolist()]) if rows.y.dtype == object else ~np.isnan(rows.y)


def _refuse_beyond_int64(values: Sequence[bytes], columns: Sequence[Array]) -> None:
    """Refuse a row with an integer that int64 does not have; in float64 it looks like any number, so its text is asked."""
    large = np.zeros(len(values), dtype=bool)
    for column in columns:
        if column.dtype == np.float64 and not within(column, -INT64 / 2, INT64 / 2):
            large |= (np.abs(column.reshape(len(values), -1)) >= INT64).any(axis=1)  # NaN is not
    for at in np.flatnonzero(large).tolist():
        refuse_integers_beyond(json.loads(values[at]))


def _absent_as_none(cells: Sequence[Any]) -> list[Any]:
    return [None if cell is msgspec.UNSET else cell for cell in cells]


def _column(field: Field, cells: Sequence[Any], revision: int) -> Array:
    if field.type == "categorical":
        cells = names_of(cells, revision)
        if isinstance(field.categories, tuple) and (unknown := set(cells) - {*field.categories, None}):
            raise RecordError("unknown-category", f"{field.name} has {len(unknown)} value(s) outside its declared categories")
        return _objects(cells)
    if field.type == "image":
        return checked_images(field, cells)
    if field.type == "time":
        cells = [None if cell is None else moment_of(field, cell) for cell in cells]
    absent = [] if field.missing == "reject" else [cell is None for cell in cells]
    if any(absent):
        cells = [math.nan if cell is None else cell for cell in cells]
    return _numbers(cells, absent, number_range(field)).reshape(-1, 1)


def checked_images(field: Field, cells: Sequence[bytes]) -> Array:
    """Pictures (n,), each of which can be read. Raises: RecordError."""
    try:
        for raw in cells:
            check(raw)
    except UnreadableImageError as error:
        raise RecordError("unreadable-image", f"{field.name}: {error}") from error
    return _objects(cells)


def number_range(field: Field) -> tuple[float, float]:
    """Values that stay below LARGEST when the feature stage centres and scales them: a learner refuses what does not."""
    if (field.center, field.scale) == (0.0, 1.0):
        return -LARGEST, LARGEST
    most = LARGEST * (1 - 1e-9)  # room for the rounding of (value - center) / scale
    return max(-LARGEST, field.center - most * field.scale), min(LARGEST, field.center + most * field.scale)


def outside_range(field: Field, column: Array) -> Array | None:
    """Which rows (n,) of a field's numbers (n, size) it rejects, by its low and high; None where it rejects none."""
    if not field.is_number or field.outside != "reject" or (field.low, field.high) == (-LARGEST, LARGEST):
        return None
    outside = ((column < field.low) | (column > field.high)).any(axis=1)
    return np.asarray(outside) if outside.any() else None


def range_words(field: Field) -> str:
    """Why such a row is rejected."""
    return f"{field.name} is not within its low and high, {field.low:g} to {field.high:g}"


def _numbers(cells: Sequence[Any], absent: Sequence[bool], bounds: tuple[float, float] = (-LARGEST, LARGEST)) -> Floats:
    """Cells as float64; NaN only where ``absent``."""
    numbers = np.array(cells, dtype=np.float64)
    _finite(numbers[~np.array(absent, dtype=bool)] if any(absent) else numbers, *bounds)
    return numbers


def _finite(numbers: Floats, low: float, high: float) -> Floats:
    if numbers.size and not (low <= numbers.min() and numbers.max() <= high):  # NaN fails both
        raise RecordError("not-finite", f"a number is not finite, or not within {low:g} to {high:g}")
    return numbers


def _weights(cells: Sequence[Any]) -> Floats:
    weights = _numbers([1.0 if cell is None else cell for cell in cells], [])
    if weights.size and weights.min() < 0:
        raise RecordError("negative-weight", "a row's weight is below 0")
    return weights


def _objects(cells: Sequence[Any]) -> Array:
    column = np.empty(len(cells), dtype=object)
    column[:] = cells
    return column


def _refuse_duplicates(values: Sequence[bytes], cells: Sequence[Sequence[Any]], required: int, always: int) -> None:
    """Refuse a row in which a key stands twice; JSON decoders keep the last and say nothing.

    It shows in the count of quotation marks: two a key that is there and two a string. Only a row with another count (a key
    twice, or an escaped quotation mark) is parsed again with its pairs. The first ``required`` of ``cells`` are of keys that
    are always there; with those of numbers, which are not among the cells, there are ``always`` such keys. No row has fewer
    marks than expected, so where all together have as many, each has.
    """
    expected = np.full(len(values), 2 * always)
    for at, column in enumerate(cells):
        kinds = set(map(type, column))
        if at >= required:
            expected += 2 if msgspec.UnsetType not in kinds else _twice(column, lambda cell: cell is not msgspec.UNSET)
        if kinds & TEXTS:
            expected += 2 if kinds <= TEXTS else _twice(column, lambda cell: isinstance(cell, str | bytes))
    if _marks(values) == expected.sum():
        return
    marks = np.array([value.count(b'"') for value in values], dtype=np.int64)
    for at in np.flatnonzero(marks != expected).tolist():
        json.loads(values[at], object_pairs_hook=unique, parse_int=str)  # str: an ignored integer may have any length


def _marks(values: Sequence[bytes]) -> int:
    """Quotation marks in all values together, of so many at a time as the processor's cache holds."""
    pieces = (b"".join(values[at : at + AT_ONCE]) for at in range(0, len(values), AT_ONCE))
    return sum(int(np.count_nonzero(np.frombuffer(piece, dtype=np.uint8) == ord('"'))) for piece in pieces)


def _twice(column: Sequence[Any], test: Callable[[Any], bool]) -> Array:
    return 2 * np.array([test(cell) for cell in column])


def unique(pairs: list[tuple[str, Any]]) -> None:
    """Raises: RecordError where a key stands twice."""
    if len({key for key, _ in pairs}) < len(pairs):
        raise RecordError("duplicate-field", "a key stands twice")


def refusal(event: Event, error: Exception) -> Refused:
    """Why the event cannot be read, from what decoding it raised."""
    if isinstance(error, RecordError):
        return Refused(event, error.reason, error.detail, rows=error.rows)
    if not isinstance(error, msgspec.ValidationError):
        return Refused(event, "unreadable", str(error))
    text = str(error)
    if "got `null` - at `$." in text and not text.endswith("]`"):  # a null among an array's numbers is of a wrong type
        return Refused(event, "missing-field", text)
    for words, reason in _BY_WORDS:
        if words in text:
            return Refused(event, reason, text)
    return Refused(event, "wrong-type", text)


_BY_WORDS = (
    ("unknown field", "unknown-field"),
    ("missing required field", "missing-field"),
    ("of length", "wrong-shape"),
    ("out of range", "not-finite"),  # 1e999
)
