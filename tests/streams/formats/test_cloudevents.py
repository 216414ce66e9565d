"""CloudEvents in both modes of the Kafka binding: the data is what is learned, and a malformed one says why it is not."""

from __future__ import annotations

import base64
import json

import pytest
from arrows import table
from pipelines import encoded

from millrace.streams.formats.contents import Contents
from millrace.streams.formats.meaning import REASONS
from millrace.streams.records import Event, encode_headers
from millrace.streams.schema import Field, Label, Schema

SCHEMA = Schema((Field("a"),), Label("y", "integer"))
ROW = encoded({"a": 2.5, "y": 1})
BINARY = {"ce_specversion": "1.0", "ce_id": "7", "ce_source": "/till", "ce_type": "sale", "content-type": "application/json"}
WHOLE = {
    "specversion": "1.0",
    "id": "7",
    "source": "/till",
    "type": "sale",
    "time": "2026-01-01T00:00:00Z",
    "data": {"a": 2.5, "y": 1},
}
STRUCTURED = {"content-type": "application/cloudevents+json; charset=UTF-8"}


def made(headers: dict[str, str], value: bytes) -> Event:
    """One event at offset 3."""
    return Event(3, 1000, b"k", encode_headers(tuple((name, text.encode()) for name, text in headers.items())), value)


def outcome(headers: dict[str, str], value: bytes) -> str:
    """The reason, or the values of ``a``."""
    event = made(headers, value)
    rows, refused = Contents(SCHEMA, 4096).decode([event])
    if refused:
        assert refused[0].event is event and refused[0].reason in REASONS, "a dead letter is the record as it came"
        return refused[0].reason
    return str(rows.plain[:, 0].tolist())


def test_a_row_is_read_in_either_mode_and_without_any() -> None:
    """The same data, and the log's own time whatever the event says."""
    for headers, value in (({}, ROW), (BINARY, ROW), (STRUCTURED, json.dumps(WHOLE).encode())):
        rows, refused = Contents(SCHEMA, 4096).decode([made(headers, value)])
        assert not refused and (rows.plain[0, 0], rows.y[0], rows.t[0], rows.key[0]) == (2.5, "1", 1000, b"k")


def test_a_batch_travels_in_either_mode() -> None:
    """In binary mode as it stands, in structured mode as base64."""
    batch = table(a=[1.0, 2.0], y=[1, 2])
    arrow = "application/vnd.apache.arrow.stream"
    assert outcome(BINARY | {"content-type": arrow}, batch) == "[1.0, 2.0]"
    whole = {name: value for name, value in WHOLE.items() if name != "data"}
    whole |= {"datacontenttype": arrow, "data_base64": base64.b64encode(batch).decode()}
    assert outcome(STRUCTURED, json.dumps(whole).encode()) == "[1.0, 2.0]"


@pytest.mark.parametrize("name", ["ce_id", "ce_source", "ce_type"])
def test_a_binary_event_without_what_one_must_have_is_refused(name) -> None:
    """Absent or empty."""
    assert outcome({key: value for key, value in BINARY.items() if key != name}, ROW) == "malformed-envelope"
    assert outcome(BINARY | {name: ""}, ROW) == "malformed-envelope"


def test_other_malformed_events_are_refused() -> None:
    """Another version, a batch of events, no object, attributes missing or twice, both kinds of data or none, no base64."""
    assert outcome(BINARY | {"ce_specversion": "0.3"}, ROW) == "malformed-envelope"
    assert outcome({"content-type": "application/cloudevents-batch+json"}, b"[]") == "malformed-envelope"
    for value in (b"", b"[]", b"{", b"\xff\xff\xff\xff", b'{"id":"1",' + json.dumps(WHOLE).encode()[1:]):
        assert outcome(STRUCTURED, value) in ("malformed-envelope", "duplicate-field")
    for change in ({"specversion": "2.0"}, {"id": ""}, {"type": 5}, {"data_base64": "AA=="}):
        assert outcome(STRUCTURED, json.dumps(WHOLE | change).encode()) == "malformed-envelope"
    whole = {name: value for name, value in WHOLE.items() if name != "data"}
    assert outcome(STRUCTURED, json.dumps(whole).encode()) == "malformed-envelope"
    assert outcome(STRUCTURED, json.dumps(whole | {"data_base64": "*"}).encode()) == "malformed-envelope"


def test_the_data_of_an_event_is_as_strict_as_any_row() -> None:
    """A key twice, another type, a field nobody declared."""
    assert outcome(BINARY, b'{"a": 1, "a": 2}') == "duplicate-field"
    assert outcome(STRUCTURED, json.dumps(WHOLE | {"data": {"a": "1"}}).encode()) == "wrong-type"
    assert outcome(STRUCTURED, json.dumps(WHOLE | {"data": {"a": 1, "b": 1}}).encode()) == "unknown-field"
    assert outcome(STRUCTURED, json.dumps(WHOLE).encode().replace(b'"a": 2.5', b'"a": 2.5, "a": 1')) == "duplicate-field"


def test_headers_of_other_programs_are_nobodys_business() -> None:
    """Unknown content types, bytes that are no text, single attributes: the value decides."""
    assert outcome({"content-type": "text/plain", "trace": "1"}, ROW) == "[2.5]"
    assert outcome({"ce_id": "7"}, ROW) == "[2.5]"
    event = Event(0, 1, None, encode_headers((("content-type", b"\xff\xfe"),)), ROW)
    assert len(Contents(SCHEMA, 4096).decode([event])[0]) == 1
