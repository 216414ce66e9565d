"""Which sockets a replica answers on: numbered seats in one folder, so that a front knows all of them beforehand.

A replica holds its seat by a lock, which the kernel takes back when the process is gone, however it went.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from millrace.learners.errors import MillraceError
from millrace.services.endpoint.servers import UnixSockets
from millrace.services.serving.lock import has_lock

DRAINING = "draining"  # a file beside the sockets


def seats(replicas: int) -> int:
    """How many there are: a replica that is replaced may still hold its own."""
    return 2 * replicas + 2


def sockets(folder: Path, seat: int) -> UnixSockets:
    """Of a seat; the first is 1."""
    return UnixSockets(folder / f"{seat}.http", folder / f"{seat}.grpc")


def waiting_socket(folder: Path) -> Path:
    """Where requests go while no replica answers."""
    return folder / "waiting.sock"


def admin_socket(folder: Path) -> Path:
    """On which the front tells of itself."""
    return folder / "admin.sock"


def drain(folder: Path) -> None:
    """Say to every replica that it is about to end."""
    (folder / DRAINING).touch(mode=0o600)


def is_draining(folder: Path) -> bool:
    """Whether that was said."""
    return (folder / DRAINING).exists()


def take_seat(folder: Path, replicas: int) -> UnixSockets:
    """The sockets of the first free seat, which stays this process's. Raises: MillraceError where all are taken."""
    for seat in range(1, seats(replicas) + 1):
        lock = os.open(folder / f"{seat}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if has_lock(lock, fcntl.LOCK_EX):
            return sockets(folder, seat)  # the lock stays open for as long as the process lives
        os.close(lock)
    raise MillraceError(f"All {seats(replicas)} seats in {folder} are taken by replicas that have not ended.")
