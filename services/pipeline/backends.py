"""Where a pipeline's log, journals and ledger lie: in files of its folder, or in topics of a Kafka cluster.

Checkpoints, locks and plans are in the folder either way. The client of Kafka is imported only where a pipeline is on Kafka.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from millrace.learners.distribution import how_to_get
from millrace.learners.errors import ConfigError
from millrace.services.config.config import PipelineConfig, kafka_secrets
from millrace.streams.branch.outputs import dead_letter_topic, scores_topic
from millrace.streams.errors import StorageError
from millrace.streams.kafka.cluster import Cluster
from millrace.streams.sharding import WHOLE, Partitioner, Shard, by_murmur2, shard_branches
from millrace.streams.source import Log, Position, Source
from millrace.streams.sqlite.log import SqliteLog, SqliteSource, by_crc32
from millrace.streams.sqlite.stream import SqliteStream
from millrace.streams.stream import Stream

if TYPE_CHECKING:
    from millrace.streams.kafka.log import KafkaLog
    from millrace.streams.kafka.stream import Readers

log = logging.getLogger("millrace")

PARTITION_BYTES = 4 << 20  # of one partition at a time, at least: what is there at once becomes one step


class Logs(Protocol):
    """What an instance asks for."""

    @property
    def ledger_name(self) -> str:
        """What messages call the ledger."""

    def log(self) -> Log:
        """The log, with the pipeline's topics in it."""

    def source(self, topics: Sequence[str], shard: Shard = WHOLE) -> Source:
        """A reader of topics that are there, or of a shard's partitions of them."""

    @property
    def partitioner(self) -> Partitioner:
        """By which it deals records with a key out to partitions."""

    def journal(self, branch: str) -> Stream:
        """The journal of a branch."""

    def branches(self) -> list[str]:
        """Every branch that has a journal."""

    def ledger(self) -> Stream:
        """What operators and gates decided."""

    def marked(self, branch: str, position: Position) -> None:
        """A mark of a branch counts; for those outside who watch how far it is."""


@dataclass(frozen=True, slots=True)
class InFiles:
    """SQLite files in the pipeline's folder."""

    pipeline: PipelineConfig
    folder: Path

    @property
    def ledger_name(self) -> str:
        """Its path."""
        return str(self.folder / "ledger.sqlite")

    def log(self) -> SqliteLog:
        """The embedded log."""
        embedded = SqliteLog(self.folder / "log.sqlite")
        _make_topics(embedded, self.pipeline)
        return embedded

    def source(self, topics: Sequence[str], shard: Shard = WHOLE) -> SqliteSource:
        """On the embedded log."""
        return SqliteSource(self.log(), topics, shard)

    @property
    def partitioner(self) -> Partitioner:
        """The embedded log's own."""
        return by_crc32

    def journal(self, branch: str) -> SqliteStream:
        """A file of its own."""
        return SqliteStream(self.folder / "journal" / f"{branch}.sqlite")

    def branches(self) -> list[str]:
        """Those that have a file."""
        return sorted(path.stem for path in (self.folder / "journal").glob("*.sqlite"))

    def ledger(self) -> SqliteStream:
        """A file of its own."""
        return SqliteStream(self.folder / "ledger.sqlite")

    def marked(self, branch: str, position: Position) -> None:
        """Nobody outside watches."""


@dataclass(frozen=True, slots=True)
class OnKafka:
    """Topics NAME, NAME.served, NAME.scores, NAME.dead-letters, NAME.journal.BRANCH and NAME.ledger of a cluster."""

    pipeline: PipelineConfig

    @property
    def ledger_name(self) -> str:
        """Its topic."""
        return f"{self.pipeline.name}.ledger"

    @property
    def _readers(self) -> Readers:
        return _connected(self.pipeline.log.kafka, max(PARTITION_BYTES, 2 * self.pipeline.log.max_bytes))

    def log(self) -> KafkaLog:
        """Its topics."""
        from millrace.streams.kafka.log import KafkaLog

        topics = KafkaLog(self._readers.link, self.pipeline.log.retention_hours)
        _make_topics(topics, self.pipeline)
        return topics

    def source(self, topics: Sequence[str], shard: Shard = WHOLE) -> Source:
        """With positions of its own; the settings of what is learned from are looked at first."""
        from millrace.streams.kafka.log import KafkaSource

        labels = self.pipeline.labels
        outlast_ms = 0 if labels is None else labels.horizon_ms + labels.grace_ms
        self.log().check([name for name in topics if name in self.pipeline.topics], outlast_ms)
        undivided = "" if self.pipeline.entity is None else "[entity]"
        return KafkaSource(self._readers.link, topics, shard, undivided=undivided)

    @property
    def partitioner(self) -> Partitioner:
        """That of Kafka's own clients."""
        return by_murmur2

    def journal(self, branch: str) -> Stream:
        """A topic of its own."""
        return self._stream(f"{self._journals}{branch}")

    @property
    def _journals(self) -> str:
        return f"{self.pipeline.name}.journal."

    def branches(self) -> list[str]:
        """Those that have a topic."""
        names = self._readers.link.names()
        return sorted(name.removeprefix(self._journals) for name in names if name.startswith(self._journals))

    def ledger(self) -> Stream:
        """A topic of its own."""
        return self._stream(self.ledger_name)

    def _stream(self, topic: str) -> Stream:
        from millrace.streams.kafka.stream import KafkaStream

        return KafkaStream(self._readers, topic)

    def marked(self, branch: str, position: Position) -> None:
        """Offsets of group NAME.BRANCH, for tools that show lag; nothing reads them back."""
        try:
            self._readers.link.commit(f"{self.pipeline.name}.{branch}", position)
        except StorageError as error:
            log.warning("%s Tools that show lag will show too much.", error)


@cache
def _connected(cluster: Cluster, partition_bytes: int) -> Readers:
    """This process's one connection to a cluster. Raises: ConfigError where the client is not installed."""
    try:
        from millrace.streams.kafka.client import Link
        from millrace.streams.kafka.stream import Readers
    except ImportError as error:
        raise ConfigError(f'log.kind = "kafka" needs the client of Kafka. {how_to_get("kafka")}') from error
    return Readers(Link(cluster, kafka_secrets(), partition_bytes))


def _make_topics(store: SqliteLog | KafkaLog, pipeline: PipelineConfig) -> None:
    for topic in pipeline.topics:
        store.create_topic(topic, pipeline.log.partitions)
    scores = {scores_topic(pipeline.name, branch) for branch in shard_branches(pipeline.name, pipeline.shards)}
    for output in [*sorted(scores), dead_letter_topic(pipeline.name)]:  # of one partition
        store.create_topic(output)


def logs_of(pipeline: PipelineConfig, folder: Path) -> Logs:
    """As the pipeline file says."""
    return OnKafka(pipeline) if pipeline.log.kind == "kafka" else InFiles(pipeline, folder)
