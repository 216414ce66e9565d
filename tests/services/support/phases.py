"""Commands that are killed from outside after so much of what they write was written; never at a time."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipelines import TIMEOUT_S, clean_environment

POLL_S = 0.002
LATEST_S = 0.05  # from there to the kill: long enough to hit any point of what follows


def killed_after(words: Sequence[str], folder: Path, writes: int, chance: random.Random) -> bool:
    """Start a command in a folder and kill it and all it started once its writes were seen there so often.

    False where it came to its end before.
    """
    process = subprocess.Popen(
        words, cwd=folder, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    seen, until_s = written(folder), time.monotonic() + TIMEOUT_S
    while process.poll() is None and writes:
        assert time.monotonic() < until_s, "it writes nothing any more and does not end"
        if (now := written(folder)) != seen:
            seen, writes = now, writes - 1
        time.sleep(POLL_S)
    time.sleep(chance.uniform(0.0, LATEST_S))
    killed = process.poll() is None
    if killed:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(TIMEOUT_S)
    return killed


def written(folder: Path) -> list[tuple[str, int, int]]:
    """What moves with every write below a folder: names, sizes and times of its files."""
    found = []
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            found.append((str(path), path.stat().st_size, path.stat().st_mtime_ns))
    return found
