"""`helm test`: a question and a label over HTTP and over gRPC, through the Service, and the metrics that count them.

`ask.py PIPELINE.toml TOKENS SERVICE INPUTS`, INPUTS being tensors as JSON. Without any it asks about zeros, first categories
and black pictures. Only answers will do, so something has to be learned before. The label is for an id under which nobody was
answered, so nobody learns it. Each call says that it is helm-test's, by which a replay can leave it out.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import sys
import time
import uuid
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import grpc

from millrace.learners.errors import MillraceError
from millrace.services.config.config import PipelineConfig, load_pipeline
from millrace.services.endpoint.grpc import Client
from millrace.services.errors import NotReadyError
from millrace.services.protocol import inference_pb2, labels_pb2
from millrace.services.protocol.access import read_tokens
from millrace.services.protocol.messages import CONTENTS
from millrace.streams.schema import Field, Label

PRODUCER = "helm-test"
TIMEOUT_S = 30.0  # of one call
SETTLED_S = 5.0  # by which the metrics have counted what was asked before: replicas tell every two seconds
COUNTED_S = 60.0  # by which they have counted ours, on a busy machine too
REQUESTS = re.compile(r"^millrace_requests_total\{(.*)\} (\S+)$", re.MULTILINE)
EMPTY = "nothing to answer from yet"  # what a pipeline says that has learned nothing
EMPTY_S = 30.0  # for rows that were sent just now to be learned
VALUES = {"string": ("text", "helm-test"), "integer": ("number", 0), "boolean": ("flag", False), "number": ("number", 0.0)}

Call = tuple[str, str, str]  # protocol, call and code, as the metrics name them
OURS: tuple[Call, ...] = (("http", "infer", "200"), ("grpc", "infer", "OK"))
LABELLED: tuple[Call, ...] = (("http", "labels", "202"), ("grpc", "labels", "OK"))


@dataclass(frozen=True)
class Service:
    """Where the pipeline is, and how to ask there."""

    name: str  # of the pipeline
    http: str  # HOST:PORT
    grpc: str
    metrics: str
    tokens: dict[str, str]  # scope -> token

    def post(self, what: str, scope: str, body: Any) -> tuple[int, str]:
        """Status and answer of a call over HTTP."""
        headers = {"authorization": f"Bearer {self.tokens[scope]}", "millrace-producer": PRODUCER}
        request = Request(f"http://{self.http}/v2/models/{self.name}/{what}", json.dumps(body).encode(), headers)
        try:
            with urlopen(request, timeout=TIMEOUT_S) as reply:
                return reply.status, reply.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    def call(self, ask: Callable[[Client], Any], scope: str) -> Any:
        """The answer to a call over gRPC."""
        metadata = (("authorization", f"Bearer {self.tokens[scope]}"), ("millrace-producer", PRODUCER))
        with grpc.insecure_channel(self.grpc) as channel:
            return ask(Client(channel, metadata))

    def counts(self) -> dict[Call, float]:
        """Requests so far, of all replicas together."""
        with urlopen(f"http://{self.metrics}/metrics", timeout=TIMEOUT_S) as reply:
            text = reply.read().decode()
        counts: dict[Call, float] = {}
        for labels, count in REQUESTS.findall(text):
            said = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            call = said["protocol"], said["call"], said["code"]
            counts[call] = counts.get(call, 0.0) + float(count)
        return counts


def address(service: str, port: str) -> str:
    """Of a Service of this namespace, as Kubernetes tells every pod; this needs no DNS."""
    variable = service.upper().replace("-", "_")
    host = os.environ[f"{variable}_SERVICE_HOST"]
    return f"{f'[{host}]' if ':' in host else host}:{os.environ[f'{variable}_SERVICE_PORT_{port}']}"


def tensor(field: Field) -> dict[str, Any]:
    """One value of a field, as the protocol has it in JSON."""
    if field.type == "image":
        return {"name": field.name, "datatype": "BYTES", "shape": [1], "data": [b64encode(black(*field.shape)).decode()]}
    if field.type == "categorical":
        first = "a" if isinstance(field.categories, str) else field.categories[0]
        return {"name": field.name, "datatype": "BYTES", "shape": [1], "data": [first]}
    value = min(max(0.0, field.low), field.high)
    shape = [1] if field.size == 1 else [1, field.size]
    return {"name": field.name, "datatype": "FP64", "shape": shape, "data": [value] * field.size}


def black(height: int, width: int) -> bytes:
    """A picture without a light in it, as PNG (RFC 2083): eight bits each of red, green and blue."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    lines = (b"\0" + bytes(3 * width)) * height
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def infer_request(pipeline: PipelineConfig, inputs: list[dict[str, Any]]) -> inference_pb2.ModelInferRequest:
    """The same question over gRPC, where pictures are bytes as they stand."""
    pictures = {field.name for field in pipeline.fields if field.type == "image"}
    request = inference_pb2.ModelInferRequest(model_name=pipeline.name)
    for one in inputs:
        added = request.inputs.add(name=one["name"], datatype=one["datatype"], shape=one["shape"])
        encode = b64decode if one["name"] in pictures else str.encode
        values = [encode(value) if isinstance(value, str) else value for value in one["data"]]
        getattr(added.contents, CONTENTS[one["datatype"]]).extend(values)
    return request


