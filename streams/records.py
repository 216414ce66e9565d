"""Records as they lie in a log, and the checksum by which a journal entry names what it read."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from crc32c import crc32c

HOUR_MS = 3_600_000
LARGE_BYTES = 1 << 14  # of a value from which on a second call costs less than a copy
_FRAME = struct.Struct("<iiqi")  # key bytes, headers bytes, timestamp in ms, value bytes; -1 for an absent key or value
_LENGTH = struct.Struct("<i")

Headers = tuple[tuple[str, bytes], ...]


class Record(msgspec.Struct, frozen=True, gc=False):
    """What a producer appends. (msgspec records, not dataclasses: one is made per row and they cost a tenth.)"""

    value: bytes | None
    key: bytes | None = None
    headers: bytes = b""  # as ``encode_headers`` gives them
    timestamp_ms: int | None = None  # since 1970; None: when it is appended


class Event(msgspec.Struct, frozen=True, gc=False):
    """One record as it was read from one partition."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    headers: bytes
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Read:
    """A contiguous piece of one partition: everything the log has in offsets ``start`` to ``stop`` (excluded)."""

    tp: str  # "topic:partition"
    start: int
    stop: int
    events: Sequence[Event]
    crc32c: int = field(default=-1)  # of the framed events

    @property
    def size(self) -> int:
        """Bytes of all values."""
        return sum(len(event.value) for event in self.events if event.value is not None)


def frame(event: Event | Record) -> bytes:
    """The bytes a checksum covers: lengths first, so that no two different records look alike."""
    key, headers, value = event.key, event.headers, event.value
    if key is None and not headers and value is not None:  # most records, and every one of them passes here
        return _FRAME.pack(-1, 0, event.timestamp_ms, len(value)) + value
    lengths = _FRAME.pack(
        -1 if key is None else len(key), len(headers), event.timestamp_ms, -1 if value is None else len(value)
    )
    return b"".join((lengths, key or b"", headers, value or b""))


def frame_crc32c(event: Event | Record, crc: int = 0) -> int:
    """crc32c of a record as ``frame`` has it, after that of what came before it; a large value is not copied for it."""
    value = event.value
    if event.key is None and not event.headers and value is not None and len(value) > LARGE_BYTES:
        return int(crc32c(value, crc32c(_FRAME.pack(-1, 0, event.timestamp_ms, len(value)), crc)))
    return int(crc32c(frame(event), crc))


def checksum(frames: Sequence[bytes]) -> int:
    """crc32c over framed records, in order."""
    return int(crc32c(b"".join(frames)))


def make_read(tp: str, start: int, stop: int, events: Sequence[Event]) -> Read:
    """A ``Read`` with its checksum."""
    return Read(tp, start, stop, events, checksum([frame(event) for event in events]))


def encode_headers(headers: Headers) -> bytes:
    """Headers as length-framed bytes, in their order; empty for none."""
    encoded = bytearray()
    for name, value in headers:
        raw = name.encode()
        encoded += _LENGTH.pack(len(raw)) + raw + _LENGTH.pack(len(value)) + value
    return bytes(encoded)


def decode_headers(raw: bytes) -> Headers:
    """The headers that ``encode_headers`` wrote.

    >>> decode_headers(encode_headers((("producer", b"till-7"),)))
    (('producer', b'till-7'),)
    """
    parts, at = [], 0
    while at < len(raw):
        (length,) = _LENGTH.unpack_from(raw, at)
        parts.append(raw[at + 4 : at + 4 + length])
        at += 4 + length
    return tuple((name.decode(), value) for name, value in zip(parts[::2], parts[1::2], strict=True))


def tp_name(topic: str, partition: int) -> str:
    """The name of a partition in journal entries and messages.

    >>> tp_name("digits", 0)
    'digits:0'
    """
    return f"{topic}:{partition}"


def split_tp(tp: str) -> tuple[str, int]:
    """Topic and partition number of ``tp_name``'s result."""
    topic, _, partition = tp.rpartition(":")
    return topic, int(partition)


def kept_ms(hours: float) -> int:
    """Hours in whole milliseconds, the nearest: a millisecond in hours is a little less or more.

    >>> kept_ms(1 / 3_600_000), kept_ms(0.0)
    (1, 0)
    """
    return round(hours * HOUR_MS)
