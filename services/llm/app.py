"""The OpenAI API on one engine: vLLM's own application behind our tokens, our limits, and a list of paths that are let through.

All else that vLLM's application has is not reached. What is not of the OpenAI API, readiness and ``/v2``, is answered as by any
of our endpoints. Errors of ours under ``/v1`` have the form of that API.
"""

from __future__ import annotations

import logging
import time
from collections.abc import MutableMapping, Sequence
from typing import Any

import msgspec

from millrace.learners.draft.completion import MOST_DOMAIN
from millrace.learners.errors import BadInputError, MillraceError
from millrace.services.endpoint.endpoint import Endpoint
from millrace.services.endpoint.http import App, Bodies, HttpApp, Receive, Scope, Send, ending_headers, remote_caller
from millrace.services.errors import UNEXPECTED, NotServedError, meaning
from millrace.services.llm.capture import ASKED, Asked
from millrace.services.protocol.access import PREDICT
from millrace.services.protocol.statistics import COMPLETIONS, HEALTH, OTHER

log = logging.getLogger("millrace")

ANSWERED = ("/v1/chat/completions", "/v1/completions", "/v1/responses")  # by POST
HEALTH_PATH = "/health"  # vLLM's own, open to all
PATHS = (*ANSWERED, "/v1/models", HEALTH_PATH)
DOMAIN, CAPTURE = b"millrace-domain", b"millrace-capture"  # headers by which a caller says what it asks about, and opts out
LEFT = "left"  # in place of a status: the caller did not wait for one
WITHHELD = frozenset({b"authorization"})  # of a request's headers: vLLM has no use for them


class LlmApp:
    """One ASGI application on one endpoint and its engine's application."""

    def __init__(self, endpoint: Endpoint, engine: App, behind_front: bool = False) -> None:
        """``behind_front``: whether only our own front connects, so that what it says of a request counts."""
        self._endpoint = endpoint
        self._engine = engine
        self._behind_front = behind_front
        self._others = HttpApp(endpoint, behind_front)
        self._bodies = Bodies(endpoint.limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["path"] in ("/readyz", "/v2") or scope["path"].startswith("/v2/"):
            return await self._others(scope, receive, send)
        start_ns, answer = time.perf_counter_ns(), _Answer(send, self._endpoint, self._behind_front)
        try:
            await self._answered(scope, receive, answer)
        except MillraceError as error:
            await answer.refuse(meaning(error).http, str(error))
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            await answer.refuse(UNEXPECTED.http, "This request failed; the server's log says why.")
        finally:
            took_ns = time.perf_counter_ns() - start_ns
            self._endpoint.traffic.count("http", kind_of_call(scope["path"]), answer.status, took_ns, answered=False)

    async def _answered(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        """Raises: MillraceError where it is not for the engine to answer."""
        if scope["path"] not in PATHS:
            raise NotServedError(
                f"There is nothing at {scope['path']}. There are {', '.join(PATHS)}, /v2/health/ready and "
                f"/v2/models/{self._endpoint.name}/status."
            )
        if scope["path"] == HEALTH_PATH:
            return await self._engine(scope, receive, answer)
        headers = dict(scope["headers"])
        authorization = headers.get(b"authorization", b"")
        self._endpoint.access.check(authorization, remote_caller(scope, self._behind_front), PREDICT)
        asked = asked_by(self._endpoint.access.tenant_of(authorization), scope["headers"])
        body = await self._bodies.read(receive, headers.get(b"content-length", b""))
        passed_on = [(name, value) for name, value in scope["headers"] if name not in WITHHELD]
        async with self._endpoint.turns:
            token = ASKED.set(asked)
            try:
                await self._engine({**scope, "headers": passed_on}, _again(body, receive), answer)
            finally:
                ASKED.reset(token)


class _Answer:
    """Sends what the engine answers, and knows what was sent."""

    def __init__(self, send: Send, endpoint: Endpoint, behind_front: bool) -> None:
        self.status = LEFT
        self._send = send
        self._endpoint = endpoint
        self._behind_front = behind_front

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = str(message["status"])
            ending = ending_headers(self._endpoint, self._behind_front)
            message = {**message, "headers": [*message.get("headers", ()), *ending]}
        await self._send(message)

    async def refuse(self, status: int, sentence: str) -> None:
        """Answer with an error of ours, unless an answer has begun: then its end is missing, and the caller sees that."""
        if self.status != LEFT:
            return
        said = {"message": sentence, "type": "millrace_error", "param": None, "code": status}
        body = msgspec.json.encode({"error": said})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(b"retry-after", b"1")] if status == 503 else []
        await self({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _again(body: bytes, receive: Receive) -> Receive:
    """The same request, whose body was read; behind it comes what the caller does, such as leaving."""
    given = False

    async def receive_again() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


def asked_by(tenant: str, headers: Sequence[tuple[bytes, bytes]]) -> Asked:
    """Whose request it is, about what, and whether it may be learned from: not where one of several headers says off.

    Raises: BadInputError naming the header.
    """
    domain = dict(headers).get(DOMAIN, b"").decode("latin-1")
    said = [value.strip().lower() for name, values in headers if name == CAPTURE for value in values.split(b",")]
    if len(domain) > MOST_DOMAIN or not domain.isprintable():
        raise BadInputError(f"Millrace-Domain: must be at most {MOST_DOMAIN} characters that can be printed.")
    for value in said:
        if value not in (b"on", b"off"):
            raise BadInputError(f"Millrace-Capture: {value[:20].decode('latin-1')!r} must be off, or left out.")
    return Asked(tenant.encode(), domain, b"off" not in said)


def kind_of_call(path: str) -> str:
    """What a path of the OpenAI API is for, as it is counted.

    >>> [kind_of_call(path) for path in ("/v1/responses", "/health", "/v1/models")]
    ['completions', 'health', 'other']
    """
    if path in ANSWERED:
        return COMPLETIONS
    return HEALTH if path == HEALTH_PATH else OTHER
