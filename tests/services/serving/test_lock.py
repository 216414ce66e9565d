"""Who serves a pipeline is told by a lock, and never by a process number."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pipelines import facts, pipeline_in

from millrace.services.config.config import load_pipeline
from millrace.services.errors import BusyError
from millrace.services.pipeline.instance import Instance
from millrace.services.serving import status
from millrace.services.serving.lock import NAME, held_alone, is_held
from millrace.streams.errors import StorageError

HOLD = (
    "import sys, pathlib\nfrom millrace.services.serving.lock import held_alone\n"
    "with held_alone(pathlib.Path(sys.argv[1]), 'x'): print('held', flush=True); sys.stdin.read()"
)

LOOK = (
    "import sys, pathlib\nfrom millrace.services.serving.lock import is_held\n"
    "print('looks', flush=True)\nwhile True: is_held(pathlib.Path(sys.argv[1]))"
)


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    """A pipeline whose endpoint.json names a live process that is not `millrace up`: the number was used again."""
    loaded = load_pipeline(pipeline_in(tmp_path, rows=1), ())
    instance = Instance(loaded, tmp_path / ".millrace" / "digits")
    instance.folder.mkdir(parents=True)
    place = {"url": "http://127.0.0.1:9", "grpc": "127.0.0.1:8", "proxy": "HAProxy", "pid": 1}
    (instance.folder / "endpoint.json").write_text(json.dumps(place), encoding="utf-8")
    return instance


def test_a_live_process_of_that_number_serves_nothing(instance: Instance, tmp_path: Path) -> None:
    """Process 1 lives, as it does in every container; a second `up` takes the pipeline at once."""
    assert status.published_place(instance) is None
    assert facts(tmp_path).get("endpoint", "not up on this machine") == "not up on this machine"
    with status.serving_alone(instance):
        assert is_held(instance.folder) and not (instance.folder / "endpoint.json").exists()


def test_while_another_process_holds_it_a_second_is_refused_in_one_sentence_and_its_place_is_found(instance: Instance) -> None:
    """Then it is killed, and the kernel gives the lock to the next at once."""
    with holder(instance.folder) as process:
        place = status.published_place(instance)
        assert place is not None and place.url == "http://127.0.0.1:9"
        with (
            pytest.raises(
                BusyError, match=rf"^http://127.0.0.1:9 serves .* already \(.*{NAME} is locked\). Stop that one first.$"
            ),
            status.serving_alone(instance),
        ):
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with status.serving_alone(instance):
            pass


def test_a_lock_outlives_no_process_that_its_holder_started(tmp_path: Path) -> None:
    """Children do not have it: replicas that are left of a killed `up` keep nobody out."""
    start = HOLD.replace("sys.stdin.read()", "print(__import__('subprocess').Popen(['sleep', '600']).pid, flush=True)")
    child = 0
    with subprocess.Popen([sys.executable, "-c", start, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        child = int(process.stdout.readline())
        process.wait()
        assert Path(f"/proc/{child}").exists() and not is_held(tmp_path)
        os.kill(child, signal.SIGKILL)


def test_those_who_look_never_keep_a_start_out(tmp_path: Path) -> None:
    """Each looks by a shared lock of a moment, which is waited for."""
    with subprocess.Popen([sys.executable, "-c", LOOK, tmp_path], stdout=subprocess.PIPE) as looking:
        assert looking.stdout is not None and looking.stdout.readline() == b"looks\n"
        try:
            for _ in range(200):
                with held_alone(tmp_path, "nobody"):
                    assert is_held(tmp_path)
        finally:
            looking.kill()


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    """With the option that names another."""
    (tmp_path / NAME).mkdir()
    wanted = rf"{NAME} cannot be locked: Is a directory. Name a folder .* with --home"
    with pytest.raises(StorageError, match=wanted), held_alone(tmp_path, "nobody"):
        pass
