"""A pod that is replaced while it is asked: no accepted request is cut, and every label is learned once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest
from one_node import until
from releases import Release

pytestmark = pytest.mark.cluster


def upgrade(release: Release, turn: int) -> None:
    """Another template."""
    release.install(podAnnotations={"example.org/turn": str(turn)})


def rollback(release: Release, turn: int) -> None:
    """The template of before."""
    release.helm("rollback", "--wait", "--timeout", "10m")


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


MOVES = [upgrade, rollback, drain, evict]
TURNS = int(os.environ.get("MILLRACE_TURNS", 3))  # a drain evicts, too; `make faults` says twenty


@pytest.mark.parametrize(("turn", "move"), [(turn, MOVES[turn % len(MOVES)]) for turn in range(TURNS)])
def test_a_pod_that_is_moved_cuts_nothing(release: Release, move: Callable[[Release, int], None], turn: int) -> None:
    """Only new connections are refused meanwhile; for how long is printed."""
    if not release.accepted:
        release.begin()
    before = release.pod()["metadata"]["uid"]
    with release.loaded(f"{move.__name__} {turn}") as load:
        move(release, turn)
        until(lambda: release.pod()["metadata"]["uid"] != before, "another pod")
    assert load.cut == [] and load.odd == []
