"""Random schemas, rows and formats, and the ridge that is due for them, by NumPy and plain Python alone.

Nothing of ours takes part in what is expected: the writers are other libraries, the clipping is done a row at a time as
docs/design/overview.md tells it, and the ridge is a centred one in float64 over all rows at once.
"""

from __future__ import annotations

import base64
import csv
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from clipped_rows import RowByRow
from other_writers import avro_bytes, header, stream_of

from millrace.services.data.send import values_of
from millrace.streams.records import Event
from millrace.streams.schema import Field, Label, Schema

GAMMA = 1.0
FILL = 9.97e36  # what a row without a label has in a field whose mean stands in, now and then
SHAPES = ("normal", "constant at first", "heavy tails", "a counter", "an outlier", "a shift", "a rare flag", "whole numbers")
TYPES = ("numeric", "numeric, mean", "numeric, indicator", "list", "categorical", "categorical, grow")
NAMES = ("ant", "bee", "cow")


@dataclass(frozen=True)
class Rows:
    """A schema, and rows in columns as Python has them; None where a cell is missing."""

    schema: Schema
    columns: dict[str, list[Any]]  # by name, the label's among them

    def __len__(self) -> int:
        return len(self.columns["y"])

    def row(self, at: int) -> dict[str, Any]:
        """One row."""
        return {name: column[at] for name, column in self.columns.items()}

    @property
    def labelled(self) -> Rows:
        """The rows that have a label."""
        chosen = [at for at, label in enumerate(self.columns["y"]) if label is not None]
        return Rows(self.schema, {name: [column[at] for at in chosen] for name, column in self.columns.items()})


