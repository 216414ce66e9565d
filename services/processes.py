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
POLL_S = 0.01  # between two polls of the processes
TIMEOUT_S = 60.0  # of a standstill: nothing moves for so long
WORK = 3.0  # patiences of processor time that processes are given, of which nothing is seen
LONGEST = 30.0  # patiences until they are given up, however little of it they get
TICKS_S = 1 / os.sysconf("SC_CLK_TCK")

Process = subprocess.Popen[bytes]


class Patience:
    """Ends where nothing moves on. On a busy machine processes are slow, which is no standstill.

    A sign that moves begins it anew. Else processes that work are waited for until they have had ``WORK`` times the patience of
    processor time. Idle ones get one patience.
    """

    def __init__(self, pids: Sequence[int], seconds: float = TIMEOUT_S, sign: Callable[[], object] = lambda: None) -> None:
        self._pids = pids
        self._seconds = seconds
        self._sign = sign
        self._looked_s = self._since_s = self._worked_s = time.monotonic()
        self._seen, self._work_s = sign(), work_s(pids)
        self._work_then_s = self._work_s

    def ended(self) -> bool:
        """Whether it is time to give up; looks at most a hundred times in a patience."""
        now_s = time.monotonic()
        if now_s - self._looked_s < self._seconds / 100:
            return False
        self._looked_s = now_s
        progress, (worked_s, wants) = self._sign(), _work(self._pids)
        if wants or worked_s != self._work_s:
            self._work_s, self._worked_s = worked_s, now_s
        if progress != self._seen:
            self._seen, self._since_s, self._work_then_s = progress, now_s, worked_s
        return self._is_standstill(now_s)

    def _is_standstill(self, now_s: float) -> bool:
        unseen_s = now_s - self._since_s
        idle = now_s - self._worked_s > self._seconds
        worked_enough = self._work_s - self._work_then_s > WORK * self._seconds
        return unseen_s > self._seconds and (idle or worked_enough or unseen_s > LONGEST * self._seconds)


def work_s(pids: Sequence[int]) -> float:
    """Processor time that these processes and all under them have had; of those that ended, what their parents were told."""
    return _work(pids)[0]


def _work(pids: Sequence[int]) -> tuple[float, bool]:
    """The same, and whether one of them wants more: it waits for a processor or for a disk."""
    stats = [_stat(pid) for root in pids for pid in [root, *descendants(root)]]
    return sum(ticks for ticks, _ in stats) * TICKS_S, any(state in "RD" for _, state in stats)


def _stat(pid: int) -> tuple[int, str]:
    """Ticks of user and system time, its ended children's too, and its state."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0, "X"
    state, *fields = stat.rpartition(")")[2].split()
    return sum(map(int, fields[10:14])), state


def descendants(pid: int) -> list[int]:
    """The children of a process, and theirs."""
    try:
        text = " ".join(path.read_text(encoding="utf-8") for path in Path(f"/proc/{pid}/task").glob("*/children"))
    except (FileNotFoundError, ProcessLookupError):
        return []
    children = [int(child) for child in text.split()]
    return children + [below for child in children for below in descendants(child)]


class Processes:
    """Those that were started and have not ended; leaving the block ends them.

    ``sign`` moves while what they do together moves on.
    """

    def __init__(self, folder: Path, patience_s: float, sign: Callable[[], object] = lambda: None) -> None:
        self._folder = folder  # of their logs
        self._patience_s = patience_s
        self._sign = sign
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

        Raises: MillraceError where a process fails meanwhile, or where nothing moves on.
        """
        patience = Patience([process.pid for process in self._running.values()], self._patience_s, self._sign)
        while not condition():
            for name, process in self._running.items():
                if process.poll():
                    raise MillraceError(f"The {name} failed with exit code {process.returncode}: {self._last_line(name)}")
            if patience.ended():
                raise MillraceError(f"Nothing moved on for {self._patience_s:g} s. Look at the logs in {self._folder}.")
            time.sleep(POLL_S)

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


def finish(process: Process, patience_s: float = TIMEOUT_S) -> None:
    """Ask a process to come to an end.

    Raises: MillraceError where it fails, or comes to a standstill instead.
    """
    if not _ended(process, patience_s):
        raise MillraceError(f"Process {process.pid} does not end though it was asked to.")
    if process.returncode:
        raise MillraceError(f"Process {process.pid} was asked to end and failed with exit code {process.returncode}.")


def end(process: Process, patience_s: float = TIMEOUT_S) -> None:
    """Make sure that a process has ended: asked first, then killed."""
    if process.poll() is None and not _ended(process, patience_s):
        process.kill()
        process.wait()


def _ended(process: Process, patience_s: float) -> bool:
    """Whether it came to its end when it was asked."""
    process.terminate()
    patience = Patience([process.pid], patience_s)
    while process.poll() is None:
        if patience.ended():
            return False
        time.sleep(POLL_S)
    return True
