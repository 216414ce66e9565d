"""A release whose log is on a Kafka broker outside the cluster."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from one_node import Cluster
from releases import VALUES, Release

from millrace.services.demo.broker import Broker

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
JARS = Path(home) / "libs" if (home := os.environ.get("KAFKA_HOME")) else ROOT / ".kafka" / "jars"


@pytest.fixture(scope="module")
def broker(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker on the machine, where pods find it: on the node's address."""
    if shutil.which("java") is None or not list(JARS.glob("kafka-server-*.jar")):
        pytest.skip("no java here, or no jars of Kafka: `make .kafka/.ready` gets them")
    addresses = cluster.got("node", "n1")["status"]["addresses"]
    (node,) = (entry["address"] for entry in addresses if entry["type"] == "InternalIP")
    broker = Broker(tmp_path_factory.mktemp("broker"), JARS)
    settings = broker.folder / "server.properties"
    text = settings.read_text(encoding="utf-8").replace("listeners=PLAINTEXT://127.0.0.1:", "listeners=PLAINTEXT://0.0.0.0:")
    settings.write_text(text.replace("advertised.listeners=PLAINTEXT://0.0.0.0:", f"advertised.listeners=PLAINTEXT://{node}:"))
    broker.start()
    yield f"{node}:{broker.port}"
    broker.stop()


def test_it_is_upgraded_under_load_and_installed_again(broker: str, cluster: Cluster, tmp_path: Path) -> None:
    """Every accepted label is learned once; the log and the topics are the broker's, and what was learned is on the claim."""
    cluster.namespace("kafka")
    cluster.volume("kafka", 10001)
    pipeline = VALUES["pipeline"] | {"log": {"kind": "kafka", "kafka": {"bootstrap": broker}}}
    release = Release(cluster, "kafka", tmp_path, VALUES | {"pipeline": pipeline})
    release.install()
    release.begin()
    with release.loaded("on Kafka") as load:
        release.install(podAnnotations={"example.org/turn": "two"})
    assert load.cut == [] and load.odd == []
    release.helm("uninstall", "--wait", "--timeout", "5m")
    release.install()
    release.told("again")
    release.everything_once()
    cluster.forget("kafka")
