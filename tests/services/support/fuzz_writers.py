"""Random rows as other programs write them: json, csv and pandas, pyarrow in the types of polars and pandas, fastavro."""

from __future__ import annotations

import base64
import csv
import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
from fuzz_cases import BEYOND, Rows
from fuzz_columns import Draws
from other_writers import avro_bytes, header, stream_of

from millrace.learners.errors import BadInputError
from millrace.services.data.send import values_of
from millrace.streams.records import Event

TEXTS = (pa.string(), pa.large_string(), pa.string_view())
BYTES = (pa.binary(), pa.large_binary(), pa.binary_view())
WHOLE = (pa.int64(), pa.int64(), pa.uint64(), pa.int32(), pa.int8())
WRONG: dict[str, tuple[Any, pa.DataType, Any]] = {  # cells of a whole column that no field takes, and their types
    "decimal": (
        Decimal("1.50"),
        pa.decimal128(10, 2),
        {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2},
    ),
    "nested": (
        {"a": 1.0},
        pa.struct([("a", pa.float64())]),
        {"type": "record", "name": "Inner", "fields": [{"name": "a", "type": "double"}]},
    ),
    "bytes as number": (b"MS41", pa.binary(), "bytes"),  # base64 of 1.5, which is for images alone
}
HEAD = {"specversion": "1.0", "source": "/a", "type": "b"}
ENVELOPE = header(content_type="application/cloudevents+json")


@dataclass
class Written:
    """The rows of a case in the log, each record under the number of its first row; and of a file that was refused, why."""

    events: list[Event] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)  # by its piece
    storage: set[str] = field(default_factory=set)  # types and marks that were written

    def add(self, offset: int, value: bytes, headers: bytes = b"") -> None:
        """One record."""
        self.events.append(Event(offset, 1000, None, headers, value))

    def file(self, path: Path, rows: Rows, piece: int) -> None:
        """What `send` makes of a file."""
        at = rows.pieces[piece][0]
        try:
            for value in values_of(path, rows.schema):
                self.add(at, value)
                at += 1
        except BadInputError as error:
            self.refused[piece] = str(error)


def json_row(rows: Rows, at: int) -> str:
    """As the json module writes it; a NaN is null and infinity overflows, since JSON has neither; null may be left out."""
    cells = {name: column.cells[at] for name, column in rows.columns.items()}
    text = json.dumps({name: cell for name, cell in cells.items() if cell is not None or at % 2})
    return text.replace("NaN", "null").replace("Infinity", "1e999")


def as_json(rows: Rows, folder: Path, rng: Draws) -> Written:
    """The json module: records, or a file of lines that begins with a byte-order mark."""
    written = Written()
    if rng.random() < 0.7:
        for at in range(len(rows)):
            written.add(at, json_row(rows, at).encode())
        return written
    written.storage.add("byte-order mark")
    for piece, (first, stop) in enumerate(rows.pieces):
        text = "\n".join(json_row(rows, at) for at in range(first, stop))
        (folder / "rows.jsonl").write_text(text, encoding="utf-8-sig")
        written.file(folder / "rows.jsonl", rows, piece)
    return written


def as_cloud_events(rows: Rows, _folder: Path, _rng: Draws) -> Written:
    """JSON in CloudEvents in structured mode."""
    written = Written()
    head = json.dumps(HEAD)[:-1]
    for at in range(len(rows)):
        written.add(at, f'{head}, "id": "{at}", "data": {json_row(rows, at)}}}'.encode(), ENVELOPE)
    return written


def as_csv(rows: Rows, folder: Path, rng: Draws) -> Written:
    """The csv module, which writes True, nan and inf; or pandas, which leaves a missing cell empty."""
    written, path = Written(), folder / "rows.csv"
    for piece, (first, stop) in enumerate(rows.pieces):
        columns = {name: column.cells[first:stop] for name, column in rows.columns.items()}
        encoding = "utf-8-sig" if rng.random() < 0.3 else "utf-8"
        written.storage |= {"byte-order mark"} if encoding == "utf-8-sig" else set()
        if rng.random() < 0.3:
            pandas.DataFrame(columns, dtype=object).to_csv(path, index=False, encoding=encoding)
        else:
            with path.open("w", newline="", encoding=encoding) as file:
                writer = csv.writer(file)
                writer.writerow(columns)
                writer.writerows(zip(*columns.values(), strict=True))
        if rows.spoiled and rows.spoiled.kind == "short row" and piece == 1:
            lines = path.read_bytes().splitlines()
            path.write_bytes(b"\n".join([*lines[:-1], lines[-1].rpartition(b",")[0]]))
        written.file(path, rows, piece)
    return written


def arrow_column(kind: str, cells: list[Any], rng: Draws) -> pa.Array:
    """Cells in one of the types that a program may write them in."""
    if all(cell is None for cell in cells) and rng.random() < 0.8:
        return pa.nulls(len(cells)) if rng.random() < 0.5 else pa.array([math.nan] * len(cells))
    if kind.startswith("list"):
        inner = {"list of numbers": pa.float64(), "list of integers": pa.int64(), "list of booleans": pa.bool_()}[kind]
        return pa.array(cells, [pa.list_(inner), pa.large_list(inner), pa.list_(inner, 2)][rng.integers(3)])
    if kind in ("timestamp", "instant"):
        return pa.array(cells, pa.timestamp(["us", "ns"][rng.integers(2)], "Europe/Berlin" if kind == "instant" else None))
    if kind == "float32":
        return pa.array(cells, pa.float32())
    if BEYOND & {cell for cell in cells if isinstance(cell, int)}:
        return pa.array(cells, pa.uint64())
    column = pa.array(cells) if any(cell is not None for cell in cells) else pa.array(cells, pa.string())
    kinds = {pa.string(): TEXTS, pa.binary(): BYTES, pa.int64(): WHOLE}.get(column.type)
    column = column if kinds is None else _cast(column, kinds[rng.integers(len(kinds))])
    return column.dictionary_encode() if rng.random() < 0.3 else column


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:  # the numbers do not fit
        return column


