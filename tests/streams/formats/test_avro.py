"""Avro records by a registry's ids: the rows of JSON that they say, with the registry there or gone."""

from __future__ import annotations

import json
import random
import struct
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from threading import Thread
from typing import Any

import fastavro
import pytest
from arrows import same
from pipelines import MIXED, encoded, events, facts, flower_rows, here, mixed_rows, pipeline_in

from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.instance import Instance
from millrace.streams.errors import StorageError
from millrace.streams.formats.avro import Registry
from millrace.streams.formats.contents import Contents
from millrace.streams.formats.json_rows import Codec
from millrace.streams.formats.meaning import REASONS
from millrace.streams.records import Record


def optional(kind: Any) -> dict[str, Any]:
    """A member that may be null."""
    return {"type": ["null", kind], "default": None}


def record(**members: Any) -> dict[str, Any]:
    """A schema of named members."""
    fields = [
        {"name": name, **(kind if isinstance(kind, dict) and "default" in kind else {"type": kind})}
        for name, kind in members.items()
    ]
    return {"type": "record", "name": "Row", "fields": fields}


DOUBLES = {"type": "array", "items": "double"}
KINDS = {"type": "enum", "name": "Kind", "symbols": ["ant", "bee", "cow"]}
JAVA = {"type": "string", "avro.java.string": "String"}
ROWS = record(
    size="double", at="long", heat=optional("double"), wind=optional("double"), pixels=DOUBLES, kind=KINDS,
    site=optional(JAVA), who=optional("string"), label=optional("string"), weight=optional("double"),
)  # fmt: skip
ONE = record(size="float")
SCHEMAS: dict[int, Any] = {
    1: ROWS,
    2: ONE,
    3: "string",
    4: record(x={"type": "array", "items": "null"}),
    5: record(x={"type": "long", "logicalType": "time-micros"}),
    6: record(x={"type": "map", "values": "long"}),
    7: {"nonsense": 1},
    258: record(size="double", at="double", pixels=DOUBLES, kind="string"),
}


@pytest.fixture
def registry() -> Iterator[ThreadingHTTPServer]:
    """A registry as Confluent's answers, with ``SCHEMAS``, an id 8 that is not Avro and an id 9 that fails; it counts."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            number = int(self.path.removeprefix("/schemas/ids/"))
            server.asked[number] += 1
            answer: dict[str, Any] = {"schema": json.dumps(SCHEMAS.get(number))}
            answer |= {"schemaType": "PROTOBUF"} if number == 8 else {}
            self.send_response(500 if number == 9 else 200 if number in SCHEMAS or number == 8 else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            """Quietly."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.asked = Counter()
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def url(server: ThreadingHTTPServer) -> str:
    """Where it answers."""
    return f"http://127.0.0.1:{server.server_port}"


def framed(number: int, row: dict[str, Any]) -> bytes:
    """A record in the wire format."""
    sink = BytesIO()
    fastavro.schemaless_writer(sink, fastavro.parse_schema(SCHEMAS[number]), row)
    return struct.pack(">bI", 0, number) + sink.getvalue()


def test_avro_records_give_the_columns_that_json_gives(registry, tmp_path) -> None:
    """Beside rows of JSON in one read; each schema is asked for once, and not at all by the next process."""
    rows = mixed_rows(60)
    expected, _ = Codec(MIXED, 4096).decode(events([encoded(row) for row in rows]))
    values = [encoded(row) if at % 5 == 0 else framed(1, row) for at, row in enumerate(rows)]
    for _ in range(2):
        contents = Contents(MIXED, 4096, registry=Registry(url(registry), tmp_path))
        decoded, refused = contents.decode(events(values))
        assert not refused
        same(decoded, expected)
    assert registry.asked == {1: 1}


