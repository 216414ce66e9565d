"""What stands before vLLM's own application: tokens, tenants, a list of paths, limits, and errors in the OpenAI API's form."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from millrace.learners.errors import MillraceError
from millrace.services.config.sections import ServingConfig
from millrace.services.endpoint.endpoint import Endpoint
from millrace.services.llm.app import CAPTURE, PATHS, LlmApp, asked_by
from millrace.services.llm.capture import ASKED
from millrace.services.llm.follower import HeldDraft
from millrace.services.pipeline.bundle import Identity
from millrace.services.protocol.access import SCOPES, Access, access
from millrace.streams.schema import ACCEPTED, Llm, Schema

CHAT = "/v1/chat/completions"
SCHEMA = Schema((), ACCEPTED, llm=Llm("target", "draft", "all"))


@dataclass
class Answering:
    """An application that has paths as vLLM's has, and says who asked what of it."""

    seen: list[dict[str, Any]] = field(default_factory=list)

    async def answer(self, request: Request) -> Response:
        """A short one."""
        asked, body = ASKED.get(), await request.body()
        self.seen.append({"path": request.url.path, "body": body, "headers": dict(request.headers), "asked": asked})
        return JSONResponse({"said": len(body)})

    async def stream(self, request: Request) -> Response:
        """Three pieces, the last of which says whose it is."""

        async def pieces() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"
            yield b"data: 2\n\n"
            yield f"data: {ASKED.get().tenant.decode()}\n\n".encode()

        return StreamingResponse(pieces(), media_type="text/event-stream")

    async def fail(self, _: Request) -> Response:
        """As an unforeseen error."""
        raise ZeroDivisionError("unforeseen")

    def app(self) -> Starlette:
        """The application."""
        routes = [
            Route(CHAT, self.answer, methods=["POST"]),
            Route("/v1/responses", self.fail, methods=["POST"]),
            Route("/v1/completions", self.stream, methods=["POST"]),
            Route("/v1/models", self.answer),
            Route("/health", self.answer),
            Route("/tokenize", self.answer, methods=["POST"]),
            Route("/v1/embeddings", self.answer, methods=["POST"]),
        ]
        return Starlette(routes=routes)


