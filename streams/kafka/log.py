"""A pipeline's topics on Kafka: what it appends to, and what it reads.

Positions are the journal's and the checkpoints'. What is committed under a group's name is for tools that show lag.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import repeat

from millrace.learners.errors import BadInputError, ConfigError
from millrace.streams.errors import DamageError, OffsetsGoneError, StorageError
from millrace.streams.kafka.client import Link, Sent, names_of
from millrace.streams.kafka.reader import Fetched, KafkaReader
from millrace.streams.kafka.replication import check_replication
from millrace.streams.kafka.stalls import Stalls
from millrace.streams.records import Event, Read, Record, kept_ms, make_read, tp_name
from millrace.streams.sharding import WHOLE, Shard
from millrace.streams.source import Position, Topic, gone

log = logging.getLogger("millrace")

POLL_S = 1.0  # between two polls of topics and ends
WAIT_MS = 500  # for records that are known to be there
STALL_S = 10.0
LARGE_BYTES = 1 << 16  # of an event, which is then a read of its own


class KafkaLog:
    """Topics of a cluster. What was appended, or posted and flushed, has been acknowledged by all replicas in sync."""

    def __init__(self, link: Link, retention_hours: float = 0.0) -> None:
        self.link = link
        self._retention_ms = kept_ms(retention_hours) or -1
        self._said = False
        self._posted: list[Sent] = []
        self._ranges = Ranges(link)

    def create_topic(self, name: str, partitions: int = 1) -> Topic:
        """The topic, made now unless it is there; one that is there is taken as it is, since partitions may be added."""
        return self.link.topics([name]).get(name) or self._new_topic(name, partitions)

    def _new_topic(self, name: str, partitions: int) -> Topic:
        self.link.create(name, partitions, {"cleanup.policy": "delete", "retention.ms": str(self._retention_ms)})
        self._say_by_what(name)
        return self.link.topics([name])[name]

    def _say_by_what(self, name: str) -> None:
        """Once: the brokers' retention is not ours."""
        if self._retention_ms > 0 and not self._said and self.link.settings(name)["message.timestamp.type"] == "CreateTime":
            self._said = True
            log.warning(
                "Topic %s was made with retention.ms = %d. Its brokers go by each record's own timestamp, whether it was read "
                "or not (message.timestamp.type = CreateTime). Leave log.retention_hours at 0 where producers send old ones.",
                name,
                self._retention_ms,
            )

    def append(self, topic: str, records: Sequence[Record]) -> list[tuple[int, int]]:
        """Partition and offset of every record, in order. An offset may be ``UNKNOWN``: the record is stored, once, and the
        broker did not say where.

        Raises: StorageError where one was not acknowledged; some may be stored then. BadInputError for one that is too large.
        """
        acks = [self.link.send(topic, record) for record in records]
        return [ack.place() for ack in acks]

    def post(self, topic: str, records: Sequence[Record]) -> None:
        """Start to append; ``flush`` tells how it went."""
        self._posted += [self.link.send(topic, record) for record in records]

    def flush(self) -> None:
        """Wait until everything posted is acknowledged. Raises: StorageError where something was not."""
        posted, self._posted = self._posted, []
        for ack in posted:
            ack.place()

    def tail(self, topic: str, count: int) -> list[bytes]:
        """The newest values of a topic of one partition, at most ``count``, in their order."""
        if topic not in self.link.topics([topic]):
            return []
        tp = tp_name(topic, 0)
        low, high = self._ranges.bounds([tp])[tp]
        start, step, values = high, count, list[bytes]()
        while start > low and not values:  # the newest offsets may hold markers and no record
            start, step = max(low, start - step), step * 16
            values = [event.value for event in self._ranges.read(tp, start, high).events if event.value is not None]
        return values[-count:]

    def bounds(self, tp: str) -> tuple[int, int]:
        """First offset still there, and the next to be written."""
        return self._ranges.bounds([tp])[tp]

    def delete_before(self, tp: str, offset: int) -> None:
        """Forget records before ``offset``; their offsets are never used again."""
        self.link.delete_before(tp, offset)

    def outlived(self, tp: str, before_ms: int) -> int:
        """The first offset: the brokers let records go by the topic's own ``retention.ms``."""
        return self.bounds(tp)[0]

    def appended_ms(self, tp: str) -> int | None:
        """None: only brokers with ``message.timestamp.type = LogAppendTime`` keep it."""
        return None

    def check(self, topics: Sequence[str], outlast_ms: int) -> None:
        """Look at the settings of topics that are read: they must keep records for as long as labels may come.

        Raises: ConfigError where they do not. What makes versions unverifiable, or loses what was acknowledged, is said.
        """
        for name in topics:
            settings = self.link.settings(name)
            kept_ms = int(settings["retention.ms"])
            if "delete" in settings["cleanup.policy"] and 0 <= kept_ms < outlast_ms:
                raise ConfigError(
                    f"Topic {name} keeps records for {kept_ms} ms (retention.ms), and a label may come after {outlast_ms}. "
                    "Raise it, or shorten labels.horizon_ms."
                )
            if "compact" in settings["cleanup.policy"]:
                log.warning("Topic %s is compacted: what it has learned from it cannot be verified later.", name)
            check_replication(self.link, name, settings, must=False)

    def close(self) -> None:
        """Let go of the readers; the link stays."""
        self._ranges.close()


