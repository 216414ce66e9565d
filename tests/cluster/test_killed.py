"""kill -9 inside the pod while it is asked: learning and ready again, nothing lost, no start refused. And what hangs there."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from one_node import until
from releases import Release

pytestmark = pytest.mark.cluster
SEED = 31  # begins with process 1 and GCS
# What is killed, by what its command line begins with or holds.
VICTIMS = {"process 1": "", "replica": ":Predictor", "raylet": "raylet/raylet", "GCS": "gcs_server", "HAProxy": "bin/haproxy"}
RESTARTED = ("process 1", "raylet", "GCS")  # without these the container ends, and is started again just once
TURNS = int(os.environ.get("MILLRACE_TURNS", 2))  # `make faults` says twenty
GENERATOR = random.Random(SEED)
SEEDED = [victim for _ in range(TURNS) for victim in GENERATOR.sample(list(VICTIMS), k=len(VICTIMS))][:TURNS]


def processes(release: Release) -> dict[int, str]:
    """The pod's processes by the machine's numbers, with their command lines."""
    group = Path(f"/proc/{release.process_1()}/cgroup").read_text(encoding="utf-8")
    found = {}
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and (process / "cgroup").read_text(encoding="utf-8") == group:
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
    return found


def kill(release: Release, victim: str) -> None:
    """kill -9 one of them."""
    if victim == "process 1":
        pid = release.process_1()
    else:
        pid, words = min((pid, words) for pid, words in processes(release).items() if VICTIMS[victim] in words)
        print(f"kill -9 of {words[:100]}")
    os.kill(pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists(), f"the end of {victim}, which is reaped")


def stop(release: Release, title: str) -> list[int]:
    """Let all processes whose command line holds this stand still, but for process 1, which only hands signals on."""
    pids = [pid for pid, words in processes(release).items() if title in words and pid != release.process_1()]
    assert pids, processes(release)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    return pids


@pytest.fixture(autouse=True)
def taught(release: Release) -> None:
    """It can answer."""
    if not release.accepted:
        release.begin()


@pytest.mark.parametrize(("turn", "victim"), list(enumerate(SEEDED)))
def test_nothing_is_lost_by_a_kill(release: Release, turn: int, victim: str) -> None:
    """Every label that was accepted is learned once, before and after; what was cut is printed. No start was in vain."""
    before = release.restarts()
    wanted = before + (victim in RESTARTED)
    with release.loaded(f"kill {turn} of {victim}") as load:
        kill(release, victim)
        until(lambda: release.restarts() >= wanted, f"{wanted} starts after the first")
        count = len(load.accepted)
        until(lambda: len(load.accepted) > count + 50, "fifty labels since")
    print(f"{len(load.cut)} requests were cut; other answers: {load.odd[:3]}")
    assert release.container()["state"].get("running") and release.restarts() == wanted, release.described()


def test_an_up_that_hangs_is_started_again(release: Release) -> None:
    """The probe asks `up` itself. Requests go on for as long as its replicas live; nothing is lost."""
    before = release.restarts()
    with release.loaded("hung") as load:
        stop(release, "/millrace up ")
        begun = time.monotonic()
        until(lambda: release.restarts() > before, "another start")
        print(f"started again {time.monotonic() - begun:.0f} s after it hung")
    print(f"{len(load.cut)} requests were cut; other answers: {load.odd[:3]}")
    assert release.restarts() == before + 1, release.described()


def test_replicas_that_hang_are_replaced_and_the_pod_stays(release: Release) -> None:
    """Serve ends them and makes others; to end the whole pod for it would only take longer."""
    before = release.restarts()
    with release.loaded("hung replicas"):
        pids = stop(release, ":Predictor")
        begun = time.monotonic()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the end of the replicas that hang")
        print(f"replaced {time.monotonic() - begun:.0f} s after they hung")
    assert release.restarts() == before, release.described()
