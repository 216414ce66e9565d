"""Reading from Kafka: the consumer's half of the door to kafka-python.

After an exception a ``poll`` of the same consumer may never return, so a reader that has failed is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from kafka import TopicPartition
from kafka.errors import (
    AuthorizationError,
    CorruptRecordError,
    KafkaConnectionError,
    KafkaError,
    LogTruncationError,
    OffsetOutOfRangeError,
    RetriableError,
    UnknownTopicOrPartitionError,
    UnsupportedCodecError,
)

from millrace.learners.errors import MillraceError
from millrace.streams.errors import DamageError, OffsetsGoneError, StorageError
from millrace.streams.kafka.cluster import Cluster
from millrace.streams.kafka.diagnosis import look_at
from millrace.streams.records import Event, encode_headers, split_tp, tp_name
from millrace.streams.source import Position

HELD_RECORDS = 16_384  # taken from the client at a time, at most
CLOSE_MS = 1000
RECEIVE_BYTES = 1 << 20  # taken from a socket at a time, at most

Fetched = tuple[str, int, int, list[Event]]  # partition, from, to, what lies between: everything the partition has there


class KafkaReader:
    """A consumer of partitions that are named, from offsets that are named; for one thread."""

    def __init__(self, cluster: Cluster, consumer: Any) -> None:
        self._cluster = cluster
        self._consumer = consumer
        self._at: dict[str, int] = {}
        self._held: list[Fetched] = []  # fetched, and not given yet
        self.failed = False  # it must not be used any more

    def at(self, tp: str) -> int:
        """The next offset, -1 where the partition is not read."""
        return self._at.get(tp, -1)

    def bounds(self, tps: Sequence[str]) -> dict[str, tuple[int, int]]:
        """First offset still there and the next to be written; of the latter, only what may be read."""
        partitions = [partition_of(tp) for tp in tps]
        with self._failing(f"the bounds of {', '.join(tps)}"):
            low = _all(partitions, self._consumer.beginning_offsets(partitions, self._cluster.patience_s * 1000))
            high = _all(partitions, self._consumer.end_offsets(partitions, self._cluster.patience_s * 1000))
        return {tp: (low[partition], high[partition]) for tp, partition in zip(tps, partitions, strict=True)}

    def ends(self, tps: Sequence[str]) -> Position:
        """The next offset to be written, by partition."""
        partitions = [partition_of(tp) for tp in tps]
        with self._failing(f"the ends of {', '.join(tps)}"):
            high = _all(partitions, self._consumer.end_offsets(partitions, self._cluster.patience_s * 1000))
        return {tp: high[partition] for tp, partition in zip(tps, partitions, strict=True)}

    def go_to(self, position: Position) -> None:
        """Read these partitions, and no others, from there."""
        with self._failing("a new position"):
            self._consumer.assign([partition_of(tp) for tp in position])
            for tp, offset in position.items():
                self._consumer.seek(partition_of(tp), offset)
        self._at, self._held = dict(position), []

    def seek(self, tp: str, offset: int) -> None:
        """Go on elsewhere in one partition; what was fetched of it is fetched anew."""
        with self._failing("a new position"):
            self._consumer.seek(partition_of(tp), offset)
        self._at[tp] = offset
        self._held = [piece for piece in self._held if piece[0] != tp]

    def poll(self, limit: int, wait_ms: int) -> list[Fetched]:
        """At most ``limit`` records that are there now, or come within ``wait_ms``. Where offsets hold no record, such as the
        marker of a transaction, a piece may be empty.

        What was fetched is taken from the client whole and given in parts from here. While the client holds records of one
        partition it fetches only the others; where those have nothing, that takes half a second.

        Raises: OffsetsGoneError where the log no longer has the position; DamageError where what it has cannot be read;
        StorageError where it cannot be reached. It must not be used again after any of them.
        """
        pieces = self._take(limit)
        if (rows_left := limit - sum(len(events) for *_, events in pieces)) and not self._held:
            self._held = self._fetched(0 if pieces else wait_ms)
            pieces += self._take(rows_left)
        return pieces

    def wait(self, wait_ms: int) -> None:
        """Until there are records for the next ``poll``, ``wait_ms`` at most. Raises: as ``poll``."""
        if not self._held:
            self._held = self._fetched(wait_ms)

    def _fetched(self, wait_ms: int) -> list[Fetched]:
        """Everything that the client has."""
        with self._failing("the next records"):
            records = self._consumer.poll(wait_ms, HELD_RECORDS)
            stops = {tp: self._consumer.position(partition_of(tp), 0) for tp in self._at}
        return [
            (tp, start, stop, [_event(record) for record in records.get(partition_of(tp), ())])
            for tp, start in self._at.items()
            if (stop := stops[tp]) is not None and stop > start
        ]

    def _take(self, limit: int) -> list[Fetched]:
        """At most ``limit`` records of those that are held."""
        pieces = list[Fetched]()
        while self._held and limit > 0:
            tp, start, stop, events = self._held.pop(0)
            if len(events) > limit:
                cut = events[limit - 1].offset + 1
                self._held.insert(0, (tp, cut, stop, events[limit:]))
                stop, events = cut, events[:limit]
            pieces.append((tp, start, stop, events))
            limit -= len(events)
        self._at.update({tp: stop for tp, _, stop, _ in pieces})
        return pieces

    @contextmanager
    def _failing(self, subject: str) -> Iterator[None]:
        """Whatever a consumer raises, it is the last thing it is asked."""
        try:
            yield
        except OffsetOutOfRangeError as error:
            self.failed = True
            raise OffsetsGoneError(f"{self._places()}: the log does not have that offset.") from error
        except (RetriableError, AuthorizationError, KafkaConnectionError, OSError) as error:
            self.failed = True
            raise refused(self._cluster, subject, error) from error
        except (CorruptRecordError, UnsupportedCodecError, LogTruncationError, DamageError) as error:
            self.failed = True
            raise DamageError(f"{self._place()}: {error}. Restore the log, or begin a branch from another offset.") from error
        except Exception as error:
            self.failed = True
            raise DamageError(
                f"{self._place()} cannot be read ({type(error).__name__}: {error}). Restore the topic from a copy."
            ) from error

    def _place(self) -> str:
        """Where the records lie that the client was at when it failed; all it reads, where it does not say."""
        records = self._consumer._fetcher._next_partition_records
        if records is None:
            return self._places()
        return f"Kafka, {tp_name(*records.topic_partition)} from offset {records.next_fetch_offset}"

    def _places(self) -> str:
        return "Kafka, " + ", ".join(f"{tp} from offset {at}" for tp, at in self._at.items())

    def close(self) -> None:
        """Let go of the connection."""
        with suppress(KafkaError, OSError):
            self._consumer.close(autocommit=False, timeout_ms=CLOSE_MS)


class WideSocket:
    """A socket that gives all it has, however little it is asked for.

    The client asks for 4 KiB at a time, in a thread that waits for Python's lock after each. While another thread learns, a
    fetch of 2 MiB would hardly come in.
    """

    def __init__(self, narrow: Any) -> None:
        self._narrow = narrow

    def recv(self, size: int) -> bytes:
        """What has come, at least ``size`` bytes of it where there are so many."""
        received: bytes = self._narrow.recv(max(size, RECEIVE_BYTES))
        return received

    def __getattr__(self, name: str) -> Any:
        return getattr(self._narrow, name)


def widened(consumer: Any) -> Any:
    """The same consumer, whose connections from now on have wide sockets."""
    connections = consumer._client._manager
    connect = connections._build_transport

    async def build(node: Any, timeout_at: float | None = None) -> Any:
        transport = await connect(node, timeout_at=timeout_at)
        transport._sock = WideSocket(transport._sock)
        return transport

    connections._build_transport = build
    return consumer


def refused(cluster: Cluster, subject: str, error: Exception) -> MillraceError:
    """What the client said, as one of our errors with what to do."""
    message = f"{type(error).__name__}: {error}".strip()
    if isinstance(error, AuthorizationError):
        return StorageError(
            f"Kafka at {cluster.bootstrap} does not let this user do that ({message}). Ask for access to {subject}."
        )
    look = look_at(cluster) if "Unable to bootstrap" in message else "Look at log.kafka in the pipeline file."
    return StorageError(
        f"Kafka at {cluster.bootstrap} does not answer or refuses ({subject}: {message}). Nothing acknowledged was lost; what "
        f"was under way goes on once the brokers are back. {look}"
    )


def _event(record: Any) -> Event:
    """A record as the client gives it. A header without a value has an empty one here."""
    headers = encode_headers(tuple((name, value or b"") for name, value in record.headers)) if record.headers else b""
    return Event(record.offset, record.timestamp, record.key, headers, record.value)


def _all(partitions: Sequence[TopicPartition], offsets: dict[TopicPartition, int]) -> dict[TopicPartition, int]:
    """The offsets, of all of the partitions; the client leaves out those that it does not know of yet."""
    if missing := [partition for partition in partitions if partition not in offsets]:
        raise UnknownTopicOrPartitionError(str(missing[0]))
    return offsets


def partition_of(tp: str) -> TopicPartition:
    """As the client names it."""
    return TopicPartition(*split_tp(tp))
