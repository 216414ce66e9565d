"""kill -9 inside the pod while it is asked: learning and ready again, nothing lost, no start refused."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
from one_node import until
from releases import Release

pytestmark = pytest.mark.cluster
SEED = 31  # begins with process 1 and GCS
# What is killed, by what its command line begins with or holds.
VICTIMS = {"process 1": "", "replica": ":Predictor", "raylet": "raylet/raylet", "GCS": "gcs_server", "HAProxy": "bin/haproxy"}
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


@pytest.mark.parametrize("victim", SEEDED)
def test_nothing_is_lost_by_a_kill(release: Release, victim: str) -> None:
    """Every label that was accepted is learned once, before and after; what was cut is printed."""
    if not release.accepted:
        release.begin()
    with release.loaded(f"killed {victim}") as load:
        kill(release, victim)
        count = len(load.accepted)
        until(lambda: len(load.accepted) > count + 50, "fifty labels since the kill")
    print(f"{len(load.cut)} requests were cut; other answers: {load.odd[:3]}")
    assert release.container()["state"].get("running"), release.described()
