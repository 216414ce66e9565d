"""Where events come from: what is there now, and a position that can be restored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from millrace.streams.errors import OffsetsGoneError
from millrace.streams.records import Event, Read, Record, make_read, split_tp, tp_name

Position = dict[str, int]  # "topic:partition" -> the next offset


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic's identity: a recreated topic of the same name has another id."""

    id: str
    partitions: int


class Source(Protocol):
    """Reads events; never sleeps, never commits. ``seek`` is the only way to restore."""

    @property
    def position(self) -> Position:
        """The next offset of every partition."""

    def topics(self) -> dict[str, Topic]:
        """Identity of every topic read."""

    def bounds(self) -> dict[str, tuple[int, int]]:
        """First offset still there and the next to be written, by partition."""

    def seek(self, position: Position) -> None:
        """Read on from ``position``."""

    def next_batch(self, limit: int) -> list[Read]:
        """At most ``limit`` events that are there now; empty when there are none.

        Raises: OffsetsGoneError where the log no longer has the position.
        """

    def read(self, tp: str, start: int, stop: int) -> Read:
        """Exactly what one partition has in ``start`` to ``stop``; the position stays.

        Raises: OffsetsGoneError where those records are gone.
        """


@runtime_checkable
class Waits(Protocol):
    """A source that is woken where there is more, so that nobody has to look again and again."""

    def wait(self, seconds: float) -> None:
        """Return once there may be events, ``seconds`` later at the latest."""


class Producer(Protocol):
    """Appends records; returns when they are stored."""

    def append(self, topic: str, records: Sequence[Record]) -> list[tuple[int, int]]:
        """Partition and offset of every record, in order. Raises: StorageError where one was not stored."""

    def post(self, topic: str, records: Sequence[Record]) -> None:
        """Start appending; ``flush`` tells how it went."""

    def flush(self) -> None:
        """Wait until everything posted is stored. Raises: StorageError where something was not."""

    def tail(self, topic: str, count: int) -> list[bytes]:
        """The newest values of a topic of one partition, at most ``count``, in their order; none without the topic."""


class Log(Producer, Protocol):
    """What a pipeline appends to, and what can be asked of it beside reading."""

    def create_topic(self, name: str, partitions: int = 1) -> Topic:
        """The topic, made now unless it is there."""

    def bounds(self, tp: str) -> tuple[int, int]:
        """First offset still there, and the next to be written."""

    def outlived(self, tp: str, before_ms: int) -> int:
        """The offset before which every record was appended before ``before_ms``, milliseconds since 1970; the first that is
        there where the log lets records go by itself."""

    def appended_ms(self, tp: str) -> int | None:
        """When the oldest record that is there was appended, milliseconds since 1970; None where the log does not say."""

    def delete_before(self, tp: str, offset: int) -> None:
        """Forget records before ``offset``; their offsets are never used again."""


class CrashError(Exception):
    """Raised by ``ListSource`` at a ``Crash()``: the process is to be taken for dead."""


@dataclass(slots=True)
class Crash:
    """An item among events: the first reader to reach it dies; later readers pass."""

    fired: bool = field(default=False)


class ListSource:
    """A source on a list of events, with a ``Crash()`` among them where a test wants one.

    >>> source = ListSource([Event(0, 5, None, b"", b"{}"), Event(1, 6, None, b"", b"{}")])
    >>> [len(read.events) for read in source.next_batch(10)], source.position
    ([2], {'list:0': 2})
    """

    def __init__(self, items: Sequence[Event | Crash], topic: str = "list", read_rows: int = 4096) -> None:
        self._items = items
        self._topic = topic
        self._tp = tp_name(topic, 0)
        self._read_rows = read_rows
        self._events = [item for item in items if isinstance(item, Event)]
        self._at = 0  # index into items

    @property
    def position(self) -> Position:
        """The next offset."""
        ahead = (item.offset for item in self._items[self._at :] if isinstance(item, Event))
        return {self._tp: next(ahead, self._end())}

    def topics(self) -> dict[str, Topic]:
        """One topic of one partition."""
        return {self._topic: Topic("list", 1)}

    def bounds(self) -> dict[str, tuple[int, int]]:
        """The list's first and next offset."""
        return {self._tp: (self._events[0].offset if self._events else 0, self._end())}

    def _end(self) -> int:
        return self._events[-1].offset + 1 if self._events else 0

    def seek(self, position: Position) -> None:
        """Go to the first event at or after the offset, and to a ``Crash`` that stands just before it."""
        places_before = [
            at for at, item in enumerate(self._items) if isinstance(item, Event) and item.offset < position[self._tp]
        ]
        self._at = places_before[-1] + 1 if places_before else 0

    def next_batch(self, limit: int) -> list[Read]:
        """The next events, at most ``read_rows`` of them; a ``Crash`` that has not fired ends the read before it."""
        start, events = self.position[self._tp], list[Event]()
        while self._at < len(self._items) and len(events) < min(limit, self._read_rows):
            item = self._items[self._at]
            if isinstance(item, Event):
                events.append(item)
            elif not item.fired:
                if events:
                    break
                item.fired = True
                raise CrashError
            self._at += 1
        return [make_read(self._tp, start, events[-1].offset + 1, events)] if events else []

    def read(self, tp: str, start: int, stop: int) -> Read:
        """The list's events in that range."""
        if tp != self._tp or stop > self._end():
            raise OffsetsGoneError(f"{tp} has no offsets {start} to {stop}; the list ends at {self._end()}.")
        return make_read(tp, start, stop, [event for event in self._events if start <= event.offset < stop])


class ListProducer:
    """Topics in memory, one partition each: what a worker in a test appends to."""

    def __init__(self) -> None:
        self.records: dict[str, list[Record]] = {}

    def append(self, topic: str, records: Sequence[Record]) -> list[tuple[int, int]]:
        """Append; every record is stored at once."""
        stored = self.records.setdefault(topic, [])
        stored.extend(records)
        return [(0, len(stored) - len(records) + at) for at in range(len(records))]

    def post(self, topic: str, records: Sequence[Record]) -> None:
        """Append; every record is stored at once."""
        self.append(topic, records)

    def flush(self) -> None:
        """Nothing is on its way."""

    def tail(self, topic: str, count: int) -> list[bytes]:
        """The newest values."""
        return [record.value for record in self.records.get(topic, [])[-count:] if record.value is not None]


def gone(tp: str, start: int, stop: int, bounds: tuple[int, int]) -> OffsetsGoneError:
    """The error for records that the log does not have."""
    topic, partition = split_tp(tp)
    range_text = f"{bounds[0]} to {bounds[1] - 1}" if bounds[0] < bounds[1] else f"none before {bounds[1]}"
    return OffsetsGoneError(
        f"Topic {topic} partition {partition} no longer has offsets {start} to {stop - 1}: it holds {range_text}. "
        "Restore the log, or start a new branch from what is there with --branch NEW."
    )
