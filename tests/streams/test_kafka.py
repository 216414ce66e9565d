"""What a Kafka broker can do to readers and writers, on a real one: markers, lost topics, flipped bytes, silence, death."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from either_log import KAFKA, EitherLog, read_all, records, swept, values_of
from kafka import KafkaProducer
from pipelines import TIMEOUT_S

from millrace.learners.errors import BadInputError, MillraceError
from millrace.streams.errors import DamageError, StorageError
from millrace.streams.kafka.client import Link
from millrace.streams.kafka.cluster import Cluster, Secrets
from millrace.streams.kafka.log import LARGE_BYTES, KafkaLog, KafkaSource
from millrace.streams.kafka.reader import WideSocket
from millrace.streams.kafka.stream import KafkaStream, Readers
from millrace.streams.records import Read, Record
from millrace.streams.source import Source, Topic

pytestmark = KAFKA


@pytest.fixture(autouse=True)
def leaves_nothing():
    """Also where a test has connections of its own."""
    with swept():
        yield


def topic_of(on_kafka: EitherLog, partitions: int = 1) -> str:
    """A topic of the test's own."""
    name = f"{on_kafka.name}.events"
    on_kafka.log.create_topic(name, partitions)
    return name


def transactions(broker, topic: str, ends: str) -> None:
    """One transaction of three records for each letter: c is committed, a is aborted."""
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=f"tx-{topic}", metrics_enabled=False)
    producer.init_transactions()
    for at, end in enumerate(ends):
        producer.begin_transaction()
        for number in range(3):
            producer.send(topic, b"%s%d.%d" % (end.encode(), at, number), timestamp_ms=1000 + at)
        producer.flush()
        producer.commit_transaction() if end == "c" else producer.abort_transaction()
    producer.close()


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_markers_and_aborted_records_are_gaps_that_a_read_names(on_kafka: EitherLog, broker, limit: int) -> None:
    """Committed records alone are read, reads touch, the last one ends at the log's end, and reading again gives the same."""
    topic = topic_of(on_kafka)
    transactions(broker, topic, "cacca")
    source, reads = on_kafka.source([topic]), []
    low, high = source.bounds()[f"{topic}:0"]
    reads += until(source, high, limit)
    assert [read.start for read in reads] == [low, *(read.stop for read in reads[:-1])] and reads[-1].stop == high == 20
    wanted = [b"c%d.%d" % (at, number) for at in (0, 2, 3) for number in range(3)]
    assert values_of(reads) == {f"{topic}:0": wanted} and max(len(read.events) for read in reads) <= limit
    for again in (source, on_kafka.source([topic])):
        assert [again.read(read.tp, read.start, read.stop) for read in reads] == reads
        assert again.read(f"{topic}:0", 0, 20).crc32c == again.read(f"{topic}:0", 0, 19).crc32c
    assert source.next_batch(10) == [] and on_kafka.log.tail(topic, 1) == [b"c3.2"]


def test_large_events_are_reads_of_their_own_that_touch(on_kafka: EitherLog) -> None:
    """Each batch of rows is decoded for itself, and together they are all that the partition has."""
    topic = topic_of(on_kafka)
    values = [b"%d" % at * LARGE_BYTES for at in range(5)]
    on_kafka.log.append(topic, [Record(value, timestamp_ms=7) for value in values])
    source = on_kafka.source([topic])
    reads = list(until(source, 5, limit=3))
    assert [(read.start, read.stop, [event.value for event in read.events]) for read in reads] == [
        (at, at + 1, [value]) for at, value in enumerate(values)
    ]
    assert [source.read(read.tp, read.start, read.stop) for read in reads] == reads
    on_kafka.log.append(topic, [Record(values[0]), *records(9), Record(values[1])])
    assert max(len(read.events) for read in until(source, 16, limit=20)) > 1


def until(source: Source, stop: int, limit: int) -> Iterator[Read]:
    """What comes until the one partition's offset is there."""
    until_s = time.monotonic() + TIMEOUT_S
    while list(source.position.values()) != [stop]:
        assert time.monotonic() < until_s, f"it stays at {source.position}"
        yield from source.next_batch(limit)


def test_a_source_that_waits_is_woken_by_a_record(on_kafka: EitherLog) -> None:
    """The fetch waits at the broker; what it brings is the next batch, and a wait that brings nothing loses nothing."""
    topic = topic_of(on_kafka)
    source = on_kafka.source([topic])
    source.wait(0.001)
    assert source.next_batch(10) == []
    began_s, appending = time.monotonic(), threading.Thread(target=on_kafka.log.append, args=(topic, records(3)))
    appending.start()
    brought = 0
    while brought < 3:  # partitions may come one after the other
        source.wait(TIMEOUT_S)
        brought += sum(len(read.events) for read in source.next_batch(10))
    appending.join()
    assert time.monotonic() - began_s < TIMEOUT_S


