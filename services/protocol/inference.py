"""What an endpoint says about itself and answers, in the words of the Open Inference Protocol v2. Pure."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from millrace.learners.errors import BadInputError
from millrace.learners.protocol import Array, Floats
from millrace.services.config.sections import ServingConfig
from millrace.services.errors import NotServedError
from millrace.services.pipeline.bundle import Answer, Bundle, Held
from millrace.services.protocol.cells import given
from millrace.services.protocol.statistics import Cost
from millrace.services.protocol.tensors import (
    IDS,
    Inference,
    Question,
    Wanted,
    binary_payloads,
    output_tensor,
    question,
    read_request,
    refuse_too_many,
)
from millrace.streams.schema import Schema

SCORES = "scores"
CLASSES = "classes"  # the parameter of an answer, and of the output in the metadata, that names the columns of the scores
EXTENSIONS = ["binary_tensor_data", "statistics"]


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """The bytes of an HTTP request."""

    body: bytes
    json_bytes: int | None = None  # of the body's JSON part, where binary tensors follow it
    front_id: str = ""  # of our front; empty: it came by none


Output = Floats | tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """Rows, and what a state answers to them."""

    bundle: Bundle
    columns: Sequence[Array]  # one a field, as the codec gives them
    ids: tuple[str, ...]  # (n,)
    answer: Answer
    at_ms: int  # since 1970
    observe: bool = True  # False: the caller asked what if, and the rows are nobody's history

    @property
    def outputs(self) -> dict[str, Output]:
        """Every output that there is."""
        if self.bundle.schema.label.task == "regress":
            return {SCORES: self.answer.scores, IDS: self.ids}
        return {SCORES: self.answer.scores, "label": self.answer.labels, IDS: self.ids}


@dataclass(frozen=True, slots=True)
class HttpReply:
    """The bytes of an HTTP answer."""

    body: bytes
    json_bytes: int | None = None  # of the body's JSON part, where binary tensors follow it
    cost: Cost | None = None  # of an inference
    answered: Predicted | None = None  # what an inference came to
    status: int = 200
    allow: str = ""  # the methods of the path, where the caller is told them


def infer(name: str, bundle: Bundle, http_request: HttpRequest, now_ms: int, limits: ServingConfig) -> HttpReply:
    """The answer to an HTTP request's body within ``limits``.

    Raises: BadInputError naming what cannot be answered, TooLargeError, NotReadyError.
    """
    start_ns = time.perf_counter_ns()
    request, binary = read_request(http_request.body, http_request.json_bytes)
    refuse_too_many(len(request.inputs), bundle.schema, limits)
    rows = question(request.inputs, binary_payloads(request.inputs, binary), bundle.schema, limits)
    read_ns = time.perf_counter_ns()
    request_id = request.id or http_request.front_id or uuid.uuid4().hex
    observe = observed(given(request.parameters, "observe"))
    predicted = answer_to(bundle, rows, request_id, now_ms, observe)
    values = predicted.outputs
    inferred_ns = time.perf_counter_ns()
    tensors, payloads = [], []
    for output in request.outputs or [Wanted(name) for name in values if name != IDS]:
        check_wanted(output.name, given(output.parameters, "classification") is not None, values)
        declared, payload = output_tensor(output.name, values[output.name], _is_binary(request, output))
        tensors.append(declared)
        payloads.append(payload)
    told: dict[str, Any] = parameters(predicted)
    if bundle.class_names is not None and (not request.outputs or any(output.name == SCORES for output in request.outputs)):
        told[CLASSES] = bundle.class_names.quoted
    header = {
        "model_name": name,
        "model_version": bundle.identity.name,
        "id": request_id,
        "parameters": told,
        "outputs": tensors,
    }
    text = msgspec.json.encode(header)
    body, json_bytes = (text + b"".join(payloads), len(text)) if any(payloads) else (text, None)
    done_ns = time.perf_counter_ns()
    return HttpReply(
        body, json_bytes, Cost(rows.rows, read_ns - start_ns, inferred_ns - read_ns, done_ns - inferred_ns), predicted
    )


def observed(value: object) -> bool:
    """What a request's parameter ``observe`` says: whether its rows may be events of their entity; they may where it is None.

    Raises: BadInputError.
    """
    if value is None:
        return True
    if not isinstance(value, bool):
        raise BadInputError(f"parameters: observe = {value!r}: must be true or false.")
    return value


def answer_to(bundle: Bundle, rows: Question, request_id: str, now_ms: int, observe: bool = True) -> Predicted:
    """What a state answers to rows; those without an id of their own are named after the request. Raises: NotReadyError."""
    ids = rows.ids or tuple(f"{request_id}/{row}" for row in range(rows.rows))
    return Predicted(bundle, rows.columns, ids, bundle.predict(rows.columns, now_ms), now_ms, observe)


def parameters(answered: Predicted) -> dict[str, str | int]:
    """Which state answered, how old it is at most, and the fields of a row that are far outside what it has learned.

    Where rows are entities', also how old the state is that holds their windows.
    """
    identity, bundle = answered.bundle.identity, answered.bundle
    named = {} if identity.version is None else {"version": identity.version}
    place: dict[str, str | int] = {"branch": identity.branch, "epoch": identity.epoch, "seq": identity.seq}
    far_out: dict[str, str | int] = {"far_out": ",".join(answered.answer.far_out)} if answered.answer.far_out else {}
    aged = {} if bundle.schema.entity is None else {"state_age_ms": bundle.state_age_ms(answered.at_ms)}
    return place | named | {"staleness_ms": bundle.age_ms(answered.at_ms)} | aged | far_out


def check_wanted(name: str, classification: bool, values: Iterable[str]) -> None:
    """Raises: BadInputError where there is no such output, or where its classification is asked for, which is not served."""
    if name not in values:
        raise BadInputError(f"{name}: this model has no such output. There are: {', '.join(values)}.")
    if classification:
        raise BadInputError(f"{name}: the classification extension is not served; take the output label.")


def _is_binary(request: Inference, output: Wanted) -> bool:
    flag = given(output.parameters, "binary_data")
    if flag is None:
        flag = given(request.parameters, "binary_data_output")
    if flag is None:
        return False
    if not isinstance(flag, bool):
        raise BadInputError(f"{output.name}: binary_data must be true or false, not {flag!r}.")
    return flag


def server_metadata(version: str) -> dict[str, Any]:
    """GET /v2."""
    return {"name": "millrace", "version": version, "extensions": EXTENSIONS}


def model_metadata(name: str, schema: Schema, version: str | None, held: Held | None = None) -> dict[str, Any]:
    """GET /v2/models/NAME; ``held``: what answers now, which knows the names of the score columns."""
    inputs = [
        {"name": field.name, "datatype": "FP64", "shape": [-1, field.size]}
        if field.is_number
        else {"name": field.name, "datatype": "BYTES", "shape": [-1]}
        for field in schema.fields
    ]
    outputs: list[dict[str, Any]] = [] if schema.llm else [{"name": SCORES, "datatype": "FP64", "shape": [-1, -1]}]
    if isinstance(held, Bundle) and held.class_names is not None:
        outputs[0]["parameters"] = {CLASSES: held.class_names.text}
    if schema.label.task == "classify":
        outputs.append({"name": "label", "datatype": "BYTES", "shape": [-1]})
    versions = [] if version is None else [version]
    return {"name": name, "versions": versions, "platform": "millrace", "inputs": inputs, "outputs": outputs}


def check_model(name: str, version: str | None, served: str, bundle: Held | None) -> None:
    """Raises: NotServedError where another model or version is asked for than the one that answers now."""
    if not name:
        raise NotServedError(f"The request names no model. There is: {served}.")
    if name != served:
        raise NotServedError(f"There is no model {name} here. There is: {served}.")
    current = None if bundle is None else bundle.identity.name
    if version is not None and version != current:
        raise NotServedError(f"Version {version} of {name} is not what answers now; that is {current or 'none yet'}.")
