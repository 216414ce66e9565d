"""The tables of a pipeline file that say how millrace goes about its work."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field, fields
from typing import Literal

from millrace.streams.kafka.cluster import Cluster

MOST_MODEL = 250  # characters of the name of a registered model


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """How rows are gathered into training batches. Both keys change what is learned."""

    rows: int = 256  # >= 1, rows of a full batch; more makes fewer and larger updates, and newer answers wait longer
    wait_ms: int = 1000  # >= 1, milliseconds of the journal's clock after which a part of a batch is learned

    def __post_init__(self) -> None:
        """Raise ValueError for a setting out of range."""
        for name in ("rows", "wait_ms"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")


@dataclass(frozen=True, slots=True)
class LogConfig:
    """Where events come from, and where the journals and the ledger lie."""

    kind: Literal["sqlite", "kafka"] = "sqlite"  # files in the pipeline's folder, or topics of a cluster
    topic: str = ""  # the topic of events; empty: the pipeline's name
    partitions: int = 1  # >= 1, partitions of the topics that are read; fixed when a topic is made
    # >= 0, how long the embedded log keeps a record after it was appended, and longer while a branch has still to read it; what
    # topics made here are given as retention.ms, by which brokers go; 0: for ever
    retention_hours: float = 0.0
    max_bytes: int = 1 << 20  # >= 1, bytes of one record's value; a larger one is a dead letter
    max_batch_bytes: int = 8 << 20  # >= 1, bytes of one Arrow message, as it lies there and decompressed
    registry: str = ""  # URL of a schema registry, http:// or https://, for Avro records; empty: there are none
    kafka: Cluster = field(default_factory=Cluster)  # which cluster, with kind = "kafka"

    def __post_init__(self) -> None:
        """Raise ValueError for a setting out of range."""
        for name, low in (("partitions", 1), ("retention_hours", 0), ("max_bytes", 1), ("max_batch_bytes", 1)):
            if not low <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least {low}")
        if self.registry and not self.registry.startswith(("http://", "https://")):
            raise ValueError(f"registry = {self.registry!r}: must begin with http:// or https://")
        if self.kind == "kafka" and not self.kafka.bootstrap:
            raise ValueError('kind = "kafka": say where it is with kafka.bootstrap = "host:port"')


@dataclass(frozen=True, slots=True)
class VersionsConfig:
    """Which versions are kept. A version that an alias names or that an endpoint serves, or served last, is always kept."""

    keep: int = 20  # >= 0, newest versions of each branch that are kept; 0: all
    # >= 0, seconds to fold a new version again from its parent beside `millrace up`; past it, from the nearest state; 0: none
    verify_budget_s: float = 60.0

    def __post_init__(self) -> None:
        """Raise ValueError for a setting out of range."""
        for name in ("keep", "verify_budget_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 0")


@dataclass(frozen=True, slots=True)
class MlflowConfig:
    """Where versions are mirrored to. No key changes what is learned or served."""

    uri: str = ""  # of MLflow's tracking server, such as http://127.0.0.1:5000; empty: nothing is mirrored
    model: str = ""  # name of the registered model and of the experiment; empty: the pipeline's name
    moved_by_hand: Literal["set-back", "adopt"] = "set-back"  # an alias moved in MLflow: put it back, or let the ledger follow

    def __post_init__(self) -> None:
        """Raise ValueError for a name that MLflow refuses, which would be tried again for ever."""
        name = self.model
        path_like = posixpath.normpath(name) != name or name == "." or name.startswith("..")
        if name and (
            len(name) > MOST_MODEL or not name.isprintable() or not name.strip() or set(name) & {"/", ":"} or path_like
        ):
            raise ValueError(
                f"model = {name[:MOST_MODEL]!r}: must be a name that MLflow takes: at most {MOST_MODEL} characters that print, "
                "without / and :, neither blank nor . nor .."
            )


@dataclass(frozen=True, slots=True)
class ServingConfig:
    """How the endpoint answers. No key changes what is learned from a record that is in the log."""

    record: Literal["after-reply", "before-reply", "off"] = "after-reply"  # when an answer is appended for its late label
    max_bytes: int = 16 << 20  # >= 1, bytes of one request; a larger one gets 413
    max_rows: int = 8192  # >= 1, rows of one request; one of more gets 413; a replica answers nobody else meanwhile
    max_inputs: int = 1024  # >= 1, inputs of one request, where the model has fewer fields; one of more gets 413
    max_labels: int = 4096  # >= 1, labels of one request; one of more gets 413
    # >= 1, answered rows that may wait for the log beside those of one request; further ones are not recorded, and counted
    waiting_rows: int = 32_768
    # >= 1, bytes of completions that may wait for the log; further ones are not recorded, and counted
    waiting_bytes: int = 64 << 20
    body_s: float = 10.0  # > 0, seconds by which a request's body has to be whole; a later one gets 408
    idle_s: float = 30.0  # > 0, seconds that a connection may stay without a request before it is closed
    log_s: float = 5.0  # > 0, seconds by which the log must have what a caller waits for; else 503
    arriving_bytes: int = 256 << 20  # >= 1, bytes of all bodies that arrive at a replica at once; a further one gets 503
    working_bytes: int = 256 << 20  # >= 1, bytes of large requests that a replica works on or has waiting; else 503
    in_flight: int = 2048  # >= 1, requests that a replica holds at a time
    queued: int = 256  # >= 1, requests that may wait for a replica; further ones get 503

    def __post_init__(self) -> None:
        """Raise ValueError for a setting out of range."""
        for key in fields(self):
            value = getattr(self, key.name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{key.name} = {value}: must be at least 1")
        for name in ("body_s", "idle_s", "log_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)}: must be above 0")
