"""`millrace replay`: a plan becomes a branch; the branch is proved, and takes the place of the one that learned the poison.

One replay at a time is under way in a pipeline; rolling back and serving are never held up by it. Killed at any point, `resume`
goes on. Each stage is an entry of the ledger, with who and why.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from millrace.learners.errors import BadInputError, MillraceError
from millrace.services.decisions.decide import Change, decide
from millrace.services.decisions.rollback import name_last_good
from millrace.services.errors import NotProvedError
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import ENDPOINT, Instance
from millrace.services.pipeline.succession import heir_of, live_branch, successor_of
from millrace.services.processes import COMMAND
from millrace.services.replay.backfill import filled, topic_of
from millrace.services.replay.learner_rollback import is_rollback
from millrace.services.replay.left_behind import Settled, close_left_behind, left_behind
from millrace.services.replay.operations import advance, describe_operation, planned_operation, refuse_other, step
from millrace.services.replay.plan import SHORTEST, ReplayPlan, check_plan, fork_of, load_plan
from millrace.streams.branch.branch import Backends, restore
from millrace.streams.branch.forks import begin_fork, end_branch
from millrace.streams.branch.host import use_threads
from millrace.streams.branch.read_order import ReadRange, Retraced, future, onward, past
from millrace.streams.errors import ReplacedError
from millrace.streams.journal.entries import Fork
from millrace.streams.journal.exclusions import Exclusion
from millrace.streams.journal.journal import Summary
from millrace.streams.journal.ledger import Ledger, Operation, OperationState, Target
from millrace.streams.records import tp_name
from millrace.streams.worker.worker import Worker, WorkerIdentity

log = logging.getLogger("millrace")

PROGRESS_S = 1.0


def record_plan(instance: Instance, plan_sha256: str, plan: ReplayPlan, reason: str) -> None:
    """Say in the ledger that there is a plan."""
    step(instance, planned_operation(plan.branch, plan_sha256, plan.version, reason))


def under_way(instance: Instance, ledger: Ledger, *states: OperationState) -> Operation:
    """The operation that is. Raises: MillraceError where there is none, or in another stage."""
    operation = ledger.operation
    if operation is None:
        raise MillraceError("No replay is under way. Make one with `millrace replay plan`, then `millrace replay run`.")
    if is_rollback(instance, operation):
        raise MillraceError(
            f"{describe_operation(operation)}, and is no replay. `millrace rollback --learner --yes` goes on with it."
        )
    if operation.state not in states:
        advice = (
            "Compare it with `millrace replay diff`, then `take-over`."
            if operation.state == "done"
            else "`resume` goes on with it."
        )
        raise MillraceError(f"{describe_operation(operation)}. {advice}")
    return operation


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay came to."""

    branch: str
    version: str | None
    records: int  # read since its start
    learned: int  # rows, in all of its history
    seconds: float
    certificate: str


def run(instance: Instance, name: str, pipeline_arguments: Sequence[str]) -> Replayed:
    """Make the branch that a plan says; ``pipeline_arguments`` are the words by which a command finds this pipeline.

    Raises: OutdatedError where the plan no longer holds; BusyError where another replay is under way.
    """
    plan_sha256, plan = load_plan(instance, name)
    archive, ledger = Archive(instance), instance.ledger()
    refuse_other(ledger, plan.branch)
    operation = ledger.operations.get(plan.branch)
    if operation is None or operation.plan_sha256 != plan_sha256:
        raise MillraceError(f"Plan {plan_sha256[:12]} does not stand in the ledger. Make it again with `millrace replay plan`.")
    if operation.state != "planned":
        raise MillraceError(f"{operation.id} is {operation.state} already. A replay that was stopped goes on with `resume`.")
    fork, live = check_plan(archive, ledger, plan), live_branch(archive, ledger)
    return _replay(archive, live, advance(instance, operation, "running", operation.why), plan, fork, pipeline_arguments)


def resume(instance: Instance, pipeline_arguments: Sequence[str]) -> Replayed:
    """Go on where a replay was stopped.

    Raises: MillraceError where none is under way; BusyError where a live process is at it.
    """
    archive, ledger = Archive(instance), instance.ledger()
    operation = under_way(instance, ledger, "running")
    _, plan = load_plan(instance, operation.plan_sha256)
    with instance.hold(plan.branch, take_over=False):  # before it is said that it goes on
        running = advance(instance, operation, "running", operation.why)
        fork = _written(archive, plan.branch) or fork_of(archive, ledger, plan)
    return _replay(archive, live_branch(archive, ledger), running, plan, fork, pipeline_arguments)