def test_a_reader_takes_all_that_its_sockets_have(on_kafka: EitherLog) -> None:
    """However little its client asks for."""
    near, far = socket.socketpair()
    with near, far:
        near.sendall(bytes(50_000))
        assert len(WideSocket(far).recv(4096)) == 50_000
    topic = topic_of(on_kafka)
    on_kafka.log.append(topic, records(1))
    reader = on_kafka.log.link.reader()
    reader.go_to({f"{topic}:0": 0})
    assert reader.poll(1, 1000 * TIMEOUT_S)
    connections = reader._consumer._client._manager._conns.values()
    assert {type(connection.transport._sock) for connection in connections if connection.connected} == {WideSocket}
    reader.close()


def test_what_an_open_transaction_holds_is_not_read_and_not_counted_as_there(on_kafka: EitherLog, broker) -> None:
    """The end is where everything is settled, so a reader at it has caught up."""
    topic = topic_of(on_kafka)
    on_kafka.log.append(topic, records(2))
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=f"open-{topic}", metrics_enabled=False)
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(topic, b"x").get(TIMEOUT_S)
    source = on_kafka.source([topic])
    assert len(read_all(source, 2)[0].events) == 2
    assert source.bounds() == {f"{topic}:0": (0, 2)} and source.next_batch(9) == []
    producer.commit_transaction()
    producer.close()
    assert values_of(read_all(source, 1)) == {f"{topic}:0": [b"x"]}


def test_a_topic_that_was_made_anew_stops_its_reader(on_kafka: EitherLog) -> None:
    """It has another id, whatever its name and its offsets are; so does one that is gone."""
    topic = topic_of(on_kafka)
    on_kafka.log.append(topic, records(5))
    source = on_kafka.source([topic])
    read_all(source, 5)
    link = on_kafka.log.link
    before = source.topics()[topic]
    link.delete([topic])
    with pytest.raises(DamageError, match=f"Topic {topic} was deleted. Restore the log"):
        wait_for_error(source)
    come_true(lambda: topic not in link.topics([topic]))
    on_kafka.log.create_topic(topic)
    on_kafka.log.append(topic, records(9))
    with pytest.raises(DamageError, match=f"Topic {topic} was deleted and made anew"):
        wait_for_error(source)
    assert on_kafka.source([topic]).topics()[topic] not in (before, None)


def wait_for_error(source: KafkaSource) -> None:
    """Read until one is raised; whatever comes is not looked at."""
    until_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < until_s:
        source.next_batch(10)
        time.sleep(0.05)


def come_true(true: Callable[[], bool]) -> None:
    """Look again and again."""
    until_s = time.monotonic() + TIMEOUT_S
    while not true():
        assert time.monotonic() < until_s, "it never came true"
        time.sleep(0.05)


def test_partitions_that_are_added_are_read_from_their_beginning(on_kafka: EitherLog) -> None:
    """By a reader that was there before, and by one that goes on from a position without them."""
    topic = topic_of(on_kafka)
    on_kafka.log.append(topic, records(5))
    source = on_kafka.source([topic])
    read_all(source, 5)
    on_kafka.log.link._admin.create_partitions({topic: 3})
    later = KafkaLog(Link(Cluster(on_kafka.log.link.cluster.bootstrap), Secrets(), 1 << 20))
    come_true(lambda: later.link.topics([topic])[topic].partitions == 3)
    placed = later.append(topic, records(60))
    later.link.close()
    assert {number for number, _ in placed} > {0}
    for reader in (source, on_kafka.source([topic])):
        reader.seek({f"{topic}:0": 5})
        reads = read_all(reader, 60)
        assert {read.tp: read.start for read in reversed(reads)} == {
            tp: 5 if tp == f"{topic}:0" else 0 for tp in {read.tp for read in reads}
        }
        assert sum(len(read.events) for read in reads) == 60 and set(reader.position) == {f"{topic}:{n}" for n in range(3)}
        assert reader.topics()[topic].partitions == 3


def test_partitions_that_are_added_stop_a_reader_that_needs_one(on_kafka: EitherLog) -> None:
    """It says so as soon as it looks again, and so does one that comes then."""
    topic = topic_of(on_kafka)
    on_kafka.log.append(topic, records(5))
    link = on_kafka.log.link
    source = KafkaSource(link, [topic], undivided="[entity]")
    read_all(source, 5)
    link._admin.create_partitions({topic: 2})
    come_true(lambda: link.topics([topic])[topic].partitions == 2)
    with pytest.raises(BadInputError, match=rf"{topic} has 2 partitions, and \[entity\] needs topics of one"):
        come_true(lambda: bool(source.next_batch(10)))
    with pytest.raises(BadInputError, match="needs topics of one"):
        KafkaSource(link, [topic], undivided="[entity]")


