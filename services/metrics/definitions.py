"""Every metric there is: its name, kind, labels and meaning. `make reference` makes docs/reference/metrics.md of it.

Names and units are those of Prometheus: seconds, bytes, and ``_total`` for what only grows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

UP, LOG, TRAINER, REPLICAS, FRONT = "up", "log", "trainer", "replicas", "front"  # the sources that are asked
SOURCES = (LOG, TRAINER, REPLICAS, FRONT)  # those that may not answer


@dataclass(frozen=True, slots=True)
class Metric:
    """What one name means."""

    name: str
    kind: Kind
    source: str  # who is asked for it
    labels: tuple[str, ...]
    meaning: str  # a sentence
    shown: str = ""  # what `millrace status` calls it, with {LABEL} where a label's value stands


@dataclass(frozen=True, slots=True)
class Sample:
    """A number of one metric under the values of its labels, in their order."""

    name: str
    labels: tuple[str, ...]
    value: float


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram of one metric: how often by bucket, the last beyond all bounds, and the sum of all."""

    name: str
    labels: tuple[str, ...]
    bounds_s: Sequence[float]
    counts: Sequence[int]  # one more than bounds
    sum_s: float


Samples = list[Sample | Distribution]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one source says, and whether that is all that it was asked for."""

    samples: Samples
    is_whole: bool
    series: tuple[tuple[str, str], ...] = ()  # of engines that tell of themselves: replica, text for Prometheus


METRICS: tuple[Metric, ...] = (
    Metric("millrace_build_info", "gauge", UP, ("version", "python"), "1, with the release of millrace and of Python."),
    Metric(
        "millrace_source_up",
        "gauge",
        UP,
        ("source",),
        "Whether a source answered now: log, trainer, replicas or front.",
    ),
    Metric("millrace_draining", "gauge", UP, (), "Whether this endpoint is about to end: answers go on, readiness says no."),
    Metric("millrace_replicas_wanted", "gauge", UP, (), "Replicas that are to answer."),
    Metric("millrace_lag_rows", "gauge", LOG, ("branch",), "Records in the log that the branch has not read.", "lag_rows"),
    Metric(
        "millrace_lag_seconds",
        "gauge",
        LOG,
        ("branch",),
        "Age of the oldest record not read, by its own time; 0: all are read.",
    ),
    Metric("millrace_epoch", "gauge", LOG, ("branch",), "Writers that the branch has had.", "epoch"),
    Metric("millrace_seq", "gauge", LOG, ("branch",), "Entries of the branch's journal that count.", "seq"),
    Metric("millrace_records_total", "counter", LOG, ("branch",), "Records read since the branch began.", "records"),
    Metric(
        "millrace_rows_total",
        "counter",
        LOG,
        ("branch", "fate"),
        "Records by what became of them: learned, passed, rejected, labels that waited, or outside learner.classes.",
        "{fate}",
    ),
    Metric(
        "millrace_waiting",
        "gauge",
        LOG,
        ("branch",),
        "Rows, predictions and labels that wait for their batch or partner.",
        "waiting",
    ),
    Metric(
        "millrace_labels_total",
        "counter",
        LOG,
        ("branch", "outcome"),
        "Late labels and predictions by what became of them, as the glossary names it.",
        "labels_{outcome}",
    ),
    Metric(
        "millrace_labels_waiting",
        "gauge",
        LOG,
        ("branch", "what"),
        "Predictions that await a label (awaited), labels that wait for theirs (waiting), ids that are known (remembered).",
        "labels_{what}",
    ),
    Metric(
        "millrace_noticed_total",
        "counter",
        LOG,
        ("branch", "what", "field"),
        "Values or rows learned otherwise than their records say, by reason and field; the field is empty where it is none's.",
        "{what}_{field}",
    ),
    Metric(
        "millrace_noticed",
        "gauge",
        LOG,
        ("branch", "what"),
        "A learner's own warnings: the residual of its solution, or its errors as a multiple of a baseline's.",
        "{what}",
    ),
    Metric(
        "millrace_scored_rows_total",
        "counter",
        LOG,
        ("branch", "answer"),
        "Rows whose answer was scored: the worker's own just before learning (by_worker), or as it was served (as_served).",
        "scored_{answer}",
    ),
    Metric(
        "millrace_score",
        "gauge",
        LOG,
        ("branch", "score"),
        "Means since the branch began of the worker's own answers, beside those of answers without a model.",
        "{score}",
    ),
    Metric(
        "millrace_served_score", "gauge", LOG, ("branch", "score"), "The same of answers as they were served.", "served_{score}"
    ),
    Metric("millrace_memory", "gauge", LOG, ("branch", "figure"), "What an error memory says of itself.", "memory_{figure}"),
    Metric("millrace_entities", "gauge", LOG, ("branch",), "Entities whose window is kept.", "entities_kept"),
    Metric(
        "millrace_entity_events_total",
        "counter",
        LOG,
        ("branch", "outcome"),
        "Events of entities by what became of them: they moved a window, or why they did not.",
        "entity_events_{outcome}",
    ),
    Metric(
        "millrace_entities_let_go_total",
        "counter",
        LOG,
        ("branch", "cause"),
        "Entities whose window was dropped, for being idle or crowded out; one that comes back counts again.",
        "entities_let_go_{cause}",
    ),
    Metric("millrace_held_out", "gauge", LOG, ("branch", "figure"), "What the held-out rows say.", "held_out_{figure}"),
    Metric(
        "millrace_drift_alarm_row",
        "gauge",
        LOG,
        ("branch",),
        "Rows learned when the newest alarm was raised that something got worse; 0: none was. A change is an alarm.",
    ),
    Metric("millrace_versions", "gauge", LOG, ("branch",), "Versions that are kept."),
    Metric("millrace_versions_uncertified", "gauge", LOG, ("branch",), "Of these, the versions without a certificate yet."),
    Metric("millrace_versions_differing", "gauge", LOG, ("branch",), "Of these, the versions that were proved wrong."),
    Metric("millrace_store_bytes", "gauge", LOG, ("branch",), "Bytes of the branch's checkpoints and versions.", "store_bytes"),
    Metric(
        "millrace_trainer_running",
        "gauge",
        TRAINER,
        ("branch",),
        "Whether the branch's trainer learns; 0 also where it is silent.",
    ),
    Metric(
        "millrace_trainer_failing",
        "gauge",
        TRAINER,
        ("branch",),
        "Whether something stopped it that it waits out, or an operator.",
    ),
    Metric(
        "millrace_rejected_total",
        "counter",
        TRAINER,
        ("branch", "reason"),
        "Records refused by reason since the trainer began; 0 again when it begins anew. millrace_rows_total has them all.",
    ),
    Metric(
        "millrace_replica_staleness_seconds",
        "gauge",
        REPLICAS,
        ("replica",),
        "Age of the state that answers, at most; absent before there is one.",
    ),
    Metric(
        "millrace_requests_total",
        "counter",
        REPLICAS,
        ("replica", "protocol", "call", "code"),
        "Requests by protocol (http, grpc), call (infer, labels, completions, health, other) and status, or left where "
        "a caller did not wait for one; 200, 202 and OK are no failures.",
    ),
    Metric("millrace_answered_rows_total", "counter", REPLICAS, ("replica",), "Rows that were answered."),
    Metric(
        "millrace_answer_seconds",
        "histogram",
        REPLICAS,
        ("replica", "protocol"),
        "How long the replica took for each request of rows that it answered, from its head to its answer.",
    ),
    Metric(
        "millrace_recorded_total",
        "counter",
        REPLICAS,
        ("replica", "what"),
        "Records of answers and labels: in the log (stored), or answers that had no room (dropped).",
    ),
    Metric("millrace_recording_waiting", "gauge", REPLICAS, ("replica",), "Answered rows that wait for the log."),
    Metric(
        "millrace_replica_draft",
        "gauge",
        REPLICAS,
        ("replica", "version"),
        "1, of a language model's replica, with the version whose draft its engine has.",
    ),
    Metric(
        "millrace_draft_swaps_total",
        "counter",
        REPLICAS,
        ("replica", "outcome"),
        "Drafts that took another one's place in an engine (done), and those that could not be read or were refused (refused).",
    ),
    Metric(
        "millrace_completions_total",
        "counter",
        REPLICAS,
        ("replica", "outcome"),
        "Completions that were captured for the log, and others by why they were not, such as opted_out or tenant.",
    ),
    Metric("millrace_front_connections", "gauge", FRONT, ("protocol",), "Callers' connections, by protocol (http, grpc)."),
    Metric("millrace_front_waiting", "gauge", FRONT, ("protocol",), "Requests that wait for a replica, while none answers."),
    Metric(
        "millrace_front_asked_again_total",
        "counter",
        FRONT,
        ("protocol",),
        "Times that a request went to another replica, or to the first that was back, since one did not answer.",
    ),
    Metric(
        "millrace_front_refused_total",
        "counter",
        FRONT,
        ("protocol", "reason"),
        "What no replica heard of: connections over one address's share (connection), malformed or late requests (malformed), "
        "those over serving.max_bytes (too-large); and requests that no replica answered whole (unanswered).",
    ),
)

DEFINED: Mapping[str, Metric] = {metric.name: metric for metric in METRICS}
