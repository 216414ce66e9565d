"""A pod that is replaced while it is asked over HTTP and gRPC: no accepted request is cut, and every label is learned once.

Answers are recorded after the reply in some turns and before it in others, so that pods of both kinds are ended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from one_node import Cluster, until
from releases import VALUES, Release, installed

pytestmark = pytest.mark.cluster
RECORDS = ("after-reply", "before-reply")


def recording(record: str) -> dict[str, Any]:
    """The pipeline with answers recorded after or before the reply."""
    return VALUES["pipeline"] | {"serving": {"record": record}}


@pytest.fixture(scope="module")
def release(cluster: Cluster, newer: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """One that records after the reply, taught ten rows; a newer image is there to be upgraded to."""
    cluster.namespace("moved")
    values = VALUES | {"pipeline": recording("after-reply")}
    with installed(cluster, "moved", tmp_path_factory.mktemp("moved"), values) as release:
        release.begin()
        yield release


def upgrade(release: Release, turn: int) -> None:
    """To a newer image, in every other round with the other way of recording."""
    record = RECORDS[(turn // len(MOVES) + 1) % len(RECORDS)]
    release.install(image=VALUES["image"] | {"tag": "newer"}, pipeline=recording(record))


def drain(release: Release, turn: int) -> None:
    """Empty the node, and let pods come back to it. No disruption budget stands in the way."""
    release.cluster.kubectl("drain", "n1", "--delete-emptydir-data", "--ignore-daemonsets", "--force", "--timeout=5m")
    release.cluster.kubectl("uncordon", "n1")


def evict(release: Release, turn: int) -> None:
    """As what moves pods about asks for it."""
    name = {"name": "spam-0", "namespace": release.namespace}
    body = release.folder / "eviction.json"
    body.write_text(json.dumps({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": name}), encoding="utf-8")
    path = f"/api/v1/namespaces/{release.namespace}/pods/spam-0/eviction"
    release.cluster.kubectl("create", "--raw", path, "-f", str(body))


def rollback(release: Release, turn: int) -> None:
    """The image and the values of before."""
    release.helm("rollback", "--wait", "--timeout", "10m")


MOVES = [upgrade, drain, evict, rollback]
TO_ANOTHER_IMAGE = [upgrade, rollback]
TURNS = int(os.environ.get("MILLRACE_TURNS", 2 * len(MOVES)))  # `make faults` says twenty


@pytest.mark.parametrize(("turn", "move"), [(turn, MOVES[turn % len(MOVES)]) for turn in range(TURNS)])
def test_a_pod_that_is_moved_cuts_nothing(release: Release, move: Callable[[Release, int], None], turn: int) -> None:
    """Only new connections are refused meanwhile; for how long is printed."""
    before, image = release.pod()["metadata"]["uid"], release.container()["imageID"]
    with release.loaded(f"{move.__name__} {turn}") as load:
        move(release, turn)
        until(lambda: release.pod()["metadata"]["uid"] != before, "another pod")
    assert load.cut == [] and load.odd == []
    assert (release.container()["imageID"] != image) == (move in TO_ANOTHER_IMAGE)
    for protocol in ("Endpoint", "GrpcEndpoint"):
        assert load.statuses[f"{protocol} asked 200"] > 10 and load.statuses[f"{protocol} labelled 202"] > 10
