"""Any pipeline served in processes of its own, from the moment every replica is ready; ended with everything it started."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from endpoint import Up, command_of, descendants, free_port, until
from rooms import MILLRACE, PATIENCE_S, clean_environment

IN_A_ROW = 20  # ready answers: both replicas are among those who gave them


def is_ready(port: int) -> bool:
    """Whether one replica is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/v2/health/ready")
        answer = connection.getresponse()
        answer.read()
        return answer.status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def standing(folder: Path, millrace: Sequence[str] = MILLRACE) -> Iterator[Up]:
    """`millrace up digits.toml` with two replicas; ``millrace``: what is run for it."""
    port, grpc_port, said = free_port(), free_port(), folder / "up.log"
    command = [*millrace, "up", "digits.toml", "--port", str(port), "--grpc-port", str(grpc_port)]
    with said.open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=clean_environment(), stdout=log, stderr=log, start_new_session=True)
    try:
        until(lambda: process.poll() is not None or b"Ctrl-C" in said.read_bytes(), PATIENCE_S)
        assert process.poll() is None, said.read_text()
        until(lambda: all(is_ready(port) for _ in range(IN_A_ROW)), PATIENCE_S)
        yield Up(folder, port, grpc_port, process)
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C, and kill -9 for what it leaves."""
    started = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    time.sleep(0.5)
    for pid in [pid for pid in started if command_of(pid)]:
        os.kill(pid, signal.SIGKILL)
