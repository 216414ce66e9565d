"""A tensor means what the same values mean in a record: booleans and integers, as numbers and as categories, however sent."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from grpc_calls import asked, call
from served_bundles import HERE, app, endpoint_of, infer, tensor

from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.services.pipeline.bundle import Parts, open_parts
from millrace.services.protocol import inference_pb2 as pb
from millrace.streams.features.columns import Features
from millrace.streams.formats.json_rows import Codec
from millrace.streams.records import Event
from millrace.streams.schema import Field, Label, Schema

pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")

SCHEMA = Schema(
    (
        Field("flag", missing="mean"),
        Field("pair", size=2),
        Field("code", "categorical", categories="grow", max=5, missing="category"),
        Field("seen", "time", unit="h", missing="mean"),
    ),
    Label("y"),
)
CODEC = Codec(SCHEMA, 4096)
CODES = (True, False, 7, -1, "cow", None)


def learned() -> Parts:
    """What a ridge serves that has learned rows with every kind of value."""
    rng = np.random.default_rng(5)
    rows = [
        {"flag": bool(at % 3), "pair": [at % 2 == 0, at % 5], "code": CODES[at % 6], "seen": at, "y": "ab"[at % 2]}
        for at in rng.permutation(300).tolist()
    ]
    decoded, refused = CODEC.decode(events(rows))
    assert not refused
    stage, ridge = Features(SCHEMA), Ridge(RidgeConfig(), SCHEMA.width, 0)
    ridge.learn_many(stage.learn(stage.encode(decoded)))
    return Parts(HERE, 1000, "ridge", stage.state(), ridge.servable().arrays())


def events(rows: list[dict]) -> list[Event]:
    """Rows as records."""
    return [Event(at, 0, None, b"", json.dumps(row).encode()) for at, row in enumerate(rows)]


BUNDLE = open_parts(learned(), SCHEMA)
APP = app(BUNDLE, SCHEMA)
PLAIN = {"flag": ("FP64", [1.0, 0.0]), "pair": ("FP64", [1.0, 2.0, 0.0, 3.0]), "code": ("BYTES", ["cow", "7"])}
PLAIN["seen"] = ("FP64", [3.0, 4.0])
DTYPES = {"BOOL": "?", "FP64": "<f8", "INT8": "<i1", "INT64": "<i8", "UINT64": "<u8"}
TYPED = {"BOOL": "bool_contents", "FP64": "fp64_contents", "INT8": "int_contents", "INT64": "int64_contents"}
TYPED |= {"UINT64": "uint64_contents", "BYTES": "bytes_contents"}


def raw_of(datatype: str, cells: list) -> bytes:
    """Cells as binary tensors have them."""
    if datatype != "BYTES":
        return np.array(cells, DTYPES[datatype]).tobytes()
    return b"".join(len(cell).to_bytes(4, "little") + cell.encode() for cell in cells)


def outcomes(**changed: tuple[str, list]) -> Iterator[bytes | str]:
    """Scores, or what is said, of the plain question with some tensors changed: HTTP as JSON and binary, gRPC raw and typed."""
    inputs = PLAIN | changed
    shapes = {name: [2, 2] if name == "pair" else [2] for name in inputs}
    over_json = [tensor(name, kind, shapes[name], cells) for name, (kind, cells) in inputs.items()]
    raw = {name: raw_of(kind, cells) for name, (kind, cells) in inputs.items()}
    binary = [tensor(name, kind, shapes[name], size=len(raw[name])) for name, (kind, _) in inputs.items()]
    for heard in (infer(APP, {"inputs": over_json}), infer(APP, {"inputs": binary}, b"".join(raw.values()))):
        yield np.array(heard.json["outputs"][0]["data"]).tobytes() if heard.status == 200 else heard.json["error"]
    typed = pb.ModelInferRequest(model_name="digits")
    for name, (kind, cells) in inputs.items():
        values = [cell.encode() if kind == "BYTES" else cell for cell in cells]
        contents = pb.InferTensorContents(**{TYPED[kind]: values})
        typed.inputs.add(name=name, datatype=kind, shape=shapes[name], contents=contents)
    in_bytes = asked(*((name, kind, shapes[name], raw[name]) for name, (kind, _) in inputs.items()))
    for request in (in_bytes, typed):
        context, answer = call(endpoint_of(BUNDLE, SCHEMA), "ModelInfer", request)
        yield answer.raw_output_contents[0] if context.code == "OK" else context.details


def scores_due(**changed: list) -> bytes:
    """What is answered to the same values in records."""
    cells = {"flag": [1.0, 0.0], "pair": [[1.0, 2.0], [0.0, 3.0]], "code": ["cow", "7"], "seen": [3.0, 4.0]} | changed
    rows = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    decoded, refused = CODEC.decode(events(rows))
    assert not refused
    return BUNDLE.predict(decoded.columns).scores.tobytes()


@pytest.mark.parametrize(
    ("name", "datatype", "cells", "in_record"),
    [
        ("flag", "BOOL", [True, False], [True, False]),
        ("flag", "INT8", [1, 0], [1, 0]),
        ("pair", "BOOL", [True, False, False, True], [[True, False], [False, True]]),
        ("code", "BOOL", [True, False], [True, False]),
        ("code", "INT8", [7, -1], [7, -1]),
        ("code", "INT64", [300, -1], [300, -1]),
        ("code", "UINT64", [7, (1 << 63) - 1], [7, (1 << 63) - 1]),
    ],
)
def test_a_tensor_is_answered_as_the_record_is(name: str, datatype: str, cells: list, in_record: list) -> None:
    """Over HTTP as JSON and as bytes, over gRPC raw and typed; the answer differs from the plain one, so something is seen."""
    due = scores_due(**{name: in_record})
    assert [*outcomes(**{name: (datatype, cells)})] == [due] * 4
    assert due != scores_due() or name == "flag"


@pytest.mark.parametrize(
    ("name", "datatype", "cells", "why"),
    [
        ("seen", "BOOL", [True, False], "seen: datatype BOOL must be one of FP64"),
        ("flag", "UINT64", [1, 1 << 63], "flag: an integer is beyond int64"),
        ("code", "UINT64", [1, 1 << 63], "code: an integer is beyond int64"),
        ("code", "FP64", [1.0, 2.0], "code: is FP64 [2], must be BYTES, BOOL or integers [n]"),
    ],
)
def test_what_no_record_may_hold_is_refused_on_every_way_in(name: str, datatype: str, cells: list, why: str) -> None:
    """By its name."""
    for said in outcomes(**{name: (datatype, cells)}):
        assert isinstance(said, str) and why in said


def test_json_data_is_of_its_datatype() -> None:
    """A null is a missing value; a number is no boolean, nor a boolean a number; a byte of BOOL is 0 or 1."""
    plain = [tensor(name, kind, [2, 2] if name == "pair" else [2], cells) for name, (kind, cells) in PLAIN.items()]
    missing = infer(APP, {"inputs": [tensor("flag", "BOOL", [2], [True, None]), *plain[1:]]})
    assert np.array(missing.json["outputs"][0]["data"]).tobytes() == scores_due(flag=[True, None])
    unnamed = infer(APP, {"inputs": [plain[0], plain[1], tensor("code", "INT64", [2, 1], [[7], [None]]), plain[3]]})
    assert np.array(unnamed.json["outputs"][0]["data"]).tobytes() == scores_due(code=[7, None])
    for wrong in (
        tensor("flag", "BOOL", [2], [1, 0]),
        tensor("flag", "INT64", [2], [True, 1]),
        tensor("flag", "BOOL", [2], [2]),
    ):
        assert infer(APP, {"inputs": [wrong, *plain[1:]]}).status == 400
    half = infer(APP, {"inputs": [plain[0], plain[1], tensor("code", "INT64", [2], [7, 7.5]), plain[3]]})
    assert half.status == 400 and "code: a category is an integer" in half.json["error"]
    large = infer(APP, {"inputs": [tensor("flag", "INT64", [2], [0, 10**30]), *plain[1:]]})
    assert large.status == 400 and "flag: " in large.json["error"]
    context, _ = call(endpoint_of(BUNDLE, SCHEMA), "ModelInfer", asked(("flag", "BOOL", [2], b"\x01\x02")))
    assert context.code == "INVALID_ARGUMENT" and "a byte of BOOL is 2" in context.details
