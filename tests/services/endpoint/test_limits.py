"""What is over a limit of the endpoint is refused with 413 and the limit's name, over both protocols; answers are recorded."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import numpy as np
import pytest
from grpc_calls import call
from pipelines import TIMEOUT_S
from served_bundles import NUMBERS, ask, infer, numbers_bundle, tensor

from millrace.services.config.sections import ServingConfig
from millrace.services.endpoint.endpoint import Endpoint, Recording, features_name
from millrace.services.endpoint.http import HttpApp
from millrace.services.endpoint.recording import Recorder
from millrace.services.protocol import inference_pb2 as pb
from millrace.streams.records import Record
from millrace.streams.sqlite.log import SqliteLog

TOPIC = "digits.served"
LIMITS = ServingConfig(max_rows=100, max_labels=3, waiting_rows=100)


def opened(path: Path) -> SqliteLog:
    """A log with the topic."""
    log = SqliteLog(path)
    log.create_topic(TOPIC)
    return log


def recording(path: Path, limits: ServingConfig = LIMITS) -> Endpoint:
    """An endpoint whose answers and labels go into a log."""
    into = Recording(Recorder(lambda: opened(path), TOPIC, limits), features_name(NUMBERS))
    bundle = numbers_bundle()
    return Endpoint("digits", NUMBERS, lambda: bundle, limits=limits, recording=into)


def rows(count: int) -> dict:
    """A question of so many rows."""
    return {"inputs": [tensor("x", "FP64", [count, 3], np.ones(3 * count).tolist())]}


def test_more_rows_than_the_limit_are_refused_by_name_and_so_many_are_recorded(tmp_path: Path) -> None:
    """Over both protocols; nothing of the refused request is in the log, and everything of the answered one."""
    endpoint = recording(tmp_path / "log.sqlite")
    refused = infer(HttpApp(endpoint), rows(101))
    assert refused.status == 413 and "101 rows" in refused.json["error"] and "serving.max_rows" in refused.json["error"]
    request = pb.ModelInferRequest(model_name="digits")
    request.inputs.add(name="x", datatype="FP64", shape=[101, 3]).contents.fp64_contents.extend([1.0] * 303)
    heard, _ = call(endpoint, "ModelInfer", request)
    assert heard.code == "RESOURCE_EXHAUSTED" and "serving.max_rows" in heard.details
    assert infer(HttpApp(endpoint), rows(100)).status == 200
    endpoint.recording.recorder.close(TIMEOUT_S)
    counts = endpoint.recording.recorder.counts
    assert (counts.stored, counts.dropped, counts.waiting) == (100, 0, 0)


def test_by_default_the_largest_request_that_is_answered_is_recorded_whole(tmp_path: Path) -> None:
    """8,192 rows, four times over while the log takes nothing; one row more is refused."""
    endpoint = recording(tmp_path / "log.sqlite", ServingConfig())
    most = ServingConfig().max_rows
    assert infer(HttpApp(endpoint), rows(most + 1)).status == 413
    assert infer(HttpApp(endpoint), rows(most)).status == 200
    endpoint.recording.recorder.close(TIMEOUT_S)
    assert endpoint.recording.recorder.counts.stored == most == 8192
    assert ServingConfig().waiting_rows == 4 * most


def test_more_inputs_than_the_model_has_are_refused_before_they_are_looked_at(tmp_path: Path) -> None:
    """A quarter of a million of them, each of another name and shape, in a request whose answer names none."""
    inputs = [tensor(f"x{at}", "FP64", [at % 7, 3], []) for at in range(250_000)]
    limits = ServingConfig(max_bytes=64 << 20, arriving_bytes=64 << 20)
    heard = infer(HttpApp(recording(tmp_path / "log.sqlite", limits)), {"inputs": inputs})
    assert heard.status == 413 and "250000 inputs" in heard.json["error"] and len(heard.json["error"]) < 200


def test_more_labels_than_the_limit_are_refused_by_name(tmp_path: Path) -> None:
    """All of them, with 413."""
    endpoint = recording(tmp_path / "log.sqlite")
    labels = msgspec.json.encode({"labels": [{"id": str(at), "label": "a"} for at in range(4)]})
    heard = ask(HttpApp(endpoint), "POST", "/v2/models/digits/labels", labels)
    assert heard.status == 413 and "serving.max_labels" in heard.json["error"]


def test_what_is_not_recorded_is_said_with_its_cause(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log cannot be opened, so rows wait; the warning says how many, and which limit they are over."""
    (tmp_path / "state").write_text("in the way")
    recorder = Recorder(lambda: opened(tmp_path / "state" / "log.sqlite"), TOPIC, ServingConfig(max_rows=5, waiting_rows=5))
    assert recorder.later(4, lambda: [Record(b"1", b"1")] * 4)
    with caplog.at_level(logging.WARNING, "millrace"):
        assert not recorder.later(2, lambda: [])
    [warning] = [text for text in caplog.messages if "not recorded" in text]
    assert "2 answered rows" in warning and "4 rows wait for the log" in warning and "serving.waiting_rows = 5" in warning
    recorder.close(0)


def test_a_request_that_is_let_in_fits_where_nothing_else_waits(tmp_path: Path) -> None:
    """However low the other limits are set, its answers are recorded."""
    low = ServingConfig(max_rows=100, waiting_rows=1, arriving_bytes=1, working_bytes=1)
    endpoint = recording(tmp_path / "log.sqlite", low)
    assert infer(HttpApp(endpoint), rows(100)).status == 200
    endpoint.recording.recorder.close(TIMEOUT_S)
    assert (endpoint.recording.recorder.counts.stored, endpoint.recording.recorder.counts.dropped) == (100, 0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_rows": 0}, "max_rows = 0: must be at least 1"),
        ({"waiting_rows": 0}, "waiting_rows = 0: must be at least 1"),
        ({"body_s": 0.0}, "above 0"),
    ],
)
def test_limits_that_let_nothing_in_are_refused(settings: dict, says: str) -> None:
    """When the file is read, by name."""
    with pytest.raises(ValueError, match=says):
        ServingConfig(**settings)
