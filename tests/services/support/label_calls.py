"""Calls to a served pipeline that takes late labels, over HTTP and gRPC, and what its status says of them."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Sequence

import grpc
from pipelines import ANSWER_S, TIMEOUT_S, facts
from served_pipeline import Up, until

from millrace.services.protocol import inference_pb2 as pb
from millrace.services.protocol import labels_pb2


def called(up: Up, verb: str, body: object | None, producer: str = "") -> tuple[int, dict, dict]:
    """Status, headers and body of a call, sent again where its connection broke, as a client would."""
    headers = {"Millrace-Producer": producer} if producer else {}
    until_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < until_s:
        connection = http.client.HTTPConnection("127.0.0.1", up.port, timeout=ANSWER_S)
        try:
            text = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", f"/v2/models/digits/{verb}", text, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.headers), json.loads(answer.read())
        except (OSError, http.client.HTTPException):
            time.sleep(0.02)
        finally:
            connection.close()
    raise AssertionError("no answer")


def label(up: Up, body: object, producer: str = "") -> None:
    """Send labels until they are accepted; a log that is slow refuses them, for now, with 503."""
    codes: list[int] = []
    until(lambda: codes.append(called(up, "labels", body, producer)[0]) or codes[-1] != 503)
    assert codes[-1] == 202


def asking(ids: Sequence[str], x: Sequence[Sequence[float]]) -> dict:
    """Rows under ids of their own."""
    return {
        "inputs": [
            {"name": "x", "datatype": "FP64", "shape": [len(ids), 4], "data": list(x)},
            {"name": "site", "datatype": "BYTES", "shape": [len(ids)], "data": ["north"] * len(ids)},
            {"name": "id", "datatype": "BYTES", "shape": [len(ids)], "data": list(ids)},
        ]
    }


def asked_by_grpc(up: Up, ids: Sequence[str], x: Sequence[Sequence[float]]) -> pb.ModelInferResponse:
    """The same over gRPC."""
    request = pb.ModelInferRequest(model_name="digits", id="by grpc")
    request.inputs.add(name="x", datatype="FP64", shape=[len(ids), 4]).contents.fp64_contents.extend(sum(map(list, x), []))
    for name, texts in (("site", ["north"] * len(ids)), ("id", ids)):
        request.inputs.add(name=name, datatype="BYTES", shape=[len(ids)]).contents.bytes_contents.extend(
            text.encode() for text in texts
        )
    with grpc.insecure_channel(f"127.0.0.1:{up.grpc_port}") as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        return infer(request)


def labelled_by_grpc(up: Up, ids: Sequence[str], label: str) -> int:
    """How many labels were accepted, sent again while a log that is slow refuses them."""
    with grpc.insecure_channel(f"127.0.0.1:{up.grpc_port}") as channel:
        send = channel.unary_unary(
            "/millrace.v1.Labels/Label",
            request_serializer=labels_pb2.LabelRequest.SerializeToString,
            response_deserializer=labels_pb2.LabelResponse.FromString,
        )
        request = labels_pb2.LabelRequest(labels=[labels_pb2.OneLabel(id=name, text=label) for name in ids])
        until_s = time.monotonic() + TIMEOUT_S
        while True:
            try:
                return send(request).accepted
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > until_s:
                    raise
                time.sleep(0.02)


def settled(up: Up, **wanted: int) -> dict:
    """The status once it says so."""
    found: dict = {}
    until(lambda: found.update(facts(up.folder)) or {name: found.get(name) for name in wanted} == wanted)
    return found


def all_answer(up: Up) -> bool:
    """Whether each live replica has recorded an answer: the proxy knows all of them, so that one of them can be killed."""
    lines = [re.search(r"process (\d+); records of answers: (\d+) in", str(line)) for line in facts(up.folder).values()]
    answering = {int(line[1]) for line in lines if line and int(line[2])}
    return answering >= set(up.pids(":Predictor"))
