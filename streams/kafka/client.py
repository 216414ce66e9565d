"""The door to kafka-python, with reader.py: topics and appends in our words, and the client's errors in one sentence.

What is known of the client and guarded here (3.0.12; docs/decisions/0004-kafka-python.md):

* After an exception a ``poll`` of the same consumer may never return, so a reader that has failed is dropped.
* An acknowledgement may name no offset: a duplicate of an append that was tried again counts as stored.
* It decodes a compressed batch whole, whatever it becomes, so its decoders are replaced by bounded ones of ours.
* A client that cannot be made leaves a thread and four file descriptors behind.
* Reconnecting backs off to half a minute unless told otherwise, and a topic without metadata blocks a producer for a minute.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakSet

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import ConfigResource
from kafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    RetriableError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)
from kafka.record import default_records, legacy_records
from kafka.structs import OffsetAndMetadata

from millrace.learners.errors import BadInputError, MillraceError
from millrace.streams.kafka.cluster import Cluster, Secrets, security
from millrace.streams.kafka.decompression import DECODERS
from millrace.streams.kafka.reader import KafkaReader, partition_of, refused, widened
from millrace.streams.records import Record, decode_headers, tp_name
from millrace.streams.source import Position, Topic
from millrace.streams.stream import UNKNOWN

MESSAGE_BYTES = 32 << 20  # of one record, at most, in topics that are made here
FETCH_BYTES = 16 << 20  # of a fetch, about: what a consumer holds that nobody has asked for yet
FRAME_BYTES = 200  # that a record and its batch have beside key, headers and value, at most
RECONNECT_MS = 500  # between two attempts to reach a broker, at most
RETRY_S = 0.1
COMMIT_S = 2.0  # that a group's offsets may take, which nothing depends on

T = TypeVar("T")


class Link:
    """A process's connection to a cluster: one administrator, one producer, and readers; any thread may use it."""

    def __init__(self, cluster: Cluster, secrets: Secrets, partition_bytes: int) -> None:
        """``partition_bytes``: of one partition in a fetch, about. Nothing is connected before it is needed.

        Raises: ConfigError where a file of certificates is not there.
        """
        cluster.check_files()
        logging.getLogger("kafka").setLevel(logging.CRITICAL)  # what matters of it is raised, in our words
        _bound_decoders()
        self.cluster = cluster
        self._partition_bytes = partition_bytes
        self._patience_ms = int(cluster.patience_s * 1000)
        self._clients: dict[str, Any] = security(cluster, secrets) | {
            "bootstrap_servers": cluster.brokers,
            "client_id": "millrace",
            "reconnect_backoff_max_ms": RECONNECT_MS,
            "request_timeout_ms": max(1000, min(15_000, self._patience_ms // 2)),
            "bootstrap_timeout_ms": self._patience_ms,
        }
        self._lock = threading.RLock()
        self._admin: Any = None
        self._producer: Any = None
        self._readers: WeakSet[KafkaReader] = WeakSet()

    # Topics

    def topics(self, names: Sequence[str]) -> dict[str, Topic]:
        """Those of the names that are there."""
        described = self._ask(lambda admin: admin.describe_topics(list(names)), f"topics {', '.join(names)}")
        existing = {topic["name"]: topic for topic in described if not topic["error_code"]}
        return {name: Topic(str(topic["topic_id"]), len(topic["partitions"])) for name, topic in existing.items()}

    def names(self) -> list[str]:
        """All topics that this user may see."""
        names: list[str] = self._ask(lambda admin: admin.list_topics(), "the list of topics")
        return names

    def replicas(self, name: str) -> int:
        """Of the partition of a topic that has the fewest."""
        described = self._ask(lambda admin: admin.describe_topics([name]), f"topic {name}")
        return min(len(partition["replica_nodes"]) for partition in described[0]["partitions"])

    def create(self, name: str, partitions: int, settings: Mapping[str, str]) -> None:
        """Make a topic, unless it is there by now; of three replicas or more two acknowledge what is appended."""
        insync = {"min.insync.replicas": "2"} if self.cluster.replication >= 3 else {}
        configs = {"max.message.bytes": str(MESSAGE_BYTES)} | insync | dict(settings)
        topic_spec = {"num_partitions": partitions, "replication_factor": self.cluster.replication or -1, "configs": configs}
        with suppress(TopicAlreadyExistsError):  # another process may have been faster
            self._ask(
                lambda admin: admin.create_topics({name: topic_spec}, self._patience_ms), f"topic {name}, which is to be made"
            )
        self._ask(lambda admin: admin.wait_for_topics([name], self._patience_ms), f"topic {name}")

    def delete(self, names: Sequence[str]) -> None:
        """Remove topics and all that is in them."""
        with suppress(UnknownTopicOrPartitionError):
            self._ask(lambda admin: admin.delete_topics(list(names), self._patience_ms), "topics to be deleted")

    def settings(self, name: str) -> dict[str, str]:
        """Every setting of a topic, defaults of the cluster included."""
        resources = [ConfigResource("topic", name)]
        described = self._ask(
            lambda admin: admin.describe_configs(resources, config_filter="all"), f"the settings of topic {name}"
        )
        return {key: str(setting["value"]) for key, setting in described["topic"][name].items()}

    def delete_before(self, tp: str, offset: int) -> None:
        """Forget records before ``offset``."""
        self._ask(
            lambda admin: admin.delete_records({partition_of(tp): offset}, self._patience_ms),
            f"records of {tp} before {offset}",
        )

    def commit(self, group: str, position: Position) -> None:
        """Say in the group's name how far its reader is, for tools that show lag. Nothing is ever read back from there."""
        offsets = {partition_of(tp): OffsetAndMetadata(at, "", -1) for tp, at in position.items()}
        self._ask(lambda admin: admin.alter_group_offsets(group, offsets), f"group {group}", COMMIT_S)

    def _ask(self, request: Callable[[Any], T], subject: str, patience_s: float = float("inf")) -> T:
        """Ask the cluster, again and again while it does not answer.

        Raises: StorageError in time; UnknownTopicOrPartitionError and TopicAlreadyExistsError as they are.
        """
        until_s = time.monotonic() + min(patience_s, self.cluster.patience_s)
        while True:
            try:
                with self._lock:
                    self._admin = self._admin or self._made(KafkaAdminClient, {})
                    admin = self._admin
                return request(admin)
            except (UnknownTopicOrPartitionError, TopicAlreadyExistsError):
                raise
            except (RetriableError, OSError) as error:
                if time.monotonic() > until_s:
                    raise self._refused(subject, error) from error
                time.sleep(RETRY_S)
            except KafkaError as error:
                raise self._refused(subject, error) from error

    def _made(self, kind: Any, settings: Mapping[str, Any]) -> Any:
        """A client of a kind; where it cannot be made, the thread and sockets that it has begun with are ended too."""
        client = kind.__new__(kind)
        try:
            client.__init__(**self._clients, **settings)
        except (KafkaError, OSError):
            if (network_client := getattr(client, "_client", None)) is not None:
                network_client.close()
            raise
        return client

    def _refused(self, subject: str, error: Exception) -> MillraceError:
        return refused(self.cluster, subject, error)

    # Appending

    def send(self, topic: str, record: Record, partition: int | None = None) -> Sent:
        """Start appending. Raises: BadInputError for a record that is too large, StorageError where Kafka cannot be reached."""
        key = b"" if record.key is None and record.value is None else record.key  # the client refuses to send neither
        with self._lock:
            producer = self._producing()
        try:
            headers = list(decode_headers(record.headers))
            future = producer.send(topic, record.value, key, headers, partition, record.timestamp_ms)
            return Sent(self, producer, future, topic, len(record.value or b"") + len(key or b"") + len(record.headers))
        except MessageSizeTooLargeError as error:
            raise BadInputError(f"A record of {topic} is larger than the {MESSAGE_BYTES} bytes that one may have.") from error
        except (KafkaError, OSError) as error:
            self.give_up(producer)
            raise self._refused(f"topic {topic}", error) from error

    def _producing(self) -> Any:
        if self._producer is None:
            settings = {
                "enable_idempotence": True,
                "acks": "all",
                "allow_auto_create_topics": False,
                "compression_type": None if self.cluster.compression == "none" else self.cluster.compression,
                "delivery_timeout_ms": self._patience_ms,
                "max_block_ms": self._patience_ms,
                "max_request_size": MESSAGE_BYTES,
                "metrics_enabled": False,
            }
            try:
                self._producer = self._made(KafkaProducer, settings)
            except (KafkaError, OSError) as error:
                raise self._refused("the cluster", error) from error
        return self._producer

    def give_up(self, producer: Any) -> None:
        """Send nothing more with a producer that has failed: what it still holds fails too, and the next append has another."""
        with self._lock:
            if self._producer is producer:
                self._producer = None
        producer.close(timeout=0)

    # Reading

    def reader(self, committed: bool = True) -> KafkaReader:
        """A reader of one's own. ``committed``: of transactions, only those that were committed."""
        settings = {
            "group_id": None,
            "enable_auto_commit": False,
            "auto_offset_reset": "none",
            "isolation_level": "read_committed" if committed else "read_uncommitted",
            "allow_auto_create_topics": False,
            "fetch_max_bytes": max(FETCH_BYTES, self._partition_bytes),
            "max_partition_fetch_bytes": self._partition_bytes,
            "metrics_enabled": False,
        }
        try:
            reader = KafkaReader(self.cluster, widened(self._made(KafkaConsumer, settings)))
        except (KafkaError, OSError) as error:
            raise self._refused("the cluster", error) from error
        self._readers.add(reader)
        return reader

    def close(self) -> None:
        """Let go of everything, readers included; what was sent and not acknowledged may be lost."""
        for reader in list(self._readers):
            reader.close()
        with self._lock:
            for client in (self._admin, self._producer):
                if client is not None:
                    client.close()
            self._admin = self._producer = None


@dataclass(frozen=True, slots=True)
class Sent:
    """A record on its way."""

    link: Link
    producer: Any
    future: Any
    topic: str
    size: int  # bytes of key, headers and value

    def place(self) -> tuple[int, int]:
        """Wait for the acknowledgement: partition, and offset or ``UNKNOWN``.

        Raises: StorageError where there is none in time: the record may be there all the same, now or later; BadInputError
        where the topic does not take records so large.
        """
        try:
            stored = self.future.get(self.link.cluster.patience_s * 2)
        except (KafkaError, OSError) as error:
            self.link.give_up(self.producer)  # after one refusal it would give the same answer to everything
            if isinstance(error, MessageSizeTooLargeError) and self._too_large():
                raise BadInputError(f"Topic {self.topic} takes no records so large; raise its max.message.bytes.") from error
            raise refused(self.link.cluster, f"topic {self.topic}", error) from error
        return stored.partition, UNKNOWN if stored.offset is None or stored.offset < 0 else stored.offset

    def _too_large(self) -> bool:
        """Whether it was this record, and not another that was sent beside it."""
        return self.size + FRAME_BYTES > int(self.link.settings(self.topic)["max.message.bytes"])

    def offset(self) -> int:
        """As ``place``, the offset alone."""
        return self.place()[1]


def _bound_decoders() -> None:
    """Let the client decode no batch beyond our limit, in records of either format."""
    for module in (default_records, legacy_records):
        for name, decode in DECODERS.items():
            setattr(module, name, decode)


def names_of(topic: str, count: int) -> list[str]:
    """The names of a topic's partitions."""
    return [tp_name(topic, number) for number in range(count)]
