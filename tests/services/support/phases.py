"""Commands that are killed from outside after so much of what they write was written; never at a time."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
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
        if (current := written(folder)) != seen:
            seen, writes = current, writes - 1
        time.sleep(POLL_S)
    time.sleep(chance.uniform(0.0, LATEST_S))
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait(TIMEOUT_S) == -signal.SIGKILL


def written(folder: Path) -> list[tuple[str, int, int]]:
    """What moves with every write below a folder: names, sizes and times of its files."""
    stamps = []
    for place, _, files in os.walk(folder):  # which passes by what is gone meanwhile
        for name in ("", *files):
            with suppress(FileNotFoundError):
                stat = Path(place, name).stat()
                stamps.append((f"{place}/{name}", stat.st_size, stat.st_mtime_ns))
    return stamps


def copies(whole: Path, beside: Path) -> Iterator[Path]:
    """A fresh copy of a folder each time, for what a process may be too fast to be caught at; fails where it always is."""
    until_s = time.monotonic() + TIMEOUT_S
    for number in itertools.count():
        assert time.monotonic() < until_s, "it was too fast each time"
        yield shutil.copytree(whole, beside / f"copy-{number}")