def _replay(
    archive: Archive, live: str | None, operation: Operation, plan: ReplayPlan, fork: Fork, pipeline_arguments: Sequence[str]
) -> Replayed:
    """Begin the branch, catch up with the log, mark a version, let another process prove it; then it is done."""
    instance, start_s = archive.instance, time.monotonic()
    with instance.hold(plan.branch, take_over=False):
        try:
            worker, records_at_start = _caught_up(archive, live, plan, fork)
        except ReplacedError as error:
            _refuse_given_up(instance, plan.branch, error)
            raise
        verdict = _proved_elsewhere(plan.branch, pipeline_arguments)
        advance(instance, operation, "done", operation.why)
    return Replayed(
        plan.branch,
        worker.newest_version,
        worker.fold.records - records_at_start,
        worker.fold.counts.learned,
        round(time.monotonic() - start_s, 3),
        verdict,
    )


def _refuse_given_up(instance: Instance, branch: str, error: MillraceError) -> None:
    """Raises: MillraceError naming who gave a replay up, where ``error`` is what that looks like to its writer."""
    operation = instance.ledger().operations[branch]
    if operation.state == "aborted":
        raise MillraceError(
            f"{describe_operation(operation)}. Nothing goes on from it; `millrace replay plan` plans another."
        ) from error


def _caught_up(archive: Archive, live: str | None, plan: ReplayPlan, fork: Fork) -> tuple[Worker, int]:
    """A worker of the branch that has read to the log's end and marked a version; and the records of its start."""
    pipeline, fold_spec = archive.instance.loaded.pipeline, archive.instance.fold_spec
    use_threads(pipeline.threads)
    progress = Progress()  # from here on a signal stops it between two steps
    fork, backends = _begin_branch(archive, live, plan, fork)
    start_of = Summary(fork, [mark for mark in archive.marks(fork.branch) if mark.state_seq == 1])
    records_at_start = restore(
        fold_spec, backends, start_of
    ).fold.records  # from its own copy: its parent's may be let go meanwhile
    progress.of(backends, fork)
    opening = WorkerIdentity(fork.branch, archive.instance.host, emits=False)
    worker = Worker(fold_spec, backends, pipeline.worker, opening)
    worker.run(progress)
    if progress.stopped:
        raise MillraceError(f"Stopped at seq {worker.seq}; nothing is lost. `millrace replay resume` goes on.")
    return worker, records_at_start


def _begin_branch(archive: Archive, live: str | None, plan: ReplayPlan, fork: Fork) -> tuple[Fork, Backends]:
    """The first entry of the branch, ``fork`` unless one is written with the mark of its start; what it reads, on its path."""
    instance = archive.instance
    if (written := _written(archive, plan.branch)) is not None:
        fork = written
    elif plan.backfill is not None:
        fork = filled(instance, fork, plan.backfill)
    path = _path(instance, live, fork, plan)
    backends = instance.backends(fork.branch, fork)  # with all the topics that the fork states
    if written is None:
        begin_fork(instance.fold_spec, backends, fork)
    return fork, replace(backends, source=Retraced(backends.source, path))


def _written(archive: Archive, branch: str) -> Fork | None:
    """The first entry of a branch that has begun: it is there, and so is the mark of its start where it has a parent."""
    summary = archive.so_far(branch)
    return summary.fork if summary.fork is not None and (summary.fork.parent is None or summary.marks) else None


def _path(instance: Instance, live: str | None, fork: Fork, plan: ReplayPlan) -> list[ReadRange]:
    """The file that is read first; then the order in which others have read what follows.

    From a version: its own branch after it, then the branches that took that one's place. From nothing: all that led to the
    live branch.
    """
    if fork.parent is not None:
        led = future(instance.journal, fork.parent.branch, fork.parent.seq)
    else:
        led = [] if live is None else past(instance.journal, live)
    first = [] if plan.backfill is None else [(tp_name(topic_of(instance, fork.branch), 0), 0, plan.backfill.rows)]
    return onward([*first, *led], fork.positions)


class Progress:
    """Says on stderr how far a replay is; enough when the log has nothing more, or at the first SIGINT or SIGTERM."""

    def __init__(self) -> None:
        self.stopped = False
        self._begun: tuple[float, int] | None = None  # when, and after how many records
        self._told_s = 0.0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def of(self, backends: Backends, fork: Fork) -> None:
        """What it is the progress of, before it is first asked."""
        self._backends, self._start = backends, sum(fork.positions.values())

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stopped = True

    def __call__(self, worker: Worker) -> bool:
        """Whether it is over."""
        if time.monotonic() - self._told_s >= PROGRESS_S:
            self._told_s = time.monotonic()
            self._log_progress(worker)
        return self.stopped or worker.caught_up()

    def _log_progress(self, worker: Worker) -> None:
        ends = sum(high for _, high in self._backends.source.bounds().values())
        at, records = sum(worker.fold.position.values()), worker.fold.records
        began_s, records_at_start = self._begun = self._begun or (time.monotonic(), records)
        rate = (records - records_at_start) / max(time.monotonic() - began_s, 1e-9)
        time_left = f", {(ends - at) / rate:.0f} s left" if rate else ""
        log.info("%s: %d of %d records%s", worker.branch, at - self._start, ends - self._start, time_left)


