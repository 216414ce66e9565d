"""The Open Inference Protocol v2 over HTTP, as an ASGI application: routes, limits, the token, and errors as JSON."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from millrace.learners.distribution import release
from millrace.learners.errors import BadInputError, MillraceError
from millrace.services.config.sections import ServingConfig
from millrace.services.endpoint.endpoint import TOO_MANY_BYTES, Endpoint, ready
from millrace.services.errors import (
    UNEXPECTED,
    MethodError,
    NotServedError,
    OverloadedError,
    TooLargeError,
    TooSlowError,
    meaning,
)
from millrace.services.protocol.access import LABEL, PREDICT
from millrace.services.protocol.callers import ENDING, front_id, is_loopback, remote_because
from millrace.services.protocol.inference import HttpReply, HttpRequest, check_model, infer, model_metadata, server_metadata
from millrace.services.protocol.labels import PRODUCER, producer_headers, read_labels
from millrace.services.protocol.statistics import HEALTH, INFER, LABELS, OTHER

log = logging.getLogger("millrace")

JSON = b"application/json"
LENGTH = b"inference-header-content-length"
READ, WRITE = ("GET", "HEAD", "OPTIONS"), ("POST", "OPTIONS")  # the methods of a path
VERBS = {"ready": READ, "stats": READ, "status": READ, "infer": WRITE, "labels": WRITE}

Scope = MutableMapping[str, Any]
Address = tuple[str, int]  # of one end of a connection
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]  # an ASGI application


class HttpApp:
    """One ASGI application on one endpoint. Answers name the state that gave them, and errors what to mend."""

    def __init__(self, endpoint: Endpoint, behind_front: bool = False) -> None:
        """``behind_front``: whether only our own front connects, so that what it says of a request counts."""
        self._endpoint = endpoint
        self._behind_front = behind_front
        self._bodies = Bodies(endpoint.limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            return await _live(receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close"})
        start_ns = time.perf_counter_ns()
        try:
            reply = await self._answered(scope, receive)
            status = reply.status
        except MillraceError as error:
            allow = error.allowed if isinstance(error, MethodError) else ""
            reply, status = HttpReply(msgspec.json.encode({"error": str(error)}), allow=allow), meaning(error).http
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            reply, status = HttpReply(b'{"error":"This request failed; the server\'s log says why."}'), UNEXPECTED.http
        took_ns = time.perf_counter_ns() - start_ns
        self._endpoint.traffic.count("http", kind_of_call(scope["path"]), str(status), took_ns, status < 400)
        return await _send(send, reply, status, ending_headers(self._endpoint, self._behind_front))

    async def _answered(self, scope: Scope, receive: Receive) -> HttpReply:
        parts = [part for part in scope["path"].split("/") if part]
        method, methods = scope["method"], methods_of(parts)
        if methods and method not in methods:
            raise MethodError(f"{method}: {scope['path']} has {', '.join(methods)}.", ", ".join(methods))
        if methods and method == "OPTIONS":
            return HttpReply(b"", status=204, allow=", ".join(methods))
        headers = dict(scope["headers"])
        if parts == ["readyz"]:
            self._endpoint.taking()
            return HttpReply(b'{"takes_requests":true}')
        if parts[:1] != ["v2"]:
            raise NotServedError(f"There is nothing at {scope['path']}. Everything but /readyz is under /v2.")
        if parts[1:2] == ["health"]:
            return self._health(parts)
        remote = remote_caller(scope, self._behind_front)
        telling = methods == WRITE and parts[-1] == "labels"
        self._endpoint.access.check(headers.get(b"authorization", b""), remote, LABEL if telling else PREDICT)
        if methods == WRITE:
            body = await self._bodies.read(receive, headers.get(b"content-length", b""))
            async with self._endpoint.turns:
                return await (self._label(parts, headers, body) if telling else self._infer(parts, headers, body))
        if parts[-1] == "status":
            check_model(_model_path(parts).model, None, self._endpoint.name, None)
            return _json(await self._endpoint.overview())
        return self._described(parts)

    def _health(self, parts: list[str]) -> HttpReply:
        if parts == ["v2", "health", "live"]:
            return HttpReply(b'{"live":true}')
        if parts != ["v2", "health", "ready"]:
            raise NotServedError("There are /v2/health/live and /v2/health/ready.")
        self._endpoint.ready()
        return HttpReply(b'{"ready":true}')

    def _described(self, parts: list[str]) -> HttpReply:
        if parts == ["v2"]:
            return _json(server_metadata(release()))
        named = _model_path(parts)
        bundle = self._endpoint.held()
        check_model(named.model, named.version, self._endpoint.name, bundle)
        if named.verb == "ready":
            self._endpoint.ready()
            return _json({"name": self._endpoint.name, "ready": True})
        if named.verb == "stats":
            return _json(self._endpoint.statistics.describe(self._endpoint.name, self._endpoint.newest or ""))
        if named.verb:
            raise NotServedError("There are ready, stats and status here by GET, and infer and labels by POST.")
        return _json(model_metadata(self._endpoint.name, self._endpoint.answering, self._endpoint.newest, bundle))

    async def _label(self, parts: list[str], headers: dict[bytes, bytes], body: bytes) -> HttpReply:
        """202 once the log has every label."""
        check_model(_model_path(parts).model, None, self._endpoint.name, None)
        stored = await self._endpoint.label(read_labels(body), producer_headers(headers.get(PRODUCER)))
        return HttpReply(msgspec.json.encode({"accepted": len(stored), "offsets": stored}), status=202)

    async def _infer(self, parts: list[str], headers: dict[bytes, bytes], body: bytes) -> HttpReply:
        named = _model_path(parts)
        start_ns, statistics = time.perf_counter_ns(), self._endpoint.statistics
        try:
            record_headers = producer_headers(headers.get(PRODUCER))
            reply = await self._inferred(named, headers, body)
            if reply.answered is not None:
                await self._endpoint.record(reply.answered, record_headers)
        except Exception:
            statistics.failed(time.perf_counter_ns() - start_ns)
            raise
        if reply.cost is not None:
            statistics.answered(reply.cost)
        return reply

    async def _inferred(self, named: ModelPath, headers: dict[bytes, bytes], body: bytes) -> HttpReply:
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise BadInputError("Content-Encoding: compressed requests are not read; send the body as it is.")
        served = self._endpoint.held()  # once: a swap meanwhile cannot mix two states in one answer
        check_model(named.model, named.version, self._endpoint.name, served)
        request_id = front_id(headers) if self._behind_front else ""
        bundle, request = ready(served), HttpRequest(body, _json_bytes(headers), request_id)
        now_ms, limits = time.time_ns() // 1_000_000, self._endpoint.limits
        if len(body) <= self._endpoint.inline_bytes:
            return infer(self._endpoint.name, bundle, request, now_ms, limits)
        return await self._endpoint.pool.run(len(body), infer, self._endpoint.name, bundle, request, now_ms, limits)


def ending_headers(endpoint: Endpoint, behind_front: bool) -> list[tuple[bytes, bytes]]:
    """What tells a caller to ask on another connection next time, where this endpoint is about to end."""
    if not endpoint.draining():
        return []
    return [(b"connection", b"close"), *([(ENDING, b"1")] if behind_front else [])]


def remote_caller(scope: Scope, behind_front: bool) -> str:
    """Why the caller of a request is not taken for one on this machine; empty where it is."""
    connected_here = None if behind_front else same_machine(scope.get("client"), scope.get("server"))
    return remote_because(scope["headers"], connected_here)


def kind_of_call(path: str) -> str:
    """What a path is for, as it is counted.

    >>> [kind_of_call(path) for path in ("/v2/models/digits/infer", "/v2/health/ready", "/readyz", "/v2")]
    ['infer', 'health', 'health', 'other']
    """
    verb = path.rpartition("/")[2]
    if verb in (INFER, LABELS):
        return verb
    return HEALTH if path.startswith("/v2/health/") or path == "/readyz" else OTHER


def methods_of(parts: Sequence[str]) -> tuple[str, ...]:
    """The methods of HTTP that a path has, whatever the model's name; none where nothing is there.

    >>> methods_of(["v2", "models", "digits", "infer"])
    ('POST', 'OPTIONS')
    """
    match parts:
        case ["readyz"] | ["v2"] | ["v2", "health", "live" | "ready"] | ["v2", "models", _]:
            return READ
        case ["v2", "models", _, "versions", _]:
            return READ
        case ["v2", "models", _, verb] | ["v2", "models", _, "versions", _, verb]:
            return VERBS.get(verb, ())
    return ()


@dataclass(frozen=True, slots=True)
class ModelPath:
    """What a path under /v2/models names."""

    model: str
    version: str | None
    verb: str


def _model_path(parts: list[str]) -> ModelPath:
    match parts:
        case ["v2", "models", model]:
            return ModelPath(model, None, "")
        case ["v2", "models", model, "versions", number]:
            return ModelPath(model, number, "")
        case ["v2", "models", model, "versions", number, verb]:
            return ModelPath(model, number, verb)
        case ["v2", "models", model, verb]:
            return ModelPath(model, None, verb)
    raise NotServedError(f"There is nothing at /{'/'.join(parts)}. Models are at /v2/models/NAME.")


def _json_bytes(headers: dict[bytes, bytes]) -> int | None:
    length = headers.get(LENGTH)
    if length is None:
        return None
    if not length.isdigit() or len(length) > 12:
        raise BadInputError(f"Inference-Header-Content-Length: {length.decode(errors='replace')!r} is not a number of bytes.")
    return int(length)


class Bodies:
    """Requests' bodies while they arrive: bounded each in bytes and time, and all together in bytes.

    Only these bounds keep those who send slowly from holding up others, so Serve's own limit on requests at once is far away.
    """

    def __init__(self, limits: ServingConfig) -> None:
        self.arrived = 0  # bytes, of bodies that are not whole
        self._limits = limits

    async def read(self, receive: Receive, declared: bytes = b"") -> bytes:
        """One body, of a length that is ``declared`` or not.

        Raises: TooLargeError, TooSlowError, OverloadedError, each as soon as it is so. What is declared too large is refused
        before ``receive`` is called, since that call tells a caller who waits for 100 (Continue) to send it.
        """
        if declared.isdigit() and (len(declared) > 18 or int(declared) > self._limits.max_bytes):
            raise TooLargeError(TOO_MANY_BYTES.format(self._limits.max_bytes))
        chunks: list[bytes] = []
        try:
            async with asyncio.timeout(self._limits.body_s):
                while await self._more(receive, chunks):
                    pass
        except TimeoutError as error:
            raise TooSlowError(
                f"The request did not arrive whole within {self._limits.body_s:g} s (serving.body_s); send it again."
            ) from error
        finally:
            self.arrived -= sum(map(len, chunks))
        return b"".join(chunks)

    async def _more(self, receive: Receive, chunks: list[bytes]) -> bool:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadInputError("The caller left before the request was whole.")
        chunks.append(message.get("body", b""))
        self.arrived += len(chunks[-1])
        own = sum(map(len, chunks))
        if own > self._limits.max_bytes:
            raise TooLargeError(TOO_MANY_BYTES.format(self._limits.max_bytes))
        if self.arrived > max(own, self._limits.arriving_bytes):
            raise OverloadedError("More requests arrive at once than there is room for. Ask again, or send smaller ones.")
        return bool(message.get("more_body", False))


def _json(value: dict[str, Any]) -> HttpReply:
    return HttpReply(msgspec.json.encode(value))


async def _send(send: Send, reply: HttpReply, status: int, more: list[tuple[bytes, bytes]]) -> None:
    headers = [*more, *([(b"allow", reply.allow.encode())] if reply.allow else [])]
    if status != 204:  # which has no body, and so neither length nor type
        headers += [(b"content-length", str(len(reply.body)).encode())]
        headers += [(b"content-type", JSON)] if reply.json_bytes is None else []
    if reply.json_bytes is not None:
        headers += [(b"content-type", b"application/octet-stream"), (LENGTH, str(reply.json_bytes).encode())]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


def same_machine(client: Address | None, server: Address | None) -> bool:
    """Whether a connection comes from the machine it goes to: by loopback, or from the very address it is made to.

    >>> same_machine(("127.0.0.1", 5), ("127.0.0.1", 8000)), same_machine(("10.0.0.9", 5), ("10.0.0.1", 30000))
    (True, False)
    """
    if client is None:
        return True  # no network between
    return client[0] == (server or ("", 0))[0] or is_loopback(client[0])


async def _live(receive: Receive, send: Send) -> None:
    """The lifespan protocol: nothing to start, nothing to stop."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
