"""`helm test`: a question and a label over HTTP and over gRPC, through the Service, and the metrics that count them.

`ask.py PIPELINE.toml TOKENS SERVICE INPUTS`, INPUTS being tensors as JSON; without any it asks about zeros and categories.
The label is for an id under which nobody was answered, so nobody learns it. Each call says that it is helm-test's, by which a
replay can leave it out.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import grpc

from millrace.learners.errors import MillraceError
from millrace.services.config.config import load_pipeline
from millrace.services.endpoint.grpc import Client
from millrace.services.errors import NotReadyError
from millrace.services.protocol import inference_pb2, labels_pb2
from millrace.services.protocol.access import read_tokens
from millrace.services.protocol.messages import CONTENTS
from millrace.streams.schema import Field, Label

PRODUCER = "helm-test"
TIMEOUT_S = 30.0  # of one call
COUNTED_S = 60.0  # by which the metrics have counted it
REQUESTS = re.compile(r"^millrace_requests_total\{(.*)\} (\S+)$", re.MULTILINE)
EMPTY = "nothing to answer from yet"  # what a pipeline says that has learned nothing
VALUES = {"string": ("text", "helm-test"), "integer": ("number", 0), "boolean": ("flag", False), "number": ("number", 0.0)}

Call = tuple[str, str]  # protocol and call, as the metrics name them


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
        """Requests so far, by protocol and call."""
        with urlopen(f"http://{self.metrics}/metrics", timeout=TIMEOUT_S) as reply:
            text = reply.read().decode()
        counts: dict[Call, float] = {}
        for labels, count in REQUESTS.findall(text):
            said = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            call = said["protocol"], said["call"]
            counts[call] = counts.get(call, 0.0) + float(count)
        return counts


def address(service: str, port: str) -> str:
    """Of a Service of this namespace, as Kubernetes tells every pod; this needs no DNS."""
    variable = service.upper().replace("-", "_")
    host = os.environ[f"{variable}_SERVICE_HOST"]
    return f"{f'[{host}]' if ':' in host else host}:{os.environ[f'{variable}_SERVICE_PORT_{port}']}"


def tensor(field: Field) -> dict[str, Any]:
    """One value of a field, as the protocol has it."""
    if field.type == "image":
        sys.exit(f"tests.inputs: field {field.name} is a picture; say what is to be asked.")
    if field.type == "categorical":
        first = "a" if isinstance(field.categories, str) else field.categories[0]
        return {"name": field.name, "datatype": "BYTES", "shape": [1], "data": [first]}
    value = min(max(0.0, field.low), field.high)
    shape = [1] if field.size == 1 else [1, field.size]
    return {"name": field.name, "datatype": "FP64", "shape": shape, "data": [value] * field.size}


def infer_request(name: str, inputs: list[dict[str, Any]]) -> inference_pb2.ModelInferRequest:
    """The same question over gRPC."""
    request = inference_pb2.ModelInferRequest(model_name=name)
    for one in inputs:
        added = request.inputs.add(name=one["name"], datatype=one["datatype"], shape=one["shape"])
        values = [value.encode() if isinstance(value, str) else value for value in one["data"]]
        getattr(added.contents, CONTENTS[one["datatype"]]).extend(values)
    return request


def ask(service: Service, inputs: list[dict[str, Any]]) -> None:
    """A question by both protocols. Exits where one is refused for another reason than that nothing was learned yet."""
    status, answer = service.post("infer", "predict", {"inputs": inputs})
    if status != 200 and not (status == 503 and EMPTY in answer):
        sys.exit(f"HTTP: a prediction was refused with {status}: {answer}")
    print(f"HTTP infer: {status} {answer}")
    try:
        response = service.call(lambda client: client.infer(infer_request(service.name, inputs), TIMEOUT_S), "predict")
        print(f"gRPC infer: OK, version {response.model_version}")
    except NotReadyError as error:
        if EMPTY not in str(error):
            raise
        print(f"gRPC infer: {error}")


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


def wait_until_counted(service: Service, before: dict[Call, float], calls: list[Call]) -> None:
    """Exits where the metrics do not count the calls: replicas tell every two seconds what they have answered."""
    until_s = time.monotonic() + COUNTED_S
    while missing := [call for call in calls if service.counts().get(call, 0.0) <= before.get(call, 0.0)]:
        if time.monotonic() > until_s:
            sys.exit(f"http://{service.metrics}/metrics: millrace_requests_total has not counted {missing}.")
        time.sleep(1.0)
    print(f"metrics: counted {', '.join(' '.join(call) for call in calls)}")


def main(pipeline_file: str, tokens_file: str, name: str, inputs: str) -> None:
    """Exits with a sentence where anything fails."""
    pipeline = load_pipeline(Path(pipeline_file)).pipeline
    tokens = {scope: token for token, scopes in read_tokens(Path(tokens_file)).items() for scope in scopes}
    if lacking := {"predict", *([] if pipeline.labels is None else ["label"])} - tokens.keys():
        sys.exit(f"The Secret has no token for {' and '.join(sorted(lacking))}, so that cannot be tried.")
    places = address(name, "HTTP"), address(name, "GRPC"), address(f"{name}-metrics", "METRICS")
    service = Service(pipeline.name, *places, tokens)
    before = service.counts()
    ask(service, json.loads(inputs) or [tensor(field) for field in pipeline.fields])
    if pipeline.labels is None:
        print("labels: not tried, for the pipeline has no table [labels]")
    else:
        label(service, pipeline.label)
    calls = ["infer"] if pipeline.labels is None else ["infer", "labels"]
    wait_until_counted(service, before, [(protocol, call) for protocol in ("http", "grpc") for call in calls])


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (OSError, MillraceError) as error:
        sys.exit(f"The pipeline cannot be asked: {error}")
