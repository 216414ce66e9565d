"""A front before two endpoints on Unix sockets, all real but for Ray: each has an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines import ANSWER_S
from served_bundles import endpoint_of, numbers_bundle
from served_pipeline import command_of, own_port, until

from millrace.services.config.sections import ServingConfig
from millrace.services.endpoint.endpoint import Endpoint
from millrace.services.endpoint.grpc import calling
from millrace.services.endpoint.http import HttpApp
from millrace.services.endpoint.servers import Servers
from millrace.services.processes import descendants
from millrace.services.protocol import inference_pb2 as pb
from millrace.services.protocol.statistics import InferenceStatistics
from millrace.services.serving.door import Door, own_folder
from millrace.services.serving.seats import is_draining, take_seat

INPUTS = [
    {"name": "a", "datatype": "FP64", "shape": [1], "data": [1.0]},
    {"name": "b", "datatype": "FP64", "shape": [1, 2], "data": [1.0, 2.0]},
]
FILES = 20_000  # that a process may open, at least, for thousands of connections
PATH = "/v2/models/digits/infer"


class Answering:
    """An endpoint that listens on a seat."""

    def __init__(self, folder: Path, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.place = take_seat(folder, 2)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.servers: Servers = self.run(self._made())

    async def _made(self) -> Servers:
        servers = Servers(self.endpoint, self.place, 5.0)
        await servers.open()
        return servers

    @property
    def asked(self) -> int:
        """How often it was asked for scores."""
        return self.endpoint.statistics.success.count

    def run(self, work):
        """On its loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """As a replica that ends."""
        self.run(self.servers.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass
class Fronted:
    """A front, its ports, and who answers behind it."""

    folder: Path
    port: int
    grpc_port: int
    answering: list[Answering]
    endpoint: Endpoint  # of each that answers, but for its counts
    headers: dict[str, str]  # of every request
    end: Callable[[], None]  # of the front: nobody new comes in, and what is at work is answered
    timeout_s: float = ANSWER_S  # for an answer

    def one_more(self) -> None:
        """Let another endpoint take a seat."""
        self.answering.append(Answering(self.folder / "s", replace(self.endpoint, statistics=InferenceStatistics())))

    def infer(self, name: str = "", **headers: str) -> tuple[int, dict]:
        """Status and answer of one request, called ``name``."""
        return self.ask("POST", PATH, json.dumps({"id": name or "r", "inputs": INPUTS}).encode(), **headers)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict]:
        """The same of any request, on a connection of its own."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout_s)) as connection:
            connection.request(method, path, body, self.headers | headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def call(self, name: str = "g", timeout_s: float = ANSWER_S) -> pb.ModelInferResponse:
        """The answer to one call over gRPC, on a channel of its own."""
        request = pb.ModelInferRequest(model_name="digits", id=name)
        for tensor in INPUTS:
            made = request.inputs.add(name=tensor["name"], datatype="FP64", shape=tensor["shape"])
            made.contents.fp64_contents.extend(tensor["data"])
        with calling(f"127.0.0.1:{self.grpc_port}") as client:
            return client.infer(request, timeout_s)

    def headers_of(self, path: str) -> dict[str, str]:
        """Of an answer on a connection of its own; names in lower case."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout_s)) as connection:
            connection.request("GET", path, headers=self.headers)
            answer = connection.getresponse()
            answer.read()
            return {name.lower(): value for name, value in answer.headers.items()}

    def front(self) -> int:
        """Its process."""
        return next(pid for pid in descendants(os.getpid()) if f"-f\0{self.folder}/s/front.cfg" in command_of(pid))


@contextmanager
def fronted(
    limits: ServingConfig | None = None, replicas: int = 2, host: str = "127.0.0.1", token: str | None = None
) -> Iterator[Fronted]:
    """From the moment that everybody is known to the front; with a token, only who shows it is answered."""
    limits = limits or ServingConfig()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files[1] < FILES:  # as root one may have more
        resource.setrlimit(resource.RLIMIT_NOFILE, (files[0], FILES))
    port = own_port()
    grpc_port = own_port(port)
    with own_folder() as folder, closing(Door(host, (port, grpc_port))) as door:
        sockets = door.open(folder, 2, limits)
        endpoint = replace(endpoint_of(numbers_bundle(), token=token), limits=limits, draining=lambda: is_draining(sockets))
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        running = Fronted(folder, port, grpc_port, [], endpoint, headers, door.close)
        try:
            for _ in range(replicas):
                running.one_more()
            until(lambda: all(one.asked for one in running.answering) or not running.infer())
            yield running
        finally:
            for one in running.answering:
                one.close()


@contextmanager
def asked_of_replicas() -> Iterator[list[dict[bytes, bytes]]]:
    """The headers of all that the applications of this process are asked while the block runs."""
    seen, original = list[dict[bytes, bytes]](), HttpApp._answered

    async def answered(self, scope, receive):
        seen.append(dict(scope["headers"]))
        return await original(self, scope, receive)

    HttpApp._answered = answered
    try:
        yield seen
    finally:
        HttpApp._answered = original


def raw(up: Fronted, sent: bytes) -> bytes:
    """What comes back to some bytes until the front ends the connection, which it does soon where idle_s is short."""
    with socket.create_connection(("127.0.0.1", up.port), timeout=ANSWER_S) as connection:
        connection.sendall(sent)
        return heard(connection)


def heard(connection: socket.socket) -> bytes:
    """All that comes until the connection ends, however it does."""
    return b"".join(iter(lambda: received(connection), b""))


def received(connection: socket.socket) -> bytes:
    """More; nothing where the connection has ended."""
    try:
        return connection.recv(1 << 16)
    except ConnectionResetError:
        return b""
