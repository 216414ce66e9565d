"""Columns of every kind of value beside every declared type, as programs other than ours write them."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from millrace.services.data.send import messages_of, values_of
from millrace.streams.records import Event, encode_headers
from millrace.streams.schema import Field, Label, Schema

MOMENTS = [datetime(2026, 3, 29, 2, 30), datetime(1969, 12, 31, 23, 59, 59, 999_999), datetime(2023, 11, 14, 22, 13, 20, 1)]
DECLARED: dict[str, Schema] = {
    "numeric": Schema((Field("z"), Field("v")), Label("y", "integer")),
    "numeric, mean": Schema((Field("z"), Field("v", missing="mean")), Label("y", "integer")),
    "numeric, indicator": Schema((Field("z"), Field("v", missing="indicator")), Label("y", "integer")),
    "list": Schema((Field("z"), Field("v", size=2)), Label("y", "integer")),
    "categorical": Schema((Field("z"), Field("v", type="categorical", categories="grow", max=4)), Label("y", "integer")),
    "categorical, hash": Schema(
        (Field("z"), Field("v", type="categorical", categories="hash", max=8, missing="category")), Label("y", "integer")
    ),
    "categorical, fixed": Schema(
        (Field("z"), Field("v", type="categorical", categories=("true", "a", "7"), missing="category")), Label("y", "integer")
    ),
    "time": Schema((Field("z"), Field("v", type="time", unit="h", zone="+02:00")), Label("y", "integer")),
    "label string": Schema((Field("z"),), Label("v", "string")),
    "label integer": Schema((Field("z"),), Label("v", "integer")),
    "label boolean": Schema((Field("z"),), Label("v", "boolean")),
    "label number": Schema((Field("z"),), Label("v", "number")),
    "weight": Schema((Field("z"),), Label("y", "integer"), weight="v"),
}
KINDS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "boolean": (pa.bool_(), st.booleans()),
    "int8": (pa.int8(), st.sampled_from([-128, -1, 0, 1, 7, 127])),
    "int64": (pa.int64(), st.sampled_from([-(1 << 63), -7, 0, 1, 7, (1 << 53) + 1, (1 << 63) - 1])),
    "uint64": (pa.uint64(), st.sampled_from([0, 7, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])),
    "float32": (
        pa.float32(),
        st.sampled_from([0.1, 1.0, -2.0, math.nan, math.inf, 1e30]).map(lambda it: float(np.float32(it))),
    ),
    "double": (pa.float64(), st.sampled_from([0.1, 1.0, -0.0, 7.0, 1e19, 1e101, -1e-12, math.nan, math.inf, -math.inf])),
    "text": (pa.string(), st.sampled_from(["a", "7", "", "true", "True", "1.0", "ü", "nan", 'a"b,c\n'])),
    "bytes": (pa.binary(), st.sampled_from([b"a", b"true", b"\xff\xfe", "ü".encode(), b""])),
    "null": (pa.null(), st.none()),
    "list": (pa.list_(pa.float64()), st.sampled_from([[1.0, 2.0], [0.5], [1.0, None], [math.inf, 0.0], [-0.0, 1e101]])),
    "list of integers": (pa.list_(pa.uint64()), st.sampled_from([[1, 2], [0, 1 << 63], []])),
    "list of booleans": (pa.list_(pa.bool_()), st.sampled_from([[True, False], [True]])),
    "decimal": (pa.decimal128(10, 2), st.sampled_from([Decimal("1.50"), Decimal("7.00")])),
    "nested": (pa.struct([("a", pa.float64())]), st.sampled_from([{"a": 1.0}])),
    "timestamp": (pa.timestamp("us"), st.sampled_from(MOMENTS)),
    "instant": (pa.timestamp("us", "Europe/Berlin"), st.sampled_from([moment.replace(tzinfo=UTC) for moment in MOMENTS])),
    "text of a time": (
        pa.string(),
        st.sampled_from(["2026-03-29T02:30:00", "2026-03-29 02:30:00.000001Z", "1969-12-31T23:59+01:00"]),
    ),
}
NUMBERS = {"int8", "int64", "uint64", "float32", "double"}


@dataclass(frozen=True)
class Case:
    """A declared type, and a column of one kind that meets it."""

    declared: str
    kind: str
    cells: tuple[Any, ...]

    @property
    def schema(self) -> Schema:
        """The pipeline's."""
        return DECLARED[self.declared]

    @property
    def kind_of_value(self) -> str:
        """number, integer, or the column's kind."""
        if self.kind in ("float32", "double"):
            return "number"
        return "integer" if self.kind in NUMBERS else "text" if self.kind == "text of a time" else self.kind

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows, beside columns that are always good."""
        named = [field.name for field in self.schema.fields] + [self.schema.label.name, self.schema.weight]
        return [
            {name: cell if name == "v" else float(at) / 3 if name == "z" else at % 2 for name in named if name}
            for at, cell in enumerate(self.cells)
        ]

    def table(self) -> pa.Table:
        """The rows as pyarrow has them."""
        rows = self.rows
        columns = {
            name: pa.array([row[name] for row in rows], KINDS[self.kind][0] if name == "v" else None) for name in rows[0]
        }
        return pa.table(columns)


def header(**pairs: str) -> bytes:
    """Headers of a record."""
    return encode_headers(
        tuple((name.replace("_", "-", name == "content_type"), text.encode()) for name, text in pairs.items())
    )


def json_text(cell: Any) -> str:
    """A cell as the json module writes it; NaN is null and infinity overflows, since JSON has neither."""
    if isinstance(cell, list):
        return "[" + ",".join(map(json_text, cell)) + "]"
    if isinstance(cell, float) and not math.isfinite(cell):
        return "null" if cell != cell else "1e999" if cell > 0 else "-1e999"
    return json.dumps(cell)


def as_json(case: Case) -> Iterator[Event] | None:
    """The json module; it has no bytes, decimals or times."""
    if case.kind in ("bytes", "decimal", "timestamp", "instant"):
        return None
    rows = ["{" + ",".join(f'"{name}": {json_text(cell)}' for name, cell in row.items()) + "}" for row in case.rows]
    return (Event(at, 1000, None, b"", row.encode()) for at, row in enumerate(rows))


def as_events(case: Case) -> Iterator[Event] | None:
    """JSON in CloudEvents, in either mode in turn."""
    if (plain := as_json(case)) is None:
        return None
    binary = header(ce_specversion="1.0", ce_id="1", ce_source="/a", ce_type="b")
    whole = b'{"specversion": "1.0", "id": "1", "source": "/a", "type": "b", "data": %b}'
    structured = header(content_type="application/cloudevents+json")
    return (
        Event(event.offset, 1000, None, *((structured, whole % event.value) if event.offset % 2 else (binary, event.value)))
        for event in plain
        if event.value is not None
    )


def in_file(ending: str, write: Callable[[Path], None], case: Case, batches: bool) -> Iterator[Event] | None:
    """What `send` makes of a file, as rows or as Arrow batches of one row."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"rows.{ending}"
        write(path)
        values = list(values_of(path, case.schema))
    values = list(messages_of(values, case.schema, 1)) if batches else values
    return (Event(at, 1000, None, b"", value) for at, value in enumerate(values))


