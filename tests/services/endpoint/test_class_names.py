"""The columns of `scores` have names: in the metadata and in every answer that has scores, over HTTP and gRPC."""

from __future__ import annotations

import json

import numpy as np
import pytest
from grpc_calls import asked, call, rows_of
from served_bundles import HERE, NUMBERS, app, ask, endpoint_of, infer, numbers_bundle, tensor

from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.learners.protocol import Batch
from millrace.services.pipeline.bundle import Bundle, Parts, open_parts
from millrace.services.protocol import inference_pb2 as pb
from millrace.streams.features.columns import Features
from millrace.streams.schema import Label, Schema

NAMES = ['a "quoted", comma', "b\nc", "ünï", "0"]
X = np.random.default_rng(3).integers(-4, 5, (200, 3)).astype(float)


def bundle_of(names: list[str] | None) -> Bundle:
    """A ridge that has learned rows of classes with these names, or of numbers."""
    ridge, schema = Ridge(RidgeConfig(task="classify" if names else "regress"), 3, 0), NUMBERS
    if names is None:
        schema = Schema(NUMBERS.fields, Label("y", "number"))
        ridge.learn_many(Batch(X, X[:, :1]))
    else:
        ridge.learn_many(Batch(X, np.array([names[at % len(names)] for at in range(len(X))], dtype=object)))
    return open_parts(Parts(HERE, 1000, "ridge", Features(schema).state(), ridge.servable().arrays()), schema)


def over_http(bundle: Bundle, **more: object) -> dict:
    """The answer to two rows."""
    return infer(app(bundle, bundle.schema), {"inputs": [tensor("x", "FP64", [2, 3], X[:2].ravel().tolist())], **more}).json


def test_the_names_are_those_of_the_columns() -> None:
    """The label is the name of its row's largest score; the names are as they were learned, whatever stands in them."""
    bundle = bundle_of(NAMES)
    answer = over_http(bundle)
    names = json.loads(answer["parameters"]["classes"])
    assert sorted(names) == sorted(NAMES)
    best = np.array(answer["outputs"][0]["data"]).reshape(2, len(names)).argmax(axis=1)
    assert [names[at] for at in best] == answer["outputs"][1]["data"]
    response = call(endpoint_of(bundle), "ModelInfer", asked(rows_of(X[:2])))[1]
    assert json.loads(response.parameters["classes"].string_param) == names
    described = ask(app(bundle), "GET", "/v2/models/digits").json["outputs"]
    assert json.loads(described[0]["parameters"]["classes"]) == names and "parameters" not in described[1]
    metadata = call(endpoint_of(bundle), "ModelMetadata", pb.ModelMetadataRequest(name="digits"))[1]
    assert json.loads(metadata.outputs[0].parameters["classes"].string_param) == names
    assert not metadata.outputs[1].parameters and [tensor.name for tensor in metadata.inputs] == ["a", "b"]


def test_who_asks_for_no_scores_gets_no_names() -> None:
    """Nor does a regression have any, nor what has learned nothing."""
    bundle = bundle_of(NAMES)
    assert "classes" not in over_http(bundle, outputs=[{"name": "label"}])["parameters"]
    assert "classes" in over_http(bundle, outputs=[{"name": "label"}, {"name": "scores"}])["parameters"]
    request = asked(rows_of(X[:2]))
    request.outputs.add(name="label")
    assert "classes" not in call(endpoint_of(bundle), "ModelInfer", request)[1].parameters
    request.outputs.add(name="scores")
    assert "classes" in call(endpoint_of(bundle), "ModelInfer", request)[1].parameters
    numbers = bundle_of(None)
    assert "classes" not in over_http(numbers)["parameters"]
    assert "parameters" not in ask(app(numbers, numbers.schema), "GET", "/v2/models/digits").json["outputs"][0]
    assert "parameters" not in ask(app(None), "GET", "/v2/models/digits").json["outputs"][0]


@pytest.mark.parametrize("binary", [False, True])
def test_a_binary_answer_has_them_in_its_json(binary: bool) -> None:
    """As every parameter."""
    answer = over_http(numbers_bundle(), parameters={"binary_data_output": binary})
    assert json.loads(answer["parameters"]["classes"]) == list(numbers_bundle().classes)
