"""Callers that ask the same thing again and again, each on a connection of its own: the load of bench_serve.py.

python caller.py http|grpc PORT PATH FILE CONNECTIONS SECONDS prints one JSON line. The request is made once, as bytes, and an
answer is only looked at for its end and its status, so that the servers are the bottleneck and not this process; a bare echo
server tells how far that holds. HTTP/2 is written by hand for the same reason: RFC 9113, and RFC 7541 without its tables.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
from pathlib import Path

import numpy as np
import uvloop

WARM_S = 0.4  # at first, not counted
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8  # types of frames
END_STREAM, ACK, END_HEADERS = 1, 1, 4  # flags
WIDEST = 2**31 - 1  # a window that no run fills


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


class Caller(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, request: bytes, path: str, port: int) -> None:
        self.times: list[tuple[float, float]] = []  # when an answer came, after how long
        self.failed = 0
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._sent_s = 0.0
        self._request = self.made(request, path, port)

    def made(self, request: bytes, path: str, port: int) -> bytes:
        """The request as it goes out."""
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(request)}\r\n\r\n".encode() + request

    def connection_made(self, transport) -> None:
        self._transport = transport
        self.ask()

    def ask(self) -> None:
        """Send the request."""
        self._sent_s = time.perf_counter()
        self._transport.write(self._request)

    def answered(self, well: bool) -> None:
        """Count an answer and ask again."""
        now_s = time.perf_counter()
        if well:
            self.times.append((now_s, now_s - self._sent_s))
        else:
            self.failed += 1
        self.ask()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._buffer[:head].lower().index(b"content-length:") + 15
        if len(self._buffer) >= head + 4 + int(self._buffer[at : head + 2].split(b"\r\n", 1)[0]):
            well = self._buffer[9:10] == b"2"
            self._buffer.clear()
            self.answered(well)

    def connection_lost(self, exc) -> None:
        self.failed += 1


class GrpcCaller(Caller):
    """The same over HTTP/2: the next call is the next stream."""

    def made(self, request: bytes, path: str, port: int) -> bytes:
        fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": f"127.0.0.1:{port}", "te": "trailers"}
        fields |= {"content-type": "application/grpc", "user-agent": "bench"}
        literal = (
            b"\0" + bytes([len(name)]) + name.encode() + bytes([len(text)]) + text.encode() for name, text in fields.items()
        )
        self._headers = b"".join(literal)  # without an index, so that it never changes
        self._body = b"\0" + struct.pack(">I", len(request)) + request
        self._stream, self._has_data = -1, False
        return b""

    def connection_made(self, transport) -> None:
        settings = struct.pack(">HIHI", 2, 0, 4, WIDEST)  # no push, and windows that
        hello = PREFACE + frame(SETTINGS, 0, 0, settings) + frame(WINDOW, 0, 0, struct.pack(">I", WIDEST - 65535))
        transport.write(hello)
        super().connection_made(transport)

    def ask(self) -> None:
        self._stream += 2
        self._has_data = False
        head = frame(HEADERS, END_HEADERS, self._stream, self._headers)
        self._request = head + frame(DATA, END_STREAM, self._stream, self._body)
        super().ask()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 9:
            size = int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < 9 + size:
                return
            kind, flags = self._buffer[3], self._buffer[4]
            payload = bytes(self._buffer[9 : 9 + size])
            del self._buffer[: 9 + size]
            self.heard(kind, flags, payload)

    def heard(self, kind: int, flags: int, payload: bytes) -> None:
        """Take in one frame; an answer without data is an error told in its trailers."""
        if kind in (SETTINGS, PING) and not flags & ACK:
            self._transport.write(frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind == GOAWAY:
            self._transport.close()
        elif kind == DATA:
            self._has_data = self._has_data or len(payload) > 5
        if kind == RESET or (kind in (DATA, HEADERS) and flags & END_STREAM):
            self.answered(self._has_data)


async def call(way: str, port: int, path: str, request: bytes, load: tuple[int, float]) -> dict:
    """The load: so many connections, for so many seconds."""
    connections, seconds = load
    kind = {"http": Caller, "grpc": GrpcCaller}[way]
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(lambda: kind(request, path, port), "127.0.0.1", port) for _ in range(connections)]
    await asyncio.sleep(WARM_S)
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    end_s, busy_s = time.perf_counter(), time.process_time() - start_cpu_s
    callers = [caller for _, caller in made]
    failed = sum(caller.failed for caller in callers)
    times_s = np.array([took for caller in callers for at, took in caller.times if start_s <= at <= end_s])
    p50, p99 = np.quantile(times_s, [0.5, 0.99]) * 1000 if len(times_s) else (np.nan, np.nan)
    rate = len(times_s) / (end_s - start_s)
    return {"rate": rate, "p50_ms": p50, "p99_ms": p99, "failed": failed, "busy": busy_s / (end_s - start_s)}


if __name__ == "__main__":
    way, port, path, file, connections, seconds = sys.argv[1:]
    load = (int(connections), float(seconds))
    print(json.dumps(uvloop.run(call(way, int(port), path, Path(file).read_bytes(), load))))
