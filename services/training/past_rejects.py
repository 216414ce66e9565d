"""`millrace run --past-rejects`: an operator lets a branch go past the records that it refuses, and the ledger keeps why."""

from __future__ import annotations

import time

from millrace.learners.errors import BadInputError
from millrace.services.pipeline.instance import Instance
from millrace.services.user import user_name
from millrace.streams.journal.ledger import PastRejects, append_decision
from millrace.streams.sharding import merging_branch


def let_past(instance: Instance, branch: str, reason: str) -> None:
    """Up to the log's present end, refused records do not stop the branch; they are dead letters all the same.

    Raises: BadInputError without a reason; StorageError where log or ledger cannot be reached.
    """
    if not reason.strip():
        raise BadInputError("past_rejects: say why in a few words; the ledger keeps it.")
    decision = PastRejects(
        who=user_name(),
        why=reason,
        when_ms=time.time_ns() // 1_000_000,
        branch=merging_branch(branch),
        until={tp: high for tp, (_, high) in instance.backends(branch).source.bounds().items()},
    )
    append_decision(instance.ledger_stream(), decision)
