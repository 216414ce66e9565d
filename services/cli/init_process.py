"""Process 1 of a container: it starts `millrace up` as its child, hands signals on, and reaps whatever is left to it.

The kernel gives every orphan of a container to process 1, and an orphan that has ended stays a zombie until it is waited for.
This one has a single child of its own and waits for all, so it takes no exit code from anybody who waits for a child.
"""

from __future__ import annotations

import os
import signal

HANDED_ON = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}


def stay_as_init() -> None:
    """Return in a child; this process stays until that child ends, and ends with its exit code (128 + N for signal N).

    The child has a process group of its own, so a Ctrl-C at a terminal reaches it once. Call it before there are threads.
    """
    awaited = HANDED_ON | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)  # what comes meanwhile waits
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    while (code := _reaped(child)) is None:
        if (number := signal.sigwait(awaited)) != signal.SIGCHLD:
            os.kill(child, number)
    os._exit(code)


def _reaped(child: int) -> int | None:
    """Reap all that have ended; the exit code of ``child`` once it is among them."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if pid == 0:
            return None
