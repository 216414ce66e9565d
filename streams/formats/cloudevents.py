"""What a record's headers say of its value: its content type, and whether it is a CloudEvent.

Both modes of the CloudEvents Kafka binding are understood. In binary mode the value is the data as it stands and the
attributes are headers ``ce_...``; in structured mode the value is a JSON object with the attributes and the data. Of the
attributes only those that must be there are checked. A record's time is the log's in place of ``time``, so that whoever writes
an event cannot move the clock.

Source: CloudEvents 1.0.2, Kafka protocol binding 3.1 to 3.3 and JSON event format 2 and 3.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from millrace.streams.formats.json_rows import unique
from millrace.streams.formats.meaning import RecordError
from millrace.streams.records import Event, decode_headers, encode_headers

CONTENT_TYPE = "content-type"
STRUCTURED = "application/cloudevents"
ATTRIBUTES = ("ce_id", "ce_source", "ce_type")  # beside ce_specversion


class _Structured(msgspec.Struct):
    """A CloudEvent in structured mode; attributes that are not named here are extensions."""

    specversion: str
    id: str
    source: str
    type: str
    datacontenttype: str = "application/json"
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    data_base64: str | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class Said:
    """What headers say of a value."""

    content_type: str = ""  # without its parameters; empty: nothing
    malformed: str = ""  # why this is no CloudEvent although it begins to be one


_DECODE = msgspec.json.Decoder(_Structured).decode


@lru_cache(maxsize=4096)
def said_by(raw: bytes) -> Said:
    """What a record's headers say."""
    try:
        headers = {name.lower(): value.decode() for name, value in decode_headers(raw) if name.lower()[:3] in ("ce_", "con")}
    except (UnicodeDecodeError, ValueError):  # another program's headers need not be text
        return Said()
    content_type = headers.get(CONTENT_TYPE, "").partition(";")[0].strip().lower()
    malformed = ""
    if "ce_specversion" in headers and not content_type.startswith(STRUCTURED):
        version = headers["ce_specversion"]
        missing = [name for name in ATTRIBUTES if not headers.get(name)]
        malformed = f"it has no {missing[0]}" if missing else "" if version == "1.0" else f"specversion {version!r} is not 1.0"
    return Said(content_type, malformed)


def unwrap(event: Event) -> tuple[str, Event]:
    """The content type of an event, empty where it says none, and the event with its data as its value.

    Raises: RecordError where it is a malformed CloudEvent.
    """
    envelope = said_by(event.headers) if event.headers else Said()
    if envelope.malformed:
        raise RecordError("malformed-envelope", f"a CloudEvent in binary mode: {envelope.malformed}")
    if not envelope.content_type.startswith(STRUCTURED):
        return envelope.content_type, event
    if envelope.content_type != f"{STRUCTURED}+json":
        raise RecordError("malformed-envelope", f"{envelope.content_type} is not read; send one event a record, as JSON")
    return _structured(event)


def _structured(event: Event) -> tuple[str, Event]:
    try:
        cloud = _DECODE(event.value or b"")
        json.loads(event.value or b"", object_pairs_hook=unique)  # decoders keep the last of a key that stands twice
        if cloud.specversion != "1.0" or not (cloud.id and cloud.source and cloud.type):
            raise RecordError("malformed-envelope", "specversion must be 1.0, and id, source and type must not be empty")
        if (cloud.data is msgspec.UNSET) == (cloud.data_base64 is msgspec.UNSET):
            raise RecordError("malformed-envelope", "a CloudEvent has data or data_base64")
        value = bytes(cloud.data) if isinstance(cloud.data, msgspec.Raw) else _from_base64(str(cloud.data_base64))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or not base64
        raise RecordError("malformed-envelope", f"a CloudEvent in structured mode: {error}") from error
    content_type = cloud.datacontenttype.partition(";")[0].strip().lower()
    return content_type, Event(event.offset, event.timestamp_ms, event.key, b"", value)


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"data_base64: {error}") from error


@lru_cache(maxsize=64)
def without_content_type(raw: bytes) -> bytes:
    """The same headers but that of a value which is replaced."""
    return encode_headers(tuple(pair for pair in decode_headers(raw) if pair[0].lower() != CONTENT_TYPE)) if raw else raw
