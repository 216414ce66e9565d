"""Which records a fork leaves out.

Source: docs/design/journal.md, rules 2, 9 and 18.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import msgspec

from millrace.streams.parts import sha256
from millrace.streams.records import Event, decode_headers


class _Exclusion(msgspec.Struct, frozen=True, tag_field="by", tag=str.lower, forbid_unknown_fields=True):
    """What every kind of exclusion answers: ``names`` of a record and its partition."""


class OffsetRange(_Exclusion, frozen=True, tag="range"):
    """Offsets of one partition, ``start`` to ``stop`` (excluded)."""

    tp: str
    start: int
    stop: int

    def names(self, event: Event, tp: str) -> bool:
        """Whether the record is meant."""
        return tp == self.tp and self.start <= event.offset < self.stop


class Time(_Exclusion, frozen=True):
    """Timestamps in milliseconds since 1970, ``start_ms`` to ``stop_ms`` (excluded)."""

    start_ms: int
    stop_ms: int

    def names(self, event: Event, tp: str) -> bool:
        """Whether the record is meant."""
        return self.start_ms <= event.timestamp_ms < self.stop_ms


class Header(_Exclusion, frozen=True):
    """A header, such as the one by which a producer names itself."""

    name: str
    value: str

    def names(self, event: Event, tp: str) -> bool:
        """Whether the record is meant."""
        return bool(event.headers) and (self.name, self.value.encode()) in _headers(event.headers)


class Key(_Exclusion, frozen=True):
    """A record's key, of which only the hash is kept."""

    sha256: str

    def names(self, event: Event, tp: str) -> bool:
        """Whether the record is meant."""
        return event.key is not None and sha256(event.key) == self.sha256


Exclusion = OffsetRange | Time | Header | Key


def describe(exclusion: Exclusion) -> str:
    """An exclusion in words.

    >>> describe(Header("producer", "till-7")), describe(OffsetRange("digits:0", 40, 60))
    ('header producer=till-7', 'digits:0 offsets 40 to 59')
    """
    if isinstance(exclusion, OffsetRange):
        return f"{exclusion.tp} offsets {exclusion.start} to {exclusion.stop - 1}"
    if isinstance(exclusion, Time):
        return f"timestamps {exclusion.start_ms} to {exclusion.stop_ms - 1} ms"
    return (
        f"header {exclusion.name}={exclusion.value}"
        if isinstance(exclusion, Header)
        else f"the key with sha256 {exclusion.sha256[:12]}"
    )


@lru_cache(maxsize=4096)
def _headers(raw: bytes) -> frozenset[tuple[str, bytes]]:
    try:
        return frozenset(decode_headers(raw))
    except (UnicodeDecodeError, ValueError):  # another program's headers need not be text
        return frozenset()


def left_out(exclude: Sequence[Exclusion], event: Event, tp: str) -> bool:
    """Whether any of the exclusions names the record."""
    return any(exclusion.names(event, tp) for exclusion in exclude)
