"""A command of ours that runs beside `millrace up`, in a process of its own, and again where it fails."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from millrace.learners.errors import MillraceError
from millrace.services.processes import COMMAND, Process, end

log = logging.getLogger("millrace")

FIRST_S, LONGEST_S = 5.0, 60.0  # before it is started again
POLL_S = 0.5  # between two polls of the process


@contextmanager
def companion(arguments: Sequence[str], output: Path) -> Iterator[None]:
    """`millrace WORDS --parent OURS` for as long as the block runs, with what it says in ``output``."""
    stop = threading.Event()
    thread = threading.Thread(target=_keep, args=([*arguments, "--parent", str(os.getpid())], output, stop), name=arguments[0])
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def finish(arguments: Sequence[str]) -> None:
    """Run `millrace WORDS` to its end. Raises: MillraceError with the last that it said where it fails."""
    result = subprocess.run([*COMMAND, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode:
        message = result.stderr.strip().removeprefix("millrace: ") or "it said nothing"
        raise MillraceError(f"`millrace {arguments[0]}` ended with exit code {result.returncode}: {message}")


def _keep(arguments: Sequence[str], output: Path, stop: threading.Event) -> None:
    wait_s = FIRST_S
    while not stop.is_set():
        with output.open("ab") as log_file:
            process: Process = subprocess.Popen(
                [*COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file, start_new_session=True
            )
        while process.poll() is None and not stop.wait(POLL_S):
            pass
        if not stop.is_set():
            log.warning(
                "millrace %s ended with exit code %d; see %s. It is started again.", arguments[0], process.poll(), output
            )
        end(process)
        stop.wait(wait_s)
        wait_s = min(2 * wait_s, LONGEST_S)
