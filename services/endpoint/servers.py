"""The servers that a replica answers by: HTTP on the event loop it runs on (the one door to uvicorn), and gRPC."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from millrace.learners.errors import MillraceError
from millrace.services.endpoint.endpoint import Endpoint
from millrace.services.endpoint.grpc import GrpcApp, calls_server
from millrace.services.endpoint.http import App, HttpApp

BACKLOG = 4096  # connections that wait to be accepted
KEEP_ALIVE_S = 75  # of a connection without a request; longer than the front's, so that the front closes it first


@dataclass(frozen=True, slots=True)
class UnixSockets:
    """Two sockets in a folder that only our own processes can enter; a front stands before them."""

    http: Path
    grpc: Path

    def http_socket(self) -> socket.socket:
        """Listening; what a process that was killed has left under its name goes."""
        for path in (self.http, self.grpc):
            path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.http))
        return listener

    @property
    def grpc_address(self) -> str:
        """As gRPC writes it."""
        return f"unix:{self.grpc}"

    @property
    def behind_front(self) -> bool:
        """Whether a front says who calls."""
        return True

    def gone(self) -> str:
        """Which of the two is not there any more, or nothing."""
        return next((str(path) for path in (self.http, self.grpc) if not path.is_socket()), "")

    def unlink(self) -> None:
        """Nobody new comes; who is connected stays."""
        self.http.unlink(missing_ok=True)
        self.grpc.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class SharedPorts:
    """Two ports that all replicas listen on together, by the kernel's SO_REUSEPORT; nobody stands before them."""

    host: str
    port: int  # of HTTP
    grpc_port: int

    def http_socket(self) -> socket.socket:
        """Bound beside the others'."""
        return bound(self.host, self.port)

    @property
    def grpc_address(self) -> str:
        """As gRPC writes it."""
        return f"[{self.host}]:{self.grpc_port}" if ":" in self.host else f"{self.host}:{self.grpc_port}"

    @property
    def behind_front(self) -> bool:
        """Whether a front says who calls."""
        return False

    def gone(self) -> str:
        """Nothing: a port stays with its socket."""
        return ""

    def unlink(self) -> None:
        """Nothing to do."""


Place = UnixSockets | SharedPorts


def bound(host: str, port: int, first: bool = False) -> socket.socket:
    """A socket on a port that others of this user may bind beside it; ``first``: only from now on. Raises: OSError."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, not first)
    try:
        listener.bind((host, port))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError:
        listener.close()
        raise
    return listener


class NoTrailers(HttpToolsProtocol):
    """uvicorn's, but that it leaves out the trailers of a chunked body, which would count as headers after the front's own."""

    def on_message_begin(self) -> None:
        """A head begins."""
        self._head_is_whole = False
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of the head, or of what follows the body."""
        if not self._head_is_whole:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._head_is_whole = True
        super().on_headers_complete()


class Servers:
    """Both servers of one endpoint at one place."""

    def __init__(
        self, endpoint: Endpoint, place: Place, grace_s: float, make_app: Callable[[Endpoint, bool], App] = HttpApp
    ) -> None:
        """``make_app``: of an endpoint, and of whether only our own front connects."""
        self._place = place
        self._grace_s = grace_s  # for requests at work when it closes
        app = make_app(endpoint, place.behind_front)
        self._http = uvicorn.Server(
            uvicorn.Config(
                app,
                http=NoTrailers,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,  # whom a caller calls for is for us to judge
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=int(grace_s),
            )
        )
        self._calls = calls_server(GrpcApp(endpoint, behind_front=place.behind_front), endpoint.limits)
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Answer from now on, on the running loop. Raises: OSError where the place cannot be had."""
        listener = self._place.http_socket()
        if self._calls.add_insecure_port(self._place.grpc_address) == 0:
            raise OSError(f"gRPC cannot listen on {self._place.grpc_address}.")
        await self._calls.start()
        self._tasks.append(asyncio.create_task(self._http.serve(sockets=[listener]), name="http"))
        self._tasks.append(asyncio.create_task(self._terminated(), name="grpc"))

    async def _terminated(self) -> None:
        await self._calls.wait_for_termination()

    def check(self) -> None:
        """Raises: MillraceError where one of the servers has ended or cannot be reached any more."""
        ended = [task.get_name() for task in self._tasks if task.done()]
        if ended or (gone := self._place.gone()):
            raise MillraceError(f"This replica no longer listens: {', '.join(ended) or gone} is gone.")

    async def close(self) -> None:
        """Nobody new comes in; what is at work is answered."""
        self._place.unlink()
        self._http.should_exit = True
        await self._calls.stop(self._grace_s)
        await asyncio.gather(*self._tasks, return_exceptions=True)