def in_csv(case: Case) -> bool:
    """Whether CSV, which has no types and no empty text, can say it."""
    text = case.declared.startswith("categorical") or case.declared == "label string"
    if case.kind == "text of a time":
        return True
    if case.kind == "text":
        return text and not {"", "True"} & {*case.cells}
    return case.kind in ("boolean", "null") or (
        case.kind in NUMBERS and not (text and case.kind in ("float32", "double", "uint64"))
    )


def as_csv(case: Case, batches: bool = False) -> Iterator[Event] | None:
    """The csv module, which writes True, nan and inf."""

    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(case.rows[0])
            rows.writerows(row.values() for row in case.rows)

    return in_file("csv", write, case, batches) if in_csv(case) else None


def as_pandas_csv(case: Case) -> Iterator[Event] | None:
    """pandas, with the byte-order mark of a spreadsheet."""
    pandas = pytest.importorskip("pandas")
    if not in_csv(case) or "nan" in case.cells or case.kind == "uint64" or (case.kind == "int64" and None in case.cells):
        return None  # a float64 of an integer is another number
    if case.kind == "int8" and None in case.cells and (case.declared.startswith("cat") or case.declared == "label string"):
        return None  # a float of an integer is no category
    frame = pandas.DataFrame(case.rows)
    return in_file("csv", lambda path: frame.to_csv(path, index=False, encoding="utf-8-sig"), case, False)


def as_parquet(case: Case, batches: bool = False) -> Iterator[Event] | None:
    """pyarrow's own writer."""
    return in_file("parquet", lambda path: pq.write_table(case.table(), path), case, batches)


def as_csv_batches(case: Case) -> Iterator[Event] | None:
    """The csv module, sent as Arrow batches."""
    return as_csv(case, batches=True)


def as_parquet_batches(case: Case) -> Iterator[Event] | None:
    """pyarrow's own writer, sent as Arrow batches."""
    return as_parquet(case, batches=True)


