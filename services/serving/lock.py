"""Who serves a pipeline: the process that holds a lock in its folder, which the kernel takes back however that process ends.

A process number tells nothing: another container has numbers of its own, and numbers are used again. On a network file system
the server keeps the lock, and lets it go some time after a machine has died (NFS 4: when its lease ends, often 90 s). Where
locks hold on each machine alone, a second endpoint starts on another machine, and the journal's fence lets one of both learn.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from millrace.services.errors import BusyError
from millrace.streams.errors import StorageError

NAME = "endpoint.json.lock"  # no branch has a dot in its name, so none has this lock
GLANCE_S = 1.0  # for which a lock that is only looked at may seem held
POLL_S = 0.01


@contextmanager
def held_alone(folder: Path, holder: str) -> Iterator[None]:
    """The pipeline of a folder is served by this process alone for as long as the block runs. ``holder``: who has it else.

    Raises: BusyError where another process serves it, StorageError where there can be no lock.
    """
    handle = _taken(folder / NAME, holder)
    try:
        yield
    finally:
        os.close(handle)


def _taken(path: Path, holder: str) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)  # no child has it
        until_s = time.monotonic() + GLANCE_S
        while not has_lock(handle, fcntl.LOCK_EX):
            if time.monotonic() > until_s:
                os.close(handle)
                raise BusyError(f"{holder} serves this pipeline already ({path} is locked). Stop that one first.")
            time.sleep(POLL_S)
    except OSError as error:
        raise StorageError(f"{path} cannot be locked: {error.strerror}. Name a folder where locks work with --home.") from error
    return handle


def is_held(folder: Path) -> bool:
    """Whether a process serves the pipeline of a folder. Where that cannot be told it counts as served: asking it shows."""
    try:
        handle = os.open(folder / NAME, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return not has_lock(handle, fcntl.LOCK_SH)
    except OSError:
        return True
    finally:
        os.close(handle)


def has_lock(handle: int, kind: int) -> bool:
    """Whether an open file is locked by us now, for ourselves (LOCK_EX) or with others (LOCK_SH); it never waits."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
