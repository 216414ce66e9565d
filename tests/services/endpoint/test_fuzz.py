"""Thousands of requests that are nearly right, over both protocols: declared errors, finite answers, and nothing else."""

from __future__ import annotations

import asyncio
import json
import random
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from grpc_calls import FakeCall
from pipelines import MIXED
from served_bundles import Heard, endpoint_of, mixed_parts, numbers_bundle

from millrace.services.endpoint.endpoint import Endpoint
from millrace.services.endpoint.grpc import RPCS, GrpcApp
from millrace.services.endpoint.http import HttpApp
from millrace.services.errors import MEANINGS, UNEXPECTED
from millrace.services.pipeline.bundle import open_parts
from millrace.services.protocol import inference_pb2 as pb
from millrace.services.protocol.cells import NUMBERS as KINDS

BUNDLES = {"numbers": numbers_bundle(), "mixed": open_parts(mixed_parts(), MIXED)}
SAYS = {meaning.grpc: meaning.http for meaning in MEANINGS.values() if meaning.http < 500 or meaning.http == 503}
FAILURES = {code for code in SAYS if code != UNEXPECTED.grpc}
TRIALS = 6000  # of each kind
NAMES = ("x", "a", "b", "id", "size", "at", "heat", "wind", "pixels", "kind", "site", "who", "", "?", "ü")
TYPES = (*KINDS, "BYTES", "BOOL", "BF16", "", "fp64")
TEXTS = ("", "bee", "ant", "cow", "north", "ü", "\0", "x" * 300)
SIDES = (0, 1, 1, 1, 2, 2, 2, 3, 3, 4, -1, 2**31, 2**63 - 1)
CELLS = (0.0, 1.0, -2.5, 104.0, 1e-300, 1e100, -1e101, 1e308, float("nan"), float("inf"), -float("inf"))
WIDTHS = {"x": 3, "a": 1, "b": 2, "size": 1, "at": 1, "heat": 1, "wind": 1, "pixels": 3}
GOOD = {"numbers": [["x"], ["a", "b"]], "mixed": [["size", "at", "pixels", "kind"], [*WIDTHS][3:] + ["kind", "site", "who"]]}

Tensor = tuple[str, str, list[int], bytes]  # name, datatype, shape, raw


def texts(chance: random.Random, count: int) -> bytes:
    """Strings behind their lengths; sometimes one of them lies, or is not UTF-8."""
    raws = [chance.choice(TEXTS).encode() for _ in range(count)]
    if chance.random() < 0.05:
        raws.append(b"\xff\xfe")
    packed = [struct.pack("<I", len(raw) if chance.random() < 0.97 else chance.randrange(2**32)) + raw for raw in raws]
    return b"".join(packed)


def good(chance: random.Random, which: str) -> list[Tensor]:
    """Inputs that can be answered, or nearly: a number may be out of range, a category unknown."""
    rows, tensors = chance.choice((0, 1, 1, 2, 5)), []
    for name in chance.choice(GOOD[which]) + (["id"] if chance.random() < 0.3 else []):
        if name in WIDTHS:
            cells = [chance.choice(CELLS[:4] if chance.random() < 0.97 else CELLS) for _ in range(rows * WIDTHS[name])]
            kind = chance.choice(("FP64", "FP64", "FP32"))
            shape = [rows] if WIDTHS[name] == 1 and chance.random() < 0.5 else [rows, WIDTHS[name]]
            with np.errstate(over="ignore"):
                tensors.append((name, kind, shape, np.array(cells).astype(KINDS[kind]).tobytes()))
        else:
            tensors.append((name, "BYTES", [rows], b"".join(struct.pack("<I", 3) + b"bee" for _ in range(rows))))
    return tensors


