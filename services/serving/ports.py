"""A port that is free."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress


def free_port() -> int:
    """One that nobody listens on, and that the kernel hands to no connection."""
    while True:
        port = 10_000 + secrets.randbelow(10_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
