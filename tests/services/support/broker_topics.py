"""Pipelines with their log on a broker: the tables that put one there, and the end of its topics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from either_log import swept

from millrace.services.config.config import load_pipeline
from millrace.services.pipeline import backends as logs
from millrace.streams.kafka.client import Link
from millrace.streams.kafka.cluster import Cluster, Secrets


def on(broker) -> str:
    """The tables of a pipeline file that put it there."""
    return f'\n[log]\nkind = "kafka"\n[log.kafka]\nbootstrap = "{broker.bootstrap}"\n'


@contextmanager
def forgotten(broker, folder: Path, called: str = "digits") -> Iterator[None]:
    """Afterwards, also where a test fails, the broker knows nothing of the pipeline that is so called, in ``folder``."""
    with swept():
        try:
            yield
        finally:
            for pipeline in [*folder.rglob(f"{called}.toml")][:1]:
                forget(broker, pipeline, called)


def forget(broker, pipeline: Path, called: str) -> None:
    """Delete the topics of the pipeline of that name, and close this process's own connections."""
    link = Link(Cluster(broker.bootstrap), Secrets(), 1 << 20)
    link.delete([name for name in link.names() if name.startswith(called)])
    link.close()
    logs.OnKafka(load_pipeline(pipeline).pipeline)._readers.link.close()
    logs._connected.cache_clear()
