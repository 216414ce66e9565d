"""The Open Inference Protocol over HTTP: what clients send, what they get, and that nothing else ever happens."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as rounds
from hypothesis import strategies as st
from pipelines import MIXED
from served_bundles import app, ask, endpoint_of, infer, mixed_parts, numbers_bundle, tensor

from millrace.services.endpoint.http import HttpApp
from millrace.services.pipeline.bundle import open_parts

BUNDLE = numbers_bundle()
MIXED_BUNDLE = open_parts(mixed_parts(), MIXED)
X = np.array([[1.0, 2.0, 3.0], [-4.0, 0.5, 0.0]])
PACKED = {"inputs": [tensor("x", "FP64", [2, 3], X.tolist())]}
DECLARED = {200, 400, 404, 413, 503}


def scores_of(heard) -> np.ndarray:
    """The output `scores` of a JSON answer."""
    output = heard.json["outputs"][0]
    assert output["name"] == "scores" and output["datatype"] == "FP64"
    return np.array(output["data"]).reshape(output["shape"])


def test_json_and_binary_tensors_one_tensor_or_one_a_field_give_the_same_bits() -> None:
    """Nested or flat, FP64 or exact FP32."""
    here = app(BUNDLE)
    expected = BUNDLE.predict([X[:, :1], X[:, 1:]])
    fields = [tensor("a", "FP32", [2], X[:, 0].tolist()), tensor("b", "FP64", [2, 2], X[:, 1:].ravel().tolist())]
    raw = X.tobytes()
    asked = [
        infer(here, PACKED),
        infer(here, {"inputs": fields[::-1]}),
        infer(here, {"inputs": [tensor("x", "FP64", [2, 3], size=len(raw))]}, raw),
        infer(here, {"inputs": [tensor("x", "FP32", [2, 3], size=24)]}, X.astype("<f4").tobytes()),
    ]
    for heard in asked:
        assert heard.status == 200 and scores_of(heard).tobytes() == expected.scores.tobytes()
        assert heard.json["outputs"][1] == {"name": "label", "datatype": "BYTES", "shape": [2], "data": [*expected.labels]}


def test_binary_outputs_are_what_tritons_client_reads() -> None:
    """Raw FP64, and strings behind their lengths; the header says where they begin."""
    heard = infer(app(BUNDLE), PACKED | {"parameters": {"binary_data_output": True}})
    start = int(heard.headers["inference-header-content-length"])
    sizes = [output["parameters"]["binary_data_size"] for output in heard.json["outputs"]]
    scores = np.frombuffer(heard.body[start : start + sizes[0]]).reshape(2, 2)
    expected = BUNDLE.predict([X[:, :1], X[:, 1:]])
    labels = b"".join(struct.pack("<I", len(label)) + label.encode() for label in expected.labels)
    assert scores.tobytes() == expected.scores.tobytes() and heard.body[start + sizes[0] :] == labels
    assert heard.headers["content-type"] == "application/octet-stream"


def test_every_answer_names_its_state_and_its_rows() -> None:
    """Branch, epoch, seq, staleness; the client's ids, else the request's id and the row."""
    outputs = [{"name": "id"}]
    heard = infer(app(BUNDLE), PACKED | {"id": "r7", "outputs": outputs}).json
    assert (heard["id"], heard["model_version"]) == ("r7", "main.41")
    assert {name: heard["parameters"][name] for name in ("branch", "epoch", "seq")} == {"branch": "main", "epoch": 2, "seq": 41}
    assert heard["parameters"]["staleness_ms"] > 0 and heard["outputs"][0]["data"] == ["r7/0", "r7/1"]
    own = {"inputs": [*PACKED["inputs"], tensor("id", "BYTES", [2], ["ann", "bob"])], "outputs": outputs}
    assert infer(app(BUNDLE), own).json["outputs"][0]["data"] == ["ann", "bob"]
    assert infer(app(BUNDLE), PACKED).json["id"]


def test_a_mixed_row_leaves_out_what_may_be_missing() -> None:
    """Null, NaN or no tensor at all are the same; a category nobody has seen is `other`."""
    row = [
        tensor("size", "FP64", [1], [1.5]),
        tensor("at", "INT64", [1], [104]),
        tensor("pixels", "FP64", [1, 3], [[0.0, 0.5, 1.0]]),
        tensor("kind", "BYTES", [1], ["bee"]),
    ]
    here = app(MIXED_BUNDLE, MIXED)
    nothing = [tensor("heat", "FP64", [1], [None]), tensor("site", "BYTES", [1, 1], [[None]])]
    absent, null = infer(here, {"inputs": row}), infer(here, {"inputs": row + nothing})
    assert absent.status == null.status == 200 and scores_of(absent).tobytes() == scores_of(null).tobytes()
    assert infer(here, {"inputs": [*row, tensor("site", "BYTES", [1], ["never seen"])]}).status == 200


def test_health_metadata_and_versions() -> None:
    """Live without a state, ready only with one; a version that does not answer now is not found."""
    here, empty = app(BUNDLE), app(None)
    for path in (
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/digits/ready",
        "/v2/models/digits/versions/main.41/ready",
    ):
        assert ask(here, "GET", path).status == 200
    metadata = ask(here, "GET", "/v2/models/digits").json
    assert metadata["versions"] == ["main.41"] and [column["name"] for column in metadata["inputs"]] == ["a", "b"]
    assert metadata["inputs"][1]["shape"] == [-1, 2] and [out["datatype"] for out in metadata["outputs"]] == ["FP64", "BYTES"]
    assert ask(empty, "GET", "/v2/health/live").status == 200 and ask(empty, "GET", "/v2/models/digits").status == 200
    for path in ("/v2/health/ready", "/v2/models/digits/ready"):
        assert ask(empty, "GET", path).status == 503
    heard = infer(empty, PACKED)
    assert heard.status == 503 and heard.headers["retry-after"] == "1"
    for path in ("/", "/v2/health", "/v2/models/other", "/v2/models/digits/versions/main.9", "/v2/models/digits/stop", "/v2/x"):
        assert ask(here, "GET", path).status == 404
    assert ask(here, "POST", "/v2/models/digits/versions/main.9/infer", b"{}").status == 404
    assert ask(here, "POST", "/v2/models/digits/stop", b"{}").status == 404


def test_a_pod_takes_requests_with_nothing_to_answer_from_until_it_is_to_end() -> None:
    """Its probe shows no token and comes from another machine; the first labels go where it says yes."""
    taking = ask(app(None, token="s3cret"), "GET", "/readyz", client="10.0.0.9")
    assert (taking.status, taking.json) == (200, {"takes_requests": True})
    for bundle in (None, BUNDLE):
        ending = HttpApp(replace(endpoint_of(bundle), draining=lambda: True))
        assert ask(ending, "GET", "/readyz").status == ask(ending, "GET", "/v2/health/ready").status == 503
        assert ask(ending, "GET", "/v2/health/live").status == 200


def test_a_token_is_asked_for_wherever_there_is_one() -> None:
    """But not for health, which probes ask for."""
    here = app(BUNDLE, token="s3cret")
    assert ask(here, "GET", "/v2").status == 401 and infer(here, PACKED).status == 401
    assert infer(here, PACKED, Authorization="Bearer s3cre").status == 401
    assert infer(here, PACKED, Authorization="Bearer s3cret").status == 200
    assert ask(here, "GET", "/v2/health/ready").status == 200


def test_without_a_token_only_callers_on_the_same_machine_are_answered() -> None:
    """By loopback or by the machine's own address; with the token, from anywhere."""
    here, guarded, token = app(BUNDLE), app(BUNDLE, token="s3cret"), {"Authorization": "Bearer s3cret"}
    assert [ask(here, "GET", "/v2", client=peer).status for peer in ("127.0.0.1", "::1", "10.0.0.1")] == [200, 200, 200]
    assert ask(here, "GET", "/v2", client="10.0.0.9").status == 401
    assert ask(here, "GET", "/v2", headers=token, client="10.0.0.9").status == 401
    assert ask(guarded, "GET", "/v2", headers=token, client="10.0.0.9").status == 200
    assert ask(guarded, "GET", "/v2", client="127.0.0.1").status == 401


