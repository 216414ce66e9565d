"""`millrace up` as a container runs it: as process 1 of its own process numbers, empty at first, killed and started again."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckResponse
from pipelines import MILLRACE, PIPELINE, TIMEOUT_S, facts, lacks, millrace, pipeline_in
from served_pipeline import Up, command_of, descendants, is_ready, own_port, served, until

pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("starts")]
OWN_NUMBERS = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
SHARED_MIB = 128  # of /dev/shm
SMALL_SHARED = ["sh", "-c", 'mount -t tmpfs -o "size=$0m" tmpfs /dev/shm && exec "$@"', str(SHARED_MIB)]


@contextmanager
def pod(folder: Path) -> Iterator[Up]:
    """One with process numbers and a small /dev/shm of its own, while nothing answers; all of it is killed with process 1."""
    if os.getuid() != 0 or shutil.which("unshare") is None:
        lacks("only root can give `millrace up` process numbers of its own, by unshare of util-linux")
    with served(folder, "--log-format", "json", millrace=[*OWN_NUMBERS, *SMALL_SHARED, *MILLRACE], ready=False) as up:
        try:
            yield up
        finally:
            with suppress(IndexError, ProcessLookupError):
                os.kill(first(up), signal.SIGKILL)
            up.process.wait(TIMEOUT_S)


def first(up: Up) -> int:
    """Process 1, by the number that it has here."""
    return descendants(up.process.pid)[0]


def events(up: Up) -> list[dict]:
    """All that stands on stdout and stderr: every line is an event, but for those of `unshare`."""
    lines = (up.folder / "up.log").read_text().splitlines()
    return [json.loads(text) for text in lines if not text.startswith("unshare:")]


def only_child(up: Up) -> bool:
    """Whether process 1 has no child but `up`: no orphan is left, as a zombie or otherwise."""
    return len(Path(f"/proc/{first(up)}/task/{first(up)}/children").read_text().split()) == 1


def health(up: Up) -> int:
    """What gRPC's health service says."""
    with grpc.insecure_channel(f"127.0.0.1:{up.grpc_port}") as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check", response_deserializer=HealthCheckResponse.FromString)
        return check(b"", timeout=TIMEOUT_S, wait_for_ready=True).status


def store_bytes(raylet: str) -> int:
    """How large a raylet's object store is, by its command line."""
    return int(re.search(r"--object_store_memory=(\d+)", raylet)[1])


def refused(up: Up) -> str:
    """What a second `up` says."""
    ports = ["--port", str(own_port(up.port, up.grpc_port)), "--grpc-port", str(own_port(up.port, up.grpc_port))]
    done = millrace("up", "digits.toml", *ports, cwd=up.folder)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    return done.stderr


def test_a_pod_is_ready_while_empty_learns_reaps_speaks_and_comes_back_after_kill_9(tmp_path: Path) -> None:
    """One life after the other on the same folder; the second has the process numbers of the first."""
    pipeline_in(tmp_path, rows=200, text=PIPELINE + "version_rows = 100\n")
    with pod(tmp_path) as up:
        until(lambda: is_ready(up.port, "/readyz"))
        assert not is_ready(up.port) and health(up) == HealthCheckResponse.NOT_SERVING
        assert millrace("send", "digits.toml", "rows.jsonl", cwd=tmp_path).returncode == 0
        until(lambda: is_ready(up.port) and health(up) == HealthCheckResponse.SERVING)
        assert "serves this pipeline already" in refused(up)
        raylet = command_of(up.pids("raylet/raylet")[0])
        assert "--plasma_directory=/dev/shm" in raylet and 75 << 20 <= store_bytes(raylet) < SHARED_MIB << 20
        exec_in = ["nsenter", "--target", str(first(up)), "--pid", "--mount", "sh", "-c", "for i in 1 2 3; do (true &); done"]
        subprocess.run(exec_in, check=True)
        up.kill(":Predictor")
        until(lambda: len(up.pids(":Predictor")) == 2 and only_child(up))
        until(lambda: {event["process"] for event in events(up)} >= {"up", "trainer", "replica", "verify"})
        assert {event["branch"] for event in events(up) if event["process"] in ("trainer", "replica")} == {"main"}
        os.kill(first(up), signal.SIGKILL)
        up.process.wait(TIMEOUT_S)
    assert facts(tmp_path)["endpoint"] == "not up on this machine"
    place = tmp_path / ".millrace" / "digits" / "endpoint.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"pid": os.getpid()}))
    with pod(tmp_path) as up:
        until(lambda: is_ready(up.port) and facts(tmp_path).get("learned") == 200)
        application = descendants(first(up))[0]
        assert "up" in command_of(application)
        os.kill(first(up), signal.SIGTERM)
        assert up.process.wait(TIMEOUT_S) == 0
        assert any("the trainer ends at seq" in event["message"] for event in events(up))
    assert not {path.name for path in place.parent.iterdir()} & {"endpoint.json", "verify.log", "mirror.log"}
