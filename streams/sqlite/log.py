"""The embedded log: topics, partitions, offsets, keys, headers, timestamps and retention in one SQLite file.

Several processes may append and read at once. Each partition is a table whose primary key is the offset (a table without
rowids was 3.4 times larger); each record carries its own crc32c, checked whenever it is read.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from zlib import crc32

import numpy as np
from crc32c import crc32c

from millrace.learners.errors import BadInputError
from millrace.streams.errors import DamageError
from millrace.streams.records import LARGE_BYTES, Event, Read, Record, checksum, frame, frame_crc32c, tp_name
from millrace.streams.sharding import WHOLE, Placing, Shard
from millrace.streams.source import Position, Topic, gone
from millrace.streams.sqlite import appended
from millrace.streams.sqlite.database import Connection, connect, storage_errors, transaction

READ_BYTES = 64 << 20  # a read closes past this many bytes of values, however few records they are
LARGE_VALUE = 1 << 18  # bytes of a value at which it does too: such a message holds many rows
MAX_VALUE_BYTES = 512 << 20  # SQLite's own limit is 1 GB

SCHEMA = """
create table if not exists topics (name text primary key, id text not null, partitions integer not null);
create table if not exists partitions (tp text primary key, log_table text not null unique,
                                       start_offset integer not null, next_offset integer not null);
create table if not exists appended (tp text, offset integer, appended_ms integer, primary key (tp, offset)) without rowid;
"""
PARTITION = """
create table {table} (offset integer primary key, timestamp_ms integer not null, key blob, headers blob not null,
                      value blob, crc32c integer not null)