def wrong(chance: random.Random, which: str) -> list[Tensor]:
    """The same with one to three things changed."""
    tensors = good(chance, which)
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(tensors))
        name, kind, shape, raw = tensors[at]
        match chance.randrange(8):
            case 0:
                name = chance.choice(NAMES)
            case 1:
                kind = chance.choice(TYPES)
            case 2:
                shape = [chance.choice(SIDES) for _ in range(chance.randrange(4))]
            case 3:
                raw = raw[: chance.randrange(len(raw) + 1)]
            case 4:
                raw = chance.randbytes(len(raw))
            case 5:
                raw += chance.randbytes(chance.randrange(1, 9))
            case 6:
                raw = texts(chance, shape[0] if shape and 0 <= shape[0] < 9 else 1)
            case 7:
                tensors.append((chance.choice(NAMES), chance.choice(TYPES), shape, raw))
        tensors[at] = (name, kind, shape, raw)
    return tensors


def as_message(tensors: list[Tensor], wanted: list[str], request_id: str) -> pb.ModelInferRequest:
    """Over gRPC."""
    request = pb.ModelInferRequest(model_name="digits", id=request_id, outputs=[{"name": name} for name in wanted])
    for name, kind, shape, raw in tensors:
        request.inputs.add(name=name, datatype=kind, shape=shape)
        request.raw_input_contents.append(raw)
    return request