def test_what_cannot_be_read_is_refused_with_a_reason(registry, tmp_path) -> None:
    """Unknown ids, schemas of no flat record, damaged bytes, numbers that are not finite; the record is kept as it came."""
    contents = Contents(MIXED, 4096, registry=Registry(url(registry), tmp_path))
    good = framed(258, {"size": 1.0, "at": 2.0, "pixels": [1.0, 2.0, 3.0], "kind": "ant"})
    cases = [(good, "good"), (b"\0\0", "unreadable"), (good[:-2], "unreadable"), (good + b"\0", "unreadable")]
    cases += [(struct.pack(">bI", 0, number) + b"\x02\x02a", "unknown-schema") for number in (3, 7, 8, 77)]
    cases += [(struct.pack(">bI", 0, number) + b"\x02\x02a", "wrong-type") for number in (4, 5, 6)]
    cases += [(framed(258, {"size": float("nan"), "at": 2.0, "pixels": [1.0, 2.0, 3.0], "kind": "ant"}), "missing-field")]
    cases += [(framed(258, {"size": 1.0, "at": 2.0, "pixels": [1.0, float("inf"), 3.0], "kind": "ant"}), "not-finite")]
    cases += [(framed(258, {"size": 1.0, "at": 2.0, "pixels": [1.0], "kind": "ant"}), "wrong-shape")]
    cases += [(framed(258, {"size": 1.0, "at": 2.0, "pixels": [1.0] * 3, "kind": "elk"}), "unknown-category")]
    cases += [(framed(2, {"size": 1.0}), "missing-field"), (good + b"x" * 5000, "oversized")]
    read = events([value for value, _ in cases])
    rows, refused = contents.decode(read)
    assert {bad.event.offset: bad.reason for bad in refused} == {at: why for at, (_, why) in enumerate(cases) if why != "good"}
    assert len(rows) == 1 and {why for _, why in cases} - {"good"} <= set(REASONS)
    assert all(bad.event is read[bad.event.offset] for bad in refused)


def test_a_registry_that_does_not_answer_stops_the_reader_and_loses_nothing(registry, tmp_path) -> None:
    """It is not the record's fault."""
    with pytest.raises(StorageError, match="does not give schema 9"):
        Contents(MIXED, 4096, registry=Registry(url(registry), tmp_path)).decode(events([b"\0\0\0\0\x09abc"]))
    with pytest.raises(StorageError, match="Start the registry"):
        Contents(MIXED, 4096, registry=Registry("http://127.0.0.1:9", tmp_path)).decode(events([framed(1, mixed_rows(1)[0])]))


def test_without_a_registry_a_zero_byte_is_no_row(tmp_path) -> None:
    """As ever."""
    _, refused = Contents(MIXED, 4096).decode(events([framed(1, mixed_rows(1)[0])]))
    assert refused[0].reason == "unreadable"


def test_damaged_records_end_in_rows_or_reasons(registry, tmp_path) -> None:
    """4,000 of them, bytes changed, cut or doubled."""
    chance, contents = random.Random(3), Contents(MIXED, 4096, registry=Registry(url(registry), tmp_path))
    makes, outcomes = [framed(1, row) for row in mixed_rows(20)], Counter()
    for _ in range(4000):
        raw = bytearray(chance.choice(makes))
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(5, len(raw)) if len(raw) > 6 else 5
            raw[at : at + chance.randrange(0, 3)] = bytes(
                chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)]) for _ in range(chance.randrange(0, 3))
            )
        rows, refused = contents.decode(events([bytes(raw)]))
        assert len(rows) + len(refused) == 1
        outcomes[refused[0].reason if refused else "good"] += 1
    assert set(outcomes) - {"good"} <= set(REASONS) and len(outcomes) >= 4, outcomes


def test_a_pipeline_of_avro_records_is_proved_without_its_registry(registry, tmp_path) -> None:
    """The schemas lie in the pipeline's folder."""
    SCHEMAS[20] = record(x=DOUBLES, site="string", label="string")
    path = pipeline_in(tmp_path)
    path.write_text(path.read_text() + f'\n[log]\nregistry = "{url(registry)}"\n')
    instance = Instance(load_pipeline(path), tmp_path / ".millrace" / "digits")
    values = [framed(20, json.loads(row)) for row in flower_rows(150)]
    instance.log().append("digits", [Record(value, timestamp_ms=1 + at) for at, value in enumerate(values)])
    assert here("run", "digits.toml", cwd=tmp_path).exit_code == 0
    registry.shutdown()
    registry.server_close()
    assert facts(tmp_path)["learned"] == 150
    assert here("verify", "digits.toml", cwd=tmp_path).exit_code == 0
