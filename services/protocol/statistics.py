"""Counts and durations of what one replica answered, in the shape of Triton's statistics extension."""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

# Upper bounds of the buckets of a latency, seconds: a ridge answers within the first, and who waits 10 s has given up.
BOUNDS_S = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BOUNDS_NS = tuple(round(1e9 * bound_s) for bound_s in BOUNDS_S)
INFER, LABELS, COMPLETIONS, HEALTH, OTHER = "infer", "labels", "completions", "health", "other"  # kinds of calls


@dataclass(slots=True)
class Duration:
    """How often something happened, and how long it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Once more."""
        self.count += 1
        self.ns += ns


@dataclass(frozen=True, slots=True)
class Cost:
    """What one answer took."""

    rows: int
    input_ns: int  # request to columns
    infer_ns: int
    output_ns: int  # scores to the answer's bytes

    @property
    def ns(self) -> int:
        """In all."""
        return self.input_ns + self.infer_ns + self.output_ns


@dataclass(slots=True)
class Latency:
    """How long answers over one protocol took."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_NS) + 1))  # by bucket; the last beyond all bounds
    ns: int = 0  # of all


@dataclass(slots=True)
class Traffic:
    """What callers asked and what became of it, since this replica started. Changed on the event loop alone."""

    requests: dict[tuple[str, str, str], int] = field(default_factory=dict)  # by protocol, kind of call and status
    latencies: dict[str, Latency] = field(default_factory=dict)  # by protocol, of rows that were answered

    def count(self, protocol: str, call: str, status: str, took_ns: int, answered: bool) -> None:
        """Count a request; whether it was ``answered`` or refused."""
        key = protocol, call, status
        self.requests[key] = self.requests.get(key, 0) + 1
        if answered and call == INFER:
            latency = self.latencies.get(protocol) or self.latencies.setdefault(protocol, Latency())
            latency.counts[bisect_left(BOUNDS_NS, took_ns)] += 1
            latency.ns += took_ns


@dataclass(slots=True)
class InferenceStatistics:
    """Since this replica started. Changed on the event loop alone."""

    rows: int = 0
    last_ms: int = 0  # since 1970; 0: never
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    input: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    output: Duration = field(default_factory=Duration)

    def answered(self, cost: Cost) -> None:
        """Count an answer."""
        self.rows += cost.rows
        self.last_ms = time.time_ns() // 1_000_000
        self.success.add(cost.ns)
        self.input.add(cost.input_ns)
        self.infer.add(cost.infer_ns)
        self.output.add(cost.output_ns)

    def failed(self, ns: int) -> None:
        """Count a request that got an error instead of an answer."""
        self.fail.add(ns)

    def describe(self, name: str, version: str) -> dict[str, Any]:
        """As GET /v2/models/NAME/stats says it. Requests never wait for a batch, so ``queue`` stays at nothing."""
        parts = {"success": self.success, "fail": self.fail, "queue": Duration()}
        parts |= {"compute_input": self.input, "compute_infer": self.infer, "compute_output": self.output}
        stats = {part: {"count": duration.count, "ns": duration.ns} for part, duration in parts.items()}
        facts: dict[str, Any] = {"name": name, "version": version, "last_inference": self.last_ms}
        facts |= {"inference_count": self.rows, "execution_count": self.success.count}
        return {"model_stats": [facts | {"inference_stats": stats, "batch_stats": []}]}