BAD = [
    (b"", "JSON cannot be read"),
    (b"[]", "JSON cannot be read"),
    (b'{"inputs": []}', "no inputs"),
    ({"inputs": [tensor("c", "FP64", [1], [1])]}, "c: this model has no such input"),
    ({"inputs": [tensor("a", "FP64", [1], [1])]}, "b: this input is required"),
    ({"inputs": [tensor("x", "FP64", [1, 4], [1, 2, 3, 4])]}, r"x: shape \[1, 4\] must be \[n, 3\]"),
    ({"inputs": [tensor("x", "FP64", [1, 3], [1, 2])]}, "x: 2 values do not make"),
    ({"inputs": [tensor("x", "FP64", [1, 3], [[1, 2]])]}, "x: its rows"),
    ({"inputs": [tensor("x", "FP64", [1, 3], [1, 2, "3"])]}, "x: Expected `float | null`, got `str`"),
    ({"inputs": [tensor("x", "FP64", [1, 3], [1, 2, True])]}, "x: Expected `float | null`, got `bool`"),
    ({"inputs": [tensor("x", "FP64", [1, 3], [1, 2, None])]}, "a|b: row 0 has no number"),
    ({"inputs": [tensor("x", "FP64", [1, 3], [1, 2, 1e101])]}, "b: row 0 is not within"),
    ({"inputs": [tensor("x", "BF16", [1, 3], [1, 2, 3])]}, "x: datatype BF16"),
    ({"inputs": [tensor("x", "BF16", [1, 3], [1, 2, 3])]}, "x: datatype BF16"),
    ({"inputs": [tensor("x", "BOOL", [1, 3], [1, 2, 3])]}, "x: Expected `bool"),
    ({"inputs": [tensor("x", "FP64", [-1, 3], [])]}, "x: shape"),
    ({"inputs": [tensor("x", "FP64", [1, 3, 1], [1, 2, 3])]}, "x: shape"),
    ({"inputs": [tensor("x", "FP64", [1 << 40, 3], [])]}, "x: shape"),
    ({"inputs": [tensor("x", "FP64", [1, 3], size=24)]}, "x: binary_data_size is 24 and 0 bytes are left"),
    ({"inputs": [*PACKED["inputs"], *PACKED["inputs"]]}, "stands twice"),
    ({"inputs": [*PACKED["inputs"], tensor("id", "BYTES", [1], ["r"])]}, "differ in their number of rows"),
    (PACKED | {"outputs": [{"name": "prob"}]}, "prob: this model has no such output"),
    (PACKED | {"outputs": [{"name": "scores", "parameters": {"classification": 2}}]}, "classification"),
    (PACKED | {"parameters": {"binary_data_output": 1}}, "binary_data must be true or false"),
]


