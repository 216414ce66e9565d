"""Rows to the windows of their entities and back: whose they are, when, which are events, and what fields that gives.

Source: docs/design/journal.md, rule 20.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import msgspec
import numpy as np

from millrace.learners.protocol import Array, Floats, Value
from millrace.streams.entity.events import Bools, Events, Ints
from millrace.streams.entity.past import in_range, needed, past_of
from millrace.streams.entity.windows import ANSWERING, WindowCounts, Windows
from millrace.streams.formats.json_rows import Rows
from millrace.streams.hashing import Hashes, bits_of, hash64, hash64_of, mixed_bits
from millrace.streams.labels.served import Prediction, Served
from millrace.streams.parts import sha256
from millrace.streams.schema import LATEST_MS, UNITS_NS, Field, Schema

PIECE_BYTES = 1 << 22  # of what the windows of one piece of rows hold; working on it takes a few times that
PART = "entities"  # of a state: the counts
WINDOWS = "entities.0"  # the windows; numbered, so that a state may come to have them in several
MS_NS = UNITS_NS["ms"]


@dataclass(frozen=True, slots=True)
class _Column:
    """A field of a record, and its place among them."""

    place: int
    field: Field


class Entities:
    """The windows of one schema with an entity; ``excludes``: of a branch that leaves records out."""

    def __init__(self, schema: Schema, excludes: bool = False) -> None:
        assert schema.entity is not None
        self._declared, self._past = schema.entity, schema.past
        self._features = ("", sha256(schema.declared))
        self._excludes = excludes
        by_name = {field.name: _Column(place, field) for place, field in enumerate(schema.fields)}
        self._key = by_name[schema.entity.key]
        self._time = by_name[schema.entity.time] if schema.entity.time else None
        self.sources = sources_of(schema.past)
        self._kept = [by_name[name] for name in self.sources]
        self._told = [column for column in by_name.values() if column != self._time]
        limits = schema.entity.window, schema.entity.idle_ms, schema.entity.max
        self._windows = Windows(*limits, len(self.sources), max(map(needed, schema.past)))
        self._piece = max(1, PIECE_BYTES // (8 * schema.entity.window * (2 + len(self.sources))))  # rows

    @property
    def moved(self) -> int:
        """Another number once any window has changed."""
        counts = self._windows.counts
        return counts.events + counts.idle + counts.crowded

    @property
    def figures(self) -> dict[str, int]:
        """How many entities there are, and what became of events."""
        return {"kept": len(self._windows)} | msgspec.structs.asdict(self._windows.counts)

    def look(self, columns: Sequence[Array], now_ms: int) -> Floats:
        """The fields (n, p) of a request's rows, one column a field of the record; without a time of its own a row is now."""
        entity = self._entity(columns)
        at = self._at(columns, np.full(len(entity), now_ms, dtype=np.int64))
        past = np.empty((len(entity), len(self._past)))
        for rows in self._pieces(len(entity)):
            past[rows] = past_of(self._past, self.sources, self._windows.look(entity[rows], now_ms), at[rows])
        return past

    def of_stream(self, rows: Rows, clock_ms: Ints) -> Floats:
        """The fields (n, p) of rows of the stream, each of what came before it; those that are events move their windows."""
        counts = np.full(len(rows), self._declared.events != "requests")
        return self._take(rows, self._identities(rows.columns), counts, clock_ms)

    def of_served(self, served: Served, fresh: Sequence[int], clock_ms: Ints, answers_of: str) -> Floats:
        """The fields (n, p) of those predictions that are ``fresh``, as they were answered from where the record says so.

        On a branch that leaves records out, what another branch answered from may have them in it; those rows get its own.
        """
        places = np.array([at for at, record in enumerate(served.records) if isinstance(record, Prediction)], dtype=np.int64)
        places = places[np.array(fresh, dtype=np.int64)]
        records = [served.records[at] for at in places.tolist()]
        rows = served.rows.only(np.array(fresh, dtype=np.int64))
        asked = [isinstance(record, Prediction) and record.observe is not False for record in records]
        counts = np.array(asked, dtype=bool) & (self._declared.events != "stream")
        own = self._take(rows, served.ids[places], counts, clock_ms[places])
        for row, record in enumerate(records):
            if isinstance(record, Prediction) and self._holds(record, answers_of):
                own[row] = [np.nan if number is None else number for number in record.past or ()]
        return in_range(self._past, own)

    def _holds(self, record: Prediction, answers_of: str) -> bool:
        """Whether a record's own fields are learned from; ``PastCheck`` has found, as it was read, that they can be ours."""
        told = record.past is not msgspec.UNSET and record.features in self._features
        return told and (not self._excludes or record.branch == answers_of)

    def let_go(self, clock_ms: int) -> None:
        """Let the journal's clock come to ``clock_ms``."""
        self._windows.let_go(clock_ms)

    def _take(self, rows: Rows, identity: Ints, counts: Bools, clock_ms: Ints) -> Floats:
        at, values = self._at(rows.columns, rows.t), self._values(rows.columns)
        ahead = counts & (at > rows.t + self._declared.ahead_ms)
        outside = counts & ~ahead & self._outside(rows.columns)
        counted = self._windows.counts
        counted.ahead += int(ahead.sum())
        counted.outside += int(outside.sum())
        events = Events(self._entity(rows.columns), at, values, identity, counts & ~ahead & ~outside, clock_ms)
        past = np.empty((len(at), len(self._past)))
        for cut in self._pieces(len(at)):
            piece = events.part(cut.start, cut.stop)
            past[cut] = past_of(self._past, self.sources, self._windows.take(piece), piece.at)
        return past

    def _pieces(self, rows: int) -> list[slice]:
        """So many rows in pieces that need little memory at a time; how they are cut changes nothing."""
        return [slice(start, min(start + self._piece, rows)) for start in range(0, rows, self._piece)]

    def _entity(self, columns: Sequence[Array]) -> Ints:
        return np.array([_hash_of(name) for name in columns[self._key.place].tolist()], dtype=np.int64)

    def _at(self, columns: Sequence[Array], otherwise: Ints) -> Ints:
        """When each row (n,) was, in ms."""
        if self._time is None:
            return otherwise
        ticks = columns[self._time.place].reshape(-1) * (UNITS_NS[self._time.field.unit] / MS_NS)
        said = ~np.isnan(ticks)
        ticks = np.clip(np.where(said, ticks, 0.0), -LATEST_MS, LATEST_MS)
        return np.where(said, np.floor(ticks).astype(np.int64), otherwise)

    def _values(self, columns: Sequence[Array]) -> Floats:
        kept = [columns[column.place].reshape(-1) + 0.0 for column in self._kept]  # one zero
        return np.stack(kept, axis=1) if kept else np.zeros((len(columns[self._key.place]), 0))

    def _outside(self, columns: Sequence[Array]) -> Bools:
        """Which rows have a value beyond what its field takes: as they came, clipped or missing for the learner alone."""
        outside = np.zeros(len(columns[self._key.place]), dtype=bool)
        for column in self._told:
            if column.field.is_number:
                values = columns[column.place]
                outside |= ((values < column.field.low) | (values > column.field.high)).any(axis=1)
        return outside

    def _identities(self, columns: Sequence[Array]) -> Ints:
        """What a row of the stream that comes again has again: a number of all that it holds; its time is compared beside."""
        bits = [_bits(column.field, columns[column.place]) for column in self._told]
        total: Ints = mixed_bits(np.concatenate(bits, axis=1)).sum(axis=1, dtype=np.uint64).view(np.int64)
        return total

    def parts(self) -> dict[str, dict[str, Value]]:
        """The counts, and the windows by entity."""
        return {PART: {"counts": msgspec.to_builtins(self._windows.counts)}, WINDOWS: self._windows.state()}

    def answering(self) -> dict[str, Value]:
        """The windows as replicas get them."""
        return self._windows.answering()

    def load(self, parts: Mapping[str, Mapping[str, Value]]) -> None:
        """Become what gave ``parts``."""
        self._windows.counts = msgspec.convert(parts[PART]["counts"], WindowCounts)
        self._windows.load(parts[WINDOWS])

    def load_answering(self, windows: Mapping[str, Value]) -> None:
        """Look as what gave ``windows`` does."""
        self._windows.load(windows)


def answering_of(windows: Mapping[str, Value]) -> dict[str, Value]:
    """What looking needs of a stored part."""
    return {name: windows[name] for name in ANSWERING}


def sources_of(past: Sequence[Field]) -> list[str]:
    """The fields of which values are kept, in the order in which they are named first.

    >>> sources_of([Field("a", of="x", as_="sum", over="2"), Field("b", of="x", as_="count", over="3")])
    ['x']
    """
    return list(dict.fromkeys(field.of for field in past))


@lru_cache(maxsize=1 << 16)
def _hash_of(name: str) -> int:
    return hash64(name)


def _bits(field: Field, column: Array) -> Hashes:
    """Of each row (n, k): the bits of numbers, of which all NaN are one, and a hash of a name or an image."""
    if not field.is_number:
        hash_of = hash64_of if field.type == "image" else _hash_of
        hashes = [0 if cell is None else hash_of(cell) for cell in column.tolist()]
        return np.array(hashes, dtype=np.int64).view(np.uint64).reshape(-1, 1)
    return bits_of(column.reshape(len(column), field.size))