def as_body(tensors: list[Tensor], wanted: list[str], request_id: str) -> tuple[bytes, int]:
    """Over HTTP, all tensors binary, and so the answer; with the length of the JSON part."""
    inputs = [
        {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
        for name, kind, shape, raw in tensors
    ]
    request = {"id": request_id, "inputs": inputs, "outputs": [{"name": name} for name in wanted]}
    text = json.dumps(request | {"parameters": {"binary_data_output": True}}).encode()
    return text + b"".join(raw for *_, raw in tensors), len(text)


async def over_grpc(endpoint: Endpoint, raw: bytes, name: str = "ModelInfer") -> tuple[FakeCall, Any]:
    """One call."""
    context = FakeCall()
    return context, await GrpcApp(endpoint).answer(name, raw, context)


async def over_http(endpoint: Endpoint, body: bytes, json_bytes: int | None) -> Heard:
    """One request."""
    messages: list[dict] = []
    length = [] if json_bytes is None else [(b"inference-header-content-length", str(json_bytes).encode())]

    async def receive() -> dict:
        return {"type": "http.request", "body": body}

    async def send(message: dict) -> None:
        messages.append(message)

    path = "/v2/models/digits/infer"
    await HttpApp(endpoint)({"type": "http", "method": "POST", "path": path, "headers": length}, receive, send)
    headers = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
    return Heard(messages[0]["status"], headers, messages[1]["body"])


def checked(context: FakeCall, answer: pb.ModelInferResponse) -> None:
    """An answer is whole and finite; an error is declared and says something."""
    if context.code != "OK":
        assert context.code in FAILURES and context.details and answer == type(answer)(), context
        return
    for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        if output.datatype == "FP64":
            scores = np.frombuffer(raw)
            assert scores.size == np.prod([*output.shape]) and np.isfinite(scores).all()


def trials(trial: Callable[[random.Random, str, Endpoint], Awaitable[bool]], seed: int) -> None:
    """Many of them on both schemas; some must be answered and some refused, else they try nothing."""

    async def every() -> list[bool]:
        chance, outcomes = random.Random(seed), []
        here = {"numbers": endpoint_of(BUNDLES["numbers"]), "mixed": endpoint_of(BUNDLES["mixed"], MIXED)}
        for _ in range(TRIALS):
            which = chance.choice(("numbers", "mixed"))
            outcomes.append(await trial(chance, which, here[which]))
        return outcomes

    answered = sum(asyncio.run(every()))
    assert TRIALS * 0.02 < answered < TRIALS * 0.98


def test_both_protocols_answer_and_refuse_the_same_requests_alike() -> None:
    """Bit for bit where they answer, with the same error where they refuse."""

    async def trial(chance: random.Random, which: str, endpoint: Endpoint) -> bool:
        wanted = chance.sample(["scores", "label", "id", "?"], chance.choice((0, 0, 0, 1, 2)))
        tensors, request_id = wrong(chance, which), chance.choice(("r", "", "ü"))
        context, answer = await over_grpc(endpoint, as_message(tensors, wanted, request_id).SerializeToString())
        checked(context, answer)
        heard = await over_http(endpoint, *as_body(tensors, wanted, request_id))
        if context.code == "OK":
            start = int(heard.headers.get("inference-header-content-length", len(heard.body)))
            names = [output["name"] for output in heard.json["outputs"]]
            skipped = [at for at, name in enumerate(names) if name == "id" and not request_id]  # made up, so it differs
            assert heard.status == 200 and names == [output.name for output in answer.outputs]
            assert skipped or heard.body[start:] == b"".join(answer.raw_output_contents)
        else:
            assert heard.status == SAYS[context.code] and heard.json == {"error": context.details}
        return context.code == "OK"

    trials(trial, 1)


def test_typed_contents_and_parameters_of_any_kind_give_declared_answers() -> None:
    """The lists of the right kind and of another one, beside raw bytes or instead of them."""
    lists = [field.name for field in pb.InferTensorContents.DESCRIPTOR.fields]
    values = {"bool_contents": [True], "bytes_contents": [b"bee", b"\xff", b""], "fp32_contents": CELLS, "fp64_contents": CELLS}
    whole = (0, 1, 104, 127, 128, 255, 65_536, 2**31 - 1)

    async def trial(chance: random.Random, which: str, endpoint: Endpoint) -> bool:
        request = as_message(good(chance, which), [], "r")
        if chance.random() < 0.95:
            del request.raw_input_contents[:]
        for tensor in request.inputs:
            right = "bytes_contents" if tensor.datatype == "BYTES" else f"{tensor.datatype.lower()}_contents"
            name = right if chance.random() < 0.97 else chance.choice(lists)
            count = int(np.prod([*tensor.shape])) + (chance.randrange(-1, 2) if chance.random() < 0.03 else 0)
            usual = [b"bee"] if name == "bytes_contents" else [1] if chance.random() < 0.95 else values.get(name, whole)
            getattr(tensor.contents, name).extend(chance.choice(usual) for _ in range(count))
            if chance.random() < 0.1:
                tensor.datatype = chance.choice(TYPES)
            tensor.parameters[chance.choice(NAMES)].int64_param = chance.randrange(-(2**63), 2**63)
        request.parameters["classification"].bool_param = True
        context, answer = await over_grpc(endpoint, request.SerializeToString())
        checked(context, answer)
        return context.code == "OK"

    trials(trial, 2)


def test_messages_and_bodies_with_changed_bytes_give_declared_answers() -> None:
    """Up to four bytes changed, inserted or left out, then cut anywhere."""

    def changed(chance: random.Random, raw: bytes) -> bytes:
        body = bytearray(raw)
        for _ in range(chance.randrange(1, 5)):
            at = chance.randrange(len(body))
            body[at : at + chance.randrange(2)] = chance.randbytes(chance.randrange(2))
        return bytes(body[: chance.randrange(len(body) + 1)] if chance.random() < 0.2 else body)

    async def trial(chance: random.Random, which: str, endpoint: Endpoint) -> bool:
        tensors = good(chance, which)
        raw = as_message(tensors, [], "r").SerializeToString()
        context, answer = await over_grpc(endpoint, changed(chance, raw))
        checked(context, answer)
        body, json_bytes = as_body(tensors, ["scores"], "r")
        heard = await over_http(endpoint, changed(chance, body), json_bytes)
        assert heard.status in {200, *SAYS.values()} and heard.status < 500, heard
        return context.code == "OK"

    trials(trial, 3)


@pytest.mark.parametrize("name", [name for name in RPCS if name != "ModelInfer"])
def test_random_bytes_to_any_other_call_give_declared_answers(name: str) -> None:
    """Which are few: most of these messages are one or two strings."""

    async def every() -> None:
        chance, here = random.Random(name), endpoint_of(BUNDLES["numbers"])
        for _ in range(100):
            context, answer = await over_grpc(here, chance.randbytes(chance.randrange(20)), name)
            assert context.code in {"OK", *FAILURES, "UNIMPLEMENTED"}
            assert context.code == "OK" or answer == RPCS[name].response()

    asyncio.run(every())
