"""Records that a fork leaves out: which they are, and the reader that passes them by, live and when folding again.

What is left out is decoded as ever, so that what is rejected stays the same. Then it is as if it had never been sent, but that
it is counted as passed: no row of it is predicted, learned or taken in by a feature table, and its timestamps do not move the
clock. Of a label that is left out one thing is known: its row gets no default label.

Source: docs/design/journal.md, rules 2, 9 and 18.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import msgspec
import numpy as np

from millrace.streams.codec import Refused, Rows
from millrace.streams.parts import sha256
from millrace.streams.records import Event, decode_headers
from millrace.streams.served import LateLabel, Prediction, Served, Withheld


class _Exclusion(msgspec.Struct, frozen=True, tag_field="by", tag=str.lower, forbid_unknown_fields=True):
    """What every kind of exclusion answers: ``names`` of a record and its partition."""


class Range(_Exclusion, frozen=True):
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


Exclusion = Range | Time | Header | Key


def words(one: Exclusion) -> str:
    """An exclusion in words.

    >>> words(Header("producer", "till-7")), words(Range("digits:0", 40, 60))
    ('header producer=till-7', 'digits:0 offsets 40 to 59')
    """
    if isinstance(one, Range):
        return f"{one.tp} offsets {one.start} to {one.stop - 1}"
    if isinstance(one, Time):
        return f"timestamps {one.start_ms} to {one.stop_ms - 1} ms"
    return f"header {one.name}={one.value}" if isinstance(one, Header) else f"the key with sha256 {one.sha256[:12]}"


@lru_cache(maxsize=4096)
def _headers(raw: bytes) -> frozenset[tuple[str, bytes]]:
    try:
        return frozenset(decode_headers(raw))
    except (UnicodeDecodeError, ValueError):  # another program's headers need not be text
        return frozenset()


def left_out(exclude: Sequence[Exclusion], event: Event, tp: str) -> bool:
    """Whether any of the exclusions names the record."""
    return any(one.names(event, tp) for one in exclude)


class Reader(Protocol):
    """What decodes the log."""

    @property
    def without_limit(self) -> Reader:
        """The same for records that were let in when they were first read."""

    def decode(self, events: Sequence[Event], tp: str, /) -> tuple[Rows | Served, list[Refused]]:
        """Columns of the events that can be read, in order, and the events that cannot."""


@dataclass(frozen=True, slots=True)
class Excluding:
    """Decodes as another reader does, and leaves out what a fork excludes."""

    reader: Reader
    exclude: tuple[Exclusion, ...]

    @property
    def without_limit(self) -> Excluding:
        """The same around the other reader without its limit."""
        return replace(self, reader=self.reader.without_limit)

    def decode(self, events: Sequence[Event], tp: str, /) -> tuple[Rows | Served, list[Refused]]:
        """As the other reader, without what is left out."""
        piece, refused = self.reader.decode(events, tp)
        bad = {one.event.offset for one in refused if one.row is None}
        if isinstance(piece, Rows) and piece.offset is not None:
            gone = [event.offset for event in events if left_out(self.exclude, event, tp)]
            return _rows_without(piece, np.isin(piece.offset, gone)), refused
        out = np.array([left_out(self.exclude, event, tp) for event in events if event.offset not in bad], dtype=bool)
        if not out.any():
            return piece, refused
        return _without(piece, out) if isinstance(piece, Served) else _rows_without(piece, out), refused


def _rows_without(rows: Rows, out: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Rows:
    return replace(rows.only(~out), left_out=int(out.sum()))


def _without(served: Served, out: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Served:
    """Without the predictions that are left out; of labels that are, only their ids stay."""
    predictions = np.array([isinstance(record, Prediction) for record in served.records], dtype=bool)
    kept = np.flatnonzero(~(out & predictions))
    chosen = [served.records[at] for at in kept.tolist()]
    records = [
        Withheld(record.id) if isinstance(record, LateLabel) and out[at] else record
        for at, record in zip(kept.tolist(), chosen, strict=True)
    ]
    return Served(
        served.tp,
        [served.events[at] for at in kept.tolist()],
        records,
        served.ids[kept],
        served.rows.only(~out[predictions]),
        np.where(out, 0, served.t)[kept],
        left_out=int((out & predictions).sum()),
    )