def _proved_elsewhere(branch: str, pipeline_arguments: Sequence[str]) -> str:
    """Let `millrace verify` fold the branch again in another process, which writes the certificate.

    Raises: NotProvedError with what it says.
    """
    log.info("%s: another process proves it", branch)
    command = [*COMMAND, "verify", *pipeline_arguments, "--branch", branch, "--output", "json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        message = result.stderr.strip() or f"the process ended with {result.returncode}; `millrace replay resume` tries again."
        raise NotProvedError(f"Branch {branch} was replayed and is not proved: {message}")
    return "proved in another process"


# Taking over and giving up


@dataclass(frozen=True, slots=True)
class Succession:
    """What taking over would do."""

    operation: Operation
    change: Change  # of the endpoint
    ends: str  # the branch that goes no further; the new one itself where that has been done
    version: str | None  # that the new one began with
    planned_from: Target | None  # what was in force when it was planned
    exclude: list[Exclusion]  # what the new one leaves out
    ledger: Ledger  # by which all of this was found

    @property
    def rows(self) -> dict[str, Any]:
        """Which branch takes whose place."""
        return {"branch": self.operation.branch, "ends": self.ends}


def plan_take_over(instance: Instance) -> Succession:
    """Raises: MillraceError where no replay is done."""
    ledger = instance.ledger()
    operation = under_way(instance, ledger, "done")
    _, plan = load_plan(instance, operation.plan_sha256)
    change = Change(ledger.serving.get(ENDPOINT), Target(follow=operation.branch))
    ends = plan.branch if plan.ends is None else heir_of(Archive(instance), plan.ends)
    return Succession(operation, change, ends, plan.version, plan.serves, plan.exclude, ledger)


def take_over(instance: Instance, succession: Succession, reason: str) -> Settled:
    """Serve the new branch, then end the old one; the trainer goes on with the new one by itself. Done twice, it is done once.

    Returns: the alarms that it closes for the new branch, and those that stay open there.
    Raises: NotCountedError where somebody has decided otherwise meanwhile; nothing is ended then.
    """
    branch, ends, settled = succession.operation.branch, succession.ends, Settled()
    alarms = [] if ends == branch else left_behind(instance, ends, succession.version, succession.exclude)  # may fail: first
    decide(instance, succession.change, reason)
    if ends != branch:
        settled = close_left_behind(instance, alarms, branch, reason, "take-over")
        end_branch(instance.journal(succession.ends), succession.ends, instance.host, "replay", branch)
        name_last_good(instance)
    advance(instance, succession.operation, "taken-over", reason)
    return settled


def plan_abort(instance: Instance, name: str | None = None) -> Operation:
    """What would be given up: what is under way, or the plan that ``name`` names, by its sha256 or its branch.

    Raises: MillraceError where there is none, where the endpoint follows it, or where a branch has ended in its favour.
    """
    archive, ledger = Archive(instance), instance.ledger()
    operation = ledger.operation if name is None else _named(ledger.operations.values(), name)
    if operation is None or operation.state in ("taken-over", "aborted"):
        raise MillraceError(
            f"{describe_operation(operation)}." if operation else "No replay is under way. Name the PLAN to give up."
        )
    if ledger.serving.get(ENDPOINT) == Target(follow=operation.branch):
        raise MillraceError(f"The endpoint follows {operation.branch}. Serve something else first, with `millrace serve`.")
    for branch in instance.branches():
        if branch != operation.branch and successor_of(archive, branch) == operation.branch:
            raise MillraceError(f"Branch {branch} has ended in favour of {operation.branch}, which can only go on now.")
    return operation


def _named(operations: Iterable[Operation], name: str) -> Operation | None:
    matching = [
        operation
        for operation in operations
        if operation.branch == name or (len(name) >= SHORTEST and operation.plan_sha256.startswith(name))
    ]
    if len(matching) > 1:
        matching = [
            operation for operation in matching if operation.state not in ("taken-over", "aborted")
        ]  # a plan can be made twice
    if len(matching) != 1:
        raise BadInputError(f"{name!r} names {len(matching)} plans; `millrace log PIPELINE --ledger` lists them.")
    return matching[0]


def abort(instance: Instance, operation: Operation, reason: str) -> None:
    """Give a replay up: its branch ends, and whoever writes it stops."""
    advance(instance, operation, "aborted", reason)
    if Archive(instance).so_far(operation.branch).fork is not None:
        end_branch(instance.journal(operation.branch), operation.branch, instance.host, "aborted", None)