@pytest.mark.parametrize("compression", ["gzip", "lz4", "snappy", "zstd"])
def test_every_compression_that_is_offered_is_read_back(on_kafka: EitherLog, broker, compression: str) -> None:
    """Also from the middle of a compressed batch."""
    topic = topic_of(on_kafka)
    log = KafkaLog(Link(Cluster(broker.bootstrap, compression=compression), Secrets(), 1 << 20))
    log.append(topic, records(500))
    log.link.close()
    assert values_of(read_all(on_kafka.source([topic]), 500)) == {f"{topic}:0": [b"%d" % at for at in range(500)]}
    assert [event.offset for event in on_kafka.source([topic]).read(f"{topic}:0", 77, 81).events] == [77, 78, 79, 80]


def test_a_flipped_byte_is_damage_and_other_partitions_are_read_on(on_kafka: EitherLog, broker) -> None:
    """The broker hands out what its file has; the reader that met it is given up, and every new one says the same."""
    topic, intact = topic_of(on_kafka), f"{on_kafka.name}.intact"
    on_kafka.log.create_topic(intact)
    on_kafka.log.append(topic, [Record(b"before")])
    on_kafka.log.append(topic, [Record(b"payload of the second")])
    on_kafka.log.append(intact, [Record(b"whole")])
    (segment,) = (broker.folder / "data" / f"{topic}-0").glob("*.log")
    raw = segment.read_bytes()
    with segment.open("r+b") as file:
        file.seek(raw.index(b"payload"))
        file.write(b"X")
    source = on_kafka.source([topic])
    assert values_of(read_all(source, 1)) == {f"{topic}:0": [b"before"]}
    for _ in range(2):
        with pytest.raises(DamageError, match=f"{topic}:0 from offset 1: .*failed crc check"):
            read_all(source, 1)
        with pytest.raises(DamageError, match="failed crc check"):
            source.read(f"{topic}:0", 1, 2)
    assert source.position == {f"{topic}:0": 1}
    assert values_of(read_all(on_kafka.source([intact]), 1)) == {f"{intact}:0": [b"whole"]}


def test_a_partition_that_gives_nothing_is_asked_anew_and_then_by_another_reader(on_kafka: EitherLog, caplog) -> None:
    """A silent client is what several trackers report; here one is made silent, and nothing is lost or read twice."""
    topic = topic_of(on_kafka)
    source = on_kafka.source([topic])  # its patience is a second
    on_kafka.log.append(topic, records(3))
    read_all(source, 3)
    reader = source._live
    reader._consumer.pause(*reader._consumer.assignment())
    on_kafka.log.append(topic, records(4, 3))
    with caplog.at_level(logging.WARNING, logger="millrace"):
        assert values_of(read_all(source, 4)) == {f"{topic}:0": [b"3", b"4", b"5", b"6"]}
    assert source._live is not reader
    logged = [record.message for record in caplog.records]
    assert any("it is asked anew" in line for line in logged) and any("another reader takes over" in line for line in logged)


def test_a_record_that_is_too_large_is_the_senders_error_and_others_go_on(on_kafka: EitherLog) -> None:
    """Too large for any topic of ours, or for this one."""
    topic, small = topic_of(on_kafka), f"{on_kafka.name}.small"
    on_kafka.log.link.create(small, 1, {"max.message.bytes": "2000"})
    with pytest.raises(BadInputError, match="larger than the 33554432 bytes"):
        on_kafka.log.append(topic, [Record(b"x" * (33 << 20))])
    with pytest.raises(BadInputError, match="raise its max.message.bytes"):
        on_kafka.log.append(small, [Record(b"x" * 5000)])
    assert on_kafka.log.append(topic, [Record(b"fits")]) == [(0, 0)] and on_kafka.log.append(small, [Record(b"y")]) == [(0, 0)]
    large = b"z" * (3 << 20)  # three times what is fetched at once
    on_kafka.log.append(topic, [Record(large), Record(b"after")])
    assert values_of(read_all(on_kafka.source([topic]), 3)) == {f"{topic}:0": [b"fits", large, b"after"]}


def test_a_marker_in_a_journal_is_damage(on_kafka: EitherLog, broker) -> None:
    """Offsets of a journal have no gap, so a hand that writes transactions into it is found."""
    stream = on_kafka.stream("j")
    stream.send(b"one").offset()
    transactions(broker, f"{on_kafka.name}.j", "c")
    with pytest.raises(DamageError, match="entry 4 is missing"):
        list(stream.read(0))