def arrow_table(rows: Rows, piece: int, rng: Draws) -> pa.Table:
    """One piece."""
    (first, stop), columns = rows.pieces[piece], dict[str, pa.Array]()
    for name, column in rows.columns.items():
        columns[name] = arrow_column(column.kind, column.cells[first:stop], rng)
        if rows.spoiled and (rows.spoiled.piece, rows.spoiled.column) == (piece, name):
            cell, kind, _ = WRONG[rows.spoiled.kind]
            columns[name] = pa.array([cell] * (stop - first), kind)
    return pa.table(columns)


def as_parquet(rows: Rows, folder: Path, rng: Draws) -> Written:
    """pyarrow's writer, one file a piece."""
    written = Written()
    for piece in range(len(rows.pieces)):
        table = arrow_table(rows, piece, rng)
        plain = [column if "_view, indices" not in str(column.type) else pa.array(column.to_pylist()) for column in table]
        table = pa.table(plain, table.schema.names)  # its writer has no dictionaries of views
        written.storage |= {str(kind) for kind in table.schema.types}
        pq.write_table(table, folder / "rows.parquet")
        written.file(folder / "rows.parquet", rows, piece)
    return written


def as_arrow(rows: Rows, _folder: Path, rng: Draws) -> Written:
    """One IPC stream a piece."""
    written = Written()
    for piece, (first, _) in enumerate(rows.pieces):
        table = arrow_table(rows, piece, rng)
        written.storage |= {str(kind) for kind in table.schema.types}
        written.add(first, stream_of(table))
    return written


def as_arrow_event(rows: Rows, folder: Path, rng: Draws) -> Written:
    """The same within CloudEvents."""
    written = as_arrow(rows, folder, rng)
    head = HEAD | {"id": "1", "datacontenttype": "application/vnd.apache.arrow.stream"}
    plain, written.events = written.events, []
    for event in plain:
        value = json.dumps(head | {"data_base64": base64.b64encode(event.value or b"").decode()})
        written.add(event.offset, value.encode(), ENVELOPE)
    return written


AVRO: dict[str, Any] = {
    "list of numbers": {"type": "array", "items": "double"},
    "list of integers": {"type": "array", "items": "long"},
    "list of booleans": {"type": "array", "items": "boolean"},
    "timestamp": {"type": "long", "logicalType": "local-timestamp-micros"},
    "instant": {"type": "long", "logicalType": "timestamp-micros"},
    "float32": "float",
}
AVRO_OF = {bool: "boolean", int: "long", float: "double", str: "string", bytes: "bytes"}


def as_avro(rows: Rows, folder: Path, _rng: Draws) -> Written:
    """fastavro, each piece with a schema of its own where a registry keeps it."""
    written = Written()
    for piece, (first, stop) in enumerate(rows.pieces):
        cells = {name: column.cells[first:stop] for name, column in rows.columns.items()}
        kinds = {name: avro_type(rows.columns[name].kind, cells[name]) for name in cells}
        if rows.spoiled and rows.spoiled.piece == piece:
            cell, _, kinds[rows.spoiled.column] = WRONG[rows.spoiled.kind]
            cells[rows.spoiled.column] = [cell] * (stop - first)
        schema = {"type": "record", "name": "Row", "fields": [{"name": name, "type": kind} for name, kind in kinds.items()]}
        (folder / f"{piece}.avsc").write_text(json.dumps(schema), encoding="utf-8")
        parsed = fastavro.parse_schema(schema)
        for at, row in enumerate(zip(*cells.values(), strict=True), first):
            value = avro_bytes(parsed, dict(zip(cells, row, strict=True)))
            written.add(at, struct.pack(">bI", 0, piece) + value)
    return written


def avro_type(kind: str, cells: list[Any]) -> Any:
    """Of a column's cells."""
    present = [cell for cell in cells if cell is not None]
    if not present:
        return "null"
    plain = AVRO.get(kind, AVRO_OF.get(type(present[0])))
    return ["null", plain] if len(present) < len(cells) else plain


FORMATS: dict[str, Callable[[Rows, Path, Draws], Written]] = {
    "JSON": as_json,
    "CloudEvents": as_cloud_events,
    "CSV": as_csv,
    "Parquet": as_parquet,
    "Arrow": as_arrow,
    "Arrow in CloudEvents": as_arrow_event,
    "Avro": as_avro,
}


def refused_due(rows: Rows, form: str) -> tuple[dict[int, str], dict[int, str]]:
    """What is refused: of records, the reason by the number of the first row; of files, a word that is said, by the piece."""
    spoiled = rows.spoiled
    if spoiled is None:
        return {}, {}
    if spoiled.kind == "short row":
        return {}, {1: "fewer cells than the heading"}
    if spoiled.kind in ("decimal", "nested") and form == "Parquet":
        return {}, {spoiled.piece: f"The column {spoiled.column} is"}
    bad = spoiled.rows[:1] if spoiled.piece is not None and form.startswith("Arrow") else spoiled.rows
    return dict.fromkeys(bad, spoiled.reason), {}
