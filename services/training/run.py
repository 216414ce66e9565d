"""`millrace run`: one worker on one branch in this process."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from millrace.learners.errors import MillraceError
from millrace.services.decisions.rollback import name_last_good
from millrace.services.pipeline.expiry import expire
from millrace.services.pipeline.instance import ENDPOINT, Instance
from millrace.services.training.refused import COMPLETIONS, warnings_of
from millrace.streams.branch.host import use_threads
from millrace.streams.journal.entries import Fork
from millrace.streams.journal.journal import Cursor, counted
from millrace.streams.journal.ledger import Serve, Target, append_decision, describe_target
from millrace.streams.sharding import merging_branch
from millrace.streams.state.notices import sentences
from millrace.streams.worker.worker import Worker, WorkerIdentity

log = logging.getLogger("millrace")

PROGRESS_S = 2.0
FIRST = "millrace run"  # who decides what a pipeline's endpoint serves at first
EXPIRY_S = 60.0  # between two looks for old records while a run follows the log


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long a run goes on; whichever comes first."""

    follow: bool = False  # wait for more at the log's end
    rows: int = 0  # records to read in this run; 0: no bound


@dataclass(frozen=True, slots=True)
class Done:
    """What a run did.

    >>> from millrace.services.api import example_pipeline
    >>> example_pipeline().learn().read
    0
    """

    branch: str
    epoch: int
    seq: int
    read: int  # records in this run; those that the next three do not count wait, or were labels
    learned: int
    passed: int  # without a label, held out or excluded
    rejected: int  # kept as dead letters
    version: str | None  # the newest of the branch; None: it has not learned a row yet