@dataclass
class Heard:
    """An answer, as it was sent."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)

    @property
    def json(self) -> Any:
        """Of the body."""
        return json.loads(b"".join(self.pieces))


def endpoint(allowed: Access | None = None, held: bool = True, **limits: Any) -> Endpoint:
    """An endpoint of a language model called answers."""
    draft = HeldDraft(Identity("main", 1, 7, "main.7"), SCHEMA) if held else None
    return Endpoint("answers", SCHEMA, lambda: draft, allowed or Access(), ServingConfig(**limits))


App = Callable[..., Awaitable[None]]


def ask(app: App, method: str, path: str, body: bytes = b"", client: str = "127.0.0.1", **headers: str) -> Heard:
    """One request."""
    heard = Heard()
    asyncio.run(asked(app, heard, method, path, body, client, **headers))
    return heard


async def asked(
    app: App, heard: Heard, method: str, path: str, body: bytes = b"", client: str = "127.0.0.1", **headers: str
) -> None:
    """The same, on a loop that runs."""
    sent = [{"type": "http.request", "body": body, "more_body": False}]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "scheme": "http",
        "http_version": "1.1",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        "client": (client, 5),
        "server": ("10.0.0.1", 8000),
    }

    async def receive() -> dict[str, Any]:
        return sent.pop(0) if sent else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            heard.status = message["status"]
            heard.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        elif message.get("body"):
            heard.pieces.append(message["body"])

    await app(scope, receive, send)


def test_only_paths_of_the_list_reach_the_engine() -> None:
    """What else vLLM has is not there, and the answer names what is; readiness and /v2 are ours."""
    engine, asked = Answering(), endpoint()
    app = LlmApp(asked, engine.app())
    assert ask(app, "POST", CHAT, b'{"a": 1}').json == {"said": 8}
    assert ask(app, "GET", "/v1/models").status == 200 and ask(app, "GET", "/health").status == 200
    for path in ("/tokenize", "/v1/embeddings", "/v1/chat/completions/", "/", "/v1", "/metrics", "/docs", "*"):
        heard = ask(app, "POST", path, b"{}")
        assert heard.status == 404 and all(known in heard.json["error"]["message"] for known in PATHS), path
    assert [seen["path"] for seen in engine.seen] == [CHAT, "/v1/models", "/health"]
    assert ask(app, "GET", "/v2/health/ready").json == {"ready": True} and ask(app, "GET", "/readyz").status == 200
    described = ask(app, "GET", "/v2/models/answers").json
    assert (described["versions"], described["inputs"], described["outputs"]) == (["main.7"], [], [])
    for verb in ("infer", "labels"):
        refused = ask(app, "POST", f"/v2/models/answers/{verb}", b'{"id": "a", "label": 1}')
        assert refused.status == 501 and "/v1/chat/completions" in refused.json["error"]
    assert asked.traffic.requests["http", "completions", "200"] == 1 and asked.traffic.requests["http", "other", "404"] == 8


def test_a_token_is_asked_for_and_says_whose_request_it_is() -> None:
    """No name but that of the token counts as tenant, and the token itself goes no further."""
    engine = Answering()
    allowed = access({"secret": SCOPES, "own": frozenset({"label"})}, local_is_open=False, tenants={"secret": "acme"})
    app = LlmApp(endpoint(allowed), engine.app())
    bare = ask(app, "POST", CHAT, b"{}")
    assert bare.status == 401 and "Authorization" in bare.json["error"]["message"]
    assert ask(app, "POST", CHAT, b"{}", authorization="Bearer own").status == 403
    assert ask(app, "GET", "/v1/models").status == 401 and ask(app, "GET", "/health").status == 200
    headers = {"authorization": "Bearer secret", "millrace_domain": "sql", "millrace_capture": "off", "x_tenant": "other"}
    assert ask(app, "POST", CHAT, b"{}", **headers).status == 200
    asked = engine.seen[-1]["asked"]
    assert (asked.tenant, asked.domain, asked.capture) == (b"acme", "sql", False)
    assert "authorization" not in engine.seen[-1]["headers"]
    ask(app, "POST", CHAT, b"{}", authorization="Bearer secret")
    assert engine.seen[-1]["asked"].capture and engine.seen[-1]["asked"].domain == ""


@pytest.mark.parametrize(
    ("header", "value"), [("millrace_domain", "x" * 65), ("millrace_domain", "a\tb"), ("millrace_capture", "no")]
)
def test_a_header_that_cannot_be_is_named(header: str, value: str) -> None:
    """Nothing reaches the engine then."""
    engine = Answering()
    heard = ask(LlmApp(endpoint(), engine.app()), "POST", CHAT, b"{}", **{header: value})
    assert heard.status == 400 and heard.json["error"]["message"].lower().startswith(header.replace("_", "-"))
    assert not engine.seen


def test_a_body_over_the_limit_is_refused() -> None:
    """In the form of the OpenAI API, with its status beside the sentence."""
    engine = Answering()
    heard = ask(LlmApp(endpoint(max_bytes=10), engine.app()), "POST", CHAT, b"x" * 11)
    assert heard.status == 413 and heard.json["error"]["code"] == 413 and "serving.max_bytes" in heard.json["error"]["message"]
    assert not engine.seen


def test_one_request_too_many_is_refused_by_the_limits_of_the_file() -> None:
    """One is at work and one waits: the third hears which key says so, and once the first is answered the second is, too."""
    engine, waiting = Answering(), asyncio.Event()

    async def slow(*request: Any) -> None:
        await waiting.wait()
        await engine.app()(*request)

    app, heard = LlmApp(endpoint(in_flight=1, queued=1), slow), [Heard() for _ in range(3)]

    async def all_asked() -> None:
        both = [asyncio.create_task(asked(app, each, "POST", CHAT, b"{}")) for each in heard[:2]]
        for _ in range(100):
            await asyncio.sleep(0)
        await asked(app, heard[2], "POST", CHAT, b"{}")
        waiting.set()
        await asyncio.gather(*both)

    asyncio.run(all_asked())
    assert [each.status for each in heard] == [200, 200, 503] and "serving.in_flight" in heard[2].json["error"]["message"]


def test_where_one_header_of_several_says_off_nothing_is_captured() -> None:
    """A proxy on the way may add a header of its own, before or behind the caller's, or in the same line."""
    for values in ((b"off", b"on"), (b"on", b"off"), (b"on, off",), (b"OFF",)):
        assert not asked_by("acme", [(CAPTURE, value) for value in values]).capture, values
    assert asked_by("acme", [(CAPTURE, b"on"), (CAPTURE, b"on")]).capture


def test_a_stream_comes_piece_by_piece_and_knows_whose_it_is() -> None:
    """The tenant is known where the pieces are made, after the handler has returned."""
    allowed = access({"secret": SCOPES}, local_is_open=True, tenants={"secret": "acme"})
    heard = ask(LlmApp(endpoint(allowed), Answering().app()), "POST", "/v1/completions", b"{}", authorization="Bearer secret")
    assert heard.pieces == [b"data: 1\n\n", b"data: 2\n\n", b"data: acme\n\n"]
    assert heard.headers["content-type"].startswith("text/event-stream")


def test_what_fails_unforeseen_is_a_500_and_a_dead_engine_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """The sentence of an error of ours is told, that of another one only logged."""
    engine, asked = Answering(), endpoint()
    heard = ask(LlmApp(asked, engine.app()), "POST", "/v1/responses", b"{}")
    assert heard.status == 500

    async def dead(*_: Any) -> None:
        raise MillraceError("The engine is dead: one of its processes has ended.")

    told = ask(LlmApp(asked, dead), "POST", CHAT, b"{}")
    assert told.status == 500 and "engine is dead" in told.json["error"]["message"]

    async def failing(*_: Any) -> None:
        raise ZeroDivisionError("unforeseen")

    silent = ask(LlmApp(asked, failing), "POST", CHAT, b"{}")
    assert silent.status == 500 and "unforeseen" not in silent.json["error"]["message"] and "unforeseen" in caplog.text


def test_before_there_is_a_draft_it_is_not_ready_and_while_it_ends_callers_are_told() -> None:
    """An ending replica answers on, and says that the next request is to come on another connection."""
    assert ask(LlmApp(endpoint(held=False), Answering().app()), "GET", "/v2/health/ready").status == 503
    ending = replace(endpoint(), draining=lambda: True)
    heard = ask(LlmApp(ending, Answering().app(), behind_front=True), "POST", CHAT, b"{}", x_millrace_peer="127.0.0.1")
    assert heard.status == 200 and heard.headers["connection"] == "close" and heard.headers["x-millrace-ending"] == "1"
