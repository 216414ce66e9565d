"""Starts of `millrace up` on a machine that is busy, and what ends one says in a sentence."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from doors import BUSY, busy
from pipelines import millrace, pipeline_in
from served_pipeline import command_of, descendants, served, until

pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("starts")]


@pytest.mark.parametrize("time", ["first", "second"])
def test_up_starts_while_four_processes_keep_every_core_busy(tmp_path: Path, time: str) -> None:
    """Nobody gives up for want of time; `make faults` does it twenty times."""
    pipeline_in(tmp_path, rows=50)
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert millrace(*words, cwd=tmp_path).returncode == 0
    with busy(BUSY), served(tmp_path) as up:
        assert up.answered()["model_name"] == "digits", time


def test_a_killed_up_leaves_no_front_behind(tmp_path: Path) -> None:
    """The kernel ends it with the process that started it, and the ports are free for the next."""
    pipeline_in(tmp_path, rows=1)
    with served(tmp_path, ready=False) as up:
        (front,), others = up.pids("haproxy"), descendants(up.process.pid)
        up.process.kill()
        up.process.wait()
        until(lambda: not command_of(front))
        for port in (up.port, up.grpc_port):
            socket.create_server(("127.0.0.1", port)).close()
        for pid in others:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_sigterm_to_all_of_its_processes_at_once_ends_in_order(tmp_path: Path) -> None:
    """As systemd and `timeout` send it: what Ray started does not hear it, and ends after the trainer."""
    pipeline_in(tmp_path, rows=50)
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert millrace(*words, cwd=tmp_path).returncode == 0
    with served(tmp_path) as up:
        for pid in [up.process.pid, *descendants(up.process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        until(lambda: up.process.poll() is not None)
        said = (tmp_path / "up.log").read_text()
        assert up.process.returncode == 0 and "the trainer ends at seq" in said, said