class _Until:
    """When a run is over: its bounds, or the first SIGINT or SIGTERM, which lets the step finish."""

    def __init__(self, instance: Instance, bounds: Bounds, start_records: int) -> None:
        self._instance = instance
        self._bounds = bounds
        self._start = start_records
        self._stopped = False
        self._told_s = self._expired_s = time.monotonic()

    @contextmanager
    def stopping_on_signals(self) -> Iterator[_Until]:
        """Hear signals for as long as the block runs. Python gives them to the main thread alone; no other hears them."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it was not set by Python

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopped = True

    def __call__(self, worker: Worker) -> bool:
        self._log_progress(worker)
        self._expire_when_due()
        read = worker.fold.records - self._start
        if self._stopped or (self._bounds.rows and read >= self._bounds.rows):
            return True
        return not self._bounds.follow and worker.caught_up()

    def _expire_when_due(self) -> None:
        """A run that follows the log may never end, so it lets old records go meanwhile."""
        if self._bounds.follow and time.monotonic() - self._expired_s >= EXPIRY_S:
            self._expired_s = time.monotonic()
            expire(self._instance)

    def _log_progress(self, worker: Worker) -> None:
        if time.monotonic() - self._told_s >= PROGRESS_S:
            self._told_s = time.monotonic()
            rejected = sum(worker.rejects.by_reason.values())
            log.info("%s: %d records read, seq %d, %d refused", worker.branch, worker.fold.records, worker.seq, rejected)


def run(instance: Instance, branch: str, bounds: Bounds, take_over: bool) -> Done:
    """Learn from the log until ``bounds`` say it is enough, then mark a version.

    Raises: BusyError where a live process has the branch, and what the worker raises; nothing is lost then.
    """
    pipeline = instance.loaded.pipeline
    use_threads(pipeline.threads)
    with instance.hold(branch, take_over):
        serve_first(instance, branch)
        backends = instance.backends(branch)
        worker = Worker(instance.fold_spec, backends, pipeline.worker, identity_of_worker(instance, branch))
        serve_beginning(instance, worker)
        log.info("%s: epoch %d goes on at seq %d, %d records", branch, worker.epoch, worker.seq, worker.fold.records)
        before, fates = worker.fold.records, worker.fold.fates
        with _Until(instance, bounds, before).stopping_on_signals() as stop_condition:
            worker.run(stop_condition)
        drift = worker.fold.drift
        if drift is not None and drift.newest is not None and merging_branch(branch) == branch:
            name_last_good(instance, branch)
        return _done(worker, before, fates, None if pipeline.llm is None else COMPLETIONS)


def _done(worker: Worker, records_before: int, before: Mapping[str, int], way_out: str | None) -> Done:
    """What the worker did since then, said aloud where it refused something."""
    fates, read = worker.fold.fates, worker.fold.records - records_before
    learned, passed, rejected = (fates[fate] - before[fate] for fate in ("learned", "passed", "rejected"))
    for warning in warnings_of(read, rejected, worker.rejects.by_reason, worker.rejects.first, way_out):
        log.warning("%s: %s", worker.branch, warning)
    for sentence in sentences(worker.fold.noticed()).values():
        log.warning("%s: %s.", worker.branch, sentence)
    return Done(worker.branch, worker.epoch, worker.seq, read, learned, passed, rejected, worker.newest_version)


def identity_of_worker(instance: Instance, branch: str) -> WorkerIdentity:
    """How a worker opens a branch: a fork lets nothing out before an endpoint has followed it (docs/design/journal.md, rule 9).

    Raises: MillraceError where an operation is to begin the branch and has not: an empty one would stand in its way.
    """
    first = next(iter(counted(instance.journal(branch), branch, Cursor())), None)
    made_by_operation = any(operation.branch == branch for operation in instance.ledger().operations.values())
    if first is None and made_by_operation:
        raise MillraceError(f"Branch {branch} is to be made by an operation that has not begun it. Choose another name.")
    begun_here = not isinstance(first, Fork) or (first.parent is None and not made_by_operation)
    emits = begun_here or _followed(instance, branch)
    return WorkerIdentity(branch, instance.host, emits=emits)


def _followed(instance: Instance, branch: str) -> bool:
    decisions = instance.ledger().counted
    return any(isinstance(decision, Serve) and decision.to.follow == branch for decision in decisions)


def serve_beginning(instance: Instance, worker: Worker) -> None:
    """Of a pipeline of completions: the draft that the first run begins with is its first version, and the endpoint serves it.

    An endpoint that follows a branch, as an earlier release let it, goes on with that one's newest version.
    """
    if instance.loaded.pipeline.llm is None:
        return
    version, served = worker.mark_beginning(), instance.ledger().serving.get(ENDPOINT)
    if served is None or served.follow == worker.branch:
        why = "the pipeline's first run" if served is None else "drafts are served by version"
        serve_version(instance, served, version, FIRST, why)


def serve_version(instance: Instance, before: Target | None, version: str, who: str, why: str) -> None:
    """Let the endpoint serve a version in place of ``before``; where another decision comes first, that one counts."""
    when_ms = time.time_ns() // 1_000_000
    decision = Serve(who=who, why=why, when_ms=when_ms, endpoint=ENDPOINT, before=before, to=Target(version=version))
    append_decision(instance.ledger_stream(), decision)


def serve_first(instance: Instance, branch: str) -> None:
    """The first run of a pipeline lets its endpoint follow the branch; afterwards only operators and gates decide.

    Drafts are served by version alone (``serve_beginning``).
    """
    if instance.loaded.pipeline.llm is not None:
        return
    served = instance.ledger().serving.get(ENDPOINT)
    if served is not None and served.follow != merging_branch(branch):
        log.info("%s: the endpoint serves %s; to change that: `millrace serve --follow`", branch, describe_target(served))
    if served is None:
        decision = Serve(
            who=FIRST,
            why="the pipeline's first run",
            when_ms=time.time_ns() // 1_000_000,
            endpoint=ENDPOINT,
            before=None,
            to=Target(follow=merging_branch(branch)),
        )
        append_decision(instance.ledger_stream(), decision)
