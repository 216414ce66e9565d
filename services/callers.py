"""Asks an endpoint the same rows again and again while it learns, over HTTP and gRPC in turn: the callers in `make run`."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from millrace.learners.errors import NotReadyError
from millrace.services import inference_pb2 as pb
from millrace.services.grpc import inferring
from millrace.services.tensors import Tensor, binary_texts_of
from millrace.streams.schema import Field, Label, Schema

ROWS = 8  # of a request
PAUSE_S = 0.05  # between two requests
PATIENCE_S = 20.0  # for an answer


@dataclass(frozen=True, slots=True)
class Reply:
    """What one request came to."""

    at_s: float  # on the monotonic clock
    way: str  # http or grpc
    state: str  # that answered
    staleness_ms: int
    score: float  # share right, or mean absolute error


@dataclass(slots=True)
class Asked:
    """Every request, in order. Those before anything was learned are refused, which is no failure."""

    replies: list[Reply] = field(default_factory=list)
    too_early: int = 0
    failed: list[str] = field(default_factory=list)

    def count(self, way: str) -> int:
        """Answers over one protocol."""
        return sum(one.way == way for one in self.replies)

    def tenth(self, last: bool) -> float:
        """The mean score of the first or last tenth of the answers; NaN where there are none."""
        some = max(1, len(self.replies) // 10)
        return float(np.mean([one.score for one in (self.replies[-some:] if last else self.replies[:some])] or [np.nan]))

    @property
    def staleness_ms(self) -> float:
        """The median of what the answers said."""
        return float(np.median([float(one.staleness_ms) for one in self.replies] or [np.nan]))


@dataclass(frozen=True, slots=True)
class Where:
    """An endpoint's addresses, HOST:PORT, and its model."""

    http: str
    grpc: str
    model: str


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of a data set as a request has them, and what is right."""

    columns: dict[str, list[Any]]
    labels: list[Any]


@contextmanager
def asking(where: Where, values: Sequence[bytes], schema: Schema) -> Iterator[Asked]:
    """Ask for as long as the block runs. Rows in which something is missing are not asked."""
    rows = [row for row in map(msgspec.json.decode, values) if all(row.get(one.name) is not None for one in schema.fields)]
    asked, over = Asked(), threading.Event()
    thread = threading.Thread(target=_ask_on, args=(where, rows, schema, asked, over), name="asker", daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        over.set()
        thread.join(PATIENCE_S)


def _ask_on(where: Where, rows: list[dict[str, Any]], schema: Schema, asked: Asked, over: threading.Event) -> None:
    with inferring(where.grpc) as infer:
        ways = {"http": lambda some: _by_http(where, some, schema), "grpc": lambda some: _by_grpc(where, some, schema, infer)}
        turn = 0
        while rows and not over.wait(PAUSE_S):
            way, start = ("http", "grpc")[turn % 2], turn // 2 * ROWS % len(rows)
            some = _Rows(
                {one.name: [row[one.name] for row in rows[start : start + ROWS]] for one in schema.fields},
                [row[schema.label.name] for row in rows[start : start + ROWS]],
            )
            turn += 1
            try:
                asked.replies.append(ways[way](some))
            except NotReadyError as error:
                if asked.replies:
                    asked.failed.append(f"{way}: {error}")
                else:
                    asked.too_early += 1
            except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
                asked.failed.append(f"{way}: {error!r}")


def _by_http(where: Where, some: _Rows, schema: Schema) -> Reply:
    inputs = [
        {"name": one.name, "datatype": _datatype(one), "shape": _shape(one, some), "data": some.columns[one.name]}
        for one in schema.fields
    ]
    connection = http.client.HTTPConnection(where.http, timeout=PATIENCE_S)
    try:
        connection.request("POST", f"/v2/models/{where.model}/infer", msgspec.json.encode({"inputs": inputs}))
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status == 503:
        raise NotReadyError(body.decode(errors="replace"))
    if answer.status != 200:
        raise OSError(f"{answer.status} {body[:200]!r}")
    said = msgspec.json.decode(body)
    outputs = {one["name"]: one["data"] for one in said["outputs"]}
    found = outputs["scores"] if schema.label.task == "regress" else outputs["label"]
    stale_ms = said["parameters"]["staleness_ms"]
    return Reply(time.monotonic(), "http", said["model_version"], stale_ms, _score(found, some.labels, schema.label))


def _by_grpc(where: Where, some: _Rows, schema: Schema, infer: Any) -> Reply:
    request = pb.ModelInferRequest(model_name=where.model)
    for one in schema.fields:
        tensor = request.inputs.add(name=one.name, datatype=_datatype(one), shape=_shape(one, some))
        if one.type == "numeric":
            tensor.contents.fp64_contents.extend(np.ravel(some.columns[one.name]))
        else:
            tensor.contents.bytes_contents.extend(text.encode() for text in some.columns[one.name])
    said = infer(request, PATIENCE_S)
    raw = {one.name: content for one, content in zip(said.outputs, said.raw_output_contents, strict=True)}
    regress = schema.label.task == "regress"
    label = Tensor("label", [len(some.labels)], "BYTES")
    found = np.frombuffer(raw["scores"], "<f8").tolist() if regress else binary_texts_of(label, raw["label"])
    stale_ms = said.parameters["staleness_ms"].int64_param
    return Reply(time.monotonic(), "grpc", said.model_version, stale_ms, _score(found, some.labels, schema.label))


def _datatype(one: Field) -> str:
    return "FP64" if one.type == "numeric" else "BYTES"


def _shape(one: Field, some: _Rows) -> list[int]:
    rows = len(some.labels)
    return [rows, one.size] if one.type == "numeric" else [rows]


def _score(found: list[Any], right: list[Any], label: Label) -> float:
    if label.task == "regress":
        return float(np.abs(np.array(found, dtype=float) - np.array(right, dtype=float)).mean())
    named = [str(one).lower() if isinstance(one, bool) else str(one) for one in right]
    return float(np.mean([mine == theirs for mine, theirs in zip(found, named, strict=True)]))
