"""Which ids have been settled, and by which labels: remembered long enough to meet every retry, in bounded memory.

Identities lie in segments by the time they were settled. Only the newest is held as a dict. A closed one is an immutable sorted
array and a checkpoint part that never changes. Where it is large, it is spilled to a file that the kernel may drop from memory.
Closed segments of one time are merged, so that there are few of them, and a Bloom filter stands in front of each.

Source: docs/design/overview.md#late-labels. Bloom, "Space/Time Trade-offs in Hash Coding with Allowable Errors", CACM 13 (7),
1970.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from millrace.learners.protocol import Value

BUCKETS = 16  # into which the time of remembering is cut; an identity stays at most one of them longer than promised
MERGED = 4  # segments of equal tier become one of the next
TOP_TIER = 2  # segments of it are not merged further
BITS = 8  # of a Bloom filter a row, at least: with two of them set by each, one foreign id in twenty passes
SPILL_BYTES = 1 << 16  # pieces from this size on are spilled
NO_LABEL = -1  # in place of a revision: settled without one

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class IdentityBlock:
    """A closed piece, immutable."""

    rows: Ids  # (3, n): hash64 of ids, ascending; revisions; hash64 of labels
    until_ms: int  # by the journal's clock
    tier: int
    filter: NDArray[np.uint8]  # bits, their count a power of two

    def of(self, ids: Ids) -> Ids:
        """(3, k) what the segment has of these ids."""
        ids = self.passing(ids)
        low, high = (np.searchsorted(self.rows[0], ids, side) for side in ("left", "right"))
        pieces = [self.rows[:, start:stop] for start, stop in zip(low.tolist(), high.tolist(), strict=True) if start < stop]
        return np.concatenate([self.rows[:, :0], *pieces], axis=1)

    def passing(self, ids: Ids) -> Ids:
        """Those of the ids that the filter lets pass: all that are here, and a few that are not."""
        for shift in (0, 32):
            at = (ids >> shift) & (8 * len(self.filter) - 1)
            ids = ids[(self.filter[at >> 3] >> (at & 7)) & 1 == 1]
        return ids


class Identities:
    """hash64(id) -> {revision: hash64(label)}, forgotten by the journal's clock alone.

    >>> known = Identities(keep_ms=160, segment_rows=2)
    >>> known.add(7, 0, 11, now_ms=0), known.get(7), known.get(8)
    (None, {0: 11}, {})
    >>> known.advance(170), known.get(7)
    (None, {})
    """

    def __init__(self, keep_ms: int, segment_rows: int) -> None:
        self._keep_ms = keep_ms
        self._width_ms = max(1, keep_ms // BUCKETS)
        self._segment_rows = segment_rows  # a segment closes at so many, >= 1: this many are held as Python objects
        self._open: dict[int, tuple[int, ...]] = {}  # revision, label, revision, label ...
        self._open_rows = 0
        self._bucket = 0  # of the open segment
        self._closed: dict[int, IdentityBlock] = {}  # by number, oldest first
        self._next = 0  # number of the next closed one
        self._coming: Ids = np.empty(0, dtype=np.int64)  # ascending, each once
        self._near: dict[int, list[tuple[int, int, int]]] = {}  # until_ms, revision, label: of ids that are coming
        self._gone_ms = 0  # what is kept until then is forgotten
        self.turn_ms = 1 << 62  # when ``advance`` next has something to do

    @property
    def rows(self) -> int:
        """Identities remembered."""
        return self._open_rows + sum(int(segment.rows.shape[1]) for segment in self._closed.values())

    @property
    def held_rows(self) -> int:
        """Of them, those in memory as Python objects."""
        return self._open_rows

    @property
    def segments(self) -> int:
        """Closed pieces."""
        return len(self._closed)

    def approach(self, ids: Ids) -> None:
        """Look up (n,) ids that are about to come in every closed segment at once."""
        self._near, self._coming = {}, np.unique(ids)
        for segment in self._closed.values():
            self._bring_near(segment)

    def _bring_near(self, segment: IdentityBlock) -> None:
        for identity, revision, label in segment.of(self._coming).T.tolist():
            self._near.setdefault(identity, []).append((segment.until_ms, revision, label))

    def get(self, identity: int) -> dict[int, int]:
        """What is known of an id that ``approach`` was told of, as revision -> hash64(label); empty: nothing."""
        candidates = self._near.get(identity, [])
        remembered = {revision: label for until_ms, revision, label in candidates if until_ms > self._gone_ms}
        opened = self._open.get(identity, ())
        return remembered | dict(zip(opened[::2], opened[1::2], strict=True))

    def maybe(self, identity: int) -> bool:
        """Whether something may be known of an id; False: nothing is."""
        return identity in self._open or identity in self._near

    def add(self, identity: int, revision: int, label: int, now_ms: int) -> None:
        """Remember a label of an id by its revision and hash64."""
        if not self._open:
            self._bucket = now_ms // self._width_ms
            self.turn_ms = min(self.turn_ms, (self._bucket + 1) * self._width_ms)
        self._open[identity] = self._open.get(identity, ()) + (revision, label)
        self._open_rows += 1
        if self._open_rows >= self._segment_rows:
            self._close()

    def advance(self, now_ms: int) -> None:
        """Close and forget by the clock."""
        if now_ms < self.turn_ms:
            return
        self._gone_ms = now_ms
        if now_ms // self._width_ms > self._bucket:
            self._close()
            self._merge_last(self._unmerged())
        for number in [number for number, segment in self._closed.items() if segment.until_ms <= now_ms]:
            del self._closed[number]
        self._plan()

    def _plan(self) -> None:
        last = next(reversed(self._closed.values()), None)
        ends = last is not None and last.until_ms == self._until_ms  # the bucket's segments have yet to be merged
        turns = [(self._bucket + 1) * self._width_ms] if self._open or (ends and self._unmerged() > 1) else []
        turns += [segment.until_ms for segment in self._closed.values()][:1]
        self.turn_ms = min(turns, default=1 << 62)

    @property
    def _until_ms(self) -> int:
        return (self._bucket + 1) * self._width_ms + self._keep_ms

    def _close(self) -> None:
        """End the open segment; the ids of it that are coming stay near."""
        if not self._open:
            return
        self._keep(_table(self._open), self._until_ms, 0)
        self._bring_near(self._closed[self._next - 1])
        self._open, self._open_rows = {}, 0
        for tier in range(TOP_TIER):
            if self._tiers()[-MERGED:] == [tier] * MERGED:
                self._merge_last(MERGED)
        self._plan()

    def _keep(self, rows: Ids, until_ms: int, tier: int) -> None:
        self._closed[self._next] = IdentityBlock(_spilled(rows), until_ms, tier, _filter(rows[0]))
        self._next += 1

    def _tiers(self) -> list[int]:
        """Of the segments of the present bucket."""
        return [segment.tier for segment in self._closed.values() if segment.until_ms == self._until_ms]

    def _unmerged(self) -> int:
        return sum(tier < TOP_TIER for tier in self._tiers())

    def _merge_last(self, count: int) -> None:
        """Make one segment of the newest ones; of one id what was settled first still stands first."""
        if count < 2:
            return
        last = [self._closed.pop(number) for number in list(self._closed)[-count:]]
        rows = np.concatenate([segment.rows for segment in last], axis=1)
        tier = min(TOP_TIER, max(segment.tier for segment in last) + 1)
        self._keep(rows[:, np.argsort(rows[0], kind="stable")], last[0].until_ms, tier)

    def state(self) -> dict[str, Value]:
        """All but the closed segments' rows, which ``parts`` gives."""
        return {
            "open": _table(self._open),
            "bucket": self._bucket,
            "closed": [[number, segment.until_ms, segment.tier] for number, segment in self._closed.items()],
            "next": self._next,
        }

    def parts(self) -> Iterator[tuple[int, dict[str, Value]]]:
        """Closed segments by number; none of them ever changes."""
        return ((number, {"rows": segment.rows}) for number, segment in self._closed.items())

    def load(self, state: dict[str, Value], segments: dict[int, dict[str, Value]]) -> None:
        """Become what gave ``state`` and these segments."""
        self._open = {}
        for identity, revision, label in state["open"].T.tolist():
            self._open[identity] = self._open.get(identity, ()) + (revision, label)
        self._open_rows, self._bucket, self._next = state["open"].shape[1], state["bucket"], state["next"]
        self._closed = {}
        for number, until_ms, tier in state["closed"]:
            rows = segments[number]["rows"]
            self._closed[number] = IdentityBlock(_spilled(rows), until_ms, tier, _filter(rows[0]))
        self.approach(self._coming)
        self._plan()


