"""The one door to gRPC: the Open Inference Protocol v2, the standard health service and labels, on one endpoint.

A replica answers by a server of its own. Behind Serve's proxies, Serve calls the methods of ``Calls``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection import aio
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server

from millrace.learners.distribution import release
from millrace.learners.errors import BadInputError, MillraceError
from millrace.services.config.sections import ServingConfig
from millrace.services.endpoint.endpoint import TOO_MANY_BYTES, Endpoint, ready
from millrace.services.errors import UNEXPECTED, NotReadyError, NotServedError, TooLargeError, meaning
from millrace.services.protocol import inference_pb2 as pb
from millrace.services.protocol import labels_pb2
from millrace.services.protocol.access import LABEL, PREDICT
from millrace.services.protocol.callers import front_id, is_loopback, remote_because
from millrace.services.protocol.inference import check_model, model_metadata, server_metadata
from millrace.services.protocol.labels import PRODUCER, producer_headers
from millrace.services.protocol.messages import Inferred, infer_message, labels_of, metadata_message, parsed, statistics_message
from millrace.services.protocol.statistics import HEALTH, INFER, LABELS, OTHER

log = logging.getLogger("millrace")

POLL_S = 1.0  # between two polls of a health watch (gRPC)
REPEAT_POLLS = 20  # after which a health watch says the same again: a front ends what is silent for a minute
OVER_BYTES = 1 << 20  # over the limit that a message is read all the same, to say in our words what is wrong
WATCHES = 256  # health watches at once, beside calls: each stays for as long as its caller likes
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


Request = bytes | AsyncIterator[bytes]  # the message of a call, or what gives it once it is read
Context = Any  # of a call: gRPC's own, or what Serve makes of it; neither is typed


def peer_is_local(peer: str) -> bool:
    """Whether gRPC's name of a caller is this machine's loopback, or no network address at all.

    >>> peer_is_local("ipv4:127.0.0.1:5"), peer_is_local("ipv6:%5B::1%5D:5"), peer_is_local("ipv4:10.0.0.9:5")
    (True, True, False)
    """
    family, _, address = unquote(peer).partition(":")
    return family == "unix" or is_loopback(address.rpartition(":")[0].strip("[]"))


class GrpcApp:
    """The calls on one endpoint. Each takes the request's bytes, so that a broken message is our error too."""

    def __init__(self, endpoint: Endpoint, behind_front: bool = False) -> None:
        """``behind_front``: whether only our own front connects, so that what it says of a call counts."""
        self._endpoint = endpoint
        self._behind_front = behind_front
        self._watches = 0

    async def answer(self, name: str, message: Request, context: Context) -> Message:
        """Answer one call; an error is set on its context, and the answer is then empty."""
        rpc, start_ns, status = RPCS[name], time.perf_counter_ns(), "CANCELLED"
        try:
            response = await self._answered(rpc, message, context)
            status = "OK"
            return response
        except MillraceError as error:
            status = meaning(error).grpc
            _refuse(context, status, str(error))
        except Exception:
            log.exception("%s failed", name)
            status = UNEXPECTED.grpc
            _refuse(context, status, "This request failed; the server's log says why.")
        finally:
            self._endpoint.traffic.count("grpc", rpc.kind, status, time.perf_counter_ns() - start_ns, status == "OK")
        return rpc.response()

    async def _answered(self, rpc: Rpc, message: Request, context: Context) -> Message:
        """Where the message is still to be read, it is once its caller may call: a stranger's takes no room here."""
        if rpc.scope is None:
            return await rpc.call(self, await _whole(message))
        metadata = self._checked_caller(context, (rpc.scope,))
        raw = await _whole(message)
        async with self._endpoint.turns:
            return await (rpc.call(self, raw, metadata) if rpc.records else rpc.call(self, raw))

    def _checked_caller(self, context: Context, scopes: tuple[str, ...]) -> dict[bytes, bytes]:
        """What a caller's metadata says, once it is found that the caller may call for one of these scopes."""
        metadata = context.invocation_metadata() or ()
        pairs = [(name.encode(), value.encode() if isinstance(value, str) else value) for name, value in metadata]
        remote = remote_because(pairs, None if self._behind_front else peer_is_local(context.peer()))
        values = dict(pairs)
        self._endpoint.access.check(values.get(b"authorization", b""), remote, *scopes)
        return values

    def may_look(self, context: Context) -> bool:
        """Whether a caller may see what calls there are; who may not is told why."""
        try:
            self._checked_caller(context, (PREDICT, LABEL))
        except MillraceError as error:
            _refuse(context, meaning(error).grpc, str(error))
            return False
        return True

    async def watch(self, raw: bytes, context: Context) -> AsyncIterator[Message]:
        """The standard health watch: the state now, and again whenever it changes."""
        try:
            service = parsed(health_pb2.HealthCheckRequest, raw).service
        except MillraceError as error:
            _refuse(context, meaning(error).grpc, str(error))
            return
        if self._watches >= WATCHES:
            _refuse(context, "RESOURCE_EXHAUSTED", f"{WATCHES} callers watch already; call Check instead.")
            return
        self._watches += 1
        try:
            async for status in self._changes(service):
                yield health_pb2.HealthCheckResponse(status=status)
        finally:
            self._watches -= 1

    async def _changes(self, service: str) -> AsyncIterator[int]:
        last_status, polls = None, 0
        while True:
            status = self._status(service)
            if status != last_status or polls % REPEAT_POLLS == 0:
                last_status = status
                yield status
            polls += 1
            await asyncio.sleep(POLL_S)

    def _status(self, service: str) -> int:
        if service not in ("", self._endpoint.name, *SERVICES):
            return int(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        try:
            self._endpoint.ready()
        except NotReadyError:
            return int(NOT_SERVING)
        return int(SERVING)

    async def check(self, raw: bytes) -> Message:
        """The standard health check. Raises: NotServedError for a service that is not here."""
        service = parsed(health_pb2.HealthCheckRequest, raw).service
        status = self._status(service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            raise NotServedError(
                f"There is no service {service} here. There are: {', '.join([self._endpoint.name, *SERVICES])}."
            )
        return health_pb2.HealthCheckResponse(status=status)

    async def server_live(self, raw: bytes) -> Message:
        """Always, where it answers at all."""
        parsed(pb.ServerLiveRequest, raw)
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, raw: bytes) -> Message:
        """Whether there is something to answer from."""
        parsed(pb.ServerReadyRequest, raw)
        return pb.ServerReadyResponse(ready=self._status("") == SERVING)

    async def model_ready(self, raw: bytes) -> Message:
        """The same, of a model. Raises: NotServedError for another one."""
        request = parsed(pb.ModelReadyRequest, raw)
        check_model(request.name, request.version or None, self._endpoint.name, self._endpoint.held())
        return pb.ModelReadyResponse(ready=self._status("") == SERVING)

    async def server_metadata(self, raw: bytes) -> Message:
        """Name, version, extensions."""
        parsed(pb.ServerMetadataRequest, raw)
        return pb.ServerMetadataResponse(**server_metadata(release()))

    async def model_metadata(self, raw: bytes) -> Message:
        """Inputs and outputs. Raises: NotServedError."""
        request, endpoint = parsed(pb.ModelMetadataRequest, raw), self._endpoint
        held = endpoint.held()
        check_model(request.name, request.version or None, endpoint.name, held)
        return metadata_message(model_metadata(endpoint.name, endpoint.answering, endpoint.newest, held))

    async def model_statistics(self, raw: bytes) -> Message:
        """Of this replica; no name means the one model there is. Raises: NotServedError."""
        request, endpoint = parsed(pb.ModelStatisticsRequest, raw), self._endpoint
        check_model(request.name or endpoint.name, request.version or None, endpoint.name, endpoint.held())
        return statistics_message(endpoint.statistics.describe(endpoint.name, endpoint.newest or ""))

    async def label(self, raw: bytes, metadata: dict[bytes, bytes]) -> Message:
        """Once the log has every label. Raises: BadInputError, NotOfferedError, StorageError."""
        headers = producer_headers(metadata.get(PRODUCER))
        request = parsed(labels_pb2.LabelRequest, raw)
        stored = await self._endpoint.label(labels_of(request, self._endpoint.schema.label.type == "integer"), headers)
        return labels_pb2.LabelResponse(accepted=len(stored), offsets=stored)

    async def infer(self, raw: bytes, metadata: dict[bytes, bytes]) -> Message:
        """Scores. Raises: BadInputError, NotReadyError, NotServedError, OverloadedError."""
        headers, request_id = producer_headers(metadata.get(PRODUCER)), front_id(metadata) if self._behind_front else ""
        start_ns, statistics = time.perf_counter_ns(), self._endpoint.statistics
        try:
            if len(raw) <= self._endpoint.inline_bytes:
                inferred = self._inferred(raw, request_id)
            else:
                inferred = await self._endpoint.pool.run(len(raw), self._inferred, raw, request_id)
            await self._endpoint.record(inferred.answered, headers)
        except Exception:
            statistics.failed(time.perf_counter_ns() - start_ns)
            raise
        statistics.answered(inferred.cost)
        return inferred.response

    def _inferred(self, raw: bytes, request_id: str) -> Inferred:
        limits = self._endpoint.limits
        if len(raw) > limits.max_bytes:
            raise TooLargeError(TOO_MANY_BYTES.format(limits.max_bytes))
        request = parsed(pb.ModelInferRequest, raw)
        bundle = self._endpoint.held()  # once: a swap meanwhile cannot mix two states in one answer
        check_model(request.model_name, request.model_version or None, self._endpoint.name, bundle)
        return infer_message(self._endpoint.name, ready(bundle), request, time.time_ns() // 1_000_000, limits, request_id)


@dataclass(frozen=True, slots=True)
class Rpc:
    """One call: what answers it, what an empty answer is, and what a caller's token must be for."""

    call: Callable[..., Awaitable[Message]]  # of a GrpcApp, with the request's bytes
    response: type[Message]
    scope: str | None = PREDICT  # None: open to all
    records: bool = False  # it appends to the log, so it is also called with the caller's metadata
    kind: str = OTHER  # as it is counted


RPCS = {
    "ServerLive": Rpc(GrpcApp.server_live, pb.ServerLiveResponse, None, kind=HEALTH),
    "ServerReady": Rpc(GrpcApp.server_ready, pb.ServerReadyResponse, None, kind=HEALTH),
    "ModelReady": Rpc(GrpcApp.model_ready, pb.ModelReadyResponse, kind=HEALTH),
    "ServerMetadata": Rpc(GrpcApp.server_metadata, pb.ServerMetadataResponse),
    "ModelMetadata": Rpc(GrpcApp.model_metadata, pb.ModelMetadataResponse),
    "ModelInfer": Rpc(GrpcApp.infer, pb.ModelInferResponse, records=True, kind=INFER),
    "ModelStatistics": Rpc(GrpcApp.model_statistics, pb.ModelStatisticsResponse),
    "Label": Rpc(GrpcApp.label, labels_pb2.LabelResponse, LABEL, records=True, kind=LABELS),
    "Check": Rpc(GrpcApp.check, health_pb2.HealthCheckResponse, None, kind=HEALTH),
}
SERVICES = {
    "inference.GRPCInferenceService": [name for name in RPCS if name not in ("Label", "Check")],
    "millrace.v1.Labels": ["Label"],
    "grpc.health.v1.Health": ["Check", "Watch"],
}


async def _whole(message: Request) -> bytes:
    """The one message of a call. Raises: BadInputError where there is none."""
    if isinstance(message, bytes):
        return message
    try:
        return await anext(message)
    except StopAsyncIteration:
        raise BadInputError("This call came without its message. Send one.") from None


def _refuse(context: Context, code: str, details: str) -> None:
    context.set_code(grpc.StatusCode[code])
    context.set_details(details)


Answering = Callable[[Any, Request, Context], Awaitable[Message]]


def _method(name: str) -> Answering:
    async def call(
        self: Calls, request: bytes | AsyncIterator[bytes], grpc_context: Context
    ) -> Message:  # Serve goes by these argument names
        return await self.grpc_app.answer(name, request, grpc_context)

    return call


class Calls:
    """The methods that Serve looks for, named as the calls are."""

    grpc_app: GrpcApp

    ServerLive = _method("ServerLive")
    ServerReady = _method("ServerReady")
    ModelReady = _method("ModelReady")
    ServerMetadata = _method("ServerMetadata")
    ModelMetadata = _method("ModelMetadata")
    ModelInfer = _method("ModelInfer")
    ModelStatistics = _method("ModelStatistics")
    Label = _method("Label")
    Check = _method("Check")

    async def Watch(self, request: bytes, grpc_context: Context) -> AsyncIterator[Message]:  # noqa: N802 the call's name
        """Of the health service."""
        async for status in self.grpc_app.watch(request, grpc_context):
            yield status


class OwnCalls(Calls):
    """The same on a server of our own, which does not read a message before it is asked to."""

    def __init__(self, app: GrpcApp) -> None:
        self.grpc_app = app


class OwnReflection(aio.ReflectionServicer):  # type: ignore[misc]  # it has no types
    """What calls there are, so that grpcurl needs no .proto; for those who may call one."""

    def __init__(self, app: GrpcApp) -> None:
        super().__init__([*SERVICES, reflection.SERVICE_NAME])
        self._app = app

    async def ServerReflectionInfo(  # noqa: N802 the call's name
        self, request_iterator: AsyncIterator[Message], context: Context
    ) -> AsyncIterator[Message]:
        """As the library answers."""
        if self._app.may_look(context):
            async for response in super().ServerReflectionInfo(request_iterator, context):
                yield response


def calls_server(app: GrpcApp, limits: ServingConfig) -> Any:
    """A server of our own on the running loop, which listens nowhere yet."""
    options = [
        ("grpc.max_receive_message_length", limits.max_bytes + OVER_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 1),
    ]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=limits.in_flight + limits.queued + WATCHES)
    _add_services(OwnCalls(app), server, grpc.stream_unary_rpc_method_handler)
    add_ServerReflectionServicer_to_server(OwnReflection(app), server)
    return server


def add_services(servicer: Any, server: Any) -> None:
    """Register every service with Serve's proxy, which puts something of its own in a handler's place."""
    _add_services(servicer, server, grpc.unary_unary_rpc_method_handler)


def _add_services(servicer: Any, server: Any, make: Callable[..., Any]) -> None:
    """``make``: of a method that answers once, its handler."""
    makes = {"Watch": grpc.unary_stream_rpc_method_handler}
    for service, names in SERVICES.items():
        handlers = {name: makes.get(name, make)(getattr(servicer, name), response_serializer=_bytes_of) for name in names}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


@dataclass(frozen=True, slots=True)
class Client:
    """A caller's side. A call raises NotReadyError where nothing can answer yet, and OSError where it fails otherwise."""

    channel: Any
    metadata: tuple[tuple[str, str], ...]

    def infer(self, request: pb.ModelInferRequest, timeout_s: float) -> pb.ModelInferResponse:
        """Ask for scores."""
        response: pb.ModelInferResponse = self._call("/inference.GRPCInferenceService/ModelInfer", request, timeout_s)
        return response

    def label(self, request: labels_pb2.LabelRequest, timeout_s: float) -> labels_pb2.LabelResponse:
        """Say what was right."""
        response: labels_pb2.LabelResponse = self._call("/millrace.v1.Labels/Label", request, timeout_s)
        return response

    def _call(self, path: str, request: Message, timeout_s: float) -> Any:
        read = RPCS[path.rpartition("/")[2]].response.FromString
        call = self.channel.unary_unary(path, request_serializer=_bytes_of, response_deserializer=read)
        try:
            return call(request, timeout=timeout_s, metadata=self.metadata)
        except grpc.RpcError as error:
            kind = NotReadyError if error.code() is grpc.StatusCode.UNAVAILABLE else OSError
            raise kind(f"{error.code().name}: {error.details()}") from error


@contextmanager
def calling(address: str, producer: str = "") -> Iterator[Client]:
    """A client of the endpoint at HOST:PORT; ``producer``: as whom it asks and labels."""
    with grpc.insecure_channel(address) as channel:
        yield Client(channel, ((PRODUCER.decode(), producer),) if producer else ())


def _bytes_of(message: Message) -> bytes:
    return bytes(message.SerializeToString())
