"""Every command by `kubectl exec`, as our user and as one whose number the cluster chose."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack

import click
import pytest
from mlflow_server import Server
from one_node import Cluster, until
from releases import PIPELINE, ROWS, VALUES, Release, command_of
from served_pipeline import own_port

from millrace.services.cli import main

DONE, FAILED, REFUSED = 0, 1, 2
UNREADABLE = json.dumps({"links": "many", "spam": True}) + "\n"
# What an operator types, in an order in which each can be done; then the exit code, and what stands in the answer.
COMMANDS: list[tuple[tuple[str, ...], int, str]] = [
    (("config", "show"), DONE, "learner.gamma"),
    (("status",), DONE, "labels_joined"),
    (("versions",), DONE, "main."),
    (("drafts",), REFUSED, "learns rows and has no drafts"),
    (("alarms", "list"), DONE, "in all."),
    (("alarms", "show", "main.1.1"), REFUSED, "There is no alarm"),
    (("alarms", "close", "main.1.1", "--reason", "seen", "--yes"), REFUSED, "There is no alarm"),
    (("log",), DONE, "fork"),
    (("verify",), DONE, "PROVED"),
    (("dead-letters", "list"), DONE, "wrong-type"),
    (("dead-letters", "show", "0"), DONE, '"links": "many"'),
    (("dead-letters", "redrive", "--reason", "mended", "--yes"), DONE, "1 sent."),
    (("promote", "newest", "--reason", "good", "--yes"), DONE, "main."),
    (("serve", "newest", "--reason", "hold", "--yes"), DONE, "main."),
    (("serve", "--follow", "main", "--reason", "go on", "--yes"), DONE, "the newest of main"),
    (("export", "newest", "/tmp/exported"), DONE, "/tmp/exported"),
    (("log", "--ledger"), DONE, "mended"),
    # One process learns and one answers; that is the pod's own.
    (("run",), FAILED, "is being written by process"),
    (("up",), FAILED, "serves this pipeline already"),
]
# What is planned first is killed while it learns; what is planned next takes over.
PLAN = ("replay", "plan", "--from-start", "--exclude-header", "producer=till-7", "--reason", "look", "--output", "json")
RESUMED: list[tuple[tuple[str, ...], int, str]] = [
    (("replay", "resume"), DONE, "proved in another process"),
    (("replay", "diff"), DONE, "answers_that_differ"),
    (("replay", "abort", "--reason", "seen", "--yes"), DONE, "true"),
]
TAKEN_OVER: list[tuple[tuple[str, ...], int, str]] = [
    (("replay", "run", "THE PLAN"), DONE, "proved in another process"),
    (("replay", "take-over", "--reason", "mended", "--yes"), DONE, "undo: millrace serve"),
    (("replay", "include", "header producer=till-7", "--reason", "mended", "--yes"), DONE, "header producer=till-7"),
    (("rollback", "newest", "--reason", "garbage", "--yes"), DONE, "replay-"),
]
# These have more to them than a row of a table: `begin`, `planned` and a test of its own type them.
ELSEWHERE = {("send",), command_of(PLAN), ("mirror",)}


def commands(group: click.Group, *before: str) -> Iterator[tuple[str, ...]]:
    """The names of all commands of a group, and of the groups in it."""
    for name, command in group.commands.items():
        yield from commands(command, *before, name) if isinstance(command, click.Group) else [(*before, name)]


def test_every_command_that_there_is_is_typed_below() -> None:
    """So that none is forgotten that comes later. It needs no cluster."""
    assert {command_of(words) for words, _, _ in [*COMMANDS, *RESUMED, *TAKEN_OVER]} | ELSEWHERE == set(commands(main))


@pytest.fixture(scope="module", params=[10001, 1234567], ids=["our-user", "another-user"])
def release(request, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """A release whose pod runs as a user of this number, taught ten rows; one row more could not be read."""
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
    release.send(UNREADABLE, "--header", "producer=till-7")
    yield release
    cluster.forget(namespace)


def typed(release: Release, words: tuple[str, ...], code: int, told: str) -> None:
    """One command ends so and says that; none is a traceback."""
    done = release.command(*words)
    answer = done.stdout + done.stderr
    assert done.returncode == code and told in answer and "Traceback" not in answer, (words, done.returncode, answer[-2000:])


def planned(release: Release) -> str:
    """What a new plan of a replay is called."""
    done = release.command(*PLAN)
    assert done.returncode == DONE, done.stderr
    (plan,) = set(re.findall(r"[0-9a-f]{64}", done.stdout + done.stderr))
    return plan


@pytest.mark.cluster
def test_every_command_works_in_the_pod(request, release: Release) -> None:
    """Decisions are kept with the user's number where he has no name."""
    user = release.exec("id", "-u").stdout.strip()
    assert f"user-{user}" == release.namespace
    until(lambda: release.command("versions").stdout.count("main.") > 2, "versions")
    until(lambda: "wrong-type" in release.command("dead-letters", "list").stdout, "the letter of what could not be read")
    for words, code, told in COMMANDS:
        typed(release, words, code, told)
    ledger = [json.loads(line) for line in release.command("log", "--ledger", "--output", "json").stdout.splitlines()]
    assert any(user in json.dumps(entry) for entry in ledger), ledger


@pytest.mark.cluster
def test_the_mirror_registers_from_the_pod(release: Release, tmp_path) -> None:
    """In a real MLflow on the machine; its client needs no name of the user either."""
    with ExitStack() as running:
        server = Server(tmp_path, own_port(), running, release.cluster.address())
        server.start()
        typed(release, ("mirror", "--once", "--set", f"mlflow.uri={server.uri}"), DONE, server.uri)
        listed = [line.split()[0] for line in release.command("versions").stdout.splitlines()[1:]]
        assert listed and [*server.versions("spam")] == listed


def kill_while_it_learns(release: Release, plan: str) -> None:
    """Run a replay and kill -9 it once it says how many records there are: the proof alone takes seconds after that."""
    run = f"millrace replay run {PIPELINE} {plan} 2>/tmp/learns"
    script = f"{run} & until grep -q ' of [0-9]* records' /tmp/learns; do sleep 0.1; done; kill -9 $!"
    done = release.exec("sh", "-c", script)
    assert done.returncode == DONE, done.stderr


@pytest.mark.cluster
def test_a_replay_and_a_rollback_in_the_pod(release: Release) -> None:
    """What an operator needs in the night: one replay is killed and resumed, one takes over, and what it left out is let in."""
    kill_while_it_learns(release, planned(release))
    for words, code, told in RESUMED:
        typed(release, words, code, told)
    plan = planned(release)
    for words, code, told in TAKEN_OVER:
        typed(release, tuple(plan if word == "THE PLAN" else word for word in words), code, told)
    seen = release.status()
    assert seen["successor"].startswith("replay-") and seen["learned"] >= len(ROWS.splitlines()), seen
