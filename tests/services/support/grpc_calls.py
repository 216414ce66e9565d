"""gRPC calls as tests make them: without a network, and on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from millrace.services.endpoint.endpoint import Endpoint
from millrace.services.endpoint.grpc import RPCS, SERVICES, GrpcApp, calls_server
from millrace.services.protocol import inference_pb2 as pb

LOCAL = "ipv4:127.0.0.1:50000"
Input = tuple[str, str, Sequence[int], bytes | None]


@dataclass
class FakeCall:
    """A call's context: who calls with which metadata, and what is set on it."""

    caller: str = LOCAL
    metadata: tuple[tuple[str, str], ...] = ()
    code: str = "OK"
    details: str = ""

    def peer(self) -> str:
        return self.caller

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self.metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code.name

    def set_details(self, details: str) -> None:
        self.details = details


def call(endpoint: Endpoint, name: str, request: Any, context: FakeCall | None = None) -> tuple[FakeCall, Any]:
    """Make one call; its context afterwards and the answer."""
    context = context or FakeCall()
    raw = request if isinstance(request, bytes) else request.SerializeToString()
    return context, asyncio.run(GrpcApp(endpoint).answer(name, raw, context))


def asked(*inputs: Input, **fields: Any) -> pb.ModelInferRequest:
    """A request with raw tensors."""
    request = pb.ModelInferRequest(model_name="digits", **fields)
    for name, datatype, shape, raw in inputs:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        if raw is not None:
            request.raw_input_contents.append(raw)
    return request


def rows_of(x: np.ndarray, kind: str = "<f8", datatype: str = "FP64") -> Input:
    """All numbers of some rows in one tensor."""
    return "x", datatype, x.shape, x.astype(kind).tobytes()


def length_prefixed(*texts: str) -> bytes:
    """Strings as raw BYTES."""
    return b"".join(len(raw).to_bytes(4, "little") + raw for raw in (text.encode() for text in texts))


@dataclass
class Client:
    """Stubs on a channel of their own."""

    channel: grpc.aio.Channel
    target: str = ""
    raw: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for service, names in SERVICES.items():
            for name in names:
                if name == "Watch":
                    self.raw[name] = self.channel.unary_stream(f"/{service}/{name}")
                else:
                    kind = RPCS[name].response
                    self.raw[name] = self.channel.unary_unary(f"/{service}/{name}", response_deserializer=kind.FromString)

    def __call__(self, name: str, request: Any, **how: Any) -> Any:
        """Begin a call; await it for its answer."""
        return self.raw[name](request if isinstance(request, bytes) else request.SerializeToString(), **how)


@asynccontextmanager
async def answering(endpoint: Endpoint, host: str = "127.0.0.1") -> AsyncIterator[Client]:
    """A real server with the services on one endpoint, and a client of it."""
    server = calls_server(GrpcApp(endpoint), endpoint.limits)
    port = server.add_insecure_port(f"{host}:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"{host}:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            yield Client(channel, f"{host}:{port}")
    finally:
        await server.stop(0)
