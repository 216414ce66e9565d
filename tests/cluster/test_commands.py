"""Every command by `kubectl exec`, as our user and as one whose number the cluster chose."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from one_node import Cluster, until
from releases import VALUES, Release

pytestmark = pytest.mark.cluster
DONE = 0
# What an operator types, in an order in which each can be done, and the exit code. A refusal is a sentence.
COMMANDS: list[tuple[int, tuple[str, ...]]] = [
    (DONE, ("config", "show")),
    (DONE, ("status",)),
    (DONE, ("versions",)),
    (DONE, ("log",)),
    (DONE, ("verify",)),
    (DONE, ("dead-letters", "list")),
    (2, ("dead-letters", "show", "0")),
    (DONE, ("promote", "newest", "--reason", "good", "--yes")),
    (DONE, ("serve", "newest", "--reason", "hold", "--yes")),
    (DONE, ("serve", "--follow", "main", "--reason", "go on", "--yes")),
    (DONE, ("export", "newest", "/tmp/exported")),
    (DONE, ("log", "--ledger")),
    (1, ("run",)),
    (1, ("up",)),
    (2, ("mirror", "--once")),
]


@pytest.fixture(scope="module", params=[10001, 1234567], ids=["our-user", "another-user"])
def release(request, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """A release whose pod runs as a user of this number, taught ten rows."""
    namespace = f"user-{request.param}"
    cluster.namespace(namespace)
    cluster.volume(namespace, request.param)
    pipeline = VALUES["pipeline"] | {"worker": {"version_rows": 5}}
    release = Release(cluster, namespace, tmp_path_factory.mktemp(namespace), VALUES | {"pipeline": pipeline})
    user = {"runAsUser": request.param, "runAsGroup": request.param, "fsGroup": request.param}
    release.install(podSecurityContext=user)
    release.begin()
    for name in "abcdef":  # some versions
        release.told(name)
    release.everything_once()
    yield release
    cluster.forget(namespace)


def test_every_command_works_in_the_pod(request, release: Release) -> None:
    """None is a traceback; decisions are kept with the user's number where he has no name."""
    user = release.exec("id", "-u").stdout.strip()
    assert f"user-{user}" == release.namespace
    until(lambda: release.command("versions").stdout.count("main.") > 2, "versions")
    for code, words in COMMANDS:
        done = release.command(*words)
        assert done.returncode == code and "Traceback" not in done.stderr, (words, done.stdout[-2000:], done.stderr[-2000:])
    ledger = [json.loads(line) for line in release.command("log", "--ledger", "--output", "json").stdout.splitlines()]
    assert any(user in json.dumps(entry) for entry in ledger), ledger


def test_a_replay_and_a_rollback_in_the_pod(release: Release) -> None:
    """The two that an operator needs in the night."""
    planned = release.command("replay", "plan", "--from-start", "--reason", "look", "--output", "json")
    assert planned.returncode == 0, planned.stderr
    (plan,) = set(re.findall(r"[0-9a-f]{64}", planned.stdout + planned.stderr))
    for words in (
        ("replay", "run", plan),
        ("replay", "diff"),
        ("replay", "abort", "--reason", "seen", "--yes"),
        ("rollback", "--reason", "garbage", "--yes"),
    ):
        done = release.command(*words)
        assert done.returncode == 0 and "Traceback" not in done.stderr, (words, done.stdout[-2000:], done.stderr[-2000:])
