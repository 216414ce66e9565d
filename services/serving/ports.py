"""A port that is free, and what is said of one that is not."""

from __future__ import annotations

import errno
import secrets
import socket
from contextlib import suppress

from millrace.services.errors import BusyError


def free_port() -> int:
    """One that nobody listens on, and that the kernel hands to no connection."""
    while True:
        port = 10_000 + secrets.randbelow(10_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def refused(error: OSError, host: str, port: int, options: tuple[str, str]) -> BusyError:
    """Why nobody can listen there, and which of the options, that of the host and that of the port, to give otherwise."""
    if error.errno == errno.EADDRNOTAVAIL:
        return BusyError(f"{host}: this machine has no such address; give another {options[0]}.")
    return BusyError(f"{host}:{port}: {error.strerror}. Stop what listens there, or give another {options[1]}.")
