"""Which ids have been settled, and by which labels: remembered long enough to meet every retry, in bounded memory.

Identities lie in segments by the time they were settled. Only the newest segment is held as a dict; a closed one is an
immutable sorted array, spilled to a file that the kernel may drop from memory, and a checkpoint part that never changes.

Source: shared/specs/serving.md, E 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from millrace.learners.protocol import Value

BUCKETS = 16  # into which the time of remembering is cut; an identity stays at most one of them longer than promised
NO_LABEL = -1  # in place of a revision: settled without one


@dataclass(frozen=True, slots=True)
class Segment:
    """A closed piece, immutable."""

    rows: NDArray[np.int64]  # (3, n): hash64 of ids, ascending; revisions; hash64 of labels
    until_ms: int  # by the journal's clock


class Identities:
    """hash64(id) -> [(revision, hash64(label))], forgotten by the journal's clock alone.

    >>> known = Identities(keep_ms=160, segment_rows=2)
    >>> known.add(7, (0, 11), now_ms=0), known.get(7), known.get(8)
    (None, [(0, 11)], [])
    >>> known.advance(170), known.get(7)
    (None, [])
    """

    def __init__(self, keep_ms: int, segment_rows: int) -> None:
        self._keep_ms = keep_ms
        self._width_ms = max(1, keep_ms // BUCKETS)
        self._segment_rows = segment_rows  # a segment closes at so many, >= 1: this many are held as Python objects
        self._open: dict[int, list[tuple[int, int]]] = {}
        self._open_rows = 0
        self._bucket = 0  # of the open segment
        self._closed: dict[int, Segment] = {}  # by number, oldest first
        self._next = 0  # number of the next closed one
        self._near: dict[int, list[tuple[int, int, int]]] = {}  # segment, revision, label: of ids that are coming
        self._turn_ms = 0  # when a segment next closes or goes

    @property
    def rows(self) -> int:
        """Identities remembered."""
        return self._open_rows + sum(int(segment.rows.shape[1]) for segment in self._closed.values())

    @property
    def held_rows(self) -> int:
        """Of them, those in memory as Python objects."""
        return self._open_rows

    def approach(self, ids: NDArray[np.int64]) -> None:
        """Look up (n,) ids that are about to come in every closed segment at once."""
        self._near = {}
        for number, segment in self._closed.items():
            at = np.searchsorted(segment.rows[0], ids)
            there = segment.rows[0][np.minimum(at, segment.rows.shape[1] - 1)] == ids
            for one in set(ids[there].tolist()):
                low, high = np.searchsorted(segment.rows[0], [one, one + 1 if one < 2**63 - 1 else one])
                high = high if one < 2**63 - 1 else segment.rows.shape[1]
                pairs = segment.rows[1:, low:high].T.tolist()
                self._near.setdefault(one, []).extend((number, revision, label) for revision, label in pairs)

    def get(self, one: int) -> list[tuple[int, int]]:
        """What is known of an id that ``approach`` was told of; empty: nothing."""
        near = self._near.get(one)
        opened = self._open.get(one, [])
        if near is None:
            return opened
        return [(revision, label) for number, revision, label in near if number in self._closed] + opened

    def add(self, one: int, known: tuple[int, int], now_ms: int) -> None:
        """Remember (revision, hash64(label)) of an id."""
        if not self._open:
            self._bucket = now_ms // self._width_ms
        self._open.setdefault(one, []).append(known)
        self._open_rows += 1
        if self._open_rows >= self._segment_rows:
            self._close()
        self._plan()

    def advance(self, now_ms: int) -> None:
        """Close and forget by the clock."""
        if now_ms < self._turn_ms:
            return
        if self._open and now_ms // self._width_ms > self._bucket:
            self._close()
        for number in [number for number, segment in self._closed.items() if segment.until_ms <= now_ms]:
            del self._closed[number]
        self._plan()

    def _plan(self) -> None:
        turns = [(self._bucket + 1) * self._width_ms] if self._open else []
        turns += [segment.until_ms for segment in self._closed.values()][:1]
        self._turn_ms = min(turns, default=1 << 62)

    def _close(self) -> None:
        rows = _table(self._open)
        for one, pairs in self._open.items():  # some of them may be among the ids that are coming
            self._near.setdefault(one, []).extend((self._next, *pair) for pair in pairs)
        self._closed[self._next] = Segment(_spilled(rows), (self._bucket + 1) * self._width_ms + self._keep_ms)
        self._next += 1
        self._open, self._open_rows = {}, 0

    def state(self) -> dict[str, Value]:
        """All but the closed segments' rows, which ``parts`` gives."""
        return {
            "open": _table(self._open),
            "bucket": self._bucket,
            "closed": [[number, segment.until_ms] for number, segment in self._closed.items()],
            "next": self._next,
        }

    def parts(self) -> Iterator[tuple[int, dict[str, Value]]]:
        """Closed segments by number; none of them ever changes."""
        return ((number, {"rows": segment.rows}) for number, segment in self._closed.items())

    def load(self, state: dict[str, Value], segments: dict[int, dict[str, Value]]) -> None:
        """Become what gave ``state`` and these segments."""
        self._open = {}
        for one, revision, label in state["open"].T.tolist():
            self._open.setdefault(one, []).append((revision, label))
        self._open_rows, self._bucket, self._next = state["open"].shape[1], state["bucket"], state["next"]
        self._closed = {number: Segment(_spilled(segments[number]["rows"]), until) for number, until in state["closed"]}
        self._near = {}
        self._plan()


def _table(known: dict[int, list[tuple[int, int]]]) -> NDArray[np.int64]:
    """(3, n), by id; of one id in the order they were settled."""
    rows = [(one, *pair) for one, pairs in sorted(known.items()) for pair in pairs]
    return np.array(rows, dtype=np.int64).reshape(-1, 3).T.copy()


def _spilled(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same numbers in a nameless file mapped into memory, so that they weigh on the page cache and not on the process."""
    with TemporaryFile() as file:
        file.write(np.ascontiguousarray(rows).tobytes())
        file.flush()
        return np.memmap(file, dtype=np.int64, mode="r", shape=rows.shape)
