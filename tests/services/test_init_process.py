"""Process 1 of a container: orphans are reaped, signals and exit codes pass through, and nobody's exit code is taken."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pipelines import MILLRACE, TIMEOUT_S, clean_environment, lacks

# Orphans come to a process that has said PR_SET_CHILD_SUBREAPER as they come to process 1.
INIT = """
import ctypes, os, signal, subprocess, sys, time
from pathlib import Path
from millrace.services.cli.init_process import stay_as_init
assert ctypes.CDLL(None).prctl(36, 1) == 0
stay_as_init()
def children(): return Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read_text().split()
"""
ORPHANS = """
for _ in range(20):
    subprocess.run(["sh", "-c", "sh -c 'exit 5' & sleep 0.01 & exit 0"], check=True)
    own = subprocess.Popen(["sh", "-c", "exit 7"])
    while children() != [str(os.getpid())]: time.sleep(0.01)
    assert own.wait() == 7, own.returncode
print("reaped", flush=True)
"""


def init(body: str) -> subprocess.Popen[str]:
    """One that runs that in its child."""
    return subprocess.Popen([sys.executable, "-c", INIT + body], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("end", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137), ("", 0)])
def test_orphans_are_reaped_and_an_exit_code_goes_to_whoever_waits_for_it(end: str, code: int) -> None:
    """Twenty times: orphans of a shell are gone, while a child of the application keeps its exit code for it."""
    with init(ORPHANS + end) as process:
        assert process.communicate(timeout=TIMEOUT_S)[0] == "reaped\n"
    assert process.returncode == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_handed_on_once(number: signal.Signals) -> None:
    """And the application ends as it wants to."""
    body = f"signal.pthread_sigmask(signal.SIG_BLOCK, [{number}])\nprint('waits', flush=True)\n"
    body += f"assert signal.sigwait([{number}]) == {number}\nassert not signal.sigpending()\nsys.exit(11)"
    with init(body) as process:
        assert process.stdout is not None and process.stdout.readline() == "waits\n"
        os.kill(process.pid, number)
        process.wait(TIMEOUT_S)
    assert process.returncode == 11


@pytest.mark.parametrize(("words", "first"), [(["up"], True), (["config", "show"], True), (["config", "show"], False)])
def test_a_container_leaves_one_sentence_where_kubernetes_looks(tmp_path: Path, words: list[str], first: bool) -> None:
    """Why it ends, of process 1 or the child that it makes of itself; a command that runs beside it leaves none."""
    if os.getuid() != 0 or shutil.which("unshare") is None:
        lacks("only root can give a process numbers of its own, by unshare of util-linux")
    place = tmp_path / "termination-log"
    place.touch()
    patched = f"import pathlib; from millrace.services.cli import init_process as i; i.LAST_WORDS = pathlib.{place!r}; "
    own_numbers = ["unshare", "--pid", "--fork", "--kill-child"] if first else []
    command = [*own_numbers, sys.executable, "-c", patched + MILLRACE[-1], *words, "missing.toml"]
    done = subprocess.run(command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "missing.toml" in done.stderr
    assert place.read_text() == (done.stderr.removeprefix("millrace: ") if first else "")
