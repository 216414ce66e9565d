"""Bundles that tests serve, and an ASGI application asked without a network."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace

import numpy as np
from pipelines import MIXED, encoded, events, mixed_rows

from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.learners.protocol import Batch
from millrace.services.config.sections import ServingConfig
from millrace.services.endpoint.endpoint import Endpoint
from millrace.services.endpoint.http import HttpApp
from millrace.services.pipeline.bundle import Bundle, Identity, Parts, open_parts
from millrace.services.protocol.access import SCOPES, Access, access
from millrace.streams.features.columns import Features
from millrace.streams.formats.json_rows import Codec
from millrace.streams.schema import Field, Label, Schema

NUMBERS = Schema((Field("a"), Field("b", size=2)), Label("y"))
HERE = Identity("main", 2, 41)


@dataclass(frozen=True)
class Heard:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict:
        """The body's JSON part."""
        return json.loads(self.body[: int(self.headers.get("inference-header-content-length", len(self.body)))])


def mixed_parts(identity: Identity = HERE) -> Parts:
    """What a ridge serves that has learned some rows of ``MIXED``."""
    rows, _ = Codec(MIXED, 4096).decode(events([encoded(row | {"label": "no"}) for row in mixed_rows(60)] * 2))
    stage, learner = Features(MIXED), Ridge(RidgeConfig(), MIXED.width, 0)
    y = np.array(["yes" if at % 3 else "no" for at in range(len(rows))], dtype=object)
    learner.learn_many(stage.learn(replace(stage.encode(rows), y=y, weight=None)))
    return Parts(identity, 1000, "ridge", stage.state(), learner.servable().arrays())


def numbers_parts(labels: bool = True, identity: Identity = HERE) -> Parts:
    """What a ridge serves that has learned some rows of ``NUMBERS``, or none."""
    learner = Ridge(RidgeConfig(), NUMBERS.width, 0)
    if labels:
        x = np.random.default_rng(3).integers(-4, 5, (300, 3)).astype(float)
        learner.learn_many(Batch(x, np.array(["up" if row[0] > 0 else "down" for row in x], dtype=object)))
    return Parts(identity, 1000, "ridge", Features(NUMBERS).state(), learner.servable().arrays())


def numbers_bundle() -> Bundle:
    """A bundle of ``NUMBERS``."""
    return open_parts(numbers_parts(), NUMBERS)


def app(bundle: Bundle | None, schema: Schema = NUMBERS, token: str | None = None, max_bytes: int = 1 << 20) -> HttpApp:
    """The application on one bundle."""
    return HttpApp(endpoint_of(bundle, schema, token, max_bytes))


def endpoint_of(
    bundle: Bundle | None, schema: Schema = NUMBERS, token: str | None = None, max_bytes: int = 1 << 20
) -> Endpoint:
    """An endpoint that answers from one bundle; with a token, only to those who show it."""
    allowed = access({token: SCOPES}, local_is_open=False) if token else Access()
    return Endpoint("digits", schema, lambda: bundle, allowed, ServingConfig(max_bytes=max_bytes))


def ask(
    to: HttpApp, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, client: str = "127.0.0.1"
) -> Heard:
    """One request to 10.0.0.1, its body in two pieces."""
    pieces = [body[: len(body) // 2], body[len(body) // 2 :]]
    messages: list[dict] = []

    async def receive() -> dict:
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message: dict) -> None:
        messages.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    ends = {"client": (client, 50000), "server": ("10.0.0.1", 30000)}
    asyncio.run(to({"type": "http", "method": method, "path": path, "headers": raw, **ends}, receive, send))
    start, end = messages
    names = {name.decode(): value.decode() for name, value in start["headers"]}
    return Heard(start["status"], names, end["body"])


def infer(to: HttpApp, request: dict, binary: bytes = b"", **headers: str) -> Heard:
    """POST to the model; with binary tensors behind the JSON where there are some."""
    text = json.dumps(request).encode()
    length = {"Inference-Header-Content-Length": str(len(text))} if binary else {}
    return ask(to, "POST", "/v2/models/digits/infer", text + binary, length | headers)


def tensor(name: str, datatype: str, shape: list[int], data: object = None, size: int | None = None) -> dict:
    """An input of a request."""
    declared: dict[str, object] = {"name": name, "datatype": datatype, "shape": shape}
    return declared | ({"parameters": {"binary_data_size": size}} if size is not None else {"data": data})
