"""Callers of an endpoint, over HTTP and gRPC in turn: those of `make run`.

Some ask the same rows again and again. Others ask about a stream's rows, each under an id of its own. In the name of a
producer they say later what was right.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import msgspec
import numpy as np

from millrace.services.endpoint.grpc import Client, calling
from millrace.services.errors import NotReadyError
from millrace.services.protocol import inference_pb2 as pb
from millrace.services.protocol import labels_pb2
from millrace.services.protocol.cells import Tensor, binary_texts_of
from millrace.services.protocol.tensors import IDS
from millrace.streams.schema import Field, Label, Schema

ROWS = 8  # of a request
PAUSE_S = 0.05  # between two requests
TIMEOUT_S = 120.0  # for an answer; a replica that hangs is given up by the proxy before
REQUESTS_PER_S = 16.0  # at most, of a caller that labels: faster streams ask about more rows at once


@dataclass(frozen=True, slots=True)
class Response:
    """What one request came to."""

    at_s: float  # on the monotonic clock
    way: str  # http or grpc
    state: str  # that answered
    staleness_ms: int
    score: float  # share right, or mean absolute error


@dataclass(slots=True)
class CallLog:
    """Every request, in order. Those before anything was learned are refused, which is no failure."""

    replies: list[Response] = field(default_factory=list)
    too_early: int = 0
    failed: list[str] = field(default_factory=list)
    rows: int = 0  # that were answered
    labelled: int = 0  # rows, once the log has their labels
    over: bool = False  # there are no more rows, and every one is labelled

    def count(self, protocol: str) -> int:
        """Answers over one protocol."""
        return sum(reply.way == protocol for reply in self.replies)

    def tenth(self, last: bool) -> float:
        """The mean score of the first or last tenth of the answers; NaN where there are none."""
        tenth_rows = max(1, len(self.replies) // 10)
        return float(
            np.mean([reply.score for reply in (self.replies[-tenth_rows:] if last else self.replies[:tenth_rows])] or [np.nan])
        )

    def mean(self, from_s: float, to_s: float) -> float:
        """The mean score of the answers between two moments on the monotonic clock; NaN where there are none."""
        return float(np.mean([reply.score for reply in self.replies if from_s <= reply.at_s < to_s] or [np.nan]))

    @property
    def staleness_ms(self) -> float:
        """The median of what the answers said."""
        return float(np.median([float(reply.staleness_ms) for reply in self.replies] or [np.nan]))


@dataclass(frozen=True, slots=True)
class Where:
    """An endpoint's addresses, HOST:PORT, and its model."""

    http: str
    grpc: str
    model: str


