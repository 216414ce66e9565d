"""A source that reads the log in the order in which another branch has read it, and goes on by itself from there.

Row order comes from reads, not from the log, wherever there are several partitions or topics. A replay that read a week of one
partition before the next would let horizons end whose labels lie in the other. On its parent's own path it meets the rows and
the labels as its parent did.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from millrace.streams.journal.entries import Entry, Fork, Step
from millrace.streams.journal.journal import Cursor, counted
from millrace.streams.records import Read
from millrace.streams.source import Position, Source, Topic
from millrace.streams.stream import Stream

LARGE_BYTES = 4 << 20  # of values, at which a read along the path closes: one message may hold many rows
FIRST_RECORDS = 64  # before it is known how large they are

ReadRange = tuple[str, int, int]  # partition, from, to
NEVER = 1 << 62  # a seq that no entry has


def path_of(entries: Iterable[Entry], after_seq: int) -> list[ReadRange]:
    """What the steps after ``after_seq`` read; neighbours of one partition are one piece."""
    path: list[ReadRange] = []
    for entry in entries:
        for tp, start, stop, _, _ in entry.reads if isinstance(entry, Step) and entry.seq > after_seq else []:
            if path and path[-1][0] == tp:
                path[-1] = (tp, path[-1][1], stop)
            else:
                path.append((tp, start, stop))
    return path


def past(journal_of: Callable[[str], Stream], branch: str) -> list[ReadRange]:
    """What led to the state of a branch: its reads, after those of its parents up to where each was left; the oldest first."""
    path: list[ReadRange] = []
    seq = NEVER
    while True:
        entries = list(counted(journal_of(branch), branch, Cursor()))
        path = path_of((entry for entry in entries if entry.seq <= seq), 0) + path
        fork = entries[0] if entries else None
        if not isinstance(fork, Fork) or fork.parent is None:
            return path
        branch, seq = fork.parent.branch, fork.parent.seq


def future(journal_of: Callable[[str], Stream], branch: str, after_seq: int) -> list[ReadRange]:
    """What a branch has read after one of its states, then what the branches that took its place have."""
    path: list[ReadRange] = []
    heir: str | None = branch
    while heir is not None:
        cursor = Cursor()
        path += path_of(counted(journal_of(heir), heir, cursor), after_seq)
        heir, after_seq = None if cursor.ended is None else cursor.ended.successor, 0
    return path


def onward(path: Iterable[ReadRange], position: Position) -> list[ReadRange]:
    """What of a path lies ahead of a position, every offset once; partitions that it lacks are left out."""
    at, ahead = dict(position), list[ReadRange]()
    for tp, _, stop in path:
        if stop > at.get(tp, stop):
            ahead.append((tp, at[tp], stop))
            at[tp] = stop
    return ahead


class Retraced:
    """Reads along ``path``, then as the other source does."""

    def __init__(self, source: Source, path: Sequence[ReadRange]) -> None:
        self._source = source
        self._path = path
        self._left = deque(path)
        self._most = FIRST_RECORDS  # of a read, by how large the records of the last one were

    @property
    def position(self) -> Position:
        """The next offset of every partition."""
        return self._source.position

    def topics(self) -> dict[str, Topic]:
        """As the other source."""
        return self._source.topics()

    def bounds(self) -> dict[str, tuple[int, int]]:
        """As the other source."""
        return self._source.bounds()

    def seek(self, position: Position) -> None:
        """Read on from ``position``: what lies before it on the path is passed."""
        self._source.seek(position)
        ahead = [(tp, max(start, position.get(tp, start)), stop) for tp, start, stop in self._path]
        self._left = deque(piece for piece in ahead if piece[1] < piece[2])

    def next_batch(self, limit: int) -> list[Read]:
        """At most ``limit`` events along the path, fewer where they are large; past its end as the other source.

        Raises: OffsetsGoneError where the log no longer has the position.
        """
        reads: list[Read] = []
        while self._left and limit > 0 and sum(read.size for read in reads) < LARGE_BYTES:
            tp, start, stop = self._left.popleft()
            cut = min(stop, start + limit, start + self._most)
            if cut < stop:
                self._left.appendleft((tp, cut, stop))
            reads.append(self._source.read(tp, start, cut))
            if count := len(reads[-1].events):
                self._most = max(1, LARGE_BYTES * count // max(1, reads[-1].size))
            limit -= cut - start
            self._source.seek(self._source.position | {tp: cut})
        return reads or self._source.next_batch(limit)

    def read(self, tp: str, start: int, stop: int) -> Read:
        """As the other source."""
        return self._source.read(tp, start, stop)