def test_a_cluster_that_cannot_be_reached_leaves_no_thread_behind() -> None:
    """However often it is asked; a trainer asks until its brokers are back."""
    link, before = Link(Cluster("127.0.0.1:1", patience_s=0.3), Secrets(), 1 << 20), set(threading.enumerate())
    for ask in (link.reader, link.names, lambda: link.send("t", Record(b"x"))):
        with pytest.raises(StorageError, match="Connection refused: look at its brokers"):
            ask()
    come_true(lambda: not set(threading.enumerate()) - before)
    link.close()


def test_offsets_for_lag_tools_are_committed_under_a_groups_name(on_kafka: EitherLog, broker) -> None:
    """Anyone's lag tool reads them; nothing of ours does."""
    from kafka import KafkaAdminClient, TopicPartition

    topic = topic_of(on_kafka)
    on_kafka.log.append(topic, records(9))
    admin, group, tp = KafkaAdminClient(bootstrap_servers=broker.bootstrap), f"{on_kafka.name}.main", TopicPartition(topic, 0)

    def committed(at: int) -> bool:
        """Nothing depends on it, so on a slow broker it may be left out; the next step says it again."""
        on_kafka.log.link.commit(group, {f"{topic}:0": at})
        offsets = admin.list_group_offsets([group])[group]
        return tp in offsets and offsets[tp].offset == at

    for at in (4, 9):
        come_true(lambda at=at: committed(at))
    admin.close()


def test_a_broker_that_dies_costs_time_and_nothing_else(on_kafka: EitherLog, broker) -> None:
    """What was acknowledged is there, the same objects go on once it is back, and what it was asked meanwhile waits."""
    topic = topic_of(on_kafka)
    stream, source = on_kafka.stream("j"), on_kafka.source([topic])
    on_kafka.log.append(topic, records(5))
    assert stream.send(b"one").offset() == 0 and len(read_all(source, 5)[0].events) == 5
    broker.kill()
    try:
        waiting = [stream.send(b"two")]
        on_kafka.log.post(topic, records(5, 5))
        with suppress(StorageError):  # if it is time to look at the topics again, which nobody answers for
            assert source.next_batch(5) == []
    finally:
        broker.start()
    on_kafka.log.flush()
    assert waiting[0].offset() == 1 and list(stream.read(0)) == [(0, b"one"), (1, b"two")]
    assert values_of(read_all(source, 5)) == {f"{topic}:0": [b"%d" % at for at in range(5, 10)]}


def test_a_broker_that_stays_away_is_one_sentence_with_what_to_do(broker, tmp_path: Path) -> None:
    """For every kind of call, though it could be asked for ever; and afterwards the same objects go on."""
    link = Link(Cluster(broker.bootstrap, patience_s=1.0), Secrets(), 1 << 20)
    log, readers = KafkaLog(link), Readers(link)
    name = f"t{time.monotonic_ns()}"
    patiently(lambda: log.create_topic(name))
    patiently(lambda: log.append(name, records(3)))
    source, stream = patiently(lambda: KafkaSource(link, [name])), patiently(lambda: KafkaStream(readers, f"{name}.j"))
    patiently(lambda: stream.send(b"one").offset())
    come_true(lambda: patiently(lambda: source.next_batch(3)) is not None and source.position == {f"{name}:0": 3})
    calls = {
        "append": lambda: log.append(name, records(1)),
        "bounds": source.bounds,
        "read": lambda: list(stream.read(0)),
        "send": lambda: stream.send(b"two").offset(),
        "make": lambda: log.create_topic(f"{name}.more"),
        "look": lambda: wait_for_error(source),
        "new": lambda: Link(link.cluster, Secrets(), 1 << 20).reader(),
    }
    broker.kill()
    try:
        for call in calls.values():
            with pytest.raises(StorageError, match=f"Kafka at {broker.bootstrap} does not answer or refuses"):
                call()
    finally:
        broker.start()
    stored = patiently(lambda: log.append(name, [Record(b"back")]))
    assert stored[0][0] == 0 and patiently(lambda: stream.send(b"three").offset()) > 0
    values = [value for _, value in patiently(lambda: list(stream.read(0)))]
    assert values[0] == b"one" and values[-1] == b"three"
    assert source.topics()[name] == Topic(link.topics([name])[name].id, 1)
    source.close()
    readers.close()
    link.close()


def patiently(call):
    """What a trainer does: again, until the broker is back."""
    until_s = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return call()
        except MillraceError:
            if time.monotonic() > until_s:
                raise
