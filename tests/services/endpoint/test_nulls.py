"""Null means absent wherever absent is allowed, and what cannot be read is named by its place: HTTP, gRPC and labels."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from grpc_calls import asked, call, rows_of
from served_bundles import NUMBERS, app, ask, endpoint_of, infer, numbers_bundle, tensor

from millrace.learners.errors import BadInputError
from millrace.services.protocol import inference_pb2 as pb
from millrace.services.protocol import labels_pb2
from millrace.services.protocol.labels import read_labels
from millrace.services.protocol.messages import labels_of

BUNDLE = numbers_bundle()
APP = app(BUNDLE)
X = [[1.0, 2.0, 3.0], [-1.0, 0.0, 2.0]]
RAW = np.array(X).tobytes()
PLAIN = {"inputs": [tensor("x", "FP64", [2, 3], X)], "outputs": [{"name": "scores"}]}
MANY_INPUTS = ("inputs[0]", "outputs[0]")


def with_null(request: dict, *path: str | int) -> dict:
    """The request with null at a place."""
    changed = copy.deepcopy(request)
    at = changed
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = None
    return changed


def scores(request: dict, binary: bytes = b"") -> list:
    """What is answered, or what is said."""
    heard = infer(APP, request, binary)
    return heard.json["outputs"][0]["data"] if heard.status == 200 else heard.json["error"]


FULL = PLAIN | {"id": "q", "parameters": {"observe": True, "binary_data_output": False}}
FULL["inputs"] = [FULL["inputs"][0] | {"parameters": {"note": "a"}}]
FULL["outputs"] = [{"name": "scores", "parameters": {"binary_data": False}}]
ABSENT = [
    ("id",),
    ("parameters",),
    ("parameters", "observe"),
    ("parameters", "binary_data_output"),
    ("outputs",),
    ("outputs", 0, "parameters"),
    ("outputs", 0, "parameters", "binary_data"),
    ("inputs", 0, "parameters"),
    ("inputs", 0, "parameters", "note"),
]


@pytest.mark.parametrize("path", ABSENT, ids=lambda path: ".".join(map(str, path)))
def test_null_is_answered_as_absent(path: tuple[str | int, ...]) -> None:
    """The same scores, bit for bit, as the learner itself computes; nothing else may be null."""
    assert scores(with_null(FULL, *path)) == BUNDLE.predict([np.array(X)[:, :1], np.array(X)[:, 1:]]).scores.ravel().tolist()


def test_more_that_is_null() -> None:
    """A classification, data behind which bytes follow, a size beside data."""
    asking = PLAIN | {"outputs": [{"name": "scores", "parameters": {"classification": None}}]}
    assert scores(asking) == scores(PLAIN)
    bytes_follow = tensor("x", "FP64", [2, 3], size=len(RAW)) | {"data": None}
    assert scores(PLAIN | {"inputs": [bytes_follow]}, RAW) == scores(PLAIN)
    assert scores(PLAIN | {"inputs": [PLAIN["inputs"][0] | {"parameters": {"binary_data_size": None}}]}) == scores(PLAIN)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (("inputs",), "inputs"),
        (("inputs", 0), "inputs[0]"),
        (("inputs", 0, "name"), "inputs[0].name"),
        (("inputs", 0, "shape"), "inputs[0].shape"),
        (("inputs", 0, "shape", 1), "inputs[0].shape[1]"),
        (("inputs", 0, "datatype"), "inputs[0].datatype"),
        (("inputs", 0, "data"), "x: has neither data"),
        (("inputs", 0, "data", 1), "x: Expected `array`, got `null` - at `$[1]`"),
        (("inputs", 0, "data", 1, 2), "b: row 1 has no number"),
        (("outputs", 0), "outputs[0]"),
        (("outputs", 0, "name"), "outputs[0].name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_null_in_place_of_what_must_be_there_is_refused_by_name(path: tuple[str | int, ...], named: str) -> None:
    """400, and the place of it."""
    said = scores(with_null(FULL, *path))
    assert isinstance(said, str) and named in said


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("parameters", "parameters.a is an object"),
        ("inputs", "inputs[0].parameters.a is an object"),
        ("outputs", "outputs[0].parameters.a is an object"),
    ],
)
def test_a_parameter_that_has_something_inside_is_named(where: str, named: str) -> None:
    """By its key; a list likewise."""
    for inside, kind in (({"b": 1}, "an object"), ([1], "a list")):
        for key in ("a", "a.b"):
            request = copy.deepcopy(FULL)
            (request if where == "parameters" else request[where][0])["parameters"][key] = inside
            said = named.replace("an object", kind).replace(".a ", f".{key} ")
            assert f"{said}; a parameter is a text" in scores(request)


@pytest.mark.parametrize(("number", "token"), [(float("nan"), "NaN"), (float("inf"), "Infinity"), (-float("inf"), "-Infinity")])
def test_what_pythons_json_writes_and_json_has_not_is_named_with_its_place(number: float, token: str) -> None:
    """Flat, nested, with and without spaces, in parameters and labels; a text that says NaN is a text."""
    for at, data in (("[0][2]", [[1, 2, number], [4, 5, 6]]), ("[5]", [1, 2, 3, 4, 5, number])):
        for separators in ((", ", ": "), (",", ":")):
            body = json.dumps(PLAIN | {"id": "NaN", "inputs": [tensor("x", "FP64", [2, 3], data)]}, separators=separators)
            said = ask(APP, "POST", "/v2/models/digits/infer", body.encode()).json["error"]
            assert f"inputs[0].data{at} is {token}, which JSON does not have; send null" in said
    assert f"parameters.t is {token}" in scores(PLAIN | {"parameters": {"t": number}})
    with pytest.raises(BadInputError, match=rf"label is {token}, which JSON does not have"):
        read_labels(json.dumps({"id": "a", "label": number}).encode())
    assert "malformed" in ask(APP, "POST", "/v2/models/digits/infer", b'{"inputs": [NaN, }').json["error"]


WHOLE = {"INT8": (-128, 127), "UINT8": (0, 255), "INT16": (-(2**15), 2**15 - 1), "UINT16": (0, 2**16 - 1)}
WHOLE |= {"INT32": (-(2**31), 2**31 - 1), "UINT32": (0, 2**32 - 1), "INT64": (-(2**63), 2**63 - 1), "UINT64": (0, 2**63 - 1)}


@pytest.mark.parametrize("datatype", WHOLE)
def test_an_integer_beyond_its_datatype_is_refused_as_json_and_by_grpc(datatype: str) -> None:
    """And the last within is answered, flat and nested, as a whole float too where a float has it."""
    low, high = WHOLE[datatype]
    for nested in (False, True):
        for number in (low, high):
            data = [[number, 0, 0]] if nested else [number, 0, 0]
            assert isinstance(scores(PLAIN | {"inputs": [tensor("x", datatype, [1, 3], data)]}), list)
        for number in (low - 1, high + 1, 10**30, -(10**30), 1e30, -1e30):
            data = [[0, number, 0]] if nested else [0, number, 0]
            said = scores(PLAIN | {"inputs": [tensor("x", datatype, [1, 3], data)]})
            assert "x: a number does not fit into" in said or "x: an integer is beyond int64" in said
    contents = {"INT8": "int_contents", "INT16": "int_contents", "UINT8": "uint_contents", "UINT16": "uint_contents"}
    if name := contents.get(datatype):
        request = pb.ModelInferRequest(model_name="digits")
        getattr(request.inputs.add(name="x", datatype=datatype, shape=[1, 3]).contents, name).extend([0, high + 1, 0])
        context, _ = call(endpoint_of(BUNDLE), "ModelInfer", request)
        assert context.code == "INVALID_ARGUMENT" and "x: a number does not fit into" in context.details


@pytest.mark.parametrize(("datatype", "fits", "beyond"), [("FP32", 3.4028235e38, 3.5e38), ("FP16", 65519.0, 65520.0)])
def test_a_number_that_its_float_has_not_is_refused_too(datatype: str, fits: float, beyond: float) -> None:
    """What rounds to the largest is taken: NumPy says which does."""
    kind = {"FP32": np.float32, "FP16": np.float16}[datatype]
    with np.errstate(over="ignore"):
        assert np.isfinite(kind(fits)) and np.isinf(kind(beyond))
    for number in (fits, -fits):
        assert isinstance(scores(PLAIN | {"inputs": [tensor("x", datatype, [1, 3], [number, None, 0])]}), str)  # b: null
        assert isinstance(scores(PLAIN | {"inputs": [tensor("x", datatype, [1, 3], [number, 0, 0])]}), list)
    for number in (beyond, -beyond):
        assert "x: a number does not fit into" in scores(PLAIN | {"inputs": [tensor("x", datatype, [1, 3], [0, number, 0])]})


def test_an_empty_message_of_grpc_means_absent() -> None:
    """Parameters of the request, of an output; no outputs; a model without a name is told which there is."""
    x = np.array(X)
    plain = call(endpoint_of(BUNDLE), "ModelInfer", asked(rows_of(x)))[1].raw_output_contents[0]
    request = asked(rows_of(x))
    for parameters in (request.parameters, request.inputs[0].parameters):
        for name in ("observe", "binary_data_size"):
            parameters[name].SetInParent()
    for name in ("classification", "binary_data"):
        request.outputs.add(name="scores").parameters[name].SetInParent()
    context, answer = call(endpoint_of(BUNDLE), "ModelInfer", request)
    assert (context.code, answer.raw_output_contents[0]) == ("OK", plain)
    for kind, message in (("ModelInfer", pb.ModelInferRequest()), ("ModelMetadata", pb.ModelMetadataRequest())):
        context, _ = call(endpoint_of(BUNDLE), kind, message)
        assert (context.code, context.details) == ("NOT_FOUND", "The request names no model. There is: digits.")
    context, _ = call(endpoint_of(BUNDLE), "ModelInfer", pb.ModelInferRequest(model_name="digits"))
    assert (context.code, context.details) == ("INVALID_ARGUMENT", "The request has no inputs.")


def test_labels_take_null_for_what_may_be_absent() -> None:
    """One, several, and a client that writes out all members in any order; what must be there is named."""
    one = read_labels(b'{"id": "a", "label": 1.5, "revision": null, "labels": null}')
    assert one == read_labels(b'{"labels": null, "revision": null, "id": "a", "label": 1.5}')
    assert one == read_labels(b'{"id": "a", "label": 1.5}') and one[0].revision == 0
    assert one == read_labels(b'{"labels": [{"id": "a", "label": 1.5, "revision": null}], "id": null, "label": null}')
    assert one == read_labels(b'{"id": null, "label": null, "revision": null, "labels": [{"id": "a", "label": 1.5}]}')
    for body, named in (
        (b'{"id": null, "label": 1}', r"\$\.id"),
        (b'{"id": "a", "label": null}', r"\$\.label"),
        (b'{"labels": [{"id": "a", "label": null}]}', r"\$\.labels\[0\]\.label"),
        (b'{"labels": [{"id": null, "label": 1}]}', r"\$\.labels\[0\]\.id"),
        (b'{"labels": [null]}', r"\$\.labels\[0\]"),
        (b'{"id": "a", "label": {"b": 1}}', r"\$\.label"),
        (b"null", "got `null`"),
    ):
        with pytest.raises(BadInputError, match=named):
            read_labels(body)


def test_labels_of_grpc_name_the_one_that_has_no_value() -> None:
    """By its place, also where it has no id."""
    request = labels_pb2.LabelRequest(labels=[labels_pb2.OneLabel(id="a", number=1.0), labels_pb2.OneLabel()])
    with pytest.raises(BadInputError, match=r"labels\[1\]: it has no value"):
        labels_of(request, integer=False)
    assert NUMBERS.label.type == "string"
