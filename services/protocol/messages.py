"""Protobuf messages of the Open Inference Protocol v2 to columns of a schema, and answers to messages. Pure."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import DecodeError

from millrace.learners.errors import BadInputError
from millrace.services.config.sections import ServingConfig
from millrace.services.pipeline.bundle import Bundle
from millrace.services.protocol import inference_pb2 as pb
from millrace.services.protocol import labels_pb2
from millrace.services.protocol.cells import DTYPES, Tensor, binary_texts
from millrace.services.protocol.inference import (
    CLASSES,
    SCORES,
    Output,
    Predicted,
    answer_to,
    check_wanted,
    observed,
    parameters,
)
from millrace.services.protocol.statistics import Cost
from millrace.services.protocol.tensors import IDS, question, refuse_too_many
from millrace.streams.labels.served import LateLabel

M = TypeVar("M")

# The list of typed contents that a datatype stands in; FP16 has none.
CONTENTS = {
    "FP64": "fp64_contents",
    "FP32": "fp32_contents",
    "INT64": "int64_contents",
    "INT32": "int_contents",
    "INT16": "int_contents",
    "INT8": "int_contents",
    "UINT64": "uint64_contents",
    "UINT32": "uint_contents",
    "UINT16": "uint_contents",
    "UINT8": "uint_contents",
    "BOOL": "bool_contents",
    "BYTES": "bytes_contents",
}


def parsed(kind: type[M], raw: bytes) -> M:
    """The message in ``raw``. Raises: BadInputError."""
    try:
        message: M = kind.FromString(raw)  # type: ignore[attr-defined]  # protobuf has no types; every message has it
    except DecodeError as error:
        raise BadInputError(f"The request is not a {kind.__name__}: {error}.") from error
    return message


@dataclass(frozen=True, slots=True)
class Inferred:
    """The answer to a request, what it took and what it came to."""

    response: pb.ModelInferResponse
    cost: Cost
    answered: Predicted


def infer_message(
    name: str, bundle: Bundle, request: pb.ModelInferRequest, now_ms: int, limits: ServingConfig, front_id: str = ""
) -> Inferred:
    """The answer to a request within ``limits``; without an id of its own it has the ``front_id``, or a new one.

    Raises: BadInputError naming what cannot be answered, TooLargeError, NotReadyError.
    """
    start_ns = time.perf_counter_ns()
    refuse_too_many(len(request.inputs), bundle.schema, limits)
    inputs = [Tensor(tensor.name, list(tensor.shape), tensor.datatype) for tensor in request.inputs]
    rows = question(inputs, _payloads(request), bundle.schema, limits)
    read_ns = time.perf_counter_ns()
    request_id = request.id or front_id or uuid.uuid4().hex
    predicted = answer_to(bundle, rows, request_id, now_ms, observed(_given(request.parameters, "observe")))
    values = predicted.outputs
    inferred_ns = time.perf_counter_ns()
    response = pb.ModelInferResponse(model_name=name, model_version=bundle.identity.name, id=request_id)
    for key, parameter in parameters(predicted).items():
        if isinstance(parameter, str):
            response.parameters[key].string_param = parameter
        else:
            response.parameters[key].int64_param = parameter
    names = bundle.class_names
    if names is not None and (not request.outputs or any(requested.name == SCORES for requested in request.outputs)):
        response.parameters[CLASSES].string_param = names.text
    if request.outputs:
        for requested in request.outputs:
            check_wanted(requested.name, _given(requested.parameters, "classification") is not None, values)
            _add(response, requested.name, values[requested.name])
    else:
        for output, value in values.items():
            if output != IDS:
                _add(response, output, value)
    done_ns = time.perf_counter_ns()
    cost = Cost(rows.rows, read_ns - start_ns, inferred_ns - read_ns, done_ns - inferred_ns)
    return Inferred(response, cost, predicted)


def _given(parameters: Mapping[str, pb.InferParameter], name: str) -> object | None:
    """A parameter, or None where it is absent or an empty message."""
    if name not in parameters:
        return None
    kind = parameters[name].WhichOneof("parameter_choice")
    return None if kind is None else getattr(parameters[name], kind)


def _payloads(request: pb.ModelInferRequest) -> dict[str, bytes]:
    """The raw bytes of every input."""
    raw, inputs = request.raw_input_contents, request.inputs
    if not raw:
        return {tensor.name: _from_contents(tensor) for tensor in inputs}
    if len(raw) != len(inputs):
        raise BadInputError(f"raw_input_contents has {len(raw)} entries for {len(inputs)} inputs; send one for each.")
    for tensor in inputs:
        if tensor.HasField("contents"):
            raise BadInputError(f"{tensor.name}: has contents beside raw_input_contents; send one kind for all inputs.")
    return {tensor.name: payload for tensor, payload in zip(inputs, raw, strict=True)}


def _from_contents(tensor: pb.ModelInferRequest.InferInputTensor) -> bytes:
    """Typed contents as the raw bytes that say the same."""
    filled = [typed.name for typed, _ in tensor.contents.ListFields()]
    name = CONTENTS.get(tensor.datatype)
    if name is None:
        raise BadInputError(f"{tensor.name}: datatype {tensor.datatype} must be one of {', '.join(CONTENTS)}, or sent raw.")
    if filled not in ([], [name]):
        raise BadInputError(f"{tensor.name}: {tensor.datatype} stands in {name} alone, not in {', '.join(filled)}.")
    values = getattr(tensor.contents, name)
    if tensor.datatype == "BYTES":
        return binary_texts(values)
    try:
        return np.array(list(values), np.dtype(DTYPES[tensor.datatype])).tobytes()  # of a list, NumPy checks the range
    except OverflowError as error:
        raise BadInputError(f"{tensor.name}: a number does not fit into {tensor.datatype}.") from error


def _add(response: pb.ModelInferResponse, name: str, value: Output) -> None:
    if isinstance(value, np.ndarray):
        response.outputs.add(name=name, datatype="FP64", shape=value.shape)
        response.raw_output_contents.append(value.astype("<f8", copy=False).tobytes())
    else:
        response.outputs.add(name=name, datatype="BYTES", shape=(len(value),))
        response.raw_output_contents.append(binary_texts([text.encode() for text in value]))


def labels_of(request: labels_pb2.LabelRequest, integer: bool) -> list[LateLabel]:
    """The labels of a request, not checked yet; with ``integer`` a whole number stands for the class of that name."""
    return [LateLabel(label.id, _value(at, label, integer), label.revision) for at, label in enumerate(request.labels)]


def _value(at: int, label: labels_pb2.OneLabel, integer: bool) -> str | float | bool:
    kind = label.WhichOneof("value")
    if kind is None:
        raise BadInputError(f"labels[{at}]: {label.id or 'it'} has no value; set one of text, number and flag.")
    value: str | float | bool = getattr(label, kind)
    return int(value) if integer and kind == "number" and float(value).is_integer() else value


def metadata_message(metadata: Mapping[str, Any]) -> pb.ModelMetadataResponse:
    """What ``model_metadata`` says."""
    sides = {side: [_tensor_metadata(tensor) for tensor in metadata[side]] for side in ("inputs", "outputs")}
    return pb.ModelMetadataResponse(**{**metadata, **sides})


def _tensor_metadata(declared: Mapping[str, Any]) -> pb.ModelMetadataResponse.TensorMetadata:
    tensor = pb.ModelMetadataResponse.TensorMetadata(**{key: declared[key] for key in ("name", "datatype", "shape")})
    for name, value in declared.get("parameters", {}).items():
        tensor.parameters[name].string_param = value
    return tensor


def statistics_message(statistics: Mapping[str, Any]) -> pb.ModelStatisticsResponse:
    """What ``InferenceStatistics.describe`` says."""
    return pb.ModelStatisticsResponse(**statistics)
