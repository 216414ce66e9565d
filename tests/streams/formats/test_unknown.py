"""Keys that no field has: refused by name, or ignored on request, in every format alike."""

from __future__ import annotations

import json
import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from arrows import message
from pipelines import PIPELINE, event, events, flower_rows, here, json_lines, pipeline_in

from millrace.services.api import Pipeline
from millrace.streams.formats.avro import Registry
from millrace.streams.formats.contents import Contents
from millrace.streams.schema import Field, Label, Schema, Unknown

SCHEMA = Schema((Field("a"), Field("b", missing="mean")), Label("y"))
ROWS = [{"a": 1.5, "b": None, "y": "yes"}, {"a": -2.0, "b": 4.0, "y": "no"}]
MORE = {"till": 7, "tags": {"x": [1, {"y": None}]}, "note": 'say "hi"'}
AVRO = {
    "type": "record",
    "name": "Row",
    "fields": [
        {"name": "a", "type": "double"},
        {"name": "b", "type": ["null", "double"]},
        {"name": "y", "type": "string"},
        {"name": "till", "type": "double"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "tags", "type": {"type": "map", "values": {"type": "array", "items": "long"}}},
    ],
}


def contents(folder: Path, unknown: Unknown) -> Contents:
    """A decoder whose registry holds schema 1 in its folder."""
    (folder / "1.avsc").write_text(json.dumps(AVRO), encoding="utf-8")
    return Contents(SCHEMA, 1 << 20, 1 << 20, Registry("http://127.0.0.1:9", folder), unknown)


def as_json() -> list[bytes]:
    """A message a row."""
    return [json.dumps({**MORE, **row}).encode()[:-1] + b',"big":' + b"9" * 5000 + b"}" for row in ROWS]


def as_arrow() -> list[bytes]:
    """One message, with columns of types that no field takes."""
    columns: dict[str, Any] = {name: pa.array([row[name] for row in ROWS]) for name in ("a", "b", "y")}
    columns |= {"when": pa.array([1, 2], pa.date32()), "deep": pa.array([{"x": [1]}, None]), "nan": pa.array([np.nan, 1.0])}
    return [message(pa.record_batch(columns))]


def as_avro() -> list[bytes]:
    """A message a row, in a registry's wire format."""
    values = []
    for row in ROWS:
        body = BytesIO()
        fastavro.schemaless_writer(
            body, fastavro.parse_schema(AVRO), {**row, "till": float("nan"), "at": 5, "tags": {"x": [1]}}
        )
        values.append(struct.pack(">bI", 0, 1) + body.getvalue())
    return values


@pytest.mark.parametrize("values", [as_json, as_arrow, as_avro])
def test_unknown_keys_are_refused_by_name_or_ignored(values, tmp_path: Path) -> None:
    """Ignored, the rows are those without the keys, bit for bit; what was let in so is read so again."""
    refused = contents(tmp_path, "reject").decode(events(values()))[1]
    assert {rejection.reason for rejection in refused} == ({"wrong-type"} if values is as_avro else {"unknown-field"})
    bare, _ = contents(tmp_path, "reject").decode(events([json.dumps(row).encode() for row in ROWS]))
    for codec in (contents(tmp_path, "ignore"), contents(tmp_path, "reject").without_limit):
        rows, bad = codec.decode(events(values()))
        assert not bad and [column.tobytes() for column in rows.columns] == [column.tobytes() for column in bare.columns]
        assert rows.y.tolist() == bare.y.tolist()


def test_what_is_ignored_must_still_be_sound(tmp_path: Path) -> None:
    """A key that stands twice, JSON that is broken, and an Avro array that could be endless are refused all the same."""
    codec = contents(tmp_path, "ignore")
    lines = [b'{"a":1,"y":"u","z":1,"z":2}', b'{"a":1,"a":2,"y":"u","z":3}', b'{"a":1,"y":"u","z":[}', b'{"y":"u","z":1}']
    _, refused = codec.decode(events(lines))
    assert [rejection.reason for rejection in refused] == ["duplicate-field", "duplicate-field", "unreadable", "missing-field"]
    endless = {
        "type": "record",
        "name": "Row",
        "fields": [*AVRO["fields"][:3], {"name": "z", "type": {"type": "array", "items": "null"}}],
    }
    (tmp_path / "2.avsc").write_text(json.dumps(endless), encoding="utf-8")
    [bad] = codec.decode([event(struct.pack(">bI", 0, 2) + b"\x00" * 9)])[1]
    assert bad.reason == "unknown-schema" and "z" in bad.detail


def test_a_begun_branch_goes_on_with_other_keys_ignored_and_is_proved(tmp_path: Path) -> None:
    """What was refused stays refused, what comes after the change is learned; set back, all of it verifies."""
    path = pipeline_in(tmp_path, text=PIPELINE)
    strict = Pipeline.load(path, home=tmp_path / ".millrace")
    rows = [json.loads(line) for line in flower_rows(60)]
    lines = [json.dumps(row | {"till": at}).encode() for at, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines[:20]) + b"\n")
    assert here("send", "digits.toml", "rows.jsonl", cwd=tmp_path).exit_code == 0
    assert strict.learn().rejected == 20
    lenient = Pipeline.load(path, home=tmp_path / ".millrace", settings={"unknown": "ignore"})
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines[20:40]) + b"\n")
    assert here("send", "digits.toml", "rows.jsonl", cwd=tmp_path).exit_code == 0
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines[40:]) + b"\n")
    sent = here("send", "digits.toml", "rows.jsonl", "--format", "arrow", "--set", "unknown=ignore", cwd=tmp_path)
    assert sent.exit_code == 0, sent.stderr
    assert lenient.append([rows[0] | {"till": object()}]) == 1
    assert lenient.learn().learned == 41
    for pipeline in (lenient, strict):
        assert [len(proof.proved) > 0 for proof in pipeline.verify()] == [True]
    assert json_lines(here("status", "digits.toml", "--output", "json", cwd=tmp_path).stdout)
