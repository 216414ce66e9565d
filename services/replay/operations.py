"""One operation at a time makes a branch of a pipeline; each stage of it is an entry of the ledger, with who and why."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from millrace.services.errors import BusyError, NotCountedError
from millrace.services.pipeline.instance import Instance
from millrace.services.user import user_name
from millrace.streams.journal.ledger import Ledger, Operation, OperationState, append_decision


def planned_operation(branch: str, plan_sha256: str, version: str | None, reason: str) -> Operation:
    """The first stage of an operation that is to make ``branch`` from ``version``, which is kept until it does."""
    return Operation(
        **_signed(reason), id=branch, before=None, state="planned", plan_sha256=plan_sha256, branch=branch, version=version
    )


def new_branch(branches: Iterable[str], ledger: Ledger, kind: str) -> str:
    """A name that none of the branches and no operation has."""
    used_names = {*branches, *(operation.branch for operation in ledger.operations.values())}
    return next(name for number in range(1, len(used_names) + 2) if (name := f"{kind}-{number}") not in used_names)


def _signed(reason: str) -> dict[str, Any]:
    return {"who": user_name(), "why": reason, "when_ms": time.time_ns() // 1_000_000}


def step(instance: Instance, operation: Operation) -> None:
    """Write a stage of an operation, and see that it counts.

    Raises: BusyError naming who has another one under way; NotCountedError where this one stands elsewhere by now.
    """
    append_decision(instance.ledger_stream(), operation)
    ledger = instance.ledger()
    if operation in ledger.counted:
        return
    refuse_other(ledger, operation.id)
    current = ledger.operations.get(operation.id)
    raise NotCountedError(
        f"This was written and does not count: it takes {operation.id} from {operation.before or 'nothing'} to "
        f"{operation.state}, and {describe_operation(current) if current else 'it is not there'}. "
        "Look at `millrace log PIPELINE --ledger`."
    )


def refuse_other(ledger: Ledger, own_id: str | None) -> None:
    """Raises: BusyError naming who has another operation under way, since when and why."""
    current = ledger.operation
    if current is not None and current.id != own_id:
        raise BusyError(
            f"{describe_operation(current)}, and a pipeline has one replay at a time. Let it be taken over, or end it with "
            "`millrace replay abort`."
        )


def describe_operation(operation: Operation) -> str:
    """Where an operation stands, in words."""
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(operation.when_ms / 1000))
    return f"{operation.id} of {operation.who} is {operation.state} since {began} ({operation.why})"


def advance(instance: Instance, operation: Operation, state: OperationState, reason: str) -> Operation:
    """Let an operation take its next stage, and see that it counts. Raises: as ``step``."""
    moved = Operation(
        **_signed(reason),
        id=operation.id,
        before=operation.state,
        state=state,
        plan_sha256=operation.plan_sha256,
        branch=operation.branch,
    )
    step(instance, moved)
    return moved
