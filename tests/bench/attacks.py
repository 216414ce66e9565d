"""Attacks on a listener of `millrace up`, each in a process of its own, for the lines "under attack" of bench_serve.py.

python attacks.py PORT CONNECTIONS KIND opens that many connections to a port of loopback, prints a line when all are there, and
opens each again as often as it is ended, AGAIN_S seconds later at the soonest. It ends with its input.
"""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONNECTIONS = 4300  # more than HAProxy as Ray Serve starts it takes in at all
AGAIN_S = 1.0  # an attacker who does nothing but connect only takes the processor from those who measure
AT_ONCE = 100  # connections that are being made
SENT = {
    "idle": b"",
    "half a head": b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Le",
    "half a body": b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n{",
}


@contextmanager
def attack(port: int, kind: str, connections: int = CONNECTIONS) -> Iterator[None]:
    """From the moment that all of its connections are there."""
    command = [sys.executable, str(Path(__file__).resolve()), str(port), str(connections), kind]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"connected\n"
        yield
    finally:
        process.kill()
        process.communicate()


async def hold(port: int, sent: bytes, turns: asyncio.Semaphore, is_there: asyncio.Event) -> None:
    """One connection, for ever."""
    while True:
        try:
            async with turns:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            is_there.set()
            while await reader.read(1 << 12):
                pass
            writer.close()
        except OSError:
            pass
        await asyncio.sleep(AGAIN_S)


async def flood(port: int, connections: int, sent: bytes) -> None:
    """All of them, until the input ends."""
    turns, are_there = asyncio.Semaphore(AT_ONCE), [asyncio.Event() for _ in range(connections)]
    holding = [asyncio.create_task(hold(port, sent, turns, is_there)) for is_there in are_there]
    for is_there in are_there:
        await is_there.wait()
    print("connected", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for task in holding:
        task.cancel()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    asyncio.run(flood(int(sys.argv[1]), int(sys.argv[2]), SENT[sys.argv[3]]))
