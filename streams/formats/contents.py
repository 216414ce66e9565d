"""What events of all formats hold, in log order: JSON rows, Arrow batches, Avro records, and any of them in a CloudEvent.

The value's first bytes and the headers say which; a JSON row is never taken for anything else. One message may hold many rows,
and is never split.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from itertools import groupby
from sys import maxsize
from typing import Any

import numpy as np

from millrace.streams.formats import avro
from millrace.streams.formats.arrow import BATCH_BYTES, CONTENT_TYPE, MAGIC
from millrace.streams.formats.arrow_batches import BatchCodec
from millrace.streams.formats.avro import Registry
from millrace.streams.formats.cloudevents import Said, said_by, unwrap
from millrace.streams.formats.json_rows import SHARED, Codec, Refused, Rows, refusal
from millrace.streams.formats.meaning import RecordError, as_row, declared_types
from millrace.streams.records import Event
from millrace.streams.schema import Schema, Unknown

ARROW = CONTENT_TYPE.decode()
AVRO = bytes([avro.MAGIC])
OTHERS = (MAGIC[0], avro.MAGIC)  # first bytes that no JSON has
OF_ROWS = tuple(
    name for name in SHARED if name != "sequences"
)  # columns of these formats; completions have a codec of their own
PLAIN = (Said(), Said("application/json"))  # headers that say nothing, or what is taken for granted


class Contents:
    """Decodes the events of one schema."""

    def __init__(
        self,
        schema: Schema,
        max_bytes: int,
        max_batch_bytes: int = BATCH_BYTES,
        registry: Registry | None = None,
        unknown: Unknown = "reject",
    ) -> None:
        self._schema = schema
        self._max_bytes = max_bytes
        self._ignoring = registry and replace(registry, names=schema.names)
        self._registry = registry if unknown == "reject" else self._ignoring  # None: there are no Avro records
        self._rows = Codec(schema, max_bytes, unknown)
        self._types = declared_types(schema)
        self._plain = schema.plain
        self._batches = BatchCodec(schema, max_batch_bytes, unknown)

    @property
    def without_limit(self) -> Contents:
        """The same for records that were let in when they were first read: what is let in may have changed since."""
        other = copy(self)
        other._max_bytes, other._registry = maxsize, self._ignoring
        other._rows = self._rows.without_limit
        other._batches = BatchCodec(self._schema, maxsize, "ignore", self._rows.revision)
        return other

    def of_revision(self, revision: int) -> Contents:
        """The same with the meaning that values had for a branch which was begun under an older revision."""
        other = copy(self)
        other._rows, other._batches = self._rows.of_revision(revision), self._batches.of_revision(revision)
        return other

    def decode(self, events: Sequence[Event], tp: str = "") -> tuple[Rows, list[Refused]]:
        """Columns of the rows that can be read, in order, and the events and rows that cannot."""
        if all(map(_is_row, events)):
            return self._rows.decode(events, tp)
        opened, refused = self._opened(events)
        pieces = list[Rows]()
        for codec, pairs in groupby(opened, key=lambda pair: pair[0]):
            run = [event for _, event in pairs]
            some, bad = self._batches_of(run) if codec is None else _rows_of(codec, run)
            pieces += some
            refused += bad
        originals = {event.offset: event for event in events}  # a CloudEvent is a dead letter as it came
        refused = [
            refused_record
            if refused_record.row is not None
            else replace(refused_record, event=originals[refused_record.event.offset])
            for refused_record in refused
        ]
        return self._joined(pieces), refused

    def _opened(self, events: Sequence[Event]) -> tuple[list[tuple[Codec | None, Event]], list[Refused]]:
        """What decodes each event, None being a batch, and its content; and those that cannot be opened."""
        opened, refused, any_size = list[tuple[Codec | None, Event]](), list[Refused](), self._rows.without_limit
        for event in events:
            try:
                content_type, inner = unwrap(event)
                value = inner.value or b""
                if content_type == ARROW or value.startswith(MAGIC):
                    opened.append((None, inner))
                elif self._registry is not None and value[:1] == AVRO:
                    opened.append((any_size, self._as_row(self._registry, inner)))
                else:
                    opened.append((self._rows, inner))
            except RecordError as error:
                refused.append(refusal(event, error))
        return opened, refused

    def _as_row(self, registry: Registry, event: Event) -> Event:
        value = event.value or b""
        if len(value) > self._max_bytes:
            raise RecordError("oversized", f"over {self._max_bytes} bytes, the pipeline's log.max_bytes")
        row = as_row(registry.cells(value), self._types, self._rows.revision)
        return Event(event.offset, event.timestamp_ms, event.key, event.headers, row)

    def _batches_of(self, events: Sequence[Event]) -> tuple[list[Rows], list[Refused]]:
        pieces, refused = list[Rows](), list[Refused]()
        for event in events:
            try:
                rows, bad = self._batches.decode(event)
                pieces += rows
                refused += bad
            except RecordError as error:
                refused.append(refusal(event, error))
        return pieces, refused

    def _joined(self, pieces: Sequence[Rows]) -> Rows:
        """All rows, in order."""
        if len(pieces) == 1:
            return pieces[0]
        none = _rows_of(self._rows, [])[0][0]
        pieces = [piece for piece in pieces if len(piece)] or [none]
        shared: dict[str, Any] = {name: np.concatenate([getattr(piece, name) for piece in pieces]) for name in OF_ROWS}
        plain = np.concatenate([piece.plain for piece in pieces if piece.plain is not None]) if self._plain else None
        if plain is None:
            columns = tuple(np.concatenate(parts) for parts in zip(*(piece.columns for piece in pieces), strict=True))
        else:
            columns = tuple(plain[:, at : at + 1] for at in range(plain.shape[1]))
        offset = np.concatenate([piece.offset for piece in pieces if piece.offset is not None])
        return Rows(columns, plain=plain, offset=offset, **shared)


def _is_row(event: Event) -> bool:
    """Whether an event is one JSON row, or nothing that we know."""
    value = event.value
    return not (value and value[0] in OTHERS) and (not event.headers or said_by(event.headers) in PLAIN)


def _rows_of(codec: Codec, events: Sequence[Event]) -> tuple[list[Rows], list[Refused]]:
    rows, refused = codec.decode(events)
    bad = {refused_record.event.offset for refused_record in refused}
    offsets = [event.offset for event in events if event.offset not in bad]
    return [replace(rows, offset=np.array(offsets, dtype=np.int64))], refused
