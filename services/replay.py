"""`millrace replay`: a plan becomes a branch; the branch is proved, and takes the place of the one that learned the poison.

One replay at a time is under way in a pipeline; rolling back and serving are never held up by it. Killed at any point, `resume`
goes on. Each stage is an entry of the ledger, with who and why.
"""

from __future__ import annotations

import getpass
import logging
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from millrace.learners.errors import BusyError, MillraceError, NotCountedError, NotProvedError
from millrace.services.deciding import Change, decide
from millrace.services.instance import ENDPOINT, Instance
from millrace.services.processes import COMMAND
from millrace.services.replay_plan import Plan, check_plan, fork_of, load_plan
from millrace.services.running import heir_of
from millrace.streams.branch import Doors
from millrace.streams.entries import Fork
from millrace.streams.forks import begin_fork, end_branch
from millrace.streams.host import this_host, use_threads
from millrace.streams.journal import Cursor, counted, summarise
from millrace.streams.ledger import Ledger, Operation, Stage, Target, append_decision
from millrace.streams.retrace import Retraced, path_of
from millrace.streams.worker import Opening, Worker

log = logging.getLogger("millrace")

PROGRESS_S = 1.0


def record_plan(instance: Instance, plan_sha256: str, plan: Plan, why: str) -> None:
    """Say in the ledger that there is a plan."""
    branch = plan.branch
    planned = Operation(**_said(why), id=branch, before=None, state="planned", plan_sha256=plan_sha256, branch=branch)
    step(instance, planned)


def _said(why: str) -> dict[str, Any]:
    return {"who": getpass.getuser(), "why": why, "when_ms": time.time_ns() // 1_000_000}


def step(instance: Instance, operation: Operation) -> None:
    """Write a stage of an operation, and see that it counts.

    Raises: BusyError naming who has another one under way; NotCountedError where this one stands elsewhere by now.
    """
    append_decision(instance.ledger_stream(), operation)
    ledger = instance.ledger()
    if operation in ledger.counted:
        return
    refuse_other(ledger, operation.id)
    known = ledger.operations.get(operation.id)
    raise NotCountedError(
        f"This was written and does not count: it takes {operation.id} from {operation.before or 'nothing'} to "
        f"{operation.state}, and {_standing(known) if known else 'it is not there'}. Look at `millrace log PIPELINE --ledger`."
    )


def refuse_other(ledger: Ledger, own: str | None) -> None:
    """Raises: BusyError naming who has another operation under way, since when and why."""
    other = ledger.operation
    if other is not None and other.id != own:
        raise BusyError(
            f"{_standing(other)}, and a pipeline has one replay at a time. Let it be taken over, or end it with "
            "`millrace replay abort`."
        )


def _standing(operation: Operation) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(operation.when_ms / 1000))
    return f"{operation.id} of {operation.who} is {operation.state} since {when} ({operation.why})"


def moved(operation: Operation, state: Stage, why: str) -> Operation:
    """The operation's next stage."""
    return Operation(
        **_said(why),
        id=operation.id,
        before=operation.state,
        state=state,
        plan_sha256=operation.plan_sha256,
        branch=operation.branch,
    )


def under_way(instance: Instance, *states: Stage) -> Operation:
    """The operation that is. Raises: MillraceError where there is none, or in another stage."""
    found = instance.ledger().operation
    if found is None:
        raise MillraceError("No replay is under way. Make one with `millrace replay plan`, then `millrace replay run`.")
    if found.state not in states:
        way = (
            "Compare it with `millrace replay diff`, then `take-over`."
            if found.state == "done"
            else "`resume` goes on with it."
        )
        raise MillraceError(f"{_standing(found)}. {way}")
    return found


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay came to."""

    branch: str
    version: str | None
    records: int  # read since its start
    learned: int  # rows, in all of its history
    seconds: float
    certificate: str


def run(instance: Instance, name: str, again: Sequence[str]) -> Replayed:
    """Make the branch that a plan says; ``again`` are the words by which a command finds this pipeline.

    Raises: OutdatedError where the plan no longer holds; BusyError where another replay is under way.
    """
    plan_sha256, plan = load_plan(instance, name)
    ledger = instance.ledger()
    refuse_other(ledger, plan.branch)
    operation = ledger.operations.get(plan.branch)
    if operation is None or operation.plan_sha256 != plan_sha256:
        raise MillraceError(f"Plan {plan_sha256[:12]} does not stand in the ledger. Make it again with `millrace replay plan`.")
    if operation.state != "planned":
        raise MillraceError(f"{operation.id} is {operation.state} already. A replay that was stopped goes on with `resume`.")
    check_plan(instance, plan)
    running = moved(operation, "running", operation.why)
    step(instance, running)
    return _replay(instance, running, plan, again)


def resume(instance: Instance, again: Sequence[str]) -> Replayed:
    """Go on where a replay was stopped.

    Raises: MillraceError where none is under way; BusyError where a live process is at it.
    """
    operation = under_way(instance, "running")
    _, plan = load_plan(instance, operation.plan_sha256)
    with instance.hold(plan.branch, take_over=False):  # before it is said that it goes on
        running = moved(operation, "running", operation.why)
        step(instance, running)
    return _replay(instance, running, plan, again)


def _replay(instance: Instance, operation: Operation, plan: Plan, again: Sequence[str]) -> Replayed:
    """Begin the branch, catch up with the log, mark a version, let another process prove it; then it is done."""
    start_s = time.monotonic()
    with instance.hold(plan.branch, take_over=False):
        worker, begun = _caught_up(instance, fork_of(instance, plan))
        verdict = _proved_elsewhere(plan.branch, again)
        step(instance, moved(operation, "done", operation.why))
    return Replayed(
        plan.branch,
        worker.newest_version,
        worker.fold.records - begun,
        worker.fold.counts.learned,
        round(time.monotonic() - start_s, 3),
        verdict,
    )


def _caught_up(instance: Instance, fork: Fork) -> tuple[Worker, int]:
    """A worker of the branch that has read to the log's end and marked a version; and the records of its start."""
    pipeline, recipe = instance.loaded.pipeline, instance.recipe
    use_threads(pipeline.threads)
    doors = instance.doors(fork.branch)
    progress = Progress(doors, fork)
    begin_fork(recipe, doors, fork)
    doors = replace(doors, source=Retraced(doors.source, _path(instance, fork)))
    opening = Opening(fork.branch, this_host(pipeline.threads), emits=False)
    worker = Worker(recipe, doors, pipeline.worker, opening)
    worker.run(progress)
    if progress.stopped:
        raise MillraceError(f"Stopped at seq {worker.seq}; nothing is lost. `millrace replay resume` goes on.")
    return worker, sum(fork.positions.values())


