"""Where requests wait while no replica answers: the front's backup server, in a thread of `up`.

It answers nothing. It holds each connection until the front knows a replica, and ends it then without a word, whereupon the
front asks that replica (`retry-on empty-response`).
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import threading
from contextlib import closing
from pathlib import Path

from millrace.services.endpoint.servers import BACKLOG
from millrace.services.serving.front import TOLD_S, WAITING_BACKENDS

log = logging.getLogger("millrace")

POLL_S = 0.1  # between two looks for a replica, while anybody waits
PREFACE, SETTINGS = b"PRI * HTTP/2.0", bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # RFC 9113, sections 3.4 and 6.5
UP = "2"  # a server's state in `show servers state`: it takes requests


class Waiting:
    """Holds what the front sends, from now until it is closed."""

    def __init__(self, path: Path, admin: Path) -> None:
        """``path``: of its socket; ``admin``: of the front's own. Raises: OSError where no socket can be made."""
        self._admin = admin
        may, could = resource.getrlimit(resource.RLIMIT_NOFILE)
        if may != could:  # Ray does the same, but later
            resource.setrlimit(resource.RLIMIT_NOFILE, (could, could))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._anybody = asyncio.Event()
        self._held = set[asyncio.Transport]()
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self._serve(),), name="waiting", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Nobody waits any longer."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def hold(self, connection: asyncio.Transport) -> None:
        """Keep it until a replica is there."""
        self._held.add(connection)
        self._anybody.set()

    def leave(self, connection: asyncio.Transport) -> None:
        """The caller has gone, or the time that the front gives has passed."""
        self._held.discard(connection)

    async def _serve(self) -> None:
        server = await self._loop.create_unix_server(lambda: _Held(self), sock=self._listener, backlog=BACKLOG)
        releasing, stopping = self._loop.create_task(self._release()), self._loop.create_task(self._stop.wait())
        await asyncio.wait({releasing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        server.close()
        if releasing.done():
            log.error(
                "Requests no longer wait for a replica; they are told at once that none is there.",
                exc_info=releasing.exception(),
            )
        releasing.cancel()
        await asyncio.gather(releasing, return_exceptions=True)
        self._end_all()
        await asyncio.sleep(0)  # for the connections to be closed

    async def _release(self) -> None:
        while await self._anybody.wait():
            if await self._has_replica():
                self._end_all()
            if not self._held:
                self._anybody.clear()
                continue
            await asyncio.sleep(POLL_S)

    def _end_all(self) -> None:
        for connection in tuple(self._held):
            connection.close()

    async def _has_replica(self) -> bool:
        """Whether the front would send a request to one now, of either protocol."""
        try:
            async with asyncio.timeout(TOLD_S):
                reader, writer = await asyncio.open_unix_connection(self._admin)
                with closing(writer):
                    writer.write(b"show servers state\n")
                    lines = (await reader.read()).decode().splitlines()
        except (OSError, TimeoutError):  # it is started again, and those who wait have lost their connection
            return False
        cells = [line.split() for line in lines if not line.startswith("#")]
        return {row[1] for row in cells if len(row) > 5 and row[3].isdecimal() and row[5] == UP} >= WAITING_BACKENDS


class _Held(asyncio.Protocol):
    """One connection of the front's, which is told nothing."""

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self._connection: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._connection = transport
        self._waiting.hold(transport)

    def data_received(self, data: bytes) -> None:
        """Begin HTTP/2 where that is spoken: only then does the front say here that its caller has left."""
        if data.startswith(PREFACE) and self._connection is not None:
            self._connection.write(SETTINGS)

    def connection_lost(self, _error: Exception | None) -> None:
        assert self._connection is not None
        self._waiting.leave(self._connection)
