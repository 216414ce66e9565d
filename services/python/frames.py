"""Rows that a Python program has, as the JSON values of records: mappings, pandas and polars frames, Arrow tables.

Every row is checked by the codec that the worker reads with, so what is let in here becomes no dead letter. Neither pandas nor
polars is imported: a frame is known by what it can do.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from sys import maxsize
from typing import Any

import msgspec
from msgspec.structs import replace

from millrace.learners.errors import BadInputError
from millrace.learners.protocol import Array
from millrace.streams.formats.arrow import columns_of
from millrace.streams.formats.json_rows import Codec, Refused
from millrace.streams.formats.meaning import RecordError, declared_types, taken, text_of
from millrace.streams.labels.served import LateLabel, Prediction, ServedCodec, encode
from millrace.streams.records import Event
from millrace.streams.schema import LARGEST, Schema, Unknown

MISSING = ("NAType", "NaTType")  # the classes of pandas.NA and pandas.NaT
MOMENTS = ("m", "M")  # kinds of NumPy's times and spans, of which ``tolist`` makes plain integers
WAYS_OUT = {  # of what a program hands over, by the reason for which a record is refused
    "wrong-type": "Convert the column first.",
    "wrong-shape": "Give the field as many numbers as it declares.",
    "missing-field": "Fill it in, or let the pipeline say what stands in: missing.",
    "unknown-field": "Leave it out.",
    "unknown-category": "Leave such rows out.",
    "not-finite": "Make it a missing value.",
}
EXPECTED = "a list of mappings, a pandas or polars DataFrame, or an Arrow table"


def events_of(
    rows: Any, schema: Schema, max_bytes: int, without: Container[str | None] = (), unknown: Unknown = "reject"
) -> list[Event]:
    """Rows as the events that they would be, numbered from 0, without the columns ``without`` and those that are ignored.

    ``max_bytes``: of one row. None, NaN, NA and NaT are missing values.
    Raises: BadInputError naming the row, counted from 0, and the column of the first value that the pipeline cannot take.
    """
    cells = _Cells(schema, unknown)
    events = [
        Event(at, 0, None, b"", msgspec.json.encode(cells.row(at, row, without))) for at, row in enumerate(_mappings(rows))
    ]
    _, refused = Codec(schema, max_bytes).decode(events)
    if refused:
        raise BadInputError(_describe_refused(refused))
    return events


def served_values(records: Iterable[Prediction | LateLabel], codec: ServedCodec) -> list[bytes]:
    """Served predictions and late labels as values of records, each checked as rows are.

    Raises: BadInputError naming the record, counted from 0, and what is wrong with it.
    """
    values = [_served_value(at, record) for at, record in enumerate(records)]
    _, refused = codec.decode([Event(at, 0, None, b"", value) for at, value in enumerate(values)], f"{codec.topic}:0")
    if refused:
        raise BadInputError(_describe_refused(refused, "Record"))
    return values


def _served_value(at: int, record: Any) -> bytes:
    """One of them, NumPy's scalars as numbers."""
    try:
        if isinstance(record, LateLabel):
            return encode(replace(record, label=_plain(record.label)))
        if isinstance(record, Prediction):
            return encode(replace(record, scores=tuple(map(_plain, record.scores))))
        raise ValueError(f"expected a Prediction or a LateLabel, got {type(record).__name__}")
    except (TypeError, ValueError) as error:
        raise BadInputError(f"Record {at} (counted from 0): {error}.") from error


def columns_of_events(events: Sequence[Event], schema: Schema) -> tuple[Array, ...]:
    """Checked rows as columns, one a field, as a state answers them."""
    return Codec(schema, maxsize).decode(events)[0].columns


def _mappings(rows: Any) -> Iterator[Mapping[str, Any]]:
    """Each row under its columns' names."""
    if hasattr(rows, "to_frame") and not hasattr(rows, "columns"):  # a Series, whose name is the column's
        return _mappings(rows.to_frame())
    if hasattr(rows, "iloc") and hasattr(rows, "columns"):
        return _zipped(list(rows.columns), [rows.iloc[:, at].tolist() for at in range(len(rows.columns))])
    if hasattr(rows, "__arrow_c_stream__") or hasattr(rows, "__arrow_c_array__"):
        return _zipped(*columns_of(rows))
    if hasattr(rows, "to_arrow"):
        return _zipped(*columns_of(rows.to_arrow()))
    if isinstance(rows, Mapping) or not isinstance(rows, Iterable) or isinstance(rows, str | bytes):
        raise BadInputError(f"rows: expected {EXPECTED}, got one {type(rows).__name__}. Put a single row into a list.")
    return iter(rows)


