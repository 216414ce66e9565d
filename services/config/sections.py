"""The tables of a pipeline file that say how millrace goes about its work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from millrace.streams.kafka.cluster import Cluster


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """Training batches."""

    rows: int = 256  # of a full batch, >= 1; more learns in fewer, larger lessons
    wait_ms: int = 1000  # by the journal's clock, >= 1; a part of a batch is learned after so long

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("rows", "wait_ms"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")


@dataclass(frozen=True, slots=True)
class LogConfig:
    """Where events come from, and where journals and ledger are."""

    kind: Literal["sqlite", "kafka"] = "sqlite"  # files in the pipeline's folder, or topics of a cluster
    topic: str = ""  # empty: the pipeline's name
    partitions: int = 1  # >= 1, fixed when the topic is made
    retention_hours: float = 0.0  # of the embedded log and of topics made on Kafka; 0 keeps everything
    max_bytes: int = 1 << 20  # of one record's value; a larger one is a dead letter
    max_batch_bytes: int = 8 << 20  # of one columnar message, as it lies there and decompressed
    registry: str = ""  # URL of a schema registry, for Avro records; empty: there are none
    kafka: Cluster = field(default_factory=Cluster)  # which cluster

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name, low in (("partitions", 1), ("retention_hours", 0), ("max_bytes", 1), ("max_batch_bytes", 1)):
            if not low <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least {low}")
        if self.registry and not self.registry.startswith(("http://", "https://")):
            raise ValueError(f"registry = {self.registry!r}: must begin with http:// or https://")
        if self.kind == "kafka" and not self.kafka.bootstrap:
            raise ValueError('kind = "kafka": say where it is with kafka.bootstrap = "host:port"')


@dataclass(frozen=True, slots=True)
class VersionsConfig:
    """Which versions are kept. What an alias names or an endpoint serves, or did last, is kept whatever this says."""

    keep: int = 20  # newest of each branch; 0: all
    verify_budget_s: float = 60.0  # for folding a new version again beside `millrace up`; 0: none is

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("keep", "verify_budget_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 0")


@dataclass(frozen=True, slots=True)
class MlflowConfig:
    """Where versions are mirrored to. Nothing of it changes what is learned or served."""

    uri: str = ""  # of the tracking server, such as http://127.0.0.1:5000; empty: nothing is mirrored
    model: str = ""  # the registered model and the experiment; empty: the pipeline's name
    moved_by_hand: Literal["set-back", "adopt"] = "set-back"  # what becomes of an alias that somebody moved there


@dataclass(frozen=True, slots=True)
class ServingConfig:
    """How the endpoint goes about it. Nothing of it changes what is learned from a record that is in the log."""

    record: Literal["after-reply", "before-reply", "off"] = "after-reply"  # when an answer that labels may follow is appended