"""


class SqliteLog:
    """Topics in one file. What was appended, or posted and flushed, is on the disk.

    Appends run in a thread and on a connection of their own, so that a caller can go on reading while the disk syncs.
    """

    def __init__(self, path: Path, now_ms: Callable[[], int] = appended.wall_ms) -> None:
        """``now_ms``: milliseconds since 1970, by which records were appended."""
        self.path = path
        self._now_ms = now_ms
        self._connection = connect(path, SCHEMA)
        self._writes = connect(path, SCHEMA)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="append")
        self._posted: list[Future[list[tuple[int, int]]]] = []

    def create_topic(self, name: str, partitions: int = 1) -> Topic:
        """The topic, made now unless it is there.

        Raises: BadInputError where it is there with another number of partitions.
        """
        topic = self.topic(name)
        if topic is None:
            with storage_errors(self.path), transaction(self._connection):
                topic = self._topic(name) or self._new_topic(name, partitions)  # another process may have been faster
        if topic.partitions != partitions:
            raise BadInputError(f"Topic {name} in {self.path} has {topic.partitions} partitions, not {partitions}.")
        return topic

    def _new_topic(self, name: str, partitions: int) -> Topic:
        topic = Topic(uuid.uuid4().hex, partitions)
        self._connection.execute("insert into topics values (?, ?, ?)", (name, topic.id, partitions))
        for number in range(partitions):
            table = f"records_{topic.id}_{number}"
            row = (tp_name(name, number), table, 0, 0)
            self._connection.execute(PARTITION.format(table=table))
            self._connection.execute("insert into partitions values (?, ?, ?, ?)", row)
        return topic

    def topic(self, name: str) -> Topic | None:
        """The topic's identity, or None."""
        with storage_errors(self.path):
            return self._topic(name)

    def _topic(self, name: str) -> Topic | None:
        row = self._connection.execute("select id, partitions from topics where name = ?", (name,)).fetchone()
        return None if row is None else Topic(*row)

    def append(self, topic: str, records: Sequence[Record]) -> list[tuple[int, int]]:
        """Append in one commit; a record's key chooses its partition, records without one take turns.

        Raises: BadInputError for an unknown topic or a value that no log could hold; StorageError where the disk refuses.
        """
        return self._start(topic, records).result()

    def post(self, topic: str, records: Sequence[Record]) -> None:
        """Start to append; ``flush`` tells how it went. Raises: BadInputError as ``append``."""
        self._posted.append(self._start(topic, records))

    def flush(self) -> None:
        """Wait until everything posted is on the disk. Raises: StorageError where it is not."""
        posted, self._posted = self._posted, []
        for coming in posted:
            coming.result()

    def _start(self, topic: str, records: Sequence[Record]) -> Future[list[tuple[int, int]]]:
        stored = self.topic(topic)
        if stored is None:
            raise BadInputError(f"There is no topic {topic} in {self.path}; create it first.")
        for record in records:
            if record.value is not None and len(record.value) > MAX_VALUE_BYTES:
                raise BadInputError(f"A value of {len(record.value)} bytes is over the log's {MAX_VALUE_BYTES}.")
        return self._thread.submit(self._commit, topic, stored.partitions, records)

    def _commit(self, topic: str, partitions: int, records: Sequence[Record]) -> list[tuple[int, int]]:
        with storage_errors(self.path), transaction(self._writes):
            return self._insert(topic, partitions, records)

    def _insert(self, topic: str, partitions: int, records: Sequence[Record]) -> list[tuple[int, int]]:
        ends = [_partition(self._writes, tp_name(topic, number)) for number in range(partitions)]
        nexts = [end[2] for end in ends]
        rows: list[list[tuple[object, ...]]] = [[] for _ in ends]
        stored = []
        now_ms = self._now_ms()
        for record in records:
            number = choose_partition(record.key, partitions, sum(nexts))
            if record.timestamp_ms is None:
                record = Record(record.value, record.key, record.headers, now_ms)
            offset = nexts[number]
            row = (offset, record.timestamp_ms, record.key, record.headers, record.value, int(crc32c(frame(record))))
            rows[number].append(row)
            stored.append((number, offset))
            nexts[number] += 1
        for number, (table, start, end) in enumerate(ends):
            appended.stamp(self._writes, tp_name(topic, number), start, end, now_ms)
            self._writes.executemany(f"insert into {table} values (?, ?, ?, ?, ?, ?)", rows[number])
            moved = (nexts[number], tp_name(topic, number))
            self._writes.execute("update partitions set next_offset = ? where tp = ?", moved)
        return stored

    def tail(self, topic: str, count: int) -> list[bytes]:
        """The newest values of a topic of one partition, at most ``count``, in order. Raises: DamageError as ``fetch``."""
        if self.topic(topic) is None:
            return []
        start, end = self.bounds(tp_name(topic, 0))
        events, _ = self.fetch(tp_name(topic, 0), max(start, end - count), end, count)
        return [event.value for event in events if event.value is not None]

    def bounds(self, tp: str) -> tuple[int, int]:
        """First offset still there, and the next to be written."""
        with storage_errors(self.path):
            return _partition(self._connection, tp)[1:]

    def delete_before(self, tp: str, offset: int) -> None:
        """Retention: forget records before ``offset``; their offsets are never used again."""
        with storage_errors(self.path), transaction(self._connection):
            table, _, end = _partition(self._connection, tp)
            start = min(offset, end)
            self._connection.execute(f"delete from {table} where offset < ?", (start,))
            moved = (start, tp)
            self._connection.execute("update partitions set start_offset = max(start_offset, ?) where tp = ?", moved)
            appended.forget(self._connection, tp, start)

    def outlived(self, tp: str, before_ms: int) -> int:
        """The offset before which every record was appended before ``before_ms``, milliseconds since 1970."""
        with storage_errors(self.path):
            _, start, end = _partition(self._connection, tp)
            if appended.appended_ms(self._connection, tp, start) is None:
                return start
            kept = appended.first_kept(self._connection, tp, end, before_ms, self._now_ms())
            return min(max(start, kept), end)

    def appended_ms(self, tp: str) -> int | None:
        """When the oldest record was appended, to the minute; None where the log is empty or does not say."""
        with storage_errors(self.path):
            _, start, end = _partition(self._connection, tp)
            return None if start == end else appended.appended_ms(self._connection, tp, start)

    def fetch(self, tp: str, start: int, stop: int | None, limit: int) -> tuple[list[Event], int]:
        """Records from ``start``, at most ``limit``, fewer where their values are large; and the crc32c of all of them.

        Raises: DamageError naming the first record that is missing or whose bytes are not what was appended.
        """
        query = "select offset, timestamp_ms, key, headers, value, crc32c from {} where offset >= ? and offset < ? "
        query += "order by offset limit ?"
        events: list[Event] = []
        expected: list[int] = []
        size = 0
        with storage_errors(self.path):
            table, _, end = _partition(self._connection, tp)
            cursor = self._connection.execute(query.format(table), (start, end if stop is None else stop, limit))
            for offset, timestamp_ms, key, headers, value, crc in cursor:
                events.append(Event(offset, timestamp_ms, key, headers, value))
                expected.append(crc)
                length = len(value) if isinstance(value, bytes) else 0
                size += length
                if size >= READ_BYTES or length >= LARGE_VALUE:
                    break
            cursor.close(True)
        if events and events[-1].offset - events[0].offset != len(events) - 1:
            offsets = {event.offset for event in events}
            missing = min(offset for offset in range(events[0].offset, events[-1].offset) if offset not in offsets)
            raise DamageError(f"{self.path}: the record at {tp} offset {missing} is missing. Restore the log from a copy.")
        return events, self._check(tp, events, expected)

    def _check(self, tp: str, events: list[Event], expected: list[int]) -> int:
        """The crc32c over ``events``, each of which must have the checksum it was stored with."""
        crc = 0
        for event, stored in zip(events, expected, strict=True):
            try:
                large = event.value is not None and len(event.value) > LARGE_BYTES
                own: int | None = frame_crc32c(event) if large else crc32c(frame(event))
            except (TypeError, struct.error):  # a flipped byte can turn SQLite's bytes into text, or a number into null
                own = None
            if own is None or own != stored:
                raise DamageError(
                    f"{self.path}: the record at {tp} offset {event.offset} is not what was appended (crc32c differs). "
                    "Restore the log from a copy, or start a branch from another offset."
                )
            crc = frame_crc32c(event, crc) if crc else stored
        return int(crc)

    def close(self) -> None:
        """Close the file."""
        self._thread.shutdown()
        self._writes.close()
        self._connection.close()


