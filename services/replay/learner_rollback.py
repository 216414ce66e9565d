"""`millrace rollback --learner`: learning itself goes on from an earlier version; nothing between is learned again or lost.

The branch that is live ends, and another goes on in its place: the version's learner on the newest join, positions, clock and
detectors (docs/design/journal.md, rule 9). The steps, each of which is done once however often the command is killed and
given again:

1. ledger: the operation is planned, then running
2. the live branch is opened as its next writer, which stops the live one; its end is marked as a version
3. the state of both together is made and stored, and answers as the version does, to the bit
4. the live branch ends and names the new one; the new one's first entry and mark are written. A trainer waits for that
5. ledger: the endpoint follows the new branch; the operation is done, and has taken over

Before the old branch has ended it can be given up with `millrace replay abort`; afterwards it only goes forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from millrace.learners.errors import MillraceError
from millrace.services.decisions.decide import Change, decide, describe
from millrace.services.decisions.in_force import in_force_words, name_of
from millrace.services.decisions.rollback import learner_version, name_last_good
from millrace.services.errors import BusyError, NotCountedError, NotProvedError, OutdatedError
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import ENDPOINT, Instance
from millrace.services.pipeline.succession import heir_of, live_branch
from millrace.services.replay.left_behind import close_left_behind, left_behind
from millrace.services.replay.operations import advance, describe_operation, new_branch, planned_operation, refuse_other, step
from millrace.services.replay.plan import as_of_parent, changed_state, plans
from millrace.services.training.run import identity_of_worker
from millrace.streams.branch.branch import load_part
from millrace.streams.branch.forks import begin_fork, compose, excluded, rewound_fork
from millrace.streams.branch.host import use_threads
from millrace.streams.branch.learner_rollback import is_learned
from millrace.streams.errors import DamageError, EndedError, ReplacedError
from millrace.streams.journal.entries import Fork, Mark
from millrace.streams.journal.ledger import Ledger, Operation, OperationState, Serve, Target
from millrace.streams.journal.store import read_checkpoint
from millrace.streams.worker.worker import Worker

ROLLBACKS = "rollback"  # the folder of plans
NEXT: dict[OperationState, OperationState] = {"running": "done", "done": "taken-over"}


class LearnerPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which learner is to go on where."""

    branch: str  # to be made
    version: str  # whose learner
    state_sha256: str
    ends: str  # the branch in whose place


@dataclass(frozen=True, slots=True)
class Rewinding:
    """A rollback of the learner: what would be done, or what has been begun."""

    plan: LearnerPlan
    operation: Operation | None  # None: not begun
    change: Change  # of the endpoint
    rows: dict[str, Any]  # to show
    ledger: Ledger  # by which all of this was found


def plan_learner(instance: Instance, version: str | None, seen: str | None = None) -> Rewinding:
    """To ``version``, else to the one that is served, else to the last good one; or what is under way, gone on with.

    ``seen``: what the operator knows to be in force, else what was in force when it was begun.
    Raises: BusyError where another operation is; MillraceError where there is no such version or it has read further than the
    branch; ConfigError where its state is no longer this pipeline's; NotProvedError where it differs from its log.
    """
    instance.refuse_shards("A rollback of the learner")
    use_threads(instance.loaded.pipeline.threads)
    archive, ledger = Archive(instance), instance.ledger()
    operation = ledger.operation
    if operation is not None and is_rollback(instance, operation):
        plan = _load(instance, operation)
        if version not in (None, plan.version):
            raise BusyError(f"{operation.id} is under way, to {plan.version}. Go on with it, or end it with `replay abort`.")
    else:
        refuse_other(ledger, None)
        operation, plan = None, _new_plan(archive, ledger, version)
    before, to = ledger.serving.get(ENDPOINT), Target(follow=plan.branch)
    if operation is not None and seen is None and before != to:
        before = _served_when_planned(ledger, operation)
    return Rewinding(plan, operation, Change(before, to), _rows(archive, plan), ledger)


