"""Rows as the table of windows takes them, what they see there, and the lines in which a piece of the log is laid out.

In a piece of n rows each entity has a line: the events of its window, then those of the piece, in order. What a row sees are
the events before its own place in that line. So all rows of a piece are answered at once, whoever they are of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from millrace.learners.protocol import Floats

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Events:
    """Rows in the order of the log, and which of them are events."""

    entity: Ints  # (n,) hash64 of whose row it is
    at: Ints  # (n,) ms since 1970
    values: Floats  # (n, k) the numbers that are kept; NaN where one is missing
    identity: Ints  # (n,) what the same event, read again, has too
    counts: Bools  # (n,) whether the row is an event; the others only look
    clock_ms: Ints  # (n,) the journal's clock at each row, never decreasing

    def __len__(self) -> int:
        return len(self.entity)

    def part(self, start: int, stop: int) -> Events:
        """Rows ``start`` to ``stop``."""
        cut = slice(start, stop)
        rest = (self.identity[cut], self.counts[cut], self.clock_ms[cut])
        return Events(self.entity[cut], self.at[cut], self.values[cut], *rest)


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What n rows see of their entity's window, the newest event first, as far back as any field looks."""

    values: Floats  # (n, depth, k); NaN past ``length``
    at: Ints  # (n, depth) ms since 1970; 0 past ``length``
    length: Ints  # (n,) events that there are


def joined(pieces: Sequence[Seen]) -> Seen:
    """Of all rows, in order."""
    values, at, length = ([getattr(piece, name) for piece in pieces] for name in ("values", "at", "length"))
    return Seen(np.concatenate(values), np.concatenate(at), np.concatenate(length))


@dataclass(slots=True, eq=False)
class Lines:
    """A piece of the log, sorted by entity; each of the m entities has a line."""

    events: Events  # sorted by entity, and by place in the log within one
    order: Ints  # (n,) place in the log of each sorted row
    first: Ints  # (m,) the first row of each entity
    line: Ints  # (n,) number of the row's line
    counts: Bools  # (n,) which rows are events; some are taken out as it becomes clear that they are none

    @property
    def ids(self) -> Ints:
        """(m,) the entities, ascending."""
        return self.events.entity[self.first]

    def older(self, newest_at: Ints) -> Bools:
        """Which events (n,) have a time before one that came before them; ``newest_at`` (m,) is that of each window."""
        counted = np.where(self.counts, self.events.at, np.iinfo(np.int64).min)
        ranks = np.unique(np.concatenate((counted, newest_at)), return_inverse=True)[1].reshape(-1)
        rank, newest, top = ranks[: len(counted)], ranks[len(counted) :], len(ranks)
        before = np.empty(len(rank), dtype=np.int64)  # the highest rank before each row: those of a line are above the last's
        before[1:] = np.maximum.accumulate(self.line * top + np.where(self.counts, rank, 0))[:-1]
        before[self.first] = 0
        return np.asarray(self.counts & (rank < np.maximum(before - self.line * top, newest[self.line])))


def sorted_lines(events: Events) -> Lines:
    """Of at least one row."""
    order = np.argsort(events.entity, kind="stable")
    entity = events.entity[order]
    starts = np.concatenate(([True], entity[1:] != entity[:-1]))
    ordered = Events(
        entity, events.at[order], events.values[order], events.identity[order], events.counts[order], events.clock_ms[order]
    )
    return Lines(ordered, order, np.flatnonzero(starts), np.cumsum(starts) - 1, ordered.counts)