@pytest.mark.parametrize(("request_body", "words"), BAD, ids=[words for _, words in BAD])
def test_a_bad_request_gets_400_naming_what_to_mend(request_body, words: str) -> None:
    """As an object with one string, `error`."""
    body = request_body if isinstance(request_body, bytes) else json.dumps(request_body).encode()
    heard = ask(app(BUNDLE), "POST", "/v2/models/digits/infer", body)
    assert heard.status == 400 and set(heard.json) == {"error"}
    assert re.search(words, heard.json["error"]), heard.json["error"]


def test_a_large_request_is_refused_before_it_is_read_and_headers_are_checked() -> None:
    """413 over the limit; lengths that are none, or past the body, are 400."""
    assert ask(app(BUNDLE, max_bytes=100), "POST", "/v2/models/digits/infer", b" " * 101).status == 413
    for length in ("-1", "many", "9" * 13, "99999", "0"):
        assert infer(app(BUNDLE), PACKED, **{"Inference-Header-Content-Length": length}).status == 400
    assert infer(app(BUNDLE), PACKED, **{"Content-Encoding": "gzip"}).status == 400


CELL = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
DATA = st.lists(CELL | st.lists(CELL, max_size=4), max_size=6) | CELL
TYPES = st.sampled_from(["FP64", "FP32", "FP16", "INT8", "UINT64", "BYTES", "BOOL", "BF16", "", "fp64"])
SIDES = st.lists(st.integers(-1, 4) | st.sampled_from([2**31, 2**63, 10**30]), max_size=3)
NAMES = st.sampled_from(["x", "a", "b", "id", "size", "at", "heat", "wind", "pixels", "kind", "site", "who", "", "?"])
FLAGS = st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "binary_data_output", "classification"]), CELL, max_size=2
)
TENSORS = st.fixed_dictionaries(
    {"name": NAMES, "shape": SIDES, "datatype": TYPES},
    optional={"data": DATA, "parameters": FLAGS | st.just({"binary_data_size": 8})},
)
REQUESTS = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS, max_size=4)},
    optional={"id": CELL, "parameters": FLAGS, "outputs": st.lists(st.fixed_dictionaries({"name": NAMES}), max_size=2)},
)


@rounds(max_examples=1500)
@given(REQUESTS, st.binary(max_size=24), st.sampled_from([None, 0, 1, "all", 10**9]), st.booleans())
def test_whatever_is_sent_gives_a_declared_answer(request_body, binary: bytes, length, mixed: bool) -> None:
    """Structure-aware: requests that are nearly right, with wrong names, shapes, types, sizes and bytes."""
    text = json.dumps(request_body).encode()
    header = {} if length is None else {"Inference-Header-Content-Length": str(len(text) if length == "all" else length)}
    here = app(MIXED_BUNDLE, MIXED) if mixed else app(BUNDLE)
    heard = ask(here, "POST", "/v2/models/digits/infer", text + binary, header)
    assert heard.status in DECLARED and (heard.status == 200 or list(heard.json) == ["error"]), heard


@rounds(max_examples=1500)
@given(st.data())
def test_a_good_request_with_changed_bytes_gives_a_declared_answer(data: st.DataObject) -> None:
    """Up to four bytes changed anywhere, then cut anywhere."""
    raw = X.tobytes()
    request = {"id": "r", "inputs": [tensor("x", "FP64", [2, 3], size=len(raw)), tensor("id", "BYTES", [2], ["a", "ü"])]}
    text = json.dumps(request).encode()
    body = bytearray(text + raw)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)) | st.just(len(body)))
    heard = ask(
        app(BUNDLE), "POST", "/v2/models/digits/infer", bytes(body[:cut]), {"Inference-Header-Content-Length": str(len(text))}
    )
    assert heard.status in DECLARED, heard.body