def shaped(shape: str, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers (rows,) of deviation about 1."""
    plain = rng.standard_normal(rows)
    if shape == "constant at first":
        return np.where(np.arange(rows) < rows // 3, 0.0, plain)
    if shape == "heavy tails":
        return rng.standard_t(1.5, rows)
    if shape == "a counter":
        return np.arange(rows) / rows * 3.4
    if shape == "an outlier":
        return np.where(np.arange(rows) == rng.integers(rows), 1e6, plain)
    if shape == "a shift":
        return plain + 40.0 * (np.arange(rows) > rows // 2)
    if shape == "a rare flag":
        return (rng.random(rows) < 0.02).astype(float)
    return np.rint(4.0 * plain) if shape == "whole numbers" else plain


def drawn(seed: int, lists: bool) -> Rows:
    """Rows under a schema: one to four fields of any type, numbers of any magnitude from 1e-12 to 1e36, lying anywhere."""
    rng = np.random.default_rng(seed)
    rows, fields, columns, parts = int(rng.choice([20, 60, 300, 700], p=[0.4, 0.4, 0.1, 0.1])), [], {}, []
    for at in range(int(rng.integers(1, 5))):
        kind, name = str(rng.choice([kind for kind in TYPES if lists or kind != "list"])), f"f{at}"
        if kind.startswith("categorical"):
            cells = [NAMES[place] for place in rng.integers(3, size=rows)]
            grow = kind == "categorical, grow"
            fields.append(Field(name, "categorical", categories="grow" if grow else NAMES, max=2 if grow else 0))
            columns[name] = cells
            parts.append(np.array([float(cell == "ant") for cell in cells]))
            continue
        size = 2 if kind == "list" else 1
        spread = 10.0 ** rng.uniform(-12, 36)
        place = spread * rng.choice([0.0, 0.0, 1.0, -30.0, 1e4, 1e8]) * rng.uniform(0.5, 1.0)
        numbers = np.column_stack([shaped(str(rng.choice(SHAPES)), rows, rng) for _ in range(size)]) * spread + place
        missing = {"numeric, mean": "mean", "numeric, indicator": "indicator"}.get(kind, "reject")
        absent = rng.random(rows) < (0.1 if missing != "reject" else 0.0)
        fields.append(Field(name, size=size, missing=missing))
        cells_of = numbers.tolist()
        columns[name] = [
            None if none else cells if size > 1 else cells[0] for none, cells in zip(absent, cells_of, strict=True)
        ]
        parts.append((numbers[:, 0] - place) / spread)
    signal = np.clip(np.sum(parts, axis=0), -20.0, 20.0) + 0.1 * rng.standard_normal(rows)
    unit = 10.0 ** rng.uniform(-6, 12)
    columns["y"] = (unit * (signal + rng.choice([0.0, 1e6]))).tolist()
    for at in np.flatnonzero(rng.random(rows) < 0.05).tolist():
        columns["y"][at] = None
        for field in fields:
            if field.missing == "mean" and rng.random() < 0.5:
                columns[field.name][at] = FILL
            if field.categories == "grow":
                columns[field.name][at] = "dodo"
    return Rows(Schema(tuple(fields), Label("y", "number")), columns)


# What is due.


def features_due(rows: Rows) -> np.ndarray:
    """x (n, d) as each row is to be learned."""
    return np.column_stack([part for field in rows.schema.fields for part in columns_due(field, rows.columns[field.name])])


def columns_due(field: Field, cells: list[Any]) -> list[np.ndarray]:
    """The columns of one field."""
    if field.type == "categorical":
        slots = list(NAMES) if field.categories != "grow" else list(dict.fromkeys(cells))[: field.max]
        places = [slots.index(cell) if cell in slots else field.max for cell in cells]
        return [np.array([float(place == slot) for place in places]) for slot in range(field.width)]
    if field.size > 1:
        clips = [RowByRow() for _ in range(field.size)]
        return [np.array([clip.row(cell[at]) for cell in cells]) for at, clip in enumerate(clips)]
    clip, total, count, learned = RowByRow(), 0.0, 0, []
    for cell in cells:
        value = (total / count if count else 0.0) if cell is None else float(cell)
        total, count = total + (0.0 if cell is None else value), count + (cell is not None)
        kept = clip.row(value)
        learned.append(0.0 if cell is None and field.missing == "indicator" else kept)
    flag = [np.array([float(cell is None) for cell in cells])] if field.missing == "indicator" else []
    return [np.array(learned), *flag]


def answers_due(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What a ridge over standardised features answers to the rows that it learned (n,)."""
    centred = x - x.mean(axis=0)
    deviation = centred.std(axis=0)
    varies = deviation > 1e-13 * np.abs(x).max(axis=0, initial=0.0)
    z = centred[:, varies] / deviation[varies]
    z = z - z.mean(axis=0)
    weights = np.linalg.solve(z.T @ z + GAMMA * np.eye(z.shape[1]), z.T @ (y - y.mean()))
    return z @ weights + y.mean()


# How other programs write them.


def as_json(rows: Rows, _: Path) -> Iterator[Event]:
    """The json module."""
    return (Event(at, 1000, None, b"", json.dumps(rows.row(at)).encode()) for at in range(len(rows)))


def as_cloud_events(rows: Rows, _: Path) -> Iterator[Event]:
    """JSON in CloudEvents in structured mode."""
    said = header(content_type="application/cloudevents+json")
    for at in range(len(rows)):
        event = {"specversion": "1.0", "id": str(at), "source": "/a", "type": "b", "data": rows.row(at)}
        yield Event(at, 1000, None, said, json.dumps(event).encode())


def as_csv(rows: Rows, folder: Path) -> Iterator[Event]:
    """The csv module, which has no lists."""
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(rows.columns)
        for at in range(len(rows)):
            writer.writerow(rows.row(at).values())
    return (Event(at, 1000, None, b"", value) for at, value in enumerate(values_of(folder / "rows.csv", rows.schema)))


def as_parquet(rows: Rows, folder: Path) -> Iterator[Event]:
    """pyarrow's writer."""
    pq.write_table(pa.table(rows.columns), folder / "rows.parquet")
    return (Event(at, 1000, None, b"", value) for at, value in enumerate(values_of(folder / "rows.parquet", rows.schema)))


def as_arrow(rows: Rows, _: Path) -> Iterator[Event]:
    """One IPC stream of all rows."""
    yield Event(0, 1000, None, b"", stream_of(pa.table(rows.columns)))


def as_arrow_event(rows: Rows, folder: Path) -> Iterator[Event]:
    """The same within a CloudEvent."""
    head = {"specversion": "1.0", "id": "1", "source": "/a", "type": "b"}
    head |= {"datacontenttype": "application/vnd.apache.arrow.stream"}
    for event in as_arrow(rows, folder):
        value = json.dumps(head | {"data_base64": base64.b64encode(event.value or b"").decode()}).encode()
        yield Event(0, 1000, None, header(content_type="application/cloudevents+json"), value)


def as_avro(rows: Rows, folder: Path) -> Iterator[Event]:
    """fastavro, with its schema where a registry keeps it."""
    kinds = {field.name: avro_type(field) for field in rows.schema.fields} | {"y": ["null", "double"]}
    schema = {"type": "record", "name": "Row", "fields": [{"name": name, "type": kinds[name]} for name in rows.columns]}
    (folder / "1.avsc").write_text(json.dumps(schema), encoding="utf-8")
    parsed = fastavro.parse_schema(schema)
    for at in range(len(rows)):
        yield Event(at, 1000, None, b"", struct.pack(">bI", 0, 1) + avro_bytes(parsed, rows.row(at)))


def avro_type(field: Field) -> Any:
    """Of a field's cells."""
    if field.type == "categorical":
        return "string"
    return {"type": "array", "items": "double"} if field.size > 1 else ["null", "double"]


FORMATS: dict[str, Callable[[Rows, Path], Iterator[Event]]] = {
    "JSON": as_json,
    "CloudEvents": as_cloud_events,
    "CSV": as_csv,
    "Parquet": as_parquet,
    "Arrow": as_arrow,
    "Arrow in CloudEvents": as_arrow_event,
    "Avro": as_avro,
}