def stream_of(table: pa.Table) -> bytes:
    """A table as an IPC stream."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue()


def in_arrow(case: Case, change: Callable[[pa.Array], pa.Array]) -> Iterator[Event]:
    """Messages of one row, ``v`` written in another way."""
    table = case.table()
    for at in range(len(table)):
        row = table.slice(at, 1).combine_chunks()
        column = change(pa.concat_arrays(row["v"].chunks))
        yield Event(at, 1000, None, b"", stream_of(row.set_column(row.schema.get_field_index("v"), "v", column)))


LARGE = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary(), pa.list_(pa.float64()): pa.large_list(pa.float64())}
VIEWS = {pa.string(): pa.string_view(), pa.binary(): pa.binary_view()}


def as_arrow(case: Case) -> Iterator[Event] | None:
    """pyarrow, small types."""
    return in_arrow(case, lambda column: column)


def as_large_arrow(case: Case) -> Iterator[Event] | None:
    """Large types, which polars and pandas write."""
    return in_arrow(case, lambda column: column.cast(LARGE.get(column.type, column.type)))


def as_viewed_arrow(case: Case) -> Iterator[Event] | None:
    """Views, which polars writes."""
    return in_arrow(case, lambda column: column.cast(VIEWS.get(column.type, column.type)))


def as_coded_arrow(case: Case) -> Iterator[Event] | None:
    """A dictionary, which pandas writes for a categorical column; of views, as polars does."""
    if case.kind.startswith(("list", "nested", "null")):
        return None

    def coded(column: pa.Array) -> pa.Array:
        whole = column.dictionary_encode()
        return pa.DictionaryArray.from_arrays(whole.indices, whole.dictionary.cast(VIEWS.get(column.type, column.type)))

    return in_arrow(case, coded)


def as_arrow_event(case: Case) -> Iterator[Event] | None:
    """An Arrow batch within a CloudEvent in structured mode."""
    head = {
        "specversion": "1.0",
        "id": "1",
        "source": "/a",
        "type": "b",
        "datacontenttype": "application/vnd.apache.arrow.stream",
    }
    headers = header(content_type="application/cloudevents+json")
    for row in in_arrow(case, lambda column: column):
        value = json.dumps(head | {"data_base64": base64.b64encode(row.value or b"").decode()}).encode()
        yield Event(row.offset, 1000, None, headers, value)


DOUBLES = {"type": "array", "items": ["null", "double"]}
AVRO: dict[str, Any] = {
    "boolean": "boolean", "int8": "int", "int64": "long", "float32": "float", "double": "double", "text": "string",
    "bytes": "bytes", "list": DOUBLES, "list of booleans": {"type": "array", "items": "boolean"},
    "decimal": {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2},
    "nested": {"type": "record", "name": "Inner", "fields": [{"name": "a", "type": "double"}]},
    "timestamp": {"type": "long", "logicalType": "local-timestamp-micros"},
    "instant": {"type": "long", "logicalType": "timestamp-micros"}, "text of a time": "string",
}  # fmt: skip


def as_avro(case: Case) -> Iterator[Event] | None:
    """fastavro; it has no unsigned integers."""
    if case.kind != "null" and case.kind not in AVRO:
        return None
    kinds = {"v": ["null", AVRO[case.kind]] if case.kind in AVRO else "null", "z": "double", "y": "long"}
    schema = {"type": "record", "name": "Row", "fields": [{"name": name, "type": kinds[name]} for name in case.rows[0]]}
    parsed = fastavro.parse_schema(schema)
    SCHEMAS[0] = json.dumps(schema)
    return (Event(at, 1000, None, b"", struct.pack(">bI", 0, 1) + avro_bytes(parsed, row)) for at, row in enumerate(case.rows))


def avro_bytes(schema: Any, row: dict[str, Any]) -> bytes:
    """A record as fastavro writes it."""
    sink = io.BytesIO()
    fastavro.schemaless_writer(sink, schema, row)
    return sink.getvalue()


SCHEMAS = [""]
FORMATS: dict[str, Callable[[Case], Iterator[Event] | None]] = {
    "JSON": as_json, "CloudEvents": as_events, "CSV": as_csv, "CSV of pandas": as_pandas_csv, "CSV as batches": as_csv_batches,
    "Parquet": as_parquet, "Parquet as batches": as_parquet_batches, "Arrow": as_arrow, "large Arrow": as_large_arrow,
    "viewed Arrow": as_viewed_arrow, "coded Arrow": as_coded_arrow, "Arrow in CloudEvents": as_arrow_event, "Avro": as_avro,
}  # fmt: skip
