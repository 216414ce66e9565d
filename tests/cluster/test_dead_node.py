"""A node that is dead: what docs/how-to/kubernetes.md says is done, and the pod learns on. Here the node itself comes back."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from one_node import until
from releases import Release

pytestmark = pytest.mark.cluster
PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "kubernetes.md"


@contextmanager
def dead(release: Release) -> Iterator[None]:
    """The node says nothing any more, and nothing of the pod runs on it."""
    process_1, kubelet = release.process_1(), int((release.cluster.folder / "kubelet.pid").read_text(encoding="utf-8"))
    os.kill(kubelet, signal.SIGSTOP)
    try:
        os.kill(process_1, signal.SIGKILL)
        yield
    finally:
        os.kill(kubelet, signal.SIGCONT)


def node_is_ready(release: Release) -> bool:
    """As Kubernetes sees it."""
    conditions = release.cluster.got("node", "n1")["status"]["conditions"]
    return any(state["type"] == "Ready" and state["status"] == "True" for state in conditions)


def uid(release: Release) -> str:
    """Of the pod; empty where there is none."""
    return "".join(pod["metadata"]["uid"] for pod in release.got("pod")["items"])


def test_a_pod_of_a_dead_node_starts_again_once_that_is_said(release: Release) -> None:
    """Kubernetes makes no other pod before; then what was learned is there, and goes on."""
    taint, *_, untaint = re.findall(r"^\$ kubectl (taint nodes NODE .*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    release.begin()
    release.told("before")
    release.everything_once()
    before = uid(release)
    with dead(release):
        until(lambda: not node_is_ready(release), "a node that is not ready")
        assert uid(release) == before
        release.cluster.kubectl(*taint.replace("NODE", "n1").split())
        until(lambda: uid(release) != before, "the end of the pod that cannot say so")
    release.cluster.kubectl(*untaint.replace("NODE", "n1").split())
    until(lambda: uid(release) and release.ready(), "another pod")
    until(lambda: release.is_reached(), "a Service that leads to it")
    release.told("after")
    release.everything_once()