def _served_when_planned(ledger: Ledger, operation: Operation) -> Target | None:
    """What was in force when an operation was begun."""
    served: Target | None = None
    for decision in ledger.counted:
        if isinstance(decision, Operation) and decision.id == operation.id:
            break
        if isinstance(decision, Serve) and decision.endpoint == ENDPOINT:
            served = decision.to
    return served


def _refuse_decided(instance: Instance, change: Change, outcome: str) -> None:
    """Raises: NotCountedError where somebody has decided otherwise since a rollback was begun."""
    ledger = instance.ledger()
    if (current := ledger.serving.get(ENDPOINT)) not in (change.before, change.to):
        raise NotCountedError(
            f"Another decision was made since this rollback was begun: {in_force_words(ledger)}. {outcome} To go on, say that "
            f"you have seen it: the same command with --while {name_of(current)}."
        )


def is_rollback(instance: Instance, operation: Operation) -> bool:
    """Whether an operation is a rollback of the learner, and no replay."""
    return (plans(instance).root / ROLLBACKS / operation.plan_sha256).exists()


def _load(instance: Instance, operation: Operation) -> LearnerPlan:
    try:
        return msgspec.json.decode(plans(instance).get(ROLLBACKS, operation.plan_sha256), type=LearnerPlan)
    except msgspec.DecodeError as error:
        raise DamageError(f"A rollback was begun by another release ({error}). Use that one to end it.") from error


def _new_plan(archive: Archive, ledger: Ledger, version: str | None) -> LearnerPlan:
    mark = archive.mark(learner_version(archive, ledger, version))
    name = str(mark.version)
    certificate = ledger.certificates.get(name)
    if certificate is not None and not certificate.holds:
        raise NotProvedError(f"Version {name} {certificate.verdict}, says its certificate. Nothing goes on from it.")
    changed_state(archive, mark)
    ends = live_branch(archive, ledger) or heir_of(archive, mark.branch)
    position = archive.so_far(ends).position
    ahead = [tp for tp, at in _position(archive, mark).items() if at > position.get(tp, 0)]
    if ahead:
        raise MillraceError(f"Version {name} has read further in {', '.join(ahead)} than branch {ends}. Serve it instead.")
    return LearnerPlan(new_branch(archive.instance.branches(), ledger, "rollback"), name, mark.state_sha256, ends)


def _position(archive: Archive, mark: Mark) -> dict[str, int]:
    position: dict[str, int] = load_part(archive.instance.store(), mark, "counts")["position"]
    return position


def _rows(archive: Archive, plan: LearnerPlan) -> dict[str, Any]:
    """What it comes to as the branch stands now."""
    version = _position(archive, archive.mark(plan.version))
    position = archive.so_far(plan.ends).position
    between = sum(at - version.get(tp, 0) for tp, at in position.items())
    return {"branch": plan.branch, "learner": plan.version, "ends": plan.ends, "not_relearned": between}


def roll_back(instance: Instance, rewinding: Rewinding, reason: str) -> str:
    """Do it, or go on with it; the version that has what the ended branch knew.

    Raises: OutdatedError where the version has another state now; NotCountedError where somebody has decided otherwise
    meanwhile; ReplacedError where another process has taken the branch. Given again, the command goes on.
    """
    plan, operation = rewinding.plan, rewinding.operation or _begun(instance, rewinding.plan, reason)
    archive = Archive(instance)
    mark = archive.mark(plan.version)
    if mark.state_sha256 != plan.state_sha256:
        raise OutdatedError(f"Version {plan.version} is not the one that was planned with. Restore the journal from a copy.")
    with instance.hold(plan.ends, take_over=True):
        try:
            newest = _ended(archive, plan, rewinding.change, mark)
        except EndedError:
            raise
        except ReplacedError as error:
            message = f"Another process took branch {plan.ends} meanwhile. Give the same command again; it goes on."
            raise ReplacedError(message) from error
        begin_fork(instance.fold_spec, instance.backends(plan.branch), _fork(archive, plan, newest, mark), mark.branch)
    alarms = left_behind(instance, plan.ends, plan.version)
    _refuse_decided(instance, rewinding.change, f"Branch {plan.branch} is there, and the endpoint does not follow it.")
    decide(instance, rewinding.change, reason)
    close_left_behind(instance, alarms, plan.branch, reason, "rollback")
    name_last_good(instance)
    while (state := NEXT.get(operation.state)) is not None:
        operation = advance(instance, operation, state, reason)
    return str(newest.version)