def _partition(connection: Connection, tp: str) -> tuple[str, int, int]:
    """A partition's table, first offset and next offset."""
    query = "select log_table, start_offset, next_offset from partitions where tp = ?"
    row = connection.execute(query, (tp,)).fetchone()
    if row is None:
        raise BadInputError(f"There is no partition {tp} in the log.")
    return str(row[0]), int(row[1]), int(row[2])


class SqliteSource:
    """Reads topics of a ``SqliteLog`` from a position of its own."""

    def __init__(self, log: SqliteLog, topics: Sequence[str], shard: Shard = WHOLE) -> None:
        self._log = log
        self._shard = shard
        self._topics = {name: log.create_topic(name) if (t := log.topic(name)) is None else t for name in topics}
        self._position = {tp: low for tp, (low, _) in self.bounds().items()}

    @property
    def position(self) -> Position:
        """The next offset of every partition."""
        return dict(self._position)

    def topics(self) -> dict[str, Topic]:
        """Identity of every topic read."""
        return dict(self._topics)

    def bounds(self) -> dict[str, tuple[int, int]]:
        """First offset still there and the next to be written, by partition."""
        names = [tp_name(name, number) for name, topic in self._topics.items() for number in range(topic.partitions)]
        return {tp: self._log.bounds(tp) for tp in names if self._shard.has(tp)}

    def seek(self, position: Position) -> None:
        """Read on from ``position``."""
        self._position.update(position)

    def next_batch(self, limit: int) -> list[Read]:
        """At most ``limit`` events, an even share of every partition that has some.

        Raises: OffsetsGoneError where retention has taken the position; DamageError for a damaged record.
        """
        reads = []
        for partitions_left, (tp, start) in zip(range(len(self._position), 0, -1), self._position.items(), strict=True):
            events, crc = self._log.fetch(tp, start, None, -(-limit // partitions_left))
            if not events:
                if start < (bounds := self._log.bounds(tp))[0]:
                    raise gone(tp, start, bounds[0], bounds)
                continue
            if events[0].offset != start:
                raise gone(tp, start, events[0].offset, self._log.bounds(tp))
            reads.append(Read(tp, start, events[-1].offset + 1, events, crc))
            self._position[tp] = reads[-1].stop
            limit -= len(events)
        return reads

    def read(self, tp: str, start: int, stop: int) -> Read:
        """Exactly what the partition has in ``start`` to ``stop``.

        Raises: OffsetsGoneError where retention has taken some of it.
        """
        bounds = self._log.bounds(tp)
        if start < bounds[0] or stop > bounds[1]:
            raise gone(tp, start, stop, bounds)
        events, crc = self._log.fetch(tp, start, stop, stop - start)
        while events and events[-1].offset + 1 < stop and len(events) < stop - start:
            read_on, _ = self._log.fetch(tp, events[-1].offset + 1, stop, stop - start)
            if not read_on:
                break
            events += read_on
            crc = checksum([frame(event) for event in events])
        return Read(tp, start, stop, events, crc)


def choose_partition(key: bytes | None, partitions: int, record_number: int) -> int:
    """The partition of a key, or of the ``record_number``-th record without one.

    >>> choose_partition(b"customer 7", 4, 0) == choose_partition(b"customer 7", 4, 99)
    True
    """
    return (record_number if key is None else crc32(key)) % partitions


def by_crc32(partitions: int) -> Placing:
    """As this log places records that have a key.

    >>> by_crc32(4)([b"customer 7", b"customer 8"])
    array([1, 0])
    """
    return lambda keys: np.array([choose_partition(key, partitions, 0) for key in keys], dtype=np.int64)
