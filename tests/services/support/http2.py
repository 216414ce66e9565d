"""HTTP/2 by hand, for callers that no library would be: frames, and the heads of what comes back."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from struct import pack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
HEADERS = 1  # the kind of a frame


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One of HTTP/2 (RFC 9113, section 4.1)."""
    return pack(">I", len(payload))[1:] + bytes([kind, flags]) + pack(">I", stream) + payload


def head(stream: int, method: str, path: str, **more: str) -> bytes:
    """Of a request that goes on: its headers as literals (RFC 7541, section 6.2.2)."""
    pairs = {":method": method, ":scheme": "http", ":path": path, ":authority": "localhost", "te": "trailers"}
    pairs |= {"content-type": "application/grpc"} | more
    texts = [(name.encode(), value.encode()) for name, value in pairs.items()]
    block = b"".join(bytes([0, len(name)]) + name + bytes([len(value)]) + value for name, value in texts)
    return frame(HEADERS, 4, stream, block)


def heads(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Stream and header block of each answer as it comes, trailers too."""
    heard = b""
    while True:
        received = connection.recv(1 << 16)
        assert received, "the connection ended"
        heard += received
        while len(heard) >= 9 and len(heard) >= (end := 9 + int.from_bytes(heard[:3])):
            if heard[3] == HEADERS:
                yield int.from_bytes(heard[5:9]), heard[9:end]
            heard = heard[end:]
