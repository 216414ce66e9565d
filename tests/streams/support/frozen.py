"""Processes that stand still for as long as a test looks, and hold no lock meanwhile that another would wait for."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
from pipelines import TIMEOUT_S


@contextmanager
def frozen(process: subprocess.Popen[Any], *databases: Path) -> Iterator[None]:
    """Stopped between two commits to these SQLite files, and woken as the block ends; one that has ended is left alone."""
    try:
        until_s = time.monotonic() + TIMEOUT_S
        _stop(process)
        while not all(map(_is_free, databases)):
            assert time.monotonic() < until_s, "it never stood between two commits"
            process.send_signal(signal.SIGCONT)
            time.sleep(0.001)
            _stop(process)
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def _stop(process: subprocess.Popen[Any]) -> None:
    """Return when all its threads stand still; one that waits for a disk stops only after that."""
    process.send_signal(signal.SIGSTOP)
    while process.poll() is None and not all(_state(task) in "TXZ" for task in Path(f"/proc/{process.pid}/task").iterdir()):
        time.sleep(0.001)


def _state(task: Path) -> str:
    """One letter of proc(5); X where the thread has ended."""
    try:
        return (task / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def _is_free(database: Path) -> bool:
    """Whether nobody is in the midst of a commit to it."""
    connection = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.execute("begin immediate; rollback")
    except apsw.BusyError:
        return False
    finally:
        connection.close()
    return True
