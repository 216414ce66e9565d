"""A guard over Ray's start: Ray waits in C++ there and holds the interpreter's lock, so that no thread of ours can look.

Where its store of cluster state (the GCS) dies in those seconds, Ray waits five minutes for it. A small process beside `up`
sees it gone, waits a while for Ray to notice, then says so and ends `up`, whose supervisor starts it again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from millrace.services.serving.events import Form, event_now, line

GUARDED = "gcs_server"  # the one whose death Ray does not notice for minutes
NOTICE_S = 10.0  # for Ray to notice by itself, as it does of most deaths
LOOK = """
import os, sys, time
parent, notice_s, said, part = int(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:]

def look():  # at children of that name: process, whether it lives (one that died waits for its parent)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                name, _, fields = file.read().partition("(")[2].rpartition(")")
        except OSError:
            continue
        state, its_parent = fields.split()[:2]
        if int(its_parent) == parent and name == part:
            yield pid, state != "Z"

seen, gone_s = set(), None
while os.getppid() == parent:
    looked = list(look())
    seen |= {pid for pid, _ in looked}
    gone = seen - {pid for pid, lives in looked if lives}
    if gone and gone_s is None:
        gone_s = time.monotonic()
    if gone and time.monotonic() - gone_s > notice_s:
        print(said, file=sys.stderr, flush=True)
        os.kill(parent, 9)
        break
    time.sleep(0.1)
"""


@contextmanager
def guarded_start(logs: str, form: Form) -> Iterator[None]:
    """While the block runs, the death of the GCS ends this process, and a sentence says where Ray's ``logs`` lie.

    ``form``: of what is said on stderr.
    """
    sentence = f"millrace: Serving did not start: Ray has died ({GUARDED}). Its logs lie in {logs}. Run again."
    said = sentence if form == "text" else line(event_now("ERROR", "up", os.getpid(), sentence), form)
    words = [str(os.getpid()), str(NOTICE_S), said, GUARDED]
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", LOOK, *words], stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()