@dataclass(frozen=True, slots=True)
class Late:
    """How a caller labels what it has asked."""

    producer: str  # its name
    ids: str  # what its rows' ids begin with; no other caller's may
    rows_per_s: float  # > 0
    after_s: float  # from a row's answer to its label


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of a data set as a request has them, and what is right."""

    columns: dict[str, list[Any]]
    labels: list[Any]
    ids: tuple[str, ...] = ()


@contextmanager
def asking(address: Where, values: Sequence[bytes], schema: Schema) -> Iterator[CallLog]:
    """Ask for as long as the block runs. Rows in which something is missing are not asked."""
    rows = [row for row in map(msgspec.json.decode, values) if all(row.get(field.name) is not None for field in schema.fields)]

    def ask_on(caller: _Caller, stop: threading.Event) -> None:
        number = 0
        while rows and not stop.wait(PAUSE_S):
            start = number // 2 * ROWS % len(rows)
            caller.ask(_rows_of(rows[start : start + ROWS], schema), number)
            number += 1
        caller.asked.over = True

    with _in_a_thread(address, schema, "", ask_on) as calls:
        yield calls


@contextmanager
def labelling(address: Where, values: Iterable[bytes], schema: Schema, late: Late) -> Iterator[CallLog]:
    """Ask about each row once, for as long as the block runs, and label it later, the last ones as the block ends."""
    chunk_rows = max(1, round(late.rows_per_s / REQUESTS_PER_S))

    def ask_on(caller: _Caller, stop: threading.Event) -> None:
        start_s, unlabelled, number = time.monotonic(), deque[tuple[float, _Rows]](), 0
        for number_of_chunk, chunk in enumerate(_chunks(values, chunk_rows)):
            if stop.wait(max(0.0, start_s + number / late.rows_per_s - time.monotonic())):
                break
            ids = tuple(f"{late.ids}/{number + at}" for at in range(len(chunk)))
            rows = _rows_of([msgspec.json.decode(value) for value in chunk], schema, ids)
            number += len(chunk)
            while not caller.ask(rows, number_of_chunk) and not caller.asked.replies and not stop.wait(PAUSE_S):
                pass  # nothing has been learned yet
            unlabelled.append((time.monotonic() + late.after_s, rows))
            while unlabelled and unlabelled[0][0] <= time.monotonic():
                caller.label(unlabelled.popleft()[1], number_of_chunk)
        for number_of_chunk, (due_s, rows) in enumerate(unlabelled):
            stop.wait(max(0.0, due_s - time.monotonic()))
            caller.label(rows, number_of_chunk)
        caller.asked.over = True

    with _in_a_thread(address, schema, late.producer, ask_on) as calls:
        yield calls


@contextmanager
def _in_a_thread(
    address: Where, schema: Schema, producer: str, work: Callable[[_Caller, threading.Event], None]
) -> Iterator[CallLog]:
    calls, stop = CallLog(), threading.Event()

    def call_on() -> None:
        with calling(address.grpc, producer) as client:
            work(_Caller(address, schema, producer, client, calls), stop)

    thread = threading.Thread(target=call_on, name=f"caller {producer}", daemon=True)
    thread.start()
    try:
        yield calls
    finally:
        stop.set()
        thread.join()  # each of its calls ends


def _chunks(values: Iterable[bytes], rows: int) -> Iterator[list[bytes]]:
    remaining = iter(values)
    while chunk := list(islice(remaining, rows)):
        yield chunk


def _rows_of(rows: Sequence[dict[str, Any]], schema: Schema, ids: tuple[str, ...] = ()) -> _Rows:
    columns = {field.name: [row[field.name] for row in rows] for field in schema.fields}
    return _Rows(columns, [row[schema.label.name] for row in rows], ids)


@dataclass(frozen=True, slots=True)
class _Caller:
    """One who calls, and what became of it."""

    where: Where
    schema: Schema
    producer: str
    client: Client
    asked: CallLog

    def ask(self, rows: _Rows, call_number: int) -> bool:
        """Whether there was an answer."""
        protocol, calls = ("http", "grpc")[call_number % 2], self.asked
        try:
            calls.replies.append(self._by_http(rows) if protocol == "http" else self._by_grpc(rows))
            calls.rows += len(rows.labels)
        except NotReadyError as error:
            if calls.replies:
                calls.failed.append(f"{protocol}: {error}")
            else:
                calls.too_early += 1
            return False
        except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
            calls.failed.append(f"{protocol}: {error!r}")
            return False
        return True

    def label(self, rows: _Rows, call_number: int) -> None:
        """Say what was right."""
        protocol = ("http", "grpc")[call_number % 2]
        try:
            if protocol == "http":
                labels_sent = [{"id": row_id, "label": label} for row_id, label in zip(rows.ids, rows.labels, strict=True)]
                self._posted("labels", {"labels": labels_sent}, 202)
            else:
                labels = [_one_label(row_id, label) for row_id, label in zip(rows.ids, rows.labels, strict=True)]
                self.client.label(labels_pb2.LabelRequest(labels=labels), TIMEOUT_S)
            self.asked.labelled += len(rows.labels)
        except (OSError, http.client.HTTPException, NotReadyError) as error:
            self.asked.failed.append(f"labels over {protocol}: {error!r}")

    def _posted(self, verb: str, content: dict[str, Any], expected_status: int) -> bytes:
        """The body of the answer. Raises: NotReadyError, OSError, HTTPException."""
        connection = http.client.HTTPConnection(self.where.http, timeout=TIMEOUT_S)
        headers = {"Millrace-Producer": self.producer} if self.producer else {}
        try:
            connection.request("POST", f"/v2/models/{self.where.model}/{verb}", msgspec.json.encode(content), headers)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status == 503:
            raise NotReadyError(body.decode(errors="replace"))
        if response.status != expected_status:
            raise OSError(f"{response.status} {body[:200]!r}")
        return body

    def _by_http(self, rows: _Rows) -> Response:
        schema = self.schema
        inputs: list[dict[str, Any]] = [
            {"name": field.name, "datatype": _datatype(field), "shape": _shape(field, rows), "data": rows.columns[field.name]}
            for field in schema.fields
        ]
        if rows.ids:
            inputs.append({"name": IDS, "datatype": "BYTES", "shape": [len(rows.ids)], "data": rows.ids})
        decoded = msgspec.json.decode(self._posted("infer", {"inputs": inputs}, 200))
        outputs = {output["name"]: output["data"] for output in decoded["outputs"]}
        answers = outputs["scores"] if schema.label.task == "regress" else outputs["label"]
        stale_ms = decoded["parameters"]["staleness_ms"]
        return Response(
            time.monotonic(), "http", decoded["model_version"], stale_ms, _score(answers, rows.labels, schema.label)
        )

    def _by_grpc(self, rows: _Rows) -> Response:
        request = pb.ModelInferRequest(model_name=self.where.model)
        for input_field in self.schema.fields:
            tensor = request.inputs.add(name=input_field.name, datatype=_datatype(input_field), shape=_shape(input_field, rows))
            if input_field.is_number:
                tensor.contents.fp64_contents.extend(np.ravel(rows.columns[input_field.name]))
            else:
                tensor.contents.bytes_contents.extend(text.encode() for text in rows.columns[input_field.name])
        if rows.ids:
            tensor = request.inputs.add(name=IDS, datatype="BYTES", shape=[len(rows.ids)])
            tensor.contents.bytes_contents.extend(row_id.encode() for row_id in rows.ids)
        response = self.client.infer(request, TIMEOUT_S)
        raw = {output.name: content for output, content in zip(response.outputs, response.raw_output_contents, strict=True)}
        regress = self.schema.label.task == "regress"
        label = Tensor("label", [len(rows.labels)], "BYTES")
        answers = np.frombuffer(raw["scores"], "<f8").tolist() if regress else binary_texts_of(label, raw["label"])
        stale_ms = response.parameters["staleness_ms"].int64_param
        score = _score(answers, rows.labels, self.schema.label)
        return Response(time.monotonic(), "grpc", response.model_version, stale_ms, score)


def _one_label(row_id: str, label: str | float | bool) -> labels_pb2.OneLabel:
    if isinstance(label, bool):
        return labels_pb2.OneLabel(id=row_id, flag=label)
    return (
        labels_pb2.OneLabel(id=row_id, text=label) if isinstance(label, str) else labels_pb2.OneLabel(id=row_id, number=label)
    )


def _datatype(field: Field) -> str:
    return "FP64" if field.type == "numeric" else "BYTES"


def _shape(field: Field, rows: _Rows) -> list[int]:
    count = len(rows.labels)
    return [count, field.size] if field.type == "numeric" else [count]


def _score(answers: list[Any], labels: list[Any], label: Label) -> float:
    if label.task == "regress":
        return float(np.abs(np.array(answers, dtype=float) - np.array(labels, dtype=float)).mean())
    named = [str(label_value).lower() if isinstance(label_value, bool) else str(label_value) for label_value in labels]
    return float(np.mean([answer == expected for answer, expected in zip(answers, named, strict=True)]))
