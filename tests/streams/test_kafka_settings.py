"""What is looked at of topics that are there: settings by which entries, labels or acknowledged records would be lost."""

from __future__ import annotations

import logging

import pytest
from either_log import KAFKA, EitherLog, swept

from millrace.learners.errors import ConfigError
from millrace.streams.errors import PrunedError
from millrace.streams.kafka.client import Link
from millrace.streams.kafka.cluster import Cluster, Secrets
from millrace.streams.kafka.log import KafkaLog
from millrace.streams.kafka.stream import FOREVER, KafkaStream, Readers

pytestmark = KAFKA

UNCLEAN = {"unclean.leader.election.enable": "true", "min.insync.replicas": "2"}


@pytest.fixture(autouse=True)
def leaves_nothing():
    """Also where a test has connections of its own."""
    with swept():
        yield


def test_a_journal_topic_that_would_lose_entries_is_refused(on_kafka: EitherLog) -> None:
    """Named with what is wrong and what is right; one that has lost its beginning is damage."""
    link = on_kafka.log.link
    for name, partitions, settings in (
        ("a", 1, {"cleanup.policy": "compact"}),
        ("b", 1, {"retention.ms": "1000"}),
        ("c", 2, {}),
    ):
        link.create(f"{on_kafka.name}.{name}", partitions, FOREVER | settings)
        for act in (lambda stream: stream.send(b"x"), lambda stream: list(stream.read(0))):
            with pytest.raises(ConfigError, match="or entries are lost. Change its settings"):
                act(on_kafka.stream(name))
    stream = on_kafka.stream("d")
    for at in range(5):
        stream.send(b"%d" % at).offset()
    on_kafka.log.delete_before(f"{on_kafka.name}.d:0", 2)
    with pytest.raises(PrunedError, match="entries 0 to 1 are not there"):
        list(stream.read(0))
    assert [value for _, value in stream.read(3)] == [b"3", b"4"]


def test_settings_that_make_promises_untrue_are_said_at_the_start(on_kafka: EitherLog, caplog) -> None:
    """Records must outlast labels; a compacted topic cannot be verified."""
    link, name = on_kafka.log.link, f"{on_kafka.name}.compacted"
    link.create(name, 1, {"cleanup.policy": "compact"})
    short = f"{on_kafka.name}.short"
    link.create(short, 1, {"retention.ms": "60000"})
    with caplog.at_level(logging.WARNING, logger="millrace"):
        on_kafka.log.check([name], 3_600_000)
    assert f"Topic {name} is compacted" in caplog.text
    on_kafka.log.check([short], 60_000)
    with pytest.raises(ConfigError, match=f"Topic {short} keeps records for 60000 ms .* after 60001. Raise it"):
        on_kafka.log.check([short], 60_001)


@pytest.mark.parametrize("asked", [0, 2])
def test_a_topic_that_may_lose_what_it_acknowledged_is_said_or_refused(on_kafka: EitherLog, broker, caplog, asked: int) -> None:
    """A journal is refused where the pipeline file asks for replicas, before an entry is written; else it is said, once."""
    name = f"{on_kafka.name}.weak"
    on_kafka.log.link.create(name, 1, FOREVER | UNCLEAN)
    readers = Readers(Link(Cluster(broker.bootstrap, replication=asked), Secrets(), 1 << 20))
    wrong = "min.insync.replicas = 2 with replicas = 1, unclean.leader.election.enable = true. Give it replicas"
    with caplog.at_level(logging.WARNING, logger="millrace"):
        for _ in range(2):
            stream = KafkaStream(readers, name)
            if not asked:
                stream.send(b"x").offset()
                continue
            for act in (lambda opened: opened.send(b"x"), lambda opened: list(opened.read(0))):
                with pytest.raises(ConfigError, match=f"Topic {name} may lose .*: 1 of the 2 replicas .*, {wrong}.*ask for"):
                    act(stream)
        assert caplog.text.count(wrong) == (0 if asked else 1)
        KafkaLog(readers.link).check([name], 0)
    assert caplog.text.count(wrong) == 1
    assert on_kafka.log.bounds(f"{name}:0") == (0, 0 if asked else 2)
    readers.close()
    readers.link.close()


def test_a_topic_made_with_a_retention_says_once_that_brokers_go_by_the_records_own_time(on_kafka: EitherLog, caplog) -> None:
    """Unless they stamp records as they append them; a topic that keeps everything says nothing."""
    link = on_kafka.log.link
    with caplog.at_level(logging.WARNING, logger="millrace"):
        KafkaLog(link).create_topic(f"{on_kafka.name}.for-ever")
        assert "message.timestamp.type" not in caplog.text
        made = KafkaLog(link, retention_hours=2)
        for name in ("a", "b"):
            made.create_topic(f"{on_kafka.name}.{name}")
    assert caplog.text.count("was made with retention.ms = 7200000") == 1
    assert "message.timestamp.type = CreateTime" in caplog.text
