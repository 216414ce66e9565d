"""``ListSource`` keeps the promises of every source, so that what is tested on it holds for a log."""

from __future__ import annotations

import pytest
from either_log import LOGS, EitherLog, read_all, records, values_of
from hypothesis import given
from hypothesis import strategies as st

from millrace.streams.errors import OffsetsGoneError
from millrace.streams.records import Event, Record, encode_headers, make_read
from millrace.streams.source import Crash, CrashError, ListProducer, ListSource, Source


def stored(count: int, step: int = 1) -> list[Event]:
    """Events at offsets 0, ``step``, 2 * ``step`` and so on."""
    return [Event(at * step, 100 + at, b"k%d" % at, b"", b"%d" % at) for at in range(count)]


def both(either: EitherLog, count: int) -> tuple[str, list[Source]]:
    """The same records behind a list and behind a log, and the name of their partition."""
    topic = f"{either.name}list"
    either.log.create_topic(topic)
    either.log.append(topic, [Record(event.value, event.key, event.headers, event.timestamp_ms) for event in stored(count)])
    return f"{topic}:0", [ListSource(stored(count), topic), either.source([topic])]


@pytest.mark.parametrize("either", LOGS, indirect=True)
def test_a_list_and_a_log_read_alike(either: EitherLog) -> None:
    """Reads, positions, bounds, seeking, rereading: equal record for record and checksum for checksum."""
    tp, (listed, other) = both(either, 30)
    for limit in (1, 4, 10, 3):
        assert listed.next_batch(limit) == read_all(other, limit) and listed.position == other.position
    assert listed.bounds() == other.bounds() == {tp: (0, 30)}
    for source in (listed, other):
        before = source.position
        assert [event.offset for event in source.read(tp, 5, 9).events] == [5, 6, 7, 8]
        assert source.position == before == {tp: 18}
    assert listed.read(tp, 5, 9) == other.read(tp, 5, 9)
    assert listed.read(tp, 9, 9) == other.read(tp, 9, 9)
    for source in (listed, other):
        source.seek({tp: 2})
    assert listed.next_batch(99) == read_all(other, 28) and listed.next_batch(9) == other.next_batch(9) == []
    for source in (listed, other):
        with pytest.raises(OffsetsGoneError):
            source.read(tp, 25, 31)


@pytest.mark.parametrize("either", LOGS, indirect=True)
def test_a_position_is_a_copy(either: EitherLog) -> None:
    """What a caller does to it moves nobody."""
    tp, sources = both(either, 5)
    for source in sources:
        source.position[tp] = 99
        assert source.position == {tp: 0}


@pytest.mark.parametrize("either", LOGS, indirect=True)
@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_every_record_is_read_once_whatever_the_limit(either: EitherLog, limit: int) -> None:
    """Over two topics and five partitions, contiguously, never more than the limit; keys keep their order and partition."""
    topics = [f"{either.name}a", f"{either.name}b"]
    places = {}
    for topic, partitions in zip(topics, (2, 3), strict=True):
        either.log.create_topic(topic, partitions)
        placed = either.log.append(topic, records(60)) + either.log.append(topic, records(60, 60))
        placed_keys = {(record.key, number) for record, (number, _) in zip(records(120), placed, strict=True)}
        assert len(placed_keys) == 5
        pairs = zip(records(120), placed, strict=True)
        places |= {f"{topic}:{number} {offset}": record.value for record, (number, offset) in pairs}
    source, values = either.source(topics), {}
    while len(values) < 240:
        at = source.position
        reads = source.next_batch(limit)
        assert sum(len(read.events) for read in reads) <= limit
        for read in reads:
            assert read.start == at[read.tp] and read.crc32c == make_read(read.tp, 0, 0, read.events).crc32c
            at[read.tp] = read.stop
            values |= {f"{read.tp} {event.offset}": event.value for event in read.events}
        assert source.position == at
    assert values == places and source.position == {tp: high for tp, (_, high) in source.bounds().items()}


@pytest.mark.parametrize("either", LOGS, indirect=True)
def test_a_record_is_read_as_it_was_appended(either: EitherLog) -> None:
    """Absent and empty keys and values told apart, headers in their order, timestamps of its own or the wall clock's."""
    topic, headers = f"{either.name}whole", encode_headers((("who", b"till 7"), ("who", b"")))
    either.log.create_topic(topic)
    sent = [Record(b"v", b"k", headers, 5), Record(b"", None, b"", 6), Record(None, b"", b"", 7), Record(b"now")]
    assert either.log.append(topic, sent) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    (read,) = read_all(either.source([topic]), 4)
    assert [Record(e.value, e.key, e.headers, e.timestamp_ms) for e in read.events[:3]] == sent[:3]
    assert read.events[3].timestamp_ms > 1_700_000_000_000


@pytest.mark.parametrize("either", LOGS, indirect=True)
def test_what_was_posted_lies_in_order_when_flush_returns(either: EitherLog) -> None:
    """And the last of it is what was appended last."""
    topic = f"{either.name}posted"
    either.log.create_topic(topic)
    assert either.log.tail(topic, 1) == []
    for at in range(50):
        either.log.post(topic, [Record(b"%d" % at)])
    either.log.flush()
    assert either.log.tail(topic, 2) == [b"48", b"49"] and either.log.bounds(f"{topic}:0") == (0, 50)
    assert values_of(read_all(either.source([topic]), 50)) == {f"{topic}:0": [b"%d" % at for at in range(50)]}


@pytest.mark.parametrize("either", LOGS, indirect=True)
def test_a_reader_whose_position_is_gone_is_told_what_there_is(either: EitherLog) -> None:
    """Reading on, and reading again, whether retention took some of it or all."""
    topic = f"{either.name}gone"
    tp = f"{topic}:0"
    either.log.create_topic(topic)
    either.log.append(topic, records(10))
    for kept in (6, 10):
        either.log.delete_before(tp, kept)
        message = "it holds 6 to 9" if kept == 6 else "it holds none before 10"
        source = either.source([topic])
        source.seek({tp: 3})
        for _ in range(2):
            with pytest.raises(OffsetsGoneError, match=message):
                read_all(source, 1)
            with pytest.raises(OffsetsGoneError, match=message):
                source.read(tp, 2, 7)
        assert source.bounds() == {tp: (kept, 10)} and source.position == {tp: 3}
    source.seek({tp: 10})
    either.log.append(topic, records(1))
    assert [event.offset for event in read_all(source, 1)[0].events] == [10]


@given(st.integers(0, 12), st.sets(st.integers(0, 12)), st.integers(1, 5), st.integers(1, 3))
def test_each_crash_is_met_once_and_no_event_is_lost_or_read_twice(count, crashes, limit, step) -> None:
    """Also where offsets have gaps and the reader goes back to its last position, as a restarted worker does."""
    items: list[Event | Crash] = []
    for at, event in enumerate(stored(count, step)):
        items += [Crash()] * (at in crashes) + [event]
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
    assert producer.tail("t", 1) == []
    assert producer.append("t", [Record(b"a"), Record(b"b")]) == [(0, 0), (0, 1)]
    assert producer.append("t", [Record(None)]) == [(0, 2)] and producer.append("u", [Record(b"c")]) == [(0, 0)]
    assert producer.tail("t", 1) == [] and producer.tail("u", 1) == [b"c"]
