"""What replicas and trainers say of themselves, as samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from millrace.services.metrics.definitions import Distribution, Sample, Samples
from millrace.services.protocol.statistics import BOUNDS_S
from millrace.services.training.current import Presence
from millrace.services.training.trainer import TrainerStatus


def of_replicas(presences: Iterable[Presence]) -> Samples:
    """Each under its own name. A replica that is started anew has another name, so its counts never fall."""
    return [sample for presence in presences for sample in _of_replica(presence)]


def _of_replica(presence: Presence) -> Samples:
    replica = presence.replica
    samples: Samples = [
        Sample("millrace_answered_rows_total", (replica,), presence.rows),
        Sample("millrace_recorded_total", (replica, "stored"), presence.stored),
        Sample("millrace_recorded_total", (replica, "dropped"), presence.dropped),
        Sample("millrace_recording_waiting", (replica,), presence.waiting),
        *(Sample("millrace_requests_total", (replica, *call), count) for *call, count in presence.requests),
    ]
    samples += [
        Distribution("millrace_answer_seconds", (replica, protocol), BOUNDS_S, counts, ns / 1e9)
        for protocol, counts, ns in presence.latencies
    ]
    samples += [Sample("millrace_completions_total", (replica, outcome), count) for outcome, count in presence.completions]
    samples += [Sample("millrace_draft_swaps_total", (replica, outcome), count) for outcome, count in presence.swaps]
    if presence.swaps and presence.answers:
        samples.append(Sample("millrace_replica_draft", (replica, presence.answers), 1))
    if presence.staleness_ms is not None:
        samples.append(Sample("millrace_replica_staleness_seconds", (replica,), presence.staleness_ms / 1000))
    return samples


def of_trainers(states: Mapping[str, TrainerStatus | None]) -> Samples:
    """By the branch that each was made for; None: it does not answer."""
    samples = Samples()
    for name, state in states.items():
        branch = name if state is None else state.branch
        samples.append(Sample("millrace_trainer_running", (branch,), state is not None and state.running))
        if state is not None:
            samples.append(Sample("millrace_trainer_failing", (branch,), bool(state.said)))
            samples += [Sample("millrace_rejected_total", (branch, reason), count) for reason, count in state.rejected]
    return samples
