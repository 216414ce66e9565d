"""What cannot work on a cluster is refused in one sentence: by helm before anything is made, or as the pod's last words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from one_node import Cluster, output, ran, until
from releases import CHART, VALUES, Release

from millrace.streams.state.fold import REVISION

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
    assert "auth.existingSecret = nowhere: there is no such Secret in namespace refused, or it is empty." in said


def test_a_secret_without_the_key(another: Release) -> None:
    """The key that is missing is named."""
    secret(another, "other", something="predict,label x")
    said = refusal(another, auth={"existingSecret": "other"})
    assert "auth.existingSecret = other: this Secret has no key tokens, or it is empty." in said


def last_words(release: Release) -> str:
    """The termination message of the container, once it has ended: one sentence."""

    def ended() -> dict[str, Any]:
        (state,) = release.pod()["status"].get("containerStatuses", [{}])
        return state.get("state", {}).get("terminated") or state.get("lastState", {}).get("terminated") or {}

    until(lambda: ended().get("message"), "the container's end")
    (line,) = ended()["message"].splitlines()
    print(line)
    assert line.endswith(".") and "Traceback" not in line
    return line


def install_in_vain(release: Release) -> None:
    """Install without waiting."""
    file = release.folder / "values.json"
    file.write_text(json.dumps(VALUES), encoding="utf-8")
    release.cluster.helm("upgrade", "--install", "spam", str(CHART), "-n", release.namespace, "-f", str(file))
    until(lambda: release.cluster.ran("-n", release.namespace, "get", "pod", "spam-0").returncode == 0, "the pod")


def test_a_claim_that_belongs_to_another_user(another: Release) -> None:
    """The last words name the folder."""
    another.cluster.volume("foreign", 4242)
    install_in_vain(another)
    assert "/var/lib/millrace" in last_words(another)


@pytest.mark.parametrize(("name", "options"), [("full", "size=64k"), ("read-only", "size=1g,ro")])
def test_a_claim_that_cannot_be_written(another: Release, cluster: Cluster, name: str, options: str) -> None:
    """The last words say where."""
    cluster.volume(name, 10001)
    path = str(cluster.folder / "volumes" / name)
    output(["mount", "-t", "tmpfs", "-o", f"{options},uid=10001,gid=10001,mode=770", "millrace-test", path])
    try:
        install_in_vain(another)
        assert "/var/lib/millrace" in last_words(another)
    finally:
        output(["umount", "-l", path])


def test_a_claim_of_another_release(another: Release, cluster: Cluster) -> None:
    """Helm finds the StatefulSet that has it."""
    cluster.volume("shared", 10001)
    install_in_vain(another)
    file = another.folder / "second.json"
    file.write_text(json.dumps(VALUES | {"fullnameOverride": "second", "persistence": {"existingClaim": "state-spam-0"}}))
    words = [str(cluster.helm_binary), "install", "second", str(CHART), "-n", another.namespace, "-f", str(file)]
    done = ran(words, cluster.env)
    assert done.returncode == 1, done.stdout
    assert "persistence.existingClaim = state-spam-0: StatefulSet spam uses this claim already; a folder has one" in done.stderr


def test_an_older_image_on_a_newer_folder(another: Release, cluster: Cluster, newer: str) -> None:
    """A later release began the branch; the earlier one ends with the sentence, and the later one goes on."""
    cluster.volume("from-later", 10001)
    later = VALUES["image"] | {"tag": newer}
    another.install(image=later)
    another.begin()
    install_in_vain(another)
    until(lambda: image_of(another) == "localhost/millrace:test", "a pod with the older image")
    sentence = f"A branch of fold revision {REVISION + 1} was begun by a newer release; this one folds up to {REVISION}."
    assert f"{sentence} Use the release that wrote it." in last_words(another)
    another.install(image=later)
    until(another.is_reached, "a Service that leads to the pod")
    another.told("after all")
    another.everything_once()


def image_of(release: Release) -> str:
    """Of the pod; empty where there is none just then."""
    return "".join(pod["spec"]["containers"][0]["image"] for pod in release.got("pod")["items"])


def test_a_token_file_that_is_empty(another: Release) -> None:
    """Nobody could ask; the file is named."""
    secret(another, "empty", tokens="")
    said = refusal(another, auth={"existingSecret": "empty"})
    assert "auth.existingSecret = empty: this Secret has no key tokens, or it is empty." in said
