"""Faults of those who answer: replicas and the front killed under load, and starts on a machine that is busy."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines import millrace, pipeline_in
from scene import Ground, Scene, Told, until
from served_pipeline import CALLERS, GrpcLoad, Load, Up, command_of, load, served

CUT = {"ConnectionResetError", "BrokenPipeError", "RemoteDisconnected"}  # of HTTP requests that the front had taken in
REPLICA = ":Predictor"  # in the title of its process
KILLED = {"both replicas": (REPLICA, REPLICA), "the front": ("haproxy",), "a replica": (REPLICA,)}
# Of HTTP and of gRPC, a kill, and with these callers: answers that had begun, and with the front all that it had taken in.
MOST_LOST = {"both replicas": (2, 1), "the front": (CALLERS, 1), "a replica": (1, 1)}
BUSY = 4  # other processes


def made(folder: Path) -> None:
    """A pipeline on SQLite that has learned some rows."""
    folder.mkdir()
    pipeline_in(folder, rows=200)
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        done = millrace(*words, cwd=folder)
        assert done.returncode == 0, done.stderr


def kill_answerers(ground: Ground, _: Scene) -> Told:
    """kill -9 of a replica, of both at once, or of the front, at seeded moments; all are back before the next.

    What may fail then is what failed on the commit before there was a front of ours (834a44b; docs/reliability.md).
    """
    chance, times = random.Random(17), 2 if ground.quick else 20
    folder, lost = ground.folder / "answerers", dict.fromkeys(KILLED, (0, 0, 0))
    made(folder)
    with served(folder) as up, load(up) as callers, GrpcLoad(up) as grpc_caller:
        for at in range(times):
            kind = tuple(KILLED)[at % len(KILLED)]
            asked_for = len(callers.answers) + chance.randrange(50, 500)
            until(lambda most=asked_for: len(callers.answers) > most, "callers are answered")
            before, seen = {title: len(up.pids(title)) for title in KILLED[kind]}, so_far(callers, grpc_caller)
            dead, calls = kill_all(up, KILLED[kind]), grpc_caller.answered
            until(lambda gone=dead, many=before: back(up, gone, many), f"{kind}: back")
            until(lambda least=calls: grpc_caller.answered > least + 20, "callers of gRPC are answered")
            http, grpc = (now - then for now, then in zip(so_far(callers, grpc_caller), seen, strict=True))
            lost[kind] = lost[kind][0] + 1, lost[kind][1] + http, lost[kind][2] + grpc
    others = [failed for failed in callers.failed if failed.partition("(")[0] not in CUT]
    others += [failed for failed in grpc_caller.failed if not failed.startswith("UNAVAILABLE")]
    counts = f"{len(callers.answers)} answers over HTTP, {grpc_caller.answered} over gRPC"
    told = Told("answerers killed", f"kill -9, {', '.join(f'{kind} {n} times' for kind, (n, _, _) in lost.items() if n)}")
    told.shown = [("I3", not others, f"{counts}; failed otherwise: {others[:1] or 0}")]
    for kind, (n, http, grpc) in lost.items():
        most_http, most_grpc = (n * most for most in MOST_LOST[kind])
        few = http <= most_http and grpc <= most_grpc
        told.shown.append(("I3", few, f"{kind}: {http} cut over HTTP (at most {most_http}), {grpc} over gRPC ({most_grpc})"))
    return told


def kill_all(up: Up, titles: tuple[str, ...]) -> set[int]:
    """kill -9 of one process of each title; where a title stands twice, of two."""
    dead = set[int]()
    for title in titles:
        pid = next(pid for pid in up.pids(title) if pid not in dead)
        os.kill(pid, signal.SIGKILL)
        dead.add(pid)
    return dead


def so_far(callers: Load, grpc_caller: GrpcLoad) -> tuple[int, int]:
    """Requests that failed, over HTTP and over gRPC."""
    return len(callers.failed) + callers.closed + callers.cut, len(grpc_caller.failed)


def back(up: Up, dead: set[int], many: dict[str, int]) -> bool:
    """Whether there are as many as before without the dead ones, and two replicas that listen."""
    return all(not dead & set(up.pids(title)) and len(up.pids(title)) >= n for title, n in many.items()) and listening(up) == 2


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
