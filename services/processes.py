"""Processes of the command line that a story starts, watches, kills and ends: only its own, each by its pid."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from millrace.learners.errors import MillraceError

# -P: modules come from where millrace is installed, never from the folder that one happens to stand in.
COMMAND = [sys.executable, "-P", "-c", "from millrace.services.cli import main; main(prog_name='millrace')"]
LOOK_S = 0.01  # between two looks
END_S = 60.0  # a process has to end when it is asked to

Process = subprocess.Popen[bytes]


class Processes:
    """Those that were started and have not ended; leaving the block ends them."""

    def __init__(self, folder: Path, patience_s: float) -> None:
        self._folder = folder  # of their logs
        self._patience_s = patience_s
        self._running: dict[str, Process] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self._running.values():
            end(process)

    def start(self, name: str, arguments: Sequence[str]) -> Process:
        """`millrace ARGUMENTS` with its output in NAME.log, in a session of its own: Ctrl-C is for us to pass on."""
        with self._log(name).open("ab") as log:
            process = subprocess.Popen(
                [*COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._running[name] = process
        return process

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Look again and again.

        Raises: MillraceError where a process fails meanwhile, or where patience ends.
        """
        until_s = time.monotonic() + self._patience_s
        while not condition():
            for name, process in self._running.items():
                if process.poll():
                    raise MillraceError(f"The {name} failed with exit code {process.returncode}: {self._last_line(name)}")
            if time.monotonic() > until_s:
                raise MillraceError(f"Nothing moved on for {self._patience_s:g} s. Look at the logs in {self._folder}.")
            time.sleep(LOOK_S)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _last_line(self, name: str) -> str:
        lines = self._log(name).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else 'it said nothing'} ({self._log(name)})"


def kill(pid: int) -> int:
    """kill -9 of one of the processes under ours; returns when, in milliseconds since 1970.

    Raises: MillraceError where it had ended before.
    """
    at_ms = time.time_ns() // 1_000_000
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError as error:
        raise MillraceError(f"Process {pid} had ended by itself before it was killed.") from error
    return at_ms


def finish(process: Process) -> None:
    """Ask a process to come to an end.

    Raises: MillraceError where it fails or does not end in time.
    """
    process.terminate()
    try:
        code = process.wait(END_S)
    except subprocess.TimeoutExpired as error:
        raise MillraceError(f"Process {process.pid} does not end though it was asked to.") from error
    if code:
        raise MillraceError(f"Process {process.pid} was asked to end and failed with exit code {code}.")


def end(process: Process) -> None:
    """Make sure that a process has ended: asked first, then killed."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
