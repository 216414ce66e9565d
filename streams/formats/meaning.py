"""What a value means to what the pipeline file declares, whatever format it came in: the one table, and what follows from it.

A format says of which kind a value is; here stands which kinds a declared type takes and what they become. ``as_row`` writes
the values of a typed format (Avro, Parquet) as the JSON row with the same meaning.

Source: docs/how-to/values-and-types.md, whose table a test compares with ``TAKES``.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from millrace.streams.schema import LARGEST, UNITS_NS, Field, Label, Schema

REVISION = (
    2  # of this table; 1: integers beyond int64 are learned, Avro's bytes are base64 text, a NaN in an Arrow row is refused
)
INT64 = 1 << 63  # the first integer that int64 does not have
WEIGHT = "weight"

# Kinds of values: boolean, integer, number (a float), text, bytes, list, timestamp, and "" for every other (decimal, nested).
# A null, a NaN among them, is no kind: it is a missing value everywhere.
TAKES: dict[str, tuple[str, ...]] = {
    "numeric": ("number", "integer", "boolean"),  # true is 1, false is 0
    "numeric list": ("list",),  # whose items are as those of numeric
    "categorical": ("text", "boolean", "integer", "bytes"),  # "true", "false"; decimal digits; bytes that are UTF-8
    "image": ("bytes",),  # base64 in a JSON row
    "time": ("number", "integer", "text", "timestamp"),  # numbers are in its unit; text is ISO 8601
    "label string": ("text", "boolean", "integer", "bytes"),  # as categorical
    "label integer": ("integer", "number"),  # a number only where it is whole: 1.0 is 1
    "label boolean": ("boolean",),
    "label number": ("number", "integer"),
    WEIGHT: ("number", "integer"),
}
JSON_TYPES: dict[str, Any] = {"number": float, "integer": int, "boolean": bool, "text": str}
INFINITE = {math.inf: msgspec.Raw(b"1e999"), -math.inf: msgspec.Raw(b"-1e999")}  # JSON's way to say it; refused as not-finite

ISO = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?)(?:[.,](\d{1,9}))?(Z|z|[+-]\d\d:?\d\d)?")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

REASONS = (
    "unreadable",  # not JSON, not UTF-8, or no bytes at all
    "oversized",
    "wrong-type",
    "wrong-shape",
    "missing-field",
    "unknown-field",
    "duplicate-field",
    "not-finite",  # or too large to square
    "out-of-range",  # below the field's low, or above its high
    "unknown-category",
    "negative-weight",
    "unreadable-image",  # neither a JPEG nor a PNG, not whole, or with too many pixels
    "ahead-of-time",  # its timestamp is too far past the wall clock, or a row's is past its message's
    "unknown-schema",  # of an Avro record: the registry has none of its id, or it is of no record
    "malformed-envelope",  # a CloudEvent without what one must have
)


class RecordError(Exception):
    """Why one record cannot be read; of a message of many rows, how many."""

    def __init__(self, reason: str, detail: str, rows: int = 1) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.rows = rows


def declared_types(schema: Schema) -> dict[str, str]:
    """Each declared name's type, as ``TAKES`` has it.

    >>> from millrace.streams.schema import Field
    >>> declared_types(Schema((Field("x", size=3),), Label("y", "integer"), weight="w"))
    {'x': 'numeric list', 'y': 'label integer', 'w': 'weight'}
    """
    types = {field.name: "numeric list" if field.size > 1 else field.type for field in schema.fields}
    types[schema.label.name] = f"label {schema.label.type}"
    return types | ({schema.weight: WEIGHT} if schema.weight else {})


def json_type(declared: str, most: bool = True) -> Any:
    """What a JSON row may hold for a declared type, as msgspec has it; null is for whoever asks.

    Without ``most`` it is what nearly all rows hold: the first kind of ``TAKES``.
    """
    union = None
    for kind in TAKES[declared] if most else TAKES[declared][:1]:
        if kind in JSON_TYPES and not (kind == "integer" and declared not in ("categorical", "label string", "label integer")):
            union = JSON_TYPES[kind] if union is None else union | JSON_TYPES[kind]
    return union


def taken(declared: str, kind: str, name: str, shown: object) -> None:
    """Raises: RecordError where the declared type of ``name`` does not take values of this kind, which are ``shown``."""
    if kind not in TAKES[declared]:
        raise RecordError("wrong-type", f"{name} is {shown}, and {declared} takes {', '.join(TAKES[declared])}")


def number_of(cell: Any) -> float:
    """A number, or a boolean as 1 or 0. Raises: RecordError."""
    if not isinstance(cell, int | float):
        raise RecordError("wrong-type", f"{type(cell).__name__} is not a number")
    return float(_within_int64(cell) if isinstance(cell, int) else cell)


def text_of(cell: Any, revision: int = REVISION) -> str:
    """A category or class name: text as it stands, a boolean as true or false, an integer as its decimal digits.

    >>> text_of("a"), text_of(True), text_of(-7), text_of(b"spam")
    ('a', 'true', '-7', 'spam')

    Raises: RecordError for anything else.
    """
    if isinstance(cell, str):
        return cell
    if isinstance(cell, bool):
        return str(cell) if revision < 2 else str(cell).lower()
    if isinstance(cell, int):
        return str(_within_int64(cell))
    if isinstance(cell, bytes):
        try:
            return cell.decode()
        except UnicodeDecodeError as error:
            raise RecordError("wrong-type", "bytes that are not UTF-8 are no text") from error
    raise RecordError("wrong-type", f"{type(cell).__name__} is no text, boolean or integer")


def moment_of(field: Field, cell: Any) -> float:
    """A time in its field's unit since 1970-01-01T00:00Z: a number as it stands, or ISO 8601, without an offset in its zone.

    >>> moment_of(Field("t", "time", unit="h", zone="+02:00"), "1970-01-02T03:30:00")
    25.5

    Raises: RecordError.
    """
    if not isinstance(cell, str):
        return number_of(cell)
    parts = ISO.fullmatch(cell)
    try:
        if parts is None:
            raise ValueError("no date and time")
        instant = datetime.fromisoformat(parts[1] + (parts[3] or field.zone).upper().replace("UTC", "+00:00"))
    except ValueError as error:
        raise RecordError("wrong-type", f"{field.name}: {cell[:40]!r} is not a date and time of ISO 8601") from error
    fraction_ns = int((parts[2] or "0").ljust(9, "0"))
    return ticks_of(field, (instant - EPOCH) // timedelta(seconds=1) * 10**9 + fraction_ns)


def ticks_of(field: Field, instant_ns: int) -> float:
    """Nanoseconds since 1970-01-01T00:00Z in the unit of a field of times, rounded once."""
    return instant_ns / UNITS_NS[field.unit]


def zone_ns(field: Field) -> int:
    """How far the zone of a field is ahead of UTC."""
    if field.zone == "UTC":
        return 0
    minutes = int(field.zone[1:3]) * 60 + int(field.zone[4:])
    return (-minutes if field.zone[0] == "-" else minutes) * UNITS_NS["min"]


def whole_of(cell: Any, revision: int = REVISION) -> int:
    """An integer, also where it is written as a float.

    >>> whole_of(3), whole_of(1.0), whole_of(-0.0)
    (3, 1, 0)

    Raises: RecordError for anything else.
    """
    if isinstance(cell, float) and math.isinf(cell):
        raise RecordError("not-finite", "an infinity is not a whole number")
    if isinstance(cell, bool) or not isinstance(cell, int | float) or cell != cell // 1:
        raise RecordError("wrong-type", f"{cell!r} is not a whole number")
    return int(cell) if revision < 2 else _within_int64(int(cell))


def _within_int64(number: int) -> int:
    if not -INT64 <= number < INT64:
        raise RecordError("wrong-type", "an integer is beyond int64")
    return number


def names_of(cells: Sequence[Any], revision: int = REVISION) -> Sequence[Any]:
    """Cells of a category or a string label as texts; None stays."""
    if set(map(type, cells)) <= {str, type(None)}:
        return cells
    return [None if cell is None else text_of(cell, revision) for cell in cells]


def label_value(label: Label, cell: Any, revision: int = REVISION) -> str | float:
    """One label as a learner gets it: a class name, or a number.

    Raises: RecordError where it is not of the label's type.
    """
    kind = {bool: "boolean", int: "integer", float: "number", str: "text"}.get(type(cell), "")
    if kind not in TAKES[f"label {label.type}"]:
        raise RecordError("wrong-type", f"the label is not of type {label.type}")
    if label.type == "number":
        if not abs(cell) <= LARGEST:  # NaN fails too
            raise RecordError("not-finite", f"the label is not finite, or not within {-LARGEST:g} to {LARGEST:g}")
        return (float(cell) if revision < 2 else number_of(cell)) + 0.0  # one zero: -0.0 is told apart by its text alone
    if label.type == "boolean":
        return text_of(cell)
    return str(whole_of(cell, revision)) if label.type == "integer" else text_of(cell, revision)


def cell_of(declared: str, cell: Any) -> Any:
    """A value as a typed column of a declared type holds it; None stays. Raises: RecordError."""
    if cell is None:
        return None
    if declared == "numeric list":
        if not isinstance(cell, list | tuple):
            raise RecordError("wrong-type", f"{type(cell).__name__} is no list")
        return [cell_of("numeric", item) for item in cell]
    if declared == "image":
        return base64.b64decode(cell, validate=True) if isinstance(cell, str) else cell
    if isinstance(cell, bool) and "boolean" not in TAKES[declared]:
        raise RecordError("wrong-type", f"a boolean is not for a {declared}")
    if declared == "label boolean":
        if not isinstance(cell, bool):
            raise RecordError("wrong-type", f"{type(cell).__name__} is no boolean")
        return cell
    return (whole_of if declared == "label integer" else text_of if "text" in TAKES[declared] else number_of)(cell)


def refuse_integers_beyond(row: Mapping[str, Any]) -> None:
    """Raises: RecordError naming a cell of a parsed row that is an integer, or holds one, which int64 does not have."""
    for name, cell in row.items():
        for item in cell if isinstance(cell, list) else [cell]:
            if isinstance(item, int) and not -INT64 <= item < INT64:
                raise RecordError("wrong-type", f"{name} is an integer beyond int64")


def as_row(cells: Mapping[str, Any], types: Mapping[str, str], revision: int = REVISION) -> bytes:
    """Python values of a typed format as a JSON row of the same meaning; ``types`` are those of ``declared_types``.

    What no row may hold stays so that the row's codec refuses it, and can be read in the dead letter.

    >>> as_row({"a": float("nan"), "b": float("-inf"), "k": b"ant"}, {"a": "numeric", "b": "numeric", "k": "categorical"})
    b'{"a":null,"b":-1e999,"k":"ant"}'
    """
    return msgspec.json.encode({name: _json_cell(cell, types.get(name, ""), revision) for name, cell in cells.items()})


def _json_cell(cell: Any, declared: str, revision: int) -> Any:
    if isinstance(cell, float):
        return None if cell != cell else INFINITE.get(cell, cell)
    if isinstance(cell, list):
        return [_json_cell(item, "numeric", revision) for item in cell]
    if cell is None or isinstance(cell, bool | int | str):
        return cell
    if isinstance(cell, bytes):
        return _json_bytes(cell, declared, revision)
    if isinstance(cell, datetime) and declared == "time":
        return cell.isoformat()
    return {type(cell).__name__: str(cell)}


def _json_bytes(cell: bytes, declared: str, revision: int) -> Any:
    if declared == "image" or revision < 2:
        return cell  # base64
    if "bytes" in TAKES.get(declared, ()):
        try:
            return cell.decode()
        except UnicodeDecodeError:
            pass
    return {"bytes": base64.b64encode(cell).decode()}
