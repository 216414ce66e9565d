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
LOOK_S = 0.5


@contextmanager
def companion(words: Sequence[str], output: Path) -> Iterator[None]:
    """`millrace WORDS --parent OURS` for as long as the block runs, with what it says in ``output``."""
    stop = threading.Event()
    thread = threading.Thread(target=_keep, args=([*words, "--parent", str(os.getpid())], output, stop), name=words[0])
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def finish(words: Sequence[str]) -> None:
    """Run `millrace WORDS` to its end. Raises: MillraceError with the last that it said where it fails."""
    done = subprocess.run([*COMMAND, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().removeprefix("millrace: ") or "it said nothing"
        raise MillraceError(f"`millrace {words[0]}` ended with exit code {done.returncode}: {said}")


def _keep(words: Sequence[str], output: Path, stop: threading.Event) -> None:
    wait_s = FIRST_S
    while not stop.is_set():
        with output.open("ab") as said:
            process: Process = subprocess.Popen(
                [*COMMAND, *words], stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )
        while process.poll() is None and not stop.wait(LOOK_S):
            pass
        if not stop.is_set():
            log.warning("millrace %s ended with exit code %d; see %s. It is started again.", words[0], process.poll(), output)
        end(process)
        stop.wait(wait_s)
        wait_s = min(2 * wait_s, LONGEST_S)
