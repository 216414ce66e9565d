"""What a replica counts of its callers: each request once, by protocol, kind of call and status."""

from __future__ import annotations

import numpy as np
from grpc_calls import FakeCall, asked, call, rows_of
from served_bundles import NUMBERS, ask, infer, numbers_bundle, tensor

from millrace.services.endpoint.endpoint import Endpoint
from millrace.services.endpoint.http import HttpApp
from millrace.services.protocol.access import SCOPES, access
from millrace.services.protocol.statistics import BOUNDS_S, INFER, Traffic

GOOD = {"inputs": [tensor("x", "FP64", [1, 3], [1.0, 2.0, 3.0])]}


def test_http_requests_are_counted_by_what_was_asked_and_answered() -> None:
    """Answers, refusals of every kind, and health; only answers to rows have a latency."""
    endpoint = Endpoint("digits", NUMBERS, numbers_bundle)
    app = HttpApp(endpoint)
    statuses = [infer(app, request).status for request in (GOOD, GOOD, {"inputs": []})]
    statuses += [ask(app, "GET", path).status for path in ("/v2", "/v2/health/live", "/v2/models/other", "/metrics")]
    statuses.append(ask(app, "POST", "/v2/models/digits/labels", b"{}").status)
    assert statuses == [200, 200, 400, 200, 200, 404, 404, 400]
    assert endpoint.traffic.requests == {
        ("http", "infer", "200"): 2,
        ("http", "infer", "400"): 1,
        ("http", "other", "200"): 1,
        ("http", "other", "404"): 2,
        ("http", "health", "200"): 1,
        ("http", "labels", "400"): 1,
    }
    assert sum(endpoint.traffic.latencies["http"].counts) == 2 and endpoint.traffic.latencies["http"].ns > 0


def test_grpc_calls_are_counted_alike() -> None:
    """Also those that are refused before anything is read, and those that a caller's token does not allow."""
    endpoint = Endpoint("digits", NUMBERS, numbers_bundle, access({"secret": SCOPES}, local_is_open=False))
    shown = FakeCall(metadata=(("authorization", "Bearer secret"),))
    row = asked(rows_of(np.array([[1.0, 2.0, 3.0]])))
    assert call(endpoint, "ModelInfer", row, shown)[0].code == "OK"
    for name, request, context in (
        ("ModelInfer", row, FakeCall()),
        ("ModelInfer", b"\xff", FakeCall(metadata=shown.metadata)),
        ("Label", b"\xff", FakeCall(metadata=shown.metadata)),
        ("Check", b"", FakeCall()),
        ("ServerMetadata", b"", FakeCall(metadata=shown.metadata)),
    ):
        call(endpoint, name, request, context)
    assert endpoint.traffic.requests == {
        ("grpc", "labels", "INVALID_ARGUMENT"): 1,
        ("grpc", "infer", "OK"): 1,
        ("grpc", "infer", "UNAUTHENTICATED"): 1,
        ("grpc", "infer", "INVALID_ARGUMENT"): 1,
        ("grpc", "health", "OK"): 1,
        ("grpc", "other", "OK"): 1,
    }
    assert sum(endpoint.traffic.latencies["grpc"].counts) == 1


def test_a_latency_falls_into_the_bucket_that_prometheus_means() -> None:
    """A bucket holds what is at most its bound; what is beyond all is in the last."""
    traffic = Traffic()
    for took_s in (0.0, *BOUNDS_S, 10.000000001, 1e6):
        traffic.count("http", INFER, "200", round(took_s * 1e9), True)
    latency = traffic.latencies["http"]
    assert latency.counts == [2, *[1] * (len(BOUNDS_S) - 1), 2]
    assert latency.ns == round(1e9 * (sum(BOUNDS_S) + 10.000000001 + 1e6))
