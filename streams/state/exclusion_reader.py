"""The reader that passes records by which a fork leaves out, live and when folding again.

What is left out is decoded as ever, so that what is rejected stays the same. It is counted as passed; apart from that it is as
if it had never been sent. None of its rows is predicted, learned or taken in by a feature table, and the clock ignores its
timestamps. Of a label that is left out one thing is known: its row gets no default label.

Source: docs/design/journal.md, rules 2, 9 and 18.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from millrace.streams.formats.json_rows import Refused, Rows
from millrace.streams.journal.exclusions import Exclusion, left_out
from millrace.streams.labels.served import LateLabel, Prediction, Served, Withheld
from millrace.streams.records import Event


class Decoder(Protocol):
    """What decodes the log."""

    @property
    def without_limit(self) -> Decoder:
        """The same for records that were let in when they were first read."""

    def decode(self, events: Sequence[Event], tp: str, /) -> tuple[Rows | Served, list[Refused]]:
        """Columns of the events that can be read, in order, and the events that cannot."""


@dataclass(frozen=True, slots=True)
class Excluding:
    """Decodes as another reader does, and leaves out what a fork excludes."""

    reader: Decoder
    exclude: tuple[Exclusion, ...]

    @property
    def without_limit(self) -> Excluding:
        """The same around the other reader without its limit."""
        return replace(self, reader=self.reader.without_limit)

    def decode(self, events: Sequence[Event], tp: str, /) -> tuple[Rows | Served, list[Refused]]:
        """As the other reader, without what is left out."""
        piece, refused = self.reader.decode(events, tp)
        refused_offsets = {refusal.event.offset for refusal in refused if refusal.row is None}
        if isinstance(piece, Rows) and piece.offset is not None:
            left_out_offsets = [event.offset for event in events if left_out(self.exclude, event, tp)]
            return _rows_without(piece, np.isin(piece.offset, left_out_offsets)), refused
        is_left_out = np.array(
            [left_out(self.exclude, event, tp) for event in events if event.offset not in refused_offsets], dtype=bool
        )
        if not is_left_out.any():
            return piece, refused
        return _without(piece, is_left_out) if isinstance(piece, Served) else _rows_without(piece, is_left_out), refused


def _rows_without(rows: Rows, is_left_out: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Rows:
    return replace(rows.only(~is_left_out), left_out=int(is_left_out.sum()))


def _without(served: Served, is_left_out: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Served:
    """Without the predictions that are left out; of labels that are, only their ids stay."""
    predictions = np.array([isinstance(record, Prediction) for record in served.records], dtype=bool)
    kept_places = np.flatnonzero(~(is_left_out & predictions))
    chosen = [served.records[at] for at in kept_places.tolist()]
    records = [
        Withheld(record.id) if isinstance(record, LateLabel) and is_left_out[at] else record
        for at, record in zip(kept_places.tolist(), chosen, strict=True)
    ]
    return Served(
        served.tp,
        [served.events[at] for at in kept_places.tolist()],
        records,
        served.ids[kept_places],
        served.rows.only(~is_left_out[predictions]),
        np.where(is_left_out, 0, served.t)[kept_places],
        left_out=int((is_left_out & predictions).sum()),
    )
