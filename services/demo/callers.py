"""Callers of an endpoint, over HTTP and gRPC in turn: those of `make run`.

Some ask the same rows again and again; others ask about a stream's rows, each under an id of its own, and say later what was
right, in the name of a producer.
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
from millrace.services.protocol.tensors import IDS, Tensor, binary_texts_of
from millrace.streams.schema import Field, Label, Schema

ROWS = 8  # of a request
PAUSE_S = 0.05  # between two requests
PATIENCE_S = 120.0  # for an answer; a replica that hangs is given up by the proxy before
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

    def count(self, way: str) -> int:
        """Answers over one protocol."""
        return sum(one.way == way for one in self.replies)

    def tenth(self, last: bool) -> float:
        """The mean score of the first or last tenth of the answers; NaN where there are none."""
        some = max(1, len(self.replies) // 10)
        return float(np.mean([one.score for one in (self.replies[-some:] if last else self.replies[:some])] or [np.nan]))

    def mean(self, from_s: float, to_s: float) -> float:
        """The mean score of the answers between two moments on the monotonic clock; NaN where there are none."""
        return float(np.mean([one.score for one in self.replies if from_s <= one.at_s < to_s] or [np.nan]))

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
def asking(where: Where, values: Sequence[bytes], schema: Schema) -> Iterator[CallLog]:
    """Ask for as long as the block runs. Rows in which something is missing are not asked."""
    rows = [row for row in map(msgspec.json.decode, values) if all(row.get(one.name) is not None for one in schema.fields)]

    def ask_on(caller: _Caller, over: threading.Event) -> None:
        turn = 0
        while rows and not over.wait(PAUSE_S):
            start = turn // 2 * ROWS % len(rows)
            caller.ask(_rows_of(rows[start : start + ROWS], schema), turn)
            turn += 1
        caller.asked.over = True

    with _in_a_thread(where, schema, "", ask_on) as asked:
        yield asked


@contextmanager
def labelling(where: Where, values: Iterable[bytes], schema: Schema, late: Late) -> Iterator[CallLog]:
    """Ask about each row once, for as long as the block runs, and label it later, the last ones as the block ends."""
    some = max(1, round(late.rows_per_s / REQUESTS_PER_S))

    def ask_on(caller: _Caller, over: threading.Event) -> None:
        start_s, due, number = time.monotonic(), deque[tuple[float, _Rows]](), 0
        for turn, chunk in enumerate(_chunks(values, some)):
            if over.wait(max(0.0, start_s + number / late.rows_per_s - time.monotonic())):
                break
            ids = tuple(f"{late.ids}/{number + at}" for at in range(len(chunk)))
            rows = _rows_of([msgspec.json.decode(value) for value in chunk], schema, ids)
            number += len(chunk)
            while not caller.ask(rows, turn) and not caller.asked.replies and not over.wait(PAUSE_S):
                pass  # nothing has been learned yet
            due.append((time.monotonic() + late.after_s, rows))
            while due and due[0][0] <= time.monotonic():
                caller.label(due.popleft()[1], turn)
        for turn, (due_s, rows) in enumerate(due):
            over.wait(max(0.0, due_s - time.monotonic()))
            caller.label(rows, turn)
        caller.asked.over = True

    with _in_a_thread(where, schema, late.producer, ask_on) as asked:
        yield asked


@contextmanager
def _in_a_thread(
    where: Where, schema: Schema, producer: str, work: Callable[[_Caller, threading.Event], None]
) -> Iterator[CallLog]:
    asked, over = CallLog(), threading.Event()

    def call_on() -> None:
        with calling(where.grpc, producer) as client:
            work(_Caller(where, schema, producer, client, asked), over)

    thread = threading.Thread(target=call_on, name=f"caller {producer}", daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        over.set()
        thread.join()  # each of its calls ends


def _chunks(values: Iterable[bytes], rows: int) -> Iterator[list[bytes]]:
    left = iter(values)
    while chunk := list(islice(left, rows)):
        yield chunk


def _rows_of(rows: Sequence[dict[str, Any]], schema: Schema, ids: tuple[str, ...] = ()) -> _Rows:
    columns = {one.name: [row[one.name] for row in rows] for one in schema.fields}
    return _Rows(columns, [row[schema.label.name] for row in rows], ids)


@dataclass(frozen=True, slots=True)
class _Caller:
    """One who calls, and what became of it."""

    where: Where
    schema: Schema
    producer: str
    client: Client
    asked: CallLog

    def ask(self, rows: _Rows, turn: int) -> bool:
        """Whether there was an answer."""
        way, asked = ("http", "grpc")[turn % 2], self.asked
        try:
            asked.replies.append(self._by_http(rows) if way == "http" else self._by_grpc(rows))
            asked.rows += len(rows.labels)
        except NotReadyError as error:
            if asked.replies:
                asked.failed.append(f"{way}: {error}")
            else:
                asked.too_early += 1
            return False
        except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
            asked.failed.append(f"{way}: {error!r}")
            return False
        return True

    def label(self, rows: _Rows, turn: int) -> None:
        """Say what was right."""
        way = ("http", "grpc")[turn % 2]
        try:
            if way == "http":
                told = [{"id": one, "label": label} for one, label in zip(rows.ids, rows.labels, strict=True)]
                self._posted("labels", {"labels": told}, 202)
            else:
                labels = [_one_label(one, label) for one, label in zip(rows.ids, rows.labels, strict=True)]
                self.client.label(labels_pb2.LabelRequest(labels=labels), PATIENCE_S)
            self.asked.labelled += len(rows.labels)
        except (OSError, http.client.HTTPException, NotReadyError) as error:
            self.asked.failed.append(f"labels over {way}: {error!r}")

    def _posted(self, verb: str, what: dict[str, Any], wanted: int) -> bytes:
        """The body of the answer. Raises: NotReadyError, OSError, HTTPException."""
        connection = http.client.HTTPConnection(self.where.http, timeout=PATIENCE_S)
        headers = {"Millrace-Producer": self.producer} if self.producer else {}
        try:
            connection.request("POST", f"/v2/models/{self.where.model}/{verb}", msgspec.json.encode(what), headers)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status == 503:
            raise NotReadyError(body.decode(errors="replace"))
        if answer.status != wanted:
            raise OSError(f"{answer.status} {body[:200]!r}")
        return body

    def _by_http(self, some: _Rows) -> Response:
        schema = self.schema
        inputs: list[dict[str, Any]] = [
            {"name": one.name, "datatype": _datatype(one), "shape": _shape(one, some), "data": some.columns[one.name]}
            for one in schema.fields
        ]
        if some.ids:
            inputs.append({"name": IDS, "datatype": "BYTES", "shape": [len(some.ids)], "data": some.ids})
        said = msgspec.json.decode(self._posted("infer", {"inputs": inputs}, 200))
        outputs = {one["name"]: one["data"] for one in said["outputs"]}
        found = outputs["scores"] if schema.label.task == "regress" else outputs["label"]
        stale_ms = said["parameters"]["staleness_ms"]
        return Response(time.monotonic(), "http", said["model_version"], stale_ms, _score(found, some.labels, schema.label))

    def _by_grpc(self, some: _Rows) -> Response:
        request = pb.ModelInferRequest(model_name=self.where.model)
        for one in self.schema.fields:
            tensor = request.inputs.add(name=one.name, datatype=_datatype(one), shape=_shape(one, some))
            if one.is_number:
                tensor.contents.fp64_contents.extend(np.ravel(some.columns[one.name]))
            else:
                tensor.contents.bytes_contents.extend(text.encode() for text in some.columns[one.name])
        if some.ids:
            tensor = request.inputs.add(name=IDS, datatype="BYTES", shape=[len(some.ids)])
            tensor.contents.bytes_contents.extend(one.encode() for one in some.ids)
        said = self.client.infer(request, PATIENCE_S)
        raw = {one.name: content for one, content in zip(said.outputs, said.raw_output_contents, strict=True)}
        regress = self.schema.label.task == "regress"
        label = Tensor("label", [len(some.labels)], "BYTES")
        found = np.frombuffer(raw["scores"], "<f8").tolist() if regress else binary_texts_of(label, raw["label"])
        stale_ms = said.parameters["staleness_ms"].int64_param
        score = _score(found, some.labels, self.schema.label)
        return Response(time.monotonic(), "grpc", said.model_version, stale_ms, score)


def _one_label(one: str, label: str | float | bool) -> labels_pb2.OneLabel:
    if isinstance(label, bool):
        return labels_pb2.OneLabel(id=one, flag=label)
    return labels_pb2.OneLabel(id=one, text=label) if isinstance(label, str) else labels_pb2.OneLabel(id=one, number=label)


def _datatype(one: Field) -> str:
    return "FP64" if one.is_number else "BYTES"


def _shape(one: Field, some: _Rows) -> list[int]:
    rows = len(some.labels)
    return [rows, one.size] if one.is_number else [rows]


def _score(found: list[Any], right: list[Any], label: Label) -> float:
    if label.task == "regress":
        return float(np.abs(np.array(found, dtype=float) - np.array(right, dtype=float)).mean())
    named = [str(one).lower() if isinstance(one, bool) else str(one) for one in right]
    return float(np.mean([mine == theirs for mine, theirs in zip(found, named, strict=True)]))
