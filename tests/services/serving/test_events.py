"""What processes say reaches whoever reads stderr: nothing is lost with its sender, and nobody waits for a reader."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipelines import TIMEOUT_S
from served_pipeline import until

from millrace.services.serving.companion import companion
from millrace.services.serving.event_socket import EventSender, Repeats, received
from millrace.services.serving.events import LONGEST, Event, EventLines, StrayLines, line

SENDS = (
    "import logging, os, pathlib, sys, threading\nfrom millrace.services.serving.event_socket import send_events\n"
    "send_events(pathlib.Path(sys.argv[1]), 'replica', 'main')\nlog = logging.getLogger('millrace')\n"
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """One whose name leaves room for that of a socket."""
    with tempfile.TemporaryDirectory(prefix="events-") as path:
        yield Path(path)


def sender(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    """A process that does that, and has ended."""
    command = [sys.executable, "-c", SENDS + body, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def test_what_a_process_said_arrives_though_it_is_killed_at_once(folder: Path) -> None:
    """Every one of two hundred events, in order, then kill -9 of itself; those of libraries from warnings on."""
    heard: list[Event] = []
    body = (
        "for at in range(200): log.info('event %d', at)\nlogging.getLogger('lib').info('no')\n"
        "logging.getLogger('lib').warning('yes')\nos.kill(os.getpid(), 9)"
    )
    with received(folder, heard.append):
        assert sender(folder, body).returncode == -9
    assert [event.message for event in heard] == [f"event {at}" for at in range(200)] + ["yes"]
    assert {(event.process, event.branch, event.level) for event in heard[:-1]} == {("replica", "main", "INFO")}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event.time) for event in heard)


def test_what_ends_a_thread_is_said_with_its_traceback_in_one_line(folder: Path) -> None:
    """As JSON; and the message of an exception that is caught and logged."""
    heard: list[Event] = []
    with received(folder, heard.append):
        sender(folder, "thread = threading.Thread(target=lambda: 1 / 0, name='worker')\nthread.start()\nthread.join()")
    [event] = heard
    text = line(event, "json")
    assert "\n" not in text and json.loads(text)["level"] == "ERROR"
    assert event.message.startswith("A thread (worker) ended unforeseen.\nTraceback") and "ZeroDivisionError" in event.message


def test_a_sender_waits_for_nobody_and_says_how_many_events_are_lost(folder: Path) -> None:
    """While the receiver stands still, what does not fit with the kernel is counted, and the count goes with the next."""
    goes_on, heard = threading.Event(), list[Event]()

    def slow(event: Event) -> None:
        heard.append(event)
        goes_on.wait()

    def say(message: str) -> None:
        handler.emit(logging.LogRecord("millrace", logging.INFO, "", 0, message, None, None))

    handler = EventSender(folder / "events", "replica", "main")
    say("nobody receives yet")
    assert handler.lost == 1
    with received(folder, slow):
        say("first")
        until(lambda: len(heard) == 1)  # from now on nothing is read
        sent = 1
        while handler.lost < 5:
            say("x" * 1000)
            sent += 1
        goes_on.set()
        until(lambda: len(heard) == sent - handler.lost)
        say("last")
    handler.close()
    assert heard[0].message == "(1 events before this are lost.) first"
    assert heard[-1].message == "(5 events before this are lost.) last" and len(heard) == sent - 5 + 1


def test_a_very_long_message_is_cut_and_says_by_how_much(folder: Path) -> None:
    """It would not fit into the socket."""
    heard: list[Event] = []
    with received(folder, heard.append):
        sender(folder, f"log.error('é' * {LONGEST + 7})")
    assert heard[0].message == "é" * LONGEST + " (7 characters more)"


def test_a_companion_that_fails_says_why_among_the_events(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Its own events as they are, and lines that are none as errors; no file grows beside them."""
    body = "import sys; print('stdout is for rows'); from millrace.services.serving.events import EventLines; import logging; "
    body += (
        "logging.basicConfig(level=20, handlers=[EventLines('json', 'mirror')]); logging.warning('a\\nb'); sys.exit('bad end')"
    )
    monkeypatch.setattr("millrace.services.serving.companion.COMMAND", [sys.executable, "-c", body])
    heard: list[Event] = []
    with companion(["mirror"], heard.append):
        until(lambda: len(heard) >= 2)
    assert [(event.level, event.process, event.message) for event in heard[:2]] == [
        ("WARNING", "mirror", "a\nb"),
        ("ERROR", "mirror", "bad end"),
    ]


def test_as_text_a_line_names_the_process_and_as_json_it_holds_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """What a person starts `up` for stands on stdout, but where a machine reads all of it."""
    event = Event("2026-01-02T03:04:05.678Z", "WARNING", "keeper", 7, "main", "no trainer")
    for form in ("text", "json"):
        EventLines(form, "up").show(event)
    EventLines("text", "up").say("ready")
    out, err = capsys.readouterr()
    text, packed = err.splitlines()
    assert (out, text) == ("ready\n", "WARNING keeper: no trainer")
    assert json.loads(packed) == {name: getattr(event, name) for name in Event.__struct_fields__}


def test_what_a_library_prints_is_an_event_too(capsys: pytest.CaptureFixture[str]) -> None:
    """A line each, without colours; as Ray says that a worker died."""
    lines = EventLines("json", "up")
    print("\x1b[33m(raylet)\x1b[0m a worker", "died\n\nbegun", file=StrayLines(lines, "WARNING", "up"), end="")
    [text] = capsys.readouterr().err.splitlines()
    assert (json.loads(text)["level"], json.loads(text)["message"]) == ("WARNING", "(raylet) a worker died")


def test_what_is_said_again_and_again_is_said_once_and_then_how_often() -> None:
    """A full disk is an event every thirty seconds and not every two; other sentences come meanwhile."""
    repeats, passed = Repeats(), []
    for at in range(0, 62, 2):
        for words in ("disk full", f"look {at}"):
            record = logging.LogRecord("millrace", logging.ERROR, "", 0, "%s", (words,), None)
            record.created = 1e9 + at
            if repeats.filter(record):
                passed.append(record.getMessage())
    full = [text for text in passed if text.startswith("disk")]
    assert full == ["disk full", *["disk full (It was said 14 times more.)"] * 2]
    assert len(passed) == len(full) + 31
