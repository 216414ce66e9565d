"""A release whose log is on a Kafka broker outside the cluster."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from one_node import Cluster, until
from pipelines import lacks
from releases import VALUES, Release, installed

from millrace.services.demo.broker import Broker

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
JARS = Path(home) / "libs" if (home := os.environ.get("KAFKA_HOME")) else ROOT / ".kafka" / "jars"


@pytest.fixture(scope="module")
def broker(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker on the machine, where pods find it: on the node's address."""
    if shutil.which("java") is None or not list(JARS.glob("kafka-server-*.jar")):
        lacks("no java here, or no jars of Kafka: `make .kafka/.ready` gets them")
    node = cluster.address()
    broker = Broker(tmp_path_factory.mktemp("broker"), JARS)
    settings = broker.folder / "server.properties"
    text = settings.read_text(encoding="utf-8").replace("listeners=PLAINTEXT://127.0.0.1:", "listeners=PLAINTEXT://0.0.0.0:")
    settings.write_text(text.replace("advertised.listeners=PLAINTEXT://0.0.0.0:", f"advertised.listeners=PLAINTEXT://{node}:"))
    broker.start()
    yield f"{node}:{broker.port}"
    broker.stop()


@pytest.fixture(scope="module")
def release(broker: str, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """Its log and topics are the broker's, what was learned is on the claim. The tests go on from each other, in this order."""
    cluster.namespace("kafka")
    pipeline = VALUES["pipeline"] | {"log": {"kind": "kafka", "kafka": {"bootstrap": broker}}}
    with installed(cluster, "kafka", tmp_path_factory.mktemp("kafka"), VALUES | {"pipeline": pipeline}) as release:
        release.begin()
        yield release


def test_helm_test_passes(release: Release) -> None:
    """A prediction and a label over HTTP and gRPC, and the metric that counted them."""
    assert "Phase:          Succeeded" in release.helm("test", "--timeout", "5m")


def test_nothing_is_lost_by_a_kill_of_the_pod(release: Release) -> None:
    """Its process 1 is killed while it is asked; every label that was accepted is learned once."""
    before = release.restarts()
    with release.loaded("kill on Kafka") as load:
        os.kill(release.process_1(), signal.SIGKILL)
        until(lambda: release.restarts() > before, "another start")
    print(f"{len(load.cut)} requests were cut; other answers: {load.odd[:3]}")
    assert release.restarts() == before + 1, release.described()
    assert "log before spam-0 millrace" in release.cluster.logs("kafka")


def upgrade(release: Release) -> None:
    """To other values."""
    release.install(podAnnotations={"example.org/turn": "two"})


def rollback(release: Release) -> None:
    """The values of before."""
    release.helm("rollback", "--wait", "--timeout", "10m")


@pytest.mark.parametrize("move", [upgrade, rollback])
def test_a_pod_that_is_replaced_cuts_nothing(release: Release, move: Callable[[Release], None]) -> None:
    """Every accepted label is learned once."""
    before = release.pod()["metadata"]["uid"]
    with release.loaded(f"{move.__name__} on Kafka") as load:
        move(release)
        until(lambda: release.pod()["metadata"]["uid"] != before, "another pod")
    assert load.cut == [] and load.odd == []


def test_uninstalled_and_installed_again_it_knows_what_it_knew(release: Release) -> None:
    """The claim stays, and so do the topics."""
    release.helm("uninstall", "--wait", "--timeout", "5m")
    release.install()
    release.told("again")
    release.everything_once()
