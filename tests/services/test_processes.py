"""What is waited for: whatever works, or shows a sign, and nothing that stands still."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from millrace.learners.errors import MillraceError
from millrace.services.processes import LONGEST, WORK, Patience, Processes, end, finish, work_s

TIMEOUT_S = 0.5
SLEEP = "import time; time.sleep(3600)"
FOR_EVER = "while True: pass"
LATE = "import time; t = time.process_time; e = t() + {work_s}\nwhile t() < e: pass\nopen({path!r}, 'w')\ntime.sleep(3600)"


@pytest.fixture
def processes(tmp_path, monkeypatch):
    """Whose commands are lines of Python."""
    monkeypatch.setattr("millrace.services.processes.COMMAND", [sys.executable, "-c"])
    with Processes(tmp_path, TIMEOUT_S) as several:
        yield several


def test_one_that_sleeps_is_a_standstill(processes) -> None:
    """It gets no processor time because it wants none."""
    processes.start("sleeper", [SLEEP])
    with pytest.raises(MillraceError, match="Nothing moved on for 0.5 s"):
        processes.wait_until(lambda: False)


def test_one_that_works_is_waited_for_longer_than_patience(processes, tmp_path) -> None:
    """However long that work takes on the wall's clock."""
    done, begin_s = tmp_path / "done", time.monotonic()
    processes.start("worker", [LATE.format(work_s=1.2 * TIMEOUT_S, path=str(done))])
    processes.wait_until(done.exists)
    assert time.monotonic() - begin_s > TIMEOUT_S


def test_one_that_works_and_shows_nothing_is_given_up(processes) -> None:
    """After so much work that it should have come to something, or so long that it gets no more."""
    begin_s, spinning = time.monotonic(), processes.start("spinner", [FOR_EVER])
    with pytest.raises(MillraceError, match="Nothing moved on"):
        processes.wait_until(lambda: False)
    assert work_s([spinning.pid]) > WORK * TIMEOUT_S or time.monotonic() - begin_s > LONGEST * TIMEOUT_S


def test_a_sign_begins_patience_anew(tmp_path) -> None:
    """The log's end moves though the processes that are watched sleep."""
    begin_s, still = time.monotonic(), tmp_path / "still"
    patience = Patience([], TIMEOUT_S, lambda: still.exists() or time.monotonic_ns())
    while time.monotonic() - begin_s < 3 * TIMEOUT_S:
        assert not patience.ended()
    still.touch()
    while not patience.ended():
        pass


def test_one_that_fails_is_told_with_its_last_line(processes) -> None:
    """At once, and not when patience ends."""
    processes.start("breaker", ["raise SystemExit('out of ink')"])
    with pytest.raises(MillraceError, match="The breaker failed with exit code 1: out of ink"):
        processes.wait_until(lambda: False)


def test_work_of_children_counts_once_they_have_ended(processes, tmp_path) -> None:
    """A start is the work of many, and some of them are over before it is."""
    done = tmp_path / "done"
    spin = LATE.format(work_s=0.3, path=str(done)).partition("\ntime.sleep(3600)")[0]
    parent = processes.start(
        "parent", [f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {spin!r}]); {SLEEP}"]
    )
    processes.wait_until(lambda: done.exists() and work_s([parent.pid]) > 0.3)


def test_who_does_not_end_when_asked_is_killed(processes, tmp_path) -> None:
    """After a standstill; and ``finish`` says so instead."""
    ready = tmp_path / "ready"
    deaf = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); open({str(ready)!r}, 'w'); {SLEEP}"
    process = processes.start("deaf", [deaf])
    processes.wait_until(ready.exists)
    with pytest.raises(MillraceError, match="does not end though it was asked to"):
        finish(process, TIMEOUT_S)
    end(process, TIMEOUT_S)
    assert process.returncode == -9


@pytest.mark.parametrize("code", [0, 3])
def test_what_a_process_ends_with_is_told(processes, code: int, tmp_path) -> None:
    """Nothing where it is nothing."""
    Path(tmp_path / "left").touch()
    process = processes.start("ender", [f"raise SystemExit({code})"])
    process.wait()
    if code == 0:
        finish(process)
    else:
        with pytest.raises(MillraceError, match="failed with exit code 3"):
            finish(process)
