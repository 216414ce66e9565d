"""The table [log] of a pipeline file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from millrace.streams.cluster import Cluster


@dataclass(frozen=True, slots=True)
class LogConfig:
    """Where events come from, and where journals and ledger are."""

    kind: Literal["sqlite", "kafka"] = "sqlite"  # files in the pipeline's folder, or topics of a cluster
    topic: str = ""  # empty: the pipeline's name
    partitions: int = 1  # >= 1, fixed when the topic is made
    retention_hours: float = 0.0  # of the embedded log and of topics made on Kafka; 0 keeps everything
    max_bytes: int = 1 << 20  # of one record's value; a larger one is a dead letter
    kafka: Cluster = field(default_factory=Cluster)  # which cluster
    max_batch_bytes: int = 8 << 20  # of one columnar message, as it lies there and decompressed

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name, low in (("partitions", 1), ("retention_hours", 0), ("max_bytes", 1), ("max_batch_bytes", 1)):
            if not low <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least {low}")
        if self.kind == "kafka" and not self.kafka.bootstrap:
            raise ValueError('kind = "kafka": say where it is with kafka.bootstrap = "host:port"')
