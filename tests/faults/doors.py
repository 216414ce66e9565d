"""Faults of those who answer: replicas and the front killed under load, and starts on a machine that is busy."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from grpc_calls import asked
from pipelines import ANSWER_S, millrace, pipeline_in
from scene import Ground, Scene, Told, until
from served_pipeline import CALLERS, Up, command_of, load, served

from millrace.services.endpoint.grpc import calling
from millrace.services.errors import NotReadyError

CUT = {"ConnectionResetError", "BrokenPipeError", "RemoteDisconnected"}  # of HTTP requests that the front had taken in
BUSY = 4  # other processes


def made(folder: Path) -> None:
    """A pipeline on SQLite that has learned some rows."""
    folder.mkdir()
    pipeline_in(folder, rows=200)
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        done = millrace(*words, cwd=folder)
        assert done.returncode == 0, done.stderr


class GrpcLoad:
    """One caller of gRPC that asks one thing after the other; what fails is kept."""

    def __init__(self, up: Up) -> None:
        self.answered = 0
        self.failed: list[str] = []
        self._up = up
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> GrpcLoad:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        request = asked(("x", "FP64", [1, 4], bytes(32)), ("site", "BYTES", [1], b"\5\0\0\0north"))
        with calling(f"127.0.0.1:{self._up.grpc_port}") as client:
            while not self._stop.wait(0.002):
                try:
                    client.infer(request, ANSWER_S)
                    self.answered += 1
                except (NotReadyError, OSError) as error:
                    self.failed.append(str(error))


def kill_answerers(ground: Ground, _: Scene) -> Told:
    """kill -9 of a replica, or of the front, at seeded moments; both are back before the next."""
    chance, times = random.Random(17), 2 if ground.quick else 20
    folder = ground.folder / "answerers"
    made(folder)
    with served(folder) as up, load(up) as callers, GrpcLoad(up) as grpc_caller:
        killed = {":Predictor": 0, "haproxy": 0}
        for at in range(times):
            title = ":Predictor" if at % 2 == 0 else "haproxy"
            asked_for = len(callers.answers) + chance.randrange(50, 500)
            until(lambda most=asked_for: len(callers.answers) > most, "callers are answered")
            before = len(up.pids(title))
            dead, calls = up.kill(title), grpc_caller.answered
            killed[title] += 1
            until(lambda gone=dead, name=title, many=before: back(up, gone, name, many), f"{title} is back")
            until(lambda least=calls: grpc_caller.answered > least + 20, "callers of gRPC are answered")
        others = [failed for failed in callers.failed if failed.partition("(")[0] not in CUT]
        others += [failed for failed in grpc_caller.failed if not failed.startswith("UNAVAILABLE")]
        cut_http = len(callers.failed) + callers.closed + callers.cut
        counts = f"{len(callers.answers)} answers over HTTP, {grpc_caller.answered} over gRPC"
        did = f"kill -9 of a replica {killed[':Predictor']} times, of the front {killed['haproxy']} times"
        told = Told("answerers killed", did)
        cut = f"cut with what was killed: {cut_http} of HTTP, {len(grpc_caller.failed)} of gRPC"
        few = cut_http <= CALLERS * times and len(grpc_caller.failed) <= times
        told.shown = [("I3", not others, f"{counts}; failed otherwise: {others[:1] or 0}"), ("I3", few, cut)]
    return told


def back(up: Up, dead: int, title: str, many: int) -> bool:
    """Whether there are as many as before without the dead one, and two replicas that listen."""
    pids = up.pids(title)
    return dead not in pids and len(pids) >= many and listening(up) == 2


def listening(up: Up) -> int:
    """Seats on which a replica takes connections."""
    command = [part for pid in up.pids("haproxy") for part in command_of(pid).split("\0") if part.endswith("front.cfg")]
    count = 0
    for path in Path(command[0]).parent.glob("*.http") if command else ():
        with socket.socket(socket.AF_UNIX) as probe:
            count += probe.connect_ex(str(path)) == 0
    return count


def start_busy(ground: Ground, _: Scene) -> Told:
    """`up` while four other processes keep every core busy; each start has to come to an answer."""
    times, folder = 1 if ground.quick else 20, ground.folder / "busy"
    made(folder)
    with busy(BUSY):
        for _at in range(times):
            with served(folder) as up:
                assert up.answered()["model_name"] == "digits"
    told = Told("busy starts", f"`millrace up` {times} times while {BUSY} other processes keep every core busy")
    told.shown = [("I9", True, f"{times} of {times} came to an answer")]
    return told


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many others that want a whole core each."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()
