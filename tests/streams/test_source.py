"""``ListSource`` keeps the promises of every source, so that what is tested on it holds for a log."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.learners.errors import OffsetsGoneError
from millrace.streams.records import Event, Record
from millrace.streams.source import Crash, CrashError, ListProducer, ListSource, Source
from millrace.streams.sqlite_log import SqliteLog, SqliteSource


def stored(count: int, step: int = 1) -> list[Event]:
    """Events at offsets 0, ``step``, 2 * ``step`` and so on."""
    return [Event(at * step, 100 + at, b"k%d" % at, b"", b"%d" % at) for at in range(count)]


def both(folder: Path, count: int) -> list[Source]:
    """The same records behind either kind of source."""
    log = SqliteLog(folder / "log.sqlite")
    log.create_topic("list")
    log.append("list", [Record(event.value, event.key, event.headers, event.timestamp_ms) for event in stored(count)])
    return [ListSource(stored(count)), SqliteSource(log, ["list"])]


def test_a_list_and_a_log_read_alike(tmp_path: Path) -> None:
    """Reads, positions, bounds, seeking, rereading: equal record for record and checksum for checksum."""
    one, other = both(tmp_path, 30)
    for limit in (1, 4, 10, 3):
        assert one.next_batch(limit) == other.next_batch(limit) and one.position == other.position
    assert one.bounds() == other.bounds() == {"list:0": (0, 30)}
    for source in (one, other):
        before = source.position
        assert [event.offset for event in source.read("list:0", 5, 9).events] == [5, 6, 7, 8]
        assert source.position == before == {"list:0": 18}
    assert one.read("list:0", 5, 9) == other.read("list:0", 5, 9)
    for source in (one, other):
        source.seek({"list:0": 2})
    assert one.next_batch(99) == other.next_batch(99) and one.next_batch(9) == other.next_batch(9) == []
    for source in (one, other):
        with pytest.raises(OffsetsGoneError):
            source.read("list:0", 25, 31)


def test_a_position_is_a_copy(tmp_path: Path) -> None:
    """What a caller does to it moves nobody."""
    for source in both(tmp_path, 5):
        source.position["list:0"] = 99
        assert source.position == {"list:0": 0}


@given(st.integers(0, 12), st.sets(st.integers(0, 12)), st.integers(1, 5), st.integers(1, 3))
def test_each_crash_is_met_once_and_no_event_is_lost_or_read_twice(count, crashes, limit, step) -> None:
    """Also where offsets have gaps and the reader goes back to its last position, as a restarted worker does."""
    items: list[Event | Crash] = []
    for at, one in enumerate(stored(count, step)):
        items += [Crash()] * (at in crashes) + [one]
    items += [Crash()] * (count in crashes)
    source, seen, met = ListSource(items), [], 0
    position = source.position
    while True:
        try:
            reads = source.next_batch(limit)
        except CrashError:
            met += 1
            source = ListSource(items)
            source.seek(position)
            continue
        if not reads:
            break
        assert reads[0].start == position["list:0"] and len(reads[0].events) <= limit
        seen += reads[0].events
        position = source.position
    assert seen == stored(count, step) and met == len([at for at in crashes if at <= count])


def test_an_empty_list_is_a_source_with_nothing_in_it() -> None:
    """Not an error."""
    source = ListSource([])
    assert source.next_batch(5) == [] and source.position == {"list:0": 0} and source.bounds() == {"list:0": (0, 0)}
    source.seek({"list:0": 0})
    assert source.read("list:0", 0, 0).events == []


def test_a_list_knows_its_own_partition_only() -> None:
    """Another's is gone."""
    with pytest.raises(OffsetsGoneError, match="other:0 has no offsets"):
        ListSource(stored(3)).read("other:0", 0, 1)


def test_a_producer_in_memory_tells_where_each_record_lies() -> None:
    """As a log would, one partition a topic."""
    producer = ListProducer()
    assert producer.last("t") is None
    assert producer.append("t", [Record(b"a"), Record(b"b")]) == [(0, 0), (0, 1)]
    assert producer.append("t", [Record(None)]) == [(0, 2)] and producer.append("u", [Record(b"c")]) == [(0, 0)]
    assert producer.last("t") is None and producer.last("u") == b"c"
