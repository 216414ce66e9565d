"""Ports that are free, and those that belong to one instance."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from millrace.services.errors import BusyError

PORTS = 100  # of an instance: half of them for HTTP, half for gRPC
OWN = 10  # the first of them: the proxy's own, never those that the kernel hands out to connections
TRIES = 50  # to find so many


def free_port() -> int:
    """One that nobody listens on, and that the kernel hands to no connection."""
    while True:
        port = 10_000 + secrets.randbelow(10_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextmanager
def held_ports() -> Iterator[int]:
    """The first of a hundred ports for the replicas, held for this instance alone, and free now.

    HAProxy must never meet the replicas of another instance or of one that was killed.
    """
    blocks = list(range(20_000, 30_000, PORTS))
    for _ in range(TRIES):
        first = secrets.choice(blocks)
        lock = os.open(Path(tempfile.gettempdir()) / f"millrace-ports-{first}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for port in (*range(first, first + 2 * OWN), *range(first + PORTS // 2, first + PORTS // 2 + 8)):
                with socket.socket() as probe:
                    probe.bind(("", port))
        except OSError:
            os.close(lock)
            continue
        try:
            yield first
        finally:
            os.close(lock)
        return
    raise BusyError("No hundred ports in a row are free from 20000 to 29999. Stop other instances first.")
