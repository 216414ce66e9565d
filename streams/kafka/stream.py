"""Journals and the ledger on Kafka: a topic of one partition each, that forgets nothing.

Source: docs/design/journal.md, rules 1 and 4. An acknowledgement's offset is what the fence goes by, so an unknown one is
passed on as such. There are no transactions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from millrace.learners.errors import ConfigError
from millrace.streams.errors import DamageError, OffsetsGoneError, StorageError
from millrace.streams.kafka.client import Link, Sent
from millrace.streams.kafka.reader import KafkaReader
from millrace.streams.kafka.replication import check_replication
from millrace.streams.records import Record, tp_name
from millrace.streams.stream import pruned

READ_ROWS = 1024  # entries a poll
WAIT_MS = 500  # for entries that are known to be there
FOREVER = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}


@dataclass(slots=True)
class Readers:
    """The idle readers of a process, so that looking at a small topic takes no new connection."""

    link: Link
    _free: SimpleQueue[KafkaReader] = field(default_factory=SimpleQueue)

    def take(self) -> KafkaReader:
        """One that nobody else uses until it is given back."""
        try:
            return self._free.get_nowait()
        except Empty:
            return self.link.reader(committed=False)

    def give_back(self, reader: KafkaReader) -> None:
        """Let others use it, unless it has failed."""
        if reader.failed:
            reader.close()
        else:
            self._free.put(reader)

    def close(self) -> None:
        """Close those that are not in use."""
        while not self._free.empty():
            self._free.get().close()


class KafkaStream:
    """A stream in a topic of its own, which is made when the first value is sent."""

    def __init__(self, readers: Readers, topic: str) -> None:
        self.topic = topic
        self._tp = tp_name(topic, 0)
        self._readers = readers
        self._link = readers.link
        self._newest: Sent | None = None
        self._there = False

    def send(self, value: bytes) -> Sent:
        """Start appending ``value``."""
        if not self._there and not self._exists():
            self._link.create(self.topic, 1, FOREVER)
            self._there = True
        self._newest = self._link.send(self.topic, Record(value), 0)
        return self._newest

    def _exists(self) -> bool:
        """Whether there is such a topic. Raises: ConfigError where it would lose entries, or has several partitions; where the
        pipeline file asks for replicas, also where one that was acknowledged could be lost with a broker."""
        if not self._there and (topic := self._link.topics([self.topic]).get(self.topic)) is not None:
            settings = self._link.settings(self.topic)
            unsafe = [f"{name} = {settings[name]}" for name, right in FOREVER.items() if settings[name] != right]
            if topic.partitions != 1 or unsafe:
                right = ", ".join(f"{name} = {value}" for name, value in FOREVER.items())
                raise ConfigError(
                    f"Topic {self.topic} has {topic.partitions} partitions{''.join(f', {setting}' for setting in unsafe)}. "
                    f"It must have one, and {right}, or entries are lost. Change its settings."
                )
            check_replication(self._link, self.topic, settings, must=True)
            self._there = True
        return self._there

    def read(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Everything from ``start`` to the end, what this object has sent included.

        Raises: DamageError where an offset is missing; PrunedError where values from ``start`` on were deleted.
        """
        if self._newest is not None:
            self._newest.place()
        if not self._exists():
            return
        reader = self._readers.take()
        try:
            end = reader.ends([self._tp])[self._tp]  # one question, as replicas ask it twenty times a second
            if start < end:
                if start < (first := reader.bounds([self._tp])[self._tp][0]):
                    raise pruned(f"Topic {self.topic}", start, first)
                reader.go_to({self._tp: start})
                yield from self._until(reader, start, end)
        except OffsetsGoneError as error:  # deleted meanwhile
            raise pruned(f"Topic {self.topic}", start, self.first()) from error
        finally:
            self._readers.give_back(reader)

    def _until(self, reader: KafkaReader, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        polls = int(self._link.cluster.patience_s * 1000 / WAIT_MS) + 1
        while start < end:
            pieces = next((fetched for _ in range(polls) if (fetched := reader.poll(READ_ROWS, WAIT_MS))), None)
            if pieces is None:
                reader.failed = True
                raise StorageError(
                    f"Kafka gives nothing of {self.topic} from offset {start}, though it is there. Look at its brokers."
                )
            for _, _, stop, events in pieces:
                for event in events:
                    if event.offset != start or event.value is None:
                        raise self._missing(start)
                    yield event.offset, event.value
                    start += 1
                if stop != start:
                    raise self._missing(start)

    def _missing(self, offset: int) -> DamageError:
        return DamageError(f"Topic {self.topic}: entry {offset} is missing or has no value. Restore the topic from a copy.")

    def first(self) -> int:
        """The offset of the oldest value that is there."""
        return self._bounds()[0]

    def delete_before(self, offset: int) -> None:
        """Let the brokers forget the values before ``offset``, but never the newest."""
        first, end = self._bounds()
        if first < (end_deleted := min(offset, end - 1)):
            self._link.delete_before(self._tp, end_deleted)

    def _bounds(self) -> tuple[int, int]:
        if self._newest is not None:
            self._newest.place()
        if not self._exists():
            return 0, 0
        reader = self._readers.take()
        try:
            return reader.bounds([self._tp])[self._tp]
        finally:
            self._readers.give_back(reader)

    def close(self) -> None:
        """Nothing: the link is the process's."""
