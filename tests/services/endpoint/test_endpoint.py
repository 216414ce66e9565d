"""Answers and labels on their way into the log: before or after the reply, over either protocol, and never half."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import numpy as np
import pytest
from grpc_calls import FakeCall, asked, call, rows_of
from pipelines import TIMEOUT_S
from served_bundles import NUMBERS, app, ask, infer, numbers_bundle, tensor

from millrace.services.config.sections import ServingConfig
from millrace.services.endpoint.endpoint import Endpoint, Recording, features_name
from millrace.services.endpoint.grpc import GrpcApp
from millrace.services.endpoint.http import HttpApp
from millrace.services.endpoint.recording import Recorder
from millrace.services.errors import MEANINGS
from millrace.services.protocol import labels_pb2
from millrace.streams.journal.exclusions import Header
from millrace.streams.labels.served import LateLabel, Prediction, Served, ServedCodec
from millrace.streams.records import Event, decode_headers
from millrace.streams.sqlite.log import SqliteLog

BUNDLE = numbers_bundle()
TOPIC = "digits.served"
QUESTION = {"id": "r", "inputs": [tensor("x", "FP64", [2, 3], [[1.0, 2.0, 3.0], [-4.0, 0.5, 0.0]])]}
LABELS = "/v2/models/digits/labels"


def opened(path: Path) -> SqliteLog:
    """A log with the topic."""
    log = SqliteLog(path)
    log.create_topic(TOPIC)
    return log


def recording(path: Path, before_reply: bool = False, records: bool = True) -> Endpoint:
    """An endpoint whose answers and labels go into a log."""
    patient = ServingConfig(log_s=float(TIMEOUT_S))  # a log on a busy machine is slow, which is no fault
    into = Recording(Recorder(lambda: opened(path), TOPIC, patient, records=records), features_name(NUMBERS), before_reply)
    return Endpoint("digits", NUMBERS, lambda: BUNDLE, recording=into)


def in_log(path: Path) -> list[Prediction | LateLabel]:
    """Everything that the topic has, as the worker reads it."""
    events = opened(path).fetch(f"{TOPIC}:0", 0, None, 10_000)[0]
    read = [Event(event.offset, event.timestamp_ms, event.key, event.headers, event.value) for event in events]
    served, refused = ServedCodec(NUMBERS, 1 << 20, TOPIC).decode(read, f"{TOPIC}:0")
    assert not refused and isinstance(served, Served)
    return served.records


def closed(endpoint: Endpoint) -> Recorder:
    """The recorder once nothing waits any more."""
    assert endpoint.recording is not None
    endpoint.recording.recorder.close(TIMEOUT_S)
    return endpoint.recording.recorder


def test_an_answer_before_the_reply_is_in_the_log_when_the_reply_comes(tmp_path: Path) -> None:
    """Named after the request and the row."""
    endpoint = recording(tmp_path / "log.sqlite", before_reply=True)
    assert infer(HttpApp(endpoint), QUESTION).status == 200
    assert [record.id for record in in_log(tmp_path / "log.sqlite")] == ["r/0", "r/1"]
    closed(endpoint)


def test_where_the_log_is_down_only_what_was_promised_fails(tmp_path: Path) -> None:
    """Before the reply: 503 and Retry-After. After the reply: an answer, and a count of what was dropped."""
    (tmp_path / "file").touch()
    promised, later = recording(tmp_path / "file" / "log", before_reply=True), recording(tmp_path / "file" / "log")
    refused = infer(HttpApp(promised), QUESTION)
    assert refused.status == 503 and refused.headers["retry-after"] == "1"
    assert infer(HttpApp(later), QUESTION).status == 200
    assert closed(later).counts.dropped == 2
    closed(promised)


def test_answers_are_not_recorded_where_the_pipeline_says_so_and_labels_are(tmp_path: Path) -> None:
    """`record = "off"`: another system appends the predictions."""
    endpoint = recording(tmp_path / "log.sqlite", records=False)
    assert infer(HttpApp(endpoint), QUESTION).status == 200
    assert ask(HttpApp(endpoint), "POST", LABELS, b'{"id": "r/0", "label": "up"}').status == 202
    closed(endpoint)
    assert [(record.id, type(record)) for record in in_log(tmp_path / "log.sqlite")] == [("r/0", LateLabel)]


def test_a_pipeline_without_late_labels_says_so() -> None:
    """501, with what to write into the pipeline file."""
    refused = ask(app(BUNDLE), "POST", LABELS, b'{"id": "r/0", "label": "up"}')
    assert refused.status == 501 and "[labels]" in refused.json["error"]


def test_labels_that_are_nearly_right_are_taken_whole_or_refused_whole(tmp_path: Path) -> None:
    """4,000 bodies and messages: 202 and OK put exactly their labels into the log, everything else puts nothing."""
    chance, path = random.Random(5), tmp_path / "log.sqlite"
    endpoint = recording(path)
    http, rpc, accepted = HttpApp(endpoint), GrpcApp(endpoint), []
    declared = {meaning.grpc for meaning in MEANINGS.values() if meaning.http < 500}
    ids, values = ("a", "b/0", "", "ü" * 511, "x" * 600), ("up", "down", "", 1, 2.5, True, None, [], {"a": 1}, "n" * 400)

    async def told() -> None:
        for _ in range(2000):
            request = labels_pb2.LabelRequest()
            for _ in range(chance.choice((0, 1, 1, 2, 5))):
                label = request.labels.add(id=chance.choice(ids[:3]), revision=chance.choice((0, 0, 1, 2**32 - 1)))
                kind, value = chance.choice((("text", "up"), ("text", "down"), ("number", 1.0), ("flag", True), (None, None)))
                if kind:
                    setattr(label, kind, value)
            raw = request.SerializeToString()
            raw = (
                raw if chance.random() < 0.7 else bytes(byte ^ (chance.random() < 0.02) << chance.randrange(8) for byte in raw)
            )
            context = FakeCall()
            response = await rpc.answer("Label", raw, context)
            assert context.code == "OK" or context.code in declared, (context.code, context.details)
            if context.code == "OK":
                accepted.extend(label.id for label in labels_pb2.LabelRequest.FromString(raw).labels)
                assert response.accepted == len(response.offsets) > 0

    for _ in range(2000):
        some = [
            {"id": chance.choice(ids), "label": chance.choice(values)} | ({"revision": 1} if chance.random() < 0.3 else {})
            for _ in range(chance.choice((0, 1, 1, 2, 5)))
        ]
        body = json.dumps(some[0] if len(some) == 1 and chance.random() < 0.5 else {"labels": some}).encode()
        if chance.random() < 0.2:
            at = chance.randrange(len(body))
            body = body[:at] + bytes([chance.randrange(256)]) + body[at + 1 :]
        heard = ask(http, "POST", LABELS, body)
        assert heard.status in (202, 400), heard.json
        if heard.status == 202:
            told_so = json.loads(body)
            accepted.extend(label["id"] for label in told_so.get("labels", [told_so]))
    asyncio.run(told())
    closed(endpoint)
    assert len(accepted) > 300
    assert [record.id for record in in_log(path)] == accepted


def test_an_id_that_no_label_could_name_is_refused(tmp_path: Path) -> None:
    """Before anything is recorded."""
    endpoint = recording(tmp_path / "log.sqlite")
    rows = {"inputs": [*QUESTION["inputs"], tensor("id", "BYTES", [2], ["a", "b" * 513])]}
    refused = infer(HttpApp(endpoint), rows)
    assert refused.status == 400 and "1 to 512" in refused.json["error"]
    assert closed(endpoint).counts.stored == 0


def test_a_record_that_the_worker_would_refuse_is_refused_by_the_endpoint(tmp_path: Path) -> None:
    """A label so long that it could only become a dead letter."""
    endpoint = recording(tmp_path / "log.sqlite")
    body = json.dumps({"id": "r/0", "label": "n" * (1 << 20)}).encode()
    refused = ask(HttpApp(endpoint), "POST", LABELS, body)
    assert refused.status == 400 and "labels[0]" in refused.json["error"]
    assert closed(endpoint).counts.stored == 0


@pytest.mark.parametrize("header", ["Origin", "Sec-Fetch-Site"])
def test_a_web_page_is_no_caller_on_this_machine(header: str, tmp_path: Path) -> None:
    """It asks from wherever it is shown, so it needs a token as everybody else does."""
    endpoint = recording(tmp_path / "log.sqlite")
    refused = ask(HttpApp(endpoint), "POST", LABELS, b'{"id": "r/0", "label": "up"}', {header: "http://evil.example"})
    assert refused.status == 401 and closed(endpoint).counts.stored == 0


@pytest.mark.parametrize("verb", ["labels", "status"])
def test_only_this_model_is_there(verb: str, tmp_path: Path) -> None:
    """404 for another."""
    endpoint = recording(tmp_path / "log.sqlite")
    method = "POST" if verb == "labels" else "GET"
    assert ask(HttpApp(endpoint), method, f"/v2/models/other/{verb}", b'{"id": "a", "label": "up"}').status == 404


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_what_a_caller_asked_and_labelled_is_found_again_by_its_name(way: str, tmp_path: Path) -> None:
    """As `send --header producer=till-7` appends it, so that the exclusion of a replay names it, and nothing of the others."""
    path = tmp_path / "log.sqlite"
    endpoint = recording(path, before_reply=True)
    for number, name in enumerate(["till-7", None, "till-8"]):
        asked_as(endpoint, way, f"r{number}", name)
    closed(endpoint)
    events = opened(path).fetch(f"{TOPIC}:0", 0, None, 100)[0]
    ids = [record.id for record in in_log(path)]
    assert ids == ["r0/0", "r0/0", "r1/0", "r1/0", "r2/0", "r2/0"]
    by_till_7 = [key for key, event in zip(ids, events, strict=True) if Header("producer", "till-7").names(event, f"{TOPIC}:0")]
    assert by_till_7 == ["r0/0", "r0/0"]
    assert [dict(decode_headers(event.headers)).get("producer") for event in events[2:]] == [None, None, b"till-8", b"till-8"]


def asked_as(endpoint: Endpoint, way: str, request_id: str, name: str | None) -> None:
    """One row asked about and labelled, in a producer's name or in none."""
    if way == "http":
        headers = {} if name is None else {"Millrace-Producer": name}
        row = {"id": request_id, "inputs": [tensor("x", "FP64", [1, 3], [1.0, 2.0, 3.0])]}
        label = json.dumps({"id": f"{request_id}/0", "label": "up"}).encode()
        assert infer(HttpApp(endpoint), row, **headers).status == 200
        assert ask(HttpApp(endpoint), "POST", LABELS, label, headers).status == 202
        return
    metadata = () if name is None else (("millrace-producer", name),)
    question = asked(rows_of(np.ones((1, 3))), id=request_id)
    told = labels_pb2.LabelRequest(labels=[labels_pb2.OneLabel(id=f"{request_id}/0", text="up")])
    for rpc, request in (("ModelInfer", question), ("Label", told)):
        context, _ = call(endpoint, rpc, request, FakeCall(metadata=metadata))
        assert context.code == "OK", context.details


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "till-7\n", "producer=till-7", "\u00fc"])
def test_a_producers_name_that_cannot_be_one_is_refused_and_nothing_is_recorded(name: str, tmp_path: Path) -> None:
    """400 and INVALID_ARGUMENT, for answers and for labels."""
    endpoint = recording(tmp_path / "log.sqlite")
    label = b'{"id": "r/0", "label": "up"}'
    for heard in (
        infer(HttpApp(endpoint), QUESTION, **{"Millrace-Producer": name}),
        ask(HttpApp(endpoint), "POST", LABELS, label, {"Millrace-Producer": name}),
    ):
        assert heard.status == 400 and "Millrace-Producer" in heard.json["error"]
    told = labels_pb2.LabelRequest(labels=[labels_pb2.OneLabel(id="r/0", text="up")])
    for rpc, request in (("ModelInfer", asked(rows_of(np.ones((1, 3))))), ("Label", told)):
        context, _ = call(endpoint, rpc, request, FakeCall(metadata=(("millrace-producer", name),)))
        assert context.code == "INVALID_ARGUMENT" and "Millrace-Producer" in context.details
    assert closed(endpoint).counts.stored == 0