def _begun(instance: Instance, plan: LearnerPlan, reason: str) -> Operation:
    sha256 = plans(instance).put(ROLLBACKS, msgspec.json.encode(plan))
    planned = planned_operation(plan.branch, sha256, plan.version, reason)
    step(instance, planned)
    try:
        return advance(instance, planned, "running", reason)
    except BusyError as error:  # another was faster
        advance(instance, planned, "aborted", str(error))
        raise


def _fork(archive: Archive, plan: LearnerPlan, newest: Mark, version: Mark) -> Fork:
    backends = archive.instance.backends(plan.ends)  # with all the topics that it has read
    exclude = excluded(backends.store, archive.summary(plan.ends))
    return as_of_parent(archive, rewound_fork(archive.instance.fold_spec, backends, plan.branch, newest, version, exclude))


def _ended(archive: Archive, plan: LearnerPlan, change: Change, version: Mark) -> Mark:
    """The last version of the branch that ends: of its very end, after which nothing counts."""
    instance, summary = archive.instance, archive.summary(plan.ends)
    if summary.end.ended is None:
        worker = Worker(
            instance.fold_spec,
            instance.backends(plan.ends),
            instance.loaded.pipeline.worker,
            identity_of_worker(instance, plan.ends),
        )
        worker.apply_ledger()  # what was decided for this branch holds for the one in its place
        worker.close()
        _gate(archive, plan, archive.mark(str(worker.newest_version)), version)
        _refuse_decided(instance, change, "Nothing ended.")
        worker.end("rollback", plan.branch)
        summary = archive.summary(plan.ends)
    if summary.end.ended is None or summary.end.ended.successor != plan.branch:
        raise MillraceError(
            f"Branch {plan.ends} has ended otherwise. Give this up with `millrace replay abort`, then roll back."
        )
    return next(mark for mark in reversed(summary.marks) if mark.version is not None)


def _gate(archive: Archive, plan: LearnerPlan, newest: Mark, version: Mark) -> None:
    """Make the new branch's start, and see that it answers as the version does.

    Raises: NotProvedError where it does not; NotCountedError where the operation has been given up meanwhile.
    """
    instance, store = archive.instance, archive.instance.store()
    checkpoint, _ = compose(instance.fold_spec, store, _fork(archive, plan, newest, version), version.branch)
    made_parts = read_checkpoint(store, plan.branch, checkpoint).parts
    version_parts = read_checkpoint(store, version.branch, str(version.checkpoint)).parts
    operation = instance.ledger().operations[plan.branch]
    if operation.state != "running":
        raise NotCountedError(f"{describe_operation(operation)} meanwhile. Nothing ended.")
    if differs := [
        name
        for name in version_parts
        if (is_learned(name) or name == "serve") and made_parts[name].sha256 != version_parts[name].sha256
    ]:
        raise NotProvedError(f"What would go on is not as version {plan.version}, in {', '.join(differs)}. Nothing ended.")


def endpoint_words(rewinding: Rewinding) -> dict[str, Any]:
    """What the endpoint goes from and to."""
    return {"from": describe(rewinding.change.before), "to": describe(rewinding.change.to)}
