"""The windows of all entities: of each its last events, in arrays, moved once by each event in the order of the log.

An event is dropped where its time is before that of the newest in its window, and ignored where the window has one with the
same time and identity. An entity is let go once the journal's clock has gone on by ``idle_ms`` since its last event, and past
``most`` the longest idle is. All of it is counted. However rows are cut into pieces, windows and counts come out the same
bits: a piece in which one row's fate hangs on another's is halved until it does not.

Source: docs/design/journal.md, rule 20.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from millrace.learners.protocol import Floats, Value
from millrace.streams.entity.events import Bools, Events, Ints, Lines, Seen, joined, sorted_lines

FIRST_SLOTS = 64
NEVER = np.iinfo(np.int64).min
ANSWERING = ("ids", "filled", "clock_ms", "at", "values")  # what looking needs of a state; the rest is for taking events in


class WindowCounts(msgspec.Struct):
    """What became of events and entities, since the branch began."""

    events: int = 0  # that moved a window
    repeated: int = 0  # that were there already
    older: int = 0  # with a time before the newest of their entity
    ahead: int = 0  # with a time too far past their record's
    outside: int = 0  # with a value beyond its field's low or high
    idle: int = 0  # entities let go since nothing came of them
    crowded: int = 0  # entities let go since there were too many


class Windows:
    """Of each entity at most ``window`` events of ``numbers`` values, of which rows see the last ``depth``; None: all."""

    def __init__(self, window: int, idle_ms: int, most: int, numbers: int, depth: int | None = None) -> None:
        self.window, self._idle_ms, self._most, self._numbers = window, idle_ms, most, numbers
        self._depth = window if depth is None else depth
        self.counts = WindowCounts()
        self._ids: Ints = np.zeros(0, dtype=np.int64)  # of the entities, ascending
        self._slots: Ints = np.zeros(0, dtype=np.int64)  # of each: its row in what follows
        self._free: list[int] = []
        self._earliest_ms = np.iinfo(np.int64).max  # no entity's last event came before this, by the clock
        self._filled: Ints = np.zeros(0, dtype=np.int64)  # events that it has
        self._clock_ms: Ints = np.zeros(0, dtype=np.int64)  # the journal's clock at its last one
        self._place: Ints = np.zeros(0, dtype=np.int64)  # how many events had moved a window with that one
        self._at: Ints = np.zeros((0, window), dtype=np.int64)  # their times, oldest first; 0 past ``filled``
        self._identity: Ints = np.zeros((0, window), dtype=np.int64)
        self._values: Floats = np.zeros((0, window, numbers))

    def __len__(self) -> int:
        """Entities that are kept."""
        return len(self._ids)

    def look(self, entity: Ints, now_ms: int) -> Seen:
        """What rows of these entities (n,) see once the journal's clock has come to ``now_ms``. Pure.

        What is kept was not idle by the clock of the state, so an earlier ``now_ms`` lets nobody go.
        """
        slots = self._slots_of(entity)
        if not len(self._filled):
            return self._seen(np.zeros(len(entity), np.int64), np.zeros(len(entity), np.int64), self._empty())
        there = (slots >= 0) & (self._clock_ms[slots] + self._idle_ms >= now_ms)
        length = np.where(there, self._filled[slots], 0)
        flat = (self._at.reshape(-1), self._values.reshape(-1, self._numbers))
        return self._seen(slots * self.window + length, length, flat)

    def take(self, events: Events) -> Seen:
        """Take rows in, in the order of the log; what each saw before itself."""
        if not len(events):
            return self.look(events.entity, NEVER)
        seen = self._at_once(events)
        if seen is not None:
            return seen
        half = len(events) // 2
        return joined([self.take(events.part(0, half)), self.take(events.part(half, len(events)))])

    def let_go(self, clock_ms: int) -> None:
        """Let the journal's clock come to ``clock_ms``: who has been idle for too long goes."""
        if clock_ms - self._idle_ms <= self._earliest_ms:
            return
        clocks = self._clock_ms[self._slots]
        gone = clocks < clock_ms - self._idle_ms
        self.counts.idle += int(gone.sum())
        self._earliest_ms = int(clocks[~gone].min(initial=np.iinfo(np.int64).max))
        self._remove(np.flatnonzero(gone))

    def _at_once(self, events: Events) -> Seen | None:
        """``take`` for a piece in which no row's fate hangs on another's; None, and nothing is done, where one's does."""
        lines = sorted_lines(events)
        slots = self._slots_of(lines.ids)
        known = slots >= 0
        held = self._of_slots(self._filled, slots, known, 0)
        last_ms = self._of_slots(self._clock_ms, slots, known, NEVER)
        clock_ms, line = lines.events.clock_ms, lines.line
        returned = known & lines.counts[lines.first] & (clock_ms[lines.first] > last_ms + self._idle_ms)
        held = np.where(returned, 0, held)
        newest_at = np.full(len(held), NEVER)
        newest_at[held > 0] = self._at[slots[held > 0], held[held > 0] - 1]
        came = lines.counts
        older = lines.older(newest_at)
        lines.counts = came & ~older
        repeated = self._repeated(lines, slots, held, newest_at)
        if repeated is None:
            return None
        lines.counts = lines.counts & ~repeated
        rank, taken = _ranks(lines)
        length = held + taken
        base = np.cumsum(length) - length
        before = held[line] + rank  # events in the row's line before it
        end = base[line] + before
        flat_at, flat_identity, flat_values, flat_ms = self._flat(lines, slots, held, base, end, last_ms)
        previous_ms = np.where(before > 0, flat_ms[np.maximum(end - 1, 0)], clock_ms)
        late = clock_ms > previous_ms + self._idle_ms  # by then the entity had been let go
        if (late & came).any():
            return None
        out = self._leaving(lines, known, taken)
        if out is None:
            return None
        self._remove(out)
        self.counts.older += int(older.sum())
        self.counts.repeated += int(repeated.sum())
        self.counts.idle += int(returned.sum())
        seen = self._seen(end, np.where(late, 0, before), (flat_at, flat_values))
        self._store(lines, before, base, length, (flat_at, flat_identity, flat_values))
        back = np.empty(len(events), dtype=np.int64)
        back[lines.order] = np.arange(len(events))
        return Seen(seen.values[back], seen.at[back], seen.length[back])

    def _repeated(self, lines: Lines, slots: Ints, held: Ints, newest_at: Ints) -> Bools | None:
        """Which events (n,) are in their window already; None where it depends on what left the window since.

        Only events with the newest time of their line can be, for older ones are no events.
        """
        rows = np.flatnonzero(lines.counts)
        line, at, identity = lines.line[rows], lines.events.at[rows], lines.events.identity[rows]
        begins = np.concatenate(([True], line[1:] != line[:-1]))[: len(line)]
        goes_on = begins & (at == newest_at[line])  # at the time at which its window ends
        result = np.zeros(len(lines.order), dtype=bool)
        if not goes_on.any() and not (~begins[1:] & (at[1:] == at[:-1])).any():
            return result
        ended, column = np.repeat(line[goes_on], held[line[goes_on]]), _counted(held[line[goes_on]])
        same = self._at[slots[ended], column] == newest_at[ended]
        ended, column = ended[same], column[same]
        line, at = np.concatenate((ended, line)), np.concatenate((newest_at[ended], at))
        identity = np.concatenate((self._identity[slots[ended], column], identity))
        order = np.lexsort((identity, at, line))  # stable: of the same event the first one stays first
        moments = np.stack((line, at))[:, order]
        together = np.concatenate(([False], (moments[:, 1:] == moments[:, :-1]).all(axis=0)))
        again = together & np.concatenate(([False], identity[order][1:] == identity[order][:-1]))
        moment = np.cumsum(~together) - 1
        if (np.bincount(moment, ~again)[moment[again]] > self.window).any():
            return None
        places = order[again] - len(ended)
        result[rows[places]] = True
        return result

    def _flat(
        self, lines: Lines, slots: Ints, held: Ints, base: Ints, end: Ints, last_ms: Ints
    ) -> tuple[Ints, Ints, Floats, Ints]:
        """All lines behind each other: times, identities, values and clocks; at least one place, so that any may be read."""
        total = max(int(held.sum() + lines.counts.sum()), 1)
        at, identity, clock = (np.zeros(total, dtype=np.int64) for _ in range(3))
        values = np.zeros((total, self._numbers))
        owners = np.repeat(np.arange(len(held)), held)  # of what the windows held already
        column = _counted(held)
        places, rows = base[owners] + column, slots[owners]
        at[places], identity[places] = self._at[rows, column], self._identity[rows, column]
        values[places], clock[places] = self._values[rows, column], last_ms[owners]
        new = lines.counts
        places = end[new]
        at[places], identity[places] = lines.events.at[new], lines.events.identity[new]
        values[places], clock[places] = lines.events.values[new], lines.events.clock_ms[new]
        return at, identity, values, clock

    def _leaving(self, lines: Lines, known: Bools, taken: Ints) -> Ints | None:
        """Which entities make room for those that are new here, counted; None where that depends on the rows' order."""
        new = np.flatnonzero(~known & (taken > 0))
        over = len(self._ids) + len(new) - self._most
        if over <= 0:
            return np.zeros(0, dtype=np.int64)
        if over > len(self._ids):
            return None
        places = self._place[self._slots]
        out = np.argpartition(places, over - 1)[:over]
        out = out[np.argsort(places[out])]
        if np.isin(self._ids[out], lines.ids).any():
            return None
        begins = np.full(len(taken), len(lines.order))
        events = np.flatnonzero(lines.counts)
        np.minimum.at(begins, lines.line[events], lines.order[events])
        at_places = np.sort(begins[new])[len(new) - over :]  # in the log, of the events that need room
        clock_ms = np.empty(len(lines.order), dtype=np.int64)
        clock_ms[lines.order] = lines.events.clock_ms
        idle = int((clock_ms[at_places] > self._clock_ms[self._slots[out]] + self._idle_ms).sum())
        self.counts.idle += idle
        self.counts.crowded += over - idle
        return out

    def _store(self, lines: Lines, before: Ints, base: Ints, length: Ints, flat: tuple[Ints, Ints, Floats]) -> None:
        """The windows of all entities that had an event."""
        newest = np.flatnonzero(lines.counts & (before + 1 == length[lines.line]))  # the last event of each
        accepted = np.zeros(len(lines.order), dtype=bool)
        accepted[lines.order] = lines.counts
        place = (self.counts.events + np.cumsum(accepted))[lines.order]
        self.counts.events += int(accepted.sum())
        touched = lines.line[newest]
        slots = self._slots_for(lines.ids[touched])
        filled = np.minimum(length[touched], self.window)
        self._filled[slots], self._clock_ms[slots], self._place[slots] = filled, lines.events.clock_ms[newest], place[newest]
        column = np.arange(self.window)
        there = column < filled[:, None]
        source = np.where(there, (base[touched] + length[touched] - filled)[:, None] + column, 0)
        for held, new in zip((self._at, self._identity, self._values), flat, strict=True):
            kept = there if new.ndim == 1 else there[:, :, None]
            held[slots] = np.where(kept, new[source], 0)
        if len(newest):
            self._earliest_ms = min(self._earliest_ms, int(lines.events.clock_ms[newest].min()))

    def _seen(self, end: Ints, length: Ints, flat: tuple[Ints, Floats]) -> Seen:
        """The last ``length`` (n,) events before ``end`` (n,) in flat arrays."""
        back = np.arange(self._depth)
        length = np.minimum(length, self.window)
        there = back < length[:, None]
        source = np.where(there, end[:, None] - 1 - back, 0)
        return Seen(np.where(there[:, :, None], flat[1][source], np.nan), np.where(there, flat[0][source], 0), length)

    def _empty(self) -> tuple[Ints, Floats]:
        return np.zeros(1, dtype=np.int64), np.zeros((1, self._numbers))

    def _slots_of(self, ids: Ints) -> Ints:
        """The rows of entities (n,), -1 of one that is not kept."""
        if not len(self._ids):
            return np.full(len(ids), -1)
        places = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        return np.where(self._ids[places] == ids, self._slots[places], -1)

    def _of_slots(self, column: Ints, slots: Ints, known: Bools, otherwise: int) -> Ints:
        return np.where(known, column[slots], otherwise) if len(column) else np.full(len(slots), otherwise)

    def _slots_for(self, ids: Ints) -> Ints:
        """The rows of entities, ascending; those that are not kept yet get one."""
        slots = self._slots_of(ids)
        new = np.flatnonzero(slots < 0)
        while len(self._free) < len(new):
            self._grow()
        if len(new):
            given = [self._free.pop() for _ in range(len(new))]
            slots[new] = given
            places = np.searchsorted(self._ids, ids[new])
            self._ids, self._slots = np.insert(self._ids, places, ids[new]), np.insert(self._slots, places, given)
        return slots

    def _grow(self) -> None:
        have = len(self._filled)
        added = max(FIRST_SLOTS, have)
        self._free += range(have + added - 1, have - 1, -1)
        for name in ("_filled", "_clock_ms", "_place", "_at", "_identity", "_values"):
            column: NDArray[np.generic] = getattr(self, name)
            setattr(self, name, np.concatenate([column, np.zeros((added, *column.shape[1:]), dtype=column.dtype)]))

    def _remove(self, places: Ints) -> None:
        if len(places):
            self._free += self._slots[places].tolist()
            self._ids, self._slots = np.delete(self._ids, places), np.delete(self._slots, places)

    def state(self) -> dict[str, Value]:
        """Everything but the counts, by entity, ascending."""
        names = {"filled": self._filled, "clock_ms": self._clock_ms, "place": self._place}
        names |= {"at": self._at, "identity": self._identity}
        whole: dict[str, Value] = {name: column[self._slots] for name, column in names.items()}
        return {"ids": self._ids.copy(), "values": self._values[self._slots]} | whole

    def answering(self) -> dict[str, Value]:
        """As much of it as looking needs."""
        columns = {"filled": self._filled, "clock_ms": self._clock_ms, "at": self._at, "values": self._values}
        return {"ids": self._ids.copy()} | {name: column[self._slots] for name, column in columns.items()}

    def load(self, state: Mapping[str, Value]) -> None:
        """Become what gave ``state``, or what looks as that did."""
        self._ids = np.array(state["ids"], dtype=np.int64)
        rows = len(self._ids)
        self._slots, self._free = np.arange(rows), []
        self._filled, self._at = np.array(state["filled"]), np.array(state["at"]).reshape(rows, self.window)
        self._values = np.array(state["values"]).reshape(rows, self.window, self._numbers)
        self._clock_ms = np.array(state["clock_ms"])
        self._place = np.array(state.get("place", np.zeros(rows, dtype=np.int64)))
        self._identity = np.array(state.get("identity", np.zeros((rows, self.window), dtype=np.int64)))
        self._identity = self._identity.reshape(rows, self.window)
        self._earliest_ms = int(self._clock_ms.min(initial=np.iinfo(np.int64).max))


def _counted(lengths: Ints) -> Ints:
    """0, 1, 2 and so on within each of several runs, behind each other."""
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _ranks(lines: Lines) -> tuple[Ints, Ints]:
    """How many events are before each row (n,) of its line in the piece, and how many each line (m,) has."""
    inclusive = np.cumsum(lines.counts)
    exclusive: Ints = inclusive - lines.counts
    return exclusive - exclusive[lines.first][lines.line], np.add.reduceat(lines.counts.astype(np.int64), lines.first)
