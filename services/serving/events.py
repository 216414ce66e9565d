"""Events of every process of `millrace up`: one record each, and the line that it makes on stderr."""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal

import click
import msgspec

from millrace.services.printable import printable, printable_lines

Form = Literal["text", "json"]
TRACEBACK = "\nTraceback (most recent call last):\n"
LONGEST = 1 << 15  # characters of a message


class Event(msgspec.Struct, frozen=True):
    """What a process said, and when."""

    time: str  # RFC 3339, in UTC
    level: str  # INFO, WARNING or ERROR
    process: str  # up, trainer, merger, replica, keeper, current, mirror or verify
    pid: int
    branch: str  # that it works on; empty for one that works on all
    message: str  # with its traceback, where there is one


_LINES = logging.Formatter("%(message)s")


def event_of(record: logging.LogRecord, process: str, branch: str) -> Event:
    """A record of the standard library's logging as an event; the end of a very long message is counted and left out."""
    message = _LINES.format(record)
    if (more := len(message) - LONGEST) > 0:
        message = f"{message[:LONGEST]} ({more} characters more)"
    return Event(_rfc3339(record.created), record.levelname, process, record.process or 0, branch, message)


def event_now(level: str, process: str, pid: int, message: str) -> Event:
    """What a process says that makes no events of its own, as one."""
    return Event(_rfc3339(time.time()), level, process, pid, "", message)


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def line(event: Event, form: Form) -> str:
    """As it is printed: JSON in one line; as text with the name of its process, but for `up` itself.

    >>> line(Event("2026-01-02T03:04:05.678Z", "INFO", "trainer", 7, "main", "epoch 2"), "text")
    'INFO trainer: epoch 2'
    """
    if form == "json":
        return msgspec.json.encode(event).decode()
    message, traceback, rest = event.message.partition(TRACEBACK)  # line breaks of the message may come from data
    process = "" if event.process == "up" else f"{event.process}: "
    return f"{event.level} {process}{printable(message)}{printable_lines(traceback + rest)}"


class EventLines(logging.Handler):
    """Prints what this process says, and what others sent it, a line each and never two at once."""

    def __init__(self, form: Form, process: str, branch: str = "") -> None:
        super().__init__()
        self.form: Form = form
        self.branch = branch
        self._process = process
        self._stream = sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record of this process."""
        self.show(event_of(record, self._process, self.branch))

    def show(self, event: Event) -> None:
        """Print an event; where nobody reads stderr any more, there is nobody to tell."""
        self.acquire()
        try:
            with suppress(OSError, ValueError):
                self._stream.write(line(event, self.form) + "\n")
                self._stream.flush()
        finally:
            self.release()

    def say(self, text: str) -> None:
        """A line for whoever started the command: on stdout, or where all is JSON among the events."""
        if self.form == "text":
            click.echo(text)
        else:
            logging.getLogger("millrace").info(text)


class StrayLines(io.TextIOBase):
    """In the place of stdout and stderr where all is JSON: a line that a library writes there becomes an event."""

    encoding = "utf-8"

    def __init__(self, lines: EventLines, level: str, process: str) -> None:
        self._lines = lines
        self._level = level
        self._process = process
        self._begun = ""

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, text: str) -> int:
        """Keep it until its line is whole."""
        *whole, self._begun = (self._begun + text).split("\n")
        for stray in filter(str.strip, map(click.unstyle, whole)):
            self._lines.show(event_now(self._level, self._process, os.getpid(), stray))
        return len(text)