def ask(service: Service, pipeline: PipelineConfig, inputs: list[dict[str, Any]]) -> None:
    """A question by both protocols. Exits where one is not answered, or with something else than a model of this kind gives."""
    status, text = once_learned(lambda: service.post("infer", "predict", {"inputs": inputs}), lambda heard: heard[1])
    if status != 200:
        sys.exit(f"HTTP: a prediction was refused with {status}: {text}")
    answer = json.loads(text)
    print(f"HTTP infer: {status} {text}")
    heard = {output["name"]: (output["datatype"], output["shape"], output["data"]) for output in answer["outputs"]}
    check("HTTP", pipeline.label, answer["model_name"], heard)
    request = infer_request(pipeline, inputs)
    response = once_learned(lambda: infer_by_grpc(service, request), str)
    print(f"gRPC infer: OK, version {response.model_version}")
    again = {
        output.name: (output.datatype, list(output.shape), data_of(output.datatype, raw))
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    check("gRPC", pipeline.label, response.model_name, again)
    if response.model_version == answer["model_version"] and again != heard:
        sys.exit(f"{response.model_version} answers {heard} over HTTP, and over gRPC {again}.")


def infer_by_grpc(service: Service, request: inference_pb2.ModelInferRequest) -> Any:
    """The answer; or the error, where nothing was learned yet."""
    try:
        return service.call(lambda client: client.infer(request, TIMEOUT_S), "predict")
    except NotReadyError as error:
        if EMPTY in str(error):
            return error
        raise


def once_learned(call: Callable[[], Any], text_of: Callable[[Any], str]) -> Any:
    """What a call comes to once something was learned. Exits with what to do where nothing is."""
    until_s = time.monotonic() + EMPTY_S
    while EMPTY in text_of(heard := call()):
        if time.monotonic() > until_s:
            sys.exit("Nothing was learned yet, so nothing can be answered: send rows, and run helm test again.")
        time.sleep(1.0)
    return heard


def data_of(datatype: str, raw: bytes) -> list[Any]:
    """The cells of an output as it stands in binary: numbers, or texts each after its length."""
    if datatype == "FP64":
        return [number for (number,) in struct.iter_unpack("<d", raw)]
    texts = []
    while raw:
        end = 4 + int.from_bytes(raw[:4], "little")
        texts.append(raw[4:end].decode())
        raw = raw[end:]
    return texts


def check(protocol: str, declared: Label, model: str, outputs: dict[str, tuple[str, list[int], list[Any]]]) -> None:
    """Exits unless these are scores that are numbers, and the label of one row where there are classes."""
    kinds = {"scores": "FP64"} | ({} if declared.task == "regress" else {"label": "BYTES"})
    whole = {name: kind for name, (kind, shape, data) in outputs.items() if shape[0] == 1 and math.prod(shape) == len(data) > 0}
    numbers = outputs.get("scores", ("", [], []))[2]
    if whole != kinds or not all(isinstance(number, float | int) and math.isfinite(number) for number in numbers):
        sys.exit(f"{protocol}: {model} answers {outputs}, and not one row of {kinds} with finite scores.")


def label(service: Service, declared: Label) -> None:
    """A label by both protocols."""
    kind, value = VALUES[declared.type]
    status, answer = service.post("labels", "label", {"id": f"{PRODUCER}-{uuid.uuid4().hex}", "label": value})
    if status != 202:
        sys.exit(f"HTTP: a label was refused with {status}: {answer}")
    print(f"HTTP labels: {status} {answer}")
    request = labels_pb2.LabelRequest()
    request.labels.add(id=f"{PRODUCER}-{uuid.uuid4().hex}", **{kind: value})
    response = service.call(lambda client: client.label(request, TIMEOUT_S), "label")
    print(f"gRPC labels: OK, {', '.join(response.offsets)}")


def wait_until_counted(service: Service, before: dict[Call, float], calls: tuple[Call, ...]) -> None:
    """Exits where the metrics do not count each call under its code. More than one is counted where others ask meanwhile."""
    until_s = time.monotonic() + COUNTED_S
    while True:
        counts = service.counts()
        grown = {call: int(counts.get(call, 0.0) - before.get(call, 0.0)) for call in calls}
        if min(grown.values()) >= 1:
            break
        if time.monotonic() > until_s:
            sys.exit(f"http://{service.metrics}/metrics: millrace_requests_total grew by {grown}, and each by one was ours.")
        time.sleep(1.0)
    print("metrics: counted " + ", ".join(f"{' '.join(call)} +{count}" for call, count in grown.items()))


def main(pipeline_file: str, tokens_file: str, name: str, inputs: str) -> None:
    """Exits with a sentence where anything fails."""
    pipeline = load_pipeline(Path(pipeline_file)).pipeline
    tokens = {scope: token for token, scopes in read_tokens(Path(tokens_file)).items() for scope in scopes}
    if lacking := {"predict", *([] if pipeline.labels is None else ["label"])} - tokens.keys():
        sys.exit(f"The Secret has no token for {' and '.join(sorted(lacking))}, so that cannot be tried.")
    places = address(name, "HTTP"), address(name, "GRPC"), address(f"{name}-metrics", "METRICS")
    service = Service(pipeline.name, *places, tokens)
    time.sleep(SETTLED_S)
    before = service.counts()
    ask(service, pipeline, json.loads(inputs) or [tensor(field) for field in pipeline.fields])
    if pipeline.labels is None:
        print("labels: not tried, for the pipeline has no table [labels]")
        wait_until_counted(service, before, OURS)
    else:
        label(service, pipeline.label)
        wait_until_counted(service, before, OURS + LABELLED)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (OSError, MillraceError) as error:
        sys.exit(f"The pipeline cannot be asked: {error}")