def _zipped(names: Sequence[Any], columns: Sequence[Sequence[Any]]) -> Iterator[Mapping[str, Any]]:
    twice = sorted({str(name) for name in names if list(names).count(name) > 1})
    if twice:
        raise BadInputError(f"rows: the column {twice[0]} stands twice. Rename or drop one of them.")
    return (dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True))


class _Cells:
    """What JSON holds of the cells of rows of one schema."""

    def __init__(self, schema: Schema, unknown: Unknown) -> None:
        self._names = None if unknown == "reject" else schema.names
        self._types = declared_types(schema)

    def row(self, at: int, row: Any, without: Container[str | None]) -> dict[str, Any]:
        """A row without the columns ``without``. Raises: BadInputError."""
        if not isinstance(row, Mapping):
            raise BadInputError(f"Row {at} (counted from 0) is of type {type(row).__name__}; expected {EXPECTED}.")
        names = self._names
        return {
            name: self._cell(at, name, cell)
            for name, cell in row.items()
            if name not in without and (names is None or name in names)
        }

    def _cell(self, at: int, name: Any, cell: Any) -> Any:
        if not isinstance(name, str):
            raise BadInputError(f"Row {at} (counted from 0): the column {name!r} is not named by a text. Rename it.")
        try:
            _unicode(name)
            value = _moment(cell) if self._types.get(name) == "time" else _plain(cell)
            if isinstance(value, bytes) and (declared := self._types.get(name, "image")) != "image":
                taken(declared, "bytes", "it", "bytes")
                return text_of(value)
        except RecordError as error:
            raise BadInputError(f"Row {at} (counted from 0), column {name}: {error.detail}.") from error
        except ValueError as error:
            raise BadInputError(f"Row {at} (counted from 0), column {name}: {error}.") from error
        return value


def is_missing(cell: Any) -> bool:
    """None, NaN, and what pandas and NumPy have for them."""
    if cell is None or type(cell).__name__ in MISSING:
        return True
    return (isinstance(cell, float) or getattr(cell, "ndim", None) == 0) and bool(cell != cell)  # NaN is not itself


def _plain(cell: Any) -> Any:
    """A cell as None, bool, int, float, str, bytes or a list of these. Raises: ValueError saying why there is none."""
    if cell is None or type(cell) in (bool, bytes):
        return cell
    if isinstance(cell, str):
        return _unicode(cell)
    if isinstance(cell, int | float):
        if abs(cell) > LARGEST:
            raise ValueError(f"the number is not finite, or beyond {LARGEST:g}")
        kind = int if isinstance(cell, int) else float  # of a subclass, such as an enumeration's member
        return None if cell != cell else kind(cell)  # NaN is not itself
    if isinstance(cell, list | tuple):
        return [_plain(element) for element in cell]
    if type(cell).__name__ in MISSING:
        return None
    if (listed := _listed(cell)) is not cell:
        return _plain(listed)
    if isinstance(cell, bytes):  # of a subclass
        return bytes(cell)
    raise ValueError(
        f"a value of type {type(cell).__name__} has no meaning in a pipeline; make it a number, a text or a boolean first"
    )


def _listed(cell: Any) -> Any:
    """A number of NumPy as Python has it, an array or a Series as a list; anything else is itself."""
    if not hasattr(cell, "tolist") or getattr(getattr(cell, "dtype", None), "kind", "") in MOMENTS:
        return cell
    listed = cell.tolist()
    if type(listed) is not type(cell):
        return listed
    return float(cell) if type(cell).__name__ == "longdouble" else cell  # the wide ones stay what they are


def _moment(cell: Any) -> Any:
    """A cell of a field of times: a datetime, one of pandas or NumPy among them, as text of ISO 8601; any other as it is."""
    if isinstance(cell, datetime) and type(cell).__name__ not in MISSING:
        return cell.isoformat()
    if type(cell).__name__ == "datetime64":
        return None if str(cell) == "NaT" else str(cell)
    return _plain(cell)


def _unicode(text: str) -> str:
    """A text, also of a subclass. Raises: ValueError for half a character, which UTF-8 has no bytes for."""
    try:
        return str(text) if text.isascii() else str(text.encode(), "utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"the text is not Unicode ({error.reason})") from error


def _describe_refused(refused: Sequence[Refused], called: str = "Row") -> str:
    """The first of the rows or records that the pipeline cannot take, and how many there are."""
    first = min(refused, key=lambda refusal: refusal.event.offset)
    message, _, location = first.detail.partition(" - at `$.")
    column = f", column {location.rstrip('`')}" if location else ""
    remark = "" if len(refused) == 1 else f" {len(refused)} {called.lower()}s cannot be taken."
    way_out = f" {WAYS_OUT[first.reason]}" if first.reason in WAYS_OUT else ""
    return f"{called} {first.event.offset} (counted from 0){column}: {message.rstrip('.')} ({first.reason}).{way_out}{remark}"
