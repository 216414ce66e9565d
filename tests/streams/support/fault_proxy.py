"""A TCP proxy on loopback that does what networks do: slow down, delay, fall silent, hang up. For tests and `make faults`.

Source: the faults and their names are those of Toxiproxy's README (Shopify/toxiproxy).
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

READ_BYTES = 16 << 10
POLL_S = 0.02
RESET = struct.pack("ii", 1, 0)  # close at once, with RST in place of FIN


@dataclass
class FaultProxy:
    """Forwards what connects to ``port`` to a port of this machine; its faults may be changed at any time."""

    target: int = 0
    latency_s: float = 0.0  # added to every piece that passes, either way
    bandwidth: float = 0.0  # bytes/s of each direction of each connection; 0: no limit
    silent: bool = False  # a black hole: connections stand and are taken, and nothing passes
    resets: int = 0  # connections that were hung up on
    port: int = 0
    _listening: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    _ends: set[socket.socket] = field(default_factory=set)
    _closed: bool = False

    def __post_init__(self) -> None:
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def reset_peer(self) -> None:
        """Hang up on everyone, as a router does that has lost its table."""
        for end in list(self._ends):
            self.resets += 1
            self._hang_up(end)

    def heal(self) -> None:
        """No fault from now on; what was held back passes."""
        self.latency_s, self.bandwidth, self.silent = 0.0, 0.0, False

    def close(self) -> None:
        """End every connection and take no more."""
        self._closed = True
        self._listening.close()
        self.reset_peer()

    def _accept(self) -> None:
        with suppress(OSError):
            while not self._closed:
                near = self._listening.accept()[0]
                try:
                    far = socket.create_connection(("127.0.0.1", self.target), timeout=5)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                self._ends |= {near, far}
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(READ_BYTES):
                time.sleep(self.latency_s + (len(piece) / self.bandwidth if self.bandwidth else 0.0))
                while self.silent and not self._closed:
                    time.sleep(POLL_S)
                sink.sendall(piece)
        for end in (source, sink):
            self._hang_up(end)

    def _hang_up(self, end: socket.socket) -> None:
        self._ends.discard(end)
        with suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            end.shutdown(socket.SHUT_RDWR)  # wakes whoever reads
        end.close()


@contextmanager
def proxy() -> Iterator[FaultProxy]:
    """One, for as long as the block lasts; say its ``target`` before anyone connects."""
    faulty = FaultProxy()
    try:
        yield faulty
    finally:
        faulty.close()
