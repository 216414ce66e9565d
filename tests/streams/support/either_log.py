"""One log on SQLite or on a real Kafka broker, for tests of what both promise."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from pipelines import ANSWER_S, TIMEOUT_S

from millrace.streams.kafka.cluster import Cluster, Secrets
from millrace.streams.records import Read, Record, make_read
from millrace.streams.source import Log, Source
from millrace.streams.sqlite.log import SqliteLog, SqliteSource
from millrace.streams.sqlite.stream import SqliteStream
from millrace.streams.stream import Stream

KAFKA = [
    pytest.mark.slow,
    pytest.mark.xdist_group("kafka"),  # one worker has the broker
    pytest.mark.filterwarnings("ignore:Exception ignored in.*socket:pytest.PytestUnraisableExceptionWarning"),  # see ``swept``
]
LOGS = ["sqlite", pytest.param("kafka", marks=KAFKA)]


@dataclass
class EitherLog:
    """A log, and what reads it."""

    log: Log
    source: Callable[[Sequence[str]], Source]
    stream: Callable[[str], Stream]
    name: str  # of topics of this test's own: names begin with it


def on_sqlite(folder: Path) -> EitherLog:
    """In files."""
    log = SqliteLog(folder / "log.sqlite")
    return EitherLog(log, lambda topics: SqliteSource(log, topics), lambda name: SqliteStream(folder / f"{name}.sqlite"), "t")


def on_kafka(bootstrap: str, name: str) -> Iterator[EitherLog]:
    """In topics; the connections end with the test."""
    from millrace.streams.kafka.client import Link
    from millrace.streams.kafka.log import KafkaLog, KafkaSource
    from millrace.streams.kafka.stream import KafkaStream, Readers

    link = Link(Cluster(bootstrap, patience_s=ANSWER_S), Secrets(), 1 << 20)  # tests kill the broker, which is slow to start
    readers, sources, log = Readers(link), list[KafkaSource](), KafkaLog(link)

    def source(topics: Sequence[str]) -> KafkaSource:
        sources.append(KafkaSource(link, topics, stall_s=1.0))
        return sources[-1]

    yield EitherLog(log, source, lambda stream: KafkaStream(readers, f"{name}.{stream}"), name)
    for opened in (*sources, readers, log, link):
        opened.close()


@contextmanager
def swept() -> Iterator[None]:
    """Afterwards no socket is left that kafka-python 3.0 forgets to close when a broker hangs up on it."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        time.sleep(0.1)  # its threads come to an end
        gc.collect()


def read_all(source: Source, count: int) -> list[Read]:
    """Reads until so many records came, neighbours of one partition as one; fails where they do not come in time."""
    reads: list[Read] = []
    until_s = time.monotonic() + TIMEOUT_S
    while sum(len(read.events) for read in reads) < count:
        assert time.monotonic() < until_s, f"{reads} is all that came"
        for read in source.next_batch(count - sum(len(read.events) for read in reads)):
            if reads and reads[-1].tp == read.tp:
                before = reads.pop()
                assert before.stop == read.start
                read = make_read(read.tp, before.start, read.stop, [*before.events, *read.events])
            reads.append(read)
        time.sleep(0.001)
    return reads


def values_of(reads: Sequence[Read]) -> dict[str, list[bytes | None]]:
    """By partition, in order."""
    values: dict[str, list[bytes | None]] = {}
    for read in reads:
        values.setdefault(read.tp, []).extend(event.value for event in read.events)
    return values


def records(count: int, start: int = 0) -> list[Record]:
    """Values ``start`` and so on, keyed by five keys."""
    return [Record(b"%d" % at, b"k%d" % (at % 5), timestamp_ms=1_700_000_000_000 + at) for at in range(start, start + count)]
