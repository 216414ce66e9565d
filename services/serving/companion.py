"""A command of ours that runs beside `millrace up`, in a process of its own, and again where it fails."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from millrace.learners.errors import MillraceError
from millrace.services.processes import COMMAND, Process, end
from millrace.services.serving.events import Event, event_now

log = logging.getLogger("millrace")

FIRST_S, LONGEST_S = 5.0, 60.0  # before it is started again
POLL_S = 0.5  # between two polls of the process


@contextmanager
def companion(arguments: Sequence[str], show: Callable[[Event], None]) -> Iterator[None]:
    """`millrace WORDS --parent OURS --log-format json` for as long as the block runs; what it says is shown as events."""
    stop = threading.Event()
    command = [*arguments, "--parent", str(os.getpid()), "--log-format", "json"]
    thread = threading.Thread(target=_keep, args=(command, show, stop), name=arguments[0])
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


def _keep(arguments: Sequence[str], show: Callable[[Event], None], stop: threading.Event) -> None:
    wait_s = FIRST_S
    while not stop.is_set():
        process: Process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # rows for whoever calls it by hand
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        listening = threading.Thread(target=_pass_on, args=(process, arguments[0], show), name=f"{arguments[0]} events")
        listening.start()
        while process.poll() is None and not stop.wait(POLL_S):
            pass
        end(process)
        listening.join()
        if not stop.is_set():
            log.warning("millrace %s ended with exit code %d. It is started again.", arguments[0], process.returncode)
        stop.wait(wait_s)
        wait_s = min(2 * wait_s, LONGEST_S)


def _pass_on(process: Process, name: str, show: Callable[[Event], None]) -> None:
    """Show every line that it says to its end; one that is no event is what ended it."""
    assert process.stderr is not None
    with process.stderr as lines:
        for text in lines:
            try:
                show(msgspec.json.decode(text, type=Event))
            except msgspec.DecodeError:
                show(event_now("ERROR", name, process.pid, text.decode(errors="replace").rstrip()))