def _table(remembered: dict[int, tuple[int, ...]]) -> Ids:
    """(3, n), by id; of one id in the order they were settled."""
    counts = np.array([len(flat) // 2 for flat in remembered.values()], dtype=np.int64)
    ids = np.repeat(np.array(list(remembered), dtype=np.int64), counts)
    pairs = np.array(list(chain.from_iterable(remembered.values())), dtype=np.int64).reshape(-1, 2)
    order = np.argsort(ids, kind="stable")
    return np.stack([ids[order], *pairs[order].T])


def _filter(ids: Ids) -> NDArray[np.uint8]:
    """A Bloom filter; the ids are hashes already, so their own bits say which two to set."""
    bits = np.zeros(1 << (BITS * len(ids)).bit_length(), dtype=bool)
    bits[ids & (len(bits) - 1)] = True
    bits[(ids >> 32) & (len(bits) - 1)] = True
    return np.packbits(bits, bitorder="little")


def _spilled(rows: Ids) -> Ids:
    """The same numbers in a nameless file mapped into memory, so that they weigh on the page cache and not on the process.

    A few stay where they are: merging sees to it that there are few such pieces.
    """
    if rows.nbytes < SPILL_BYTES:
        return rows
    with TemporaryFile() as file:
        file.write(np.ascontiguousarray(rows).tobytes())
        file.flush()
        return np.memmap(file, dtype=np.int64, mode="r", shape=rows.shape)