def _apart(piece: Fetched) -> Iterable[Fetched]:
    """Events that are all large each for itself: decoded one by one their rows need not be joined."""
    tp, start, stop, events = piece
    if not events or any(len(event.value or b"") < LARGE_BYTES for event in events):
        return [piece]
    ends = [*(event.offset for event in events[1:]), stop]
    return zip(repeat(tp), [start, *ends], ends, ([event] for event in events), strict=False)


class Ranges:
    """Reads exactly what partitions have between two offsets; ranges that follow each other are fetched once."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._own: KafkaReader | None = None
        self._ends: Position = {}

    def _reader(self) -> KafkaReader:
        if self._own is not None and self._own.failed:
            self.close()
        self._own = self._own or self._link.reader()
        return self._own

    def bounds(self, tps: Sequence[str]) -> dict[str, tuple[int, int]]:
        """First offset still there and the next to be written, by partition."""
        bounds = self._reader().bounds(tps)
        self._ends |= {tp: high for tp, (_, high) in bounds.items()}
        return bounds

    def read(self, tp: str, start: int, stop: int) -> Read:
        """Exactly what the partition has in ``start`` to ``stop``.

        Raises: OffsetsGoneError where retention has taken some of it, StorageError where it cannot be reached.
        """
        if stop > self._ends.get(tp, 0) and stop > self.bounds([tp])[tp][1]:
            raise gone(tp, start, stop, self.bounds([tp])[tp])
        try:
            return make_read(tp, start, stop, self._events(tp, start, stop))
        except OffsetsGoneError as error:
            raise gone(tp, start, stop, self.bounds([tp])[tp]) from error

    def _events(self, tp: str, start: int, stop: int) -> list[Event]:
        events: list[Event] = []
        patience_s = self._link.cluster.patience_s
        at, moved_s = start, time.monotonic()
        while at < stop:
            if pieces := self._at(tp, at).poll(stop - at, WAIT_MS):
                (_, _, at, polled), moved_s = pieces[0], time.monotonic()
                events += [event for event in polled if event.offset < stop]
            elif time.monotonic() - moved_s > patience_s:
                raise StorageError(f"Kafka gives nothing of {tp} from offset {at}, though it is there. Look at its brokers.")
            elif time.monotonic() - moved_s > STALL_S:
                self.close()
        return events

    def _at(self, tp: str, offset: int) -> KafkaReader:
        reader = self._reader()
        if reader.at(tp) == -1:
            reader.go_to({tp: offset})
        elif reader.at(tp) != offset:
            reader.seek(tp, offset)
        return reader

    def close(self) -> None:
        """Let go of the reader."""
        if self._own is not None:
            self._own.close()
        self._own = None


class KafkaSource:
    """Reads topics from a position of its own, with ``assign`` and ``seek``: no group decides what it reads."""

    def __init__(
        self, link: Link, topics: Sequence[str], shard: Shard = WHOLE, stall_s: float = STALL_S, undivided: str = ""
    ) -> None:
        """``undivided`` says for what each topic must have one partition; empty: it may have several.

        Raises: BadInputError where a topic is not there, or has several partitions and must not.
        """
        self._link = link
        self._shard = shard
        self._topics = link.topics(topics)
        if missing := [name for name in topics if name not in self._topics]:
            raise BadInputError(f"There is no topic {missing[0]} at {link.cluster.bootstrap}; create it first.")
        self._undivided = undivided
        self._refuse_divided(self._topics)
        self._ranges: dict[str, Ranges] = {}
        self._live: KafkaReader | None = None
        self._stalls = Stalls(stall_s)
        self._looked_s = time.monotonic()
        if not self._names():
            raise BadInputError(f"{', '.join(topics)}: fewer partitions than the pipeline has shards. Add some, or use fewer.")
        bounds = self.bounds()
        self._position = {tp: low for tp, (low, _) in bounds.items()}
        self._ends = {tp: high for tp, (_, high) in bounds.items()}  # as they were when last looked at

    @property
    def position(self) -> Position:
        """The next offset of every partition."""
        return dict(self._position)

    def topics(self) -> dict[str, Topic]:
        """Identity of every topic read."""
        return dict(self._topics)

    def _refuse_divided(self, topics: Mapping[str, Topic]) -> None:
        divided = [(name, topic.partitions) for name, topic in topics.items() if topic.partitions > 1]
        if self._undivided and divided:
            name, partitions = divided[0]
            raise BadInputError(
                f"Topic {name} has {partitions} partitions, and {self._undivided} needs topics of one, since one partition may "
                "be read ahead of another; more is not there yet. Name a topic of one partition as log.topic, or make it anew."
            )

    def _names(self) -> list[str]:
        names = [tp for name, topic in self._topics.items() for tp in names_of(name, topic.partitions)]
        return list(filter(self._shard.has, names))

    def bounds(self) -> dict[str, tuple[int, int]]:
        """First offset still there and the next to be written, by partition."""
        return self._range(self._names()[0]).bounds(self._names())

    def seek(self, position: Position) -> None:
        """Read on from ``position``; partitions that it does not name are new ones, and are read from their beginning."""
        self._position = {tp: position.get(tp, 0) for tp in self._names()}
        if self._live is not None and not self._live.failed:
            self._live.go_to(self._position)

    def next_batch(self, limit: int) -> list[Read]:
        """At most ``limit`` events that are there now. Where it is known that there are some it waits for them a little.

        Raises: OffsetsGoneError where the log no longer has the position, DamageError where a topic was made anew.
        """
        is_due = time.monotonic() - self._looked_s >= POLL_S
        pieces = self._poll(limit, 0)
        if is_due:
            self._looked_s = time.monotonic()
            self._ends = self._look()
        if not pieces and any(self._position[tp] < end for tp, end in self._ends.items()):
            pieces = self._poll(limit, WAIT_MS)
        if is_due:
            self._mend(self._ends)
        return [make_read(*part) for piece in pieces for part in _apart(piece)]

    def wait(self, seconds: float) -> None:
        """Until a fetch that waits at the brokers brings events, ``seconds`` at most. They are the next batch's."""
        with suppress(OffsetsGoneError):  # the next batch looks anew, and says so
            self._reader().wait(round(1000 * seconds))

    def _poll(self, limit: int, wait_ms: int) -> list[Fetched]:
        try:
            pieces = self._reader().poll(limit, wait_ms)
        except OffsetsGoneError:
            self._raise_gone()
            raise
        self._position.update({tp: stop for tp, _, stop, _ in pieces})
        return pieces

    def _reader(self) -> KafkaReader:
        if self._live is not None and self._live.failed:
            self._live.close()
            self._live = None
        if self._live is None:
            self._live = self._link.reader()
            self._live.go_to(self._position)
        return self._live

    def _raise_gone(self) -> None:
        for tp, bounds in self.bounds().items():
            if not bounds[0] <= (at := self._position[tp]) <= bounds[1]:
                raise gone(tp, at, bounds[0] if at < bounds[0] else at + 1, bounds)

    def _look(self) -> Position:
        """The ends of all partitions; those that were added are read from their beginning from now on.

        Raises: DamageError where a topic is gone or was made anew.
        """
        topics = self._link.topics(list(self._topics))
        for name, before in self._topics.items():
            if name not in topics or topics[name].id != before.id:
                happened = "was deleted" if name not in topics else "was deleted and made anew"
                raise DamageError(
                    f"Topic {name} {happened}. Restore the log from a copy, or begin a branch on it with --branch NEW."
                )
        self._refuse_divided(topics)
        if added := [name for name, before in self._topics.items() if topics[name].partitions > before.partitions]:
            if self._shard != WHOLE and len(self._topics) > 1:
                raise DamageError(
                    f"Partitions were added to topic {added[0]}, so what belongs together may lie in other shards from now on. "
                    "Begin a branch on it with --branch NEW."
                )
            log.warning("Partitions were added to topic %s; they are read from their beginning.", ", ".join(added))
            self._topics = topics
            self.close()  # clients that know of them take over
            self.seek(self._position)
        return {tp: high for tp, (_, high) in self.bounds().items()}  # by a reader for which no fetch is under way

    def _mend(self, ends: Position) -> None:
        seek, replace = self._stalls.see(self._position, ends, time.monotonic())
        for tp in seek:
            log.warning("Nothing came of %s from offset %d though the log has more; it is asked anew.", tp, self._position[tp])
            self._reader().seek(tp, self._position[tp])
        if replace:
            log.warning("Still nothing of %s; another reader takes over.", ", ".join(replace))
            self._reader().failed = True

    def read(self, tp: str, start: int, stop: int) -> Read:
        """Exactly what the partition has in ``start`` to ``stop``.

        Raises: OffsetsGoneError where retention has taken some of it.
        """
        return self._range(tp).read(tp, start, stop)

    def _range(self, tp: str) -> Ranges:
        """One for each partition, so that reads that alternate between them are fetched once."""
        return self._ranges.setdefault(tp, Ranges(self._link))

    def close(self) -> None:
        """Let go of the readers; the link stays."""
        for reader in (self._live, *self._ranges.values()):
            if reader is not None:
                reader.close()
        self._live, self._ranges = None, {}
