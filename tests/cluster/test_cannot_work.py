"""What cannot work on a cluster is refused in one sentence: by helm before anything is made, or as the pod's last words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from one_node import Cluster, output, ran, until
from releases import CHART, VALUES, Release

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def place(cluster: Cluster) -> str:
    """A namespace in which nothing is ever ready."""
    cluster.namespace("refused")
    return "refused"


@pytest.fixture
def another(cluster: Cluster, place: str, tmp_path: Path) -> Iterator[Release]:
    """A release that is not installed yet; nothing of it is left afterwards."""
    release = Release(cluster, place, tmp_path)
    yield release
    ran([str(cluster.helm_binary), "uninstall", "spam", "-n", place], cluster.env)
    for what in ("pod", "pvc"):
        cluster.kubectl("-n", place, "delete", what, "--all", "--wait", *(["--grace-period=1"] if what == "pod" else []))


def refusal(release: Release, **changes: Any) -> str:
    """What helm says of values that it refuses."""
    file = release.folder / "values.json"
    file.write_text(json.dumps(VALUES | changes), encoding="utf-8")
    words = [str(release.cluster.helm_binary), "install", "spam", str(CHART), "-n", release.namespace, "-f", str(file)]
    done = ran(words, release.cluster.env)
    assert done.returncode == 1, done.stdout
    return done.stderr


def secret(release: Release, name: str, **data: str) -> None:
    """A Secret of the namespace."""
    metadata = {"name": name, "namespace": release.namespace}
    release.cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data})


def test_a_secret_that_is_not_there(another: Release) -> None:
    """It is named, with the key that names it."""
    said = refusal(another, auth={"existingSecret": "nowhere"})
    assert "auth.existingSecret" in said and "nowhere" in said


def test_a_secret_without_the_key(another: Release) -> None:
    """The key that is missing is named."""
    secret(another, "other", something="predict,label x")
    said = refusal(another, auth={"existingSecret": "other"})
    assert "other" in said and "tokens" in said


def last_words(release: Release) -> str:
    """The termination message of the container, once it has ended."""

    def ended() -> dict[str, Any]:
        (state,) = release.pod()["status"].get("containerStatuses", [{}])
        return state.get("state", {}).get("terminated") or state.get("lastState", {}).get("terminated") or {}

    until(lambda: ended().get("message"), "the container's end")
    return ended()["message"]


def install_in_vain(release: Release) -> None:
    """Install without waiting."""
    file = release.folder / "values.json"
    file.write_text(json.dumps(VALUES), encoding="utf-8")
    release.cluster.helm("install", "spam", str(CHART), "-n", release.namespace, "-f", str(file))
    until(lambda: release.cluster.ran("-n", release.namespace, "get", "pod", "spam-0").returncode == 0, "the pod")


def test_a_claim_that_belongs_to_another_user(another: Release) -> None:
    """The last words name the folder and the user."""
    another.cluster.volume("foreign", 4242)
    install_in_vain(another)
    said = last_words(another)
    assert "/var/lib/millrace" in said and "Traceback" not in said, said


def test_a_claim_that_is_full(another: Release, cluster: Cluster) -> None:
    """The last words say that the disk is full, and where."""
    cluster.volume("full", 10001)
    path = str(cluster.folder / "volumes" / "full")
    output(["mount", "-t", "tmpfs", "-o", "size=64k,uid=10001,gid=10001,mode=770", "millrace-test", path])
    try:
        install_in_vain(another)
        said = last_words(another)
        assert "/var/lib/millrace" in said and "Traceback" not in said, said
    finally:
        output(["umount", "-l", path])


def test_a_token_file_that_is_empty(another: Release) -> None:
    """Nobody could ask; the file is named."""
    secret(another, "empty", tokens="")
    said = refusal(another, auth={"existingSecret": "empty"})
    assert "empty" in said