def _path(instance: Instance, fork: Fork) -> list[tuple[str, int, int]]:
    """In which order the version's own branch went on reading."""
    assert fork.parent is not None
    entries = counted(instance.journal(fork.parent.branch), fork.parent.branch, Cursor())
    return path_of(entries, fork.parent.seq)


class Progress:
    """Says on stderr how far a replay is; enough when the log has nothing more, or at the first SIGINT or SIGTERM."""

    def __init__(self, doors: Doors, fork: Fork) -> None:
        self.stopped = False
        self._doors, self._start = doors, sum(fork.positions.values())
        self._begun: tuple[float, int] | None = None  # when, and after how many records
        self._told_s = 0.0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stopped = True

    def __call__(self, worker: Worker) -> bool:
        """Whether it is over."""
        if time.monotonic() - self._told_s >= PROGRESS_S:
            self._told_s = time.monotonic()
            self._tell(worker)
        return self.stopped or worker.caught_up()

    def _tell(self, worker: Worker) -> None:
        ends = sum(high for _, high in self._doors.source.bounds().values())
        at, records = sum(worker.fold.position.values()), worker.fold.records
        began_s, begun = self._begun = self._begun or (time.monotonic(), records)
        rate = (records - begun) / max(time.monotonic() - began_s, 1e-9)
        left = f", {(ends - at) / rate:.0f} s left" if rate else ""
        log.info("%s: %d of %d records%s", worker.branch, at - self._start, ends - self._start, left)


def _proved_elsewhere(branch: str, again: Sequence[str]) -> str:
    """Let `millrace verify` fold the branch again in another process, which writes the certificate.

    Raises: NotProvedError with what it says.
    """
    log.info("%s: another process proves it", branch)
    command = [*COMMAND, "verify", *again, "--branch", branch, "--output", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotProvedError(f"Branch {branch} was replayed and is not proved: {done.stderr.strip()}")
    return "proved in another process"


# Taking over and giving up


@dataclass(frozen=True, slots=True)
class Succession:
    """What taking over would do."""

    operation: Operation
    change: Change  # of the endpoint
    ends: str  # the branch that goes no further; the new one itself where that has been done

    @property
    def rows(self) -> dict[str, Any]:
        """Which branch takes whose place."""
        return {"branch": self.operation.branch, "ends": self.ends}


def plan_take_over(instance: Instance) -> Succession:
    """Raises: MillraceError where no replay is done."""
    operation = under_way(instance, "done")
    _, plan = load_plan(instance, operation.plan_sha256)
    change = Change(instance.ledger().serving.get(ENDPOINT), Target(follow=operation.branch))
    return Succession(operation, change, heir_of(instance, plan.version.rpartition(".")[0]))


def take_over(instance: Instance, succession: Succession, why: str) -> None:
    """Serve the new branch, then end the old one; the trainer goes on with the new one by itself. Done twice, it is done once.

    Raises: NotCountedError where somebody has decided otherwise meanwhile; nothing is ended then.
    """
    branch = succession.operation.branch
    decide(instance, succession.change, why)
    if succession.ends != branch:
        host = this_host(instance.loaded.pipeline.threads)
        end_branch(instance.journal(succession.ends), succession.ends, host, "replay", branch)
    step(instance, moved(succession.operation, "taken-over", why))


def plan_abort(instance: Instance) -> Operation:
    """What would be given up. Raises: MillraceError where nothing is under way, or where the endpoint follows it."""
    operation = under_way(instance, "running", "done")
    if instance.ledger().serving.get(ENDPOINT) == Target(follow=operation.branch):
        raise MillraceError(f"The endpoint follows {operation.branch}. Serve something else first, with `millrace serve`.")
    return operation


def abort(instance: Instance, operation: Operation, why: str) -> None:
    """Give a replay up: its branch ends, and whoever writes it stops."""
    step(instance, moved(operation, "aborted", why))
    if instance.has_branch(operation.branch):
        journal = instance.journal(operation.branch)
        if summarise(journal, operation.branch).fork is not None:
            end_branch(journal, operation.branch, this_host(instance.loaded.pipeline.threads), "aborted", None)
