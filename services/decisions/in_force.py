"""What is in force for the endpoint, since when and by whom; and whether a command may go by it.

A relative command, such as a `rollback` that names no version, means another thing once somebody else has decided. So it is
refused for a minute after any decision, with that decision; `--while VERSION` says what the operator has seen, and holds
the command to that.
"""

from __future__ import annotations

import time

from millrace.services.errors import NotCountedError
from millrace.services.moments import moment
from millrace.services.pipeline.instance import ENDPOINT
from millrace.streams.journal.ledger import Ledger, Serve, Target, describe_target

MINUTE_MS = 60_000


def last_decision(ledger: Ledger) -> Serve | None:
    """The newest that counts for the endpoint."""
    decisions = reversed(ledger.counted)
    return next((one for one in decisions if isinstance(one, Serve) and one.endpoint == ENDPOINT), None)


def in_force_words(ledger: Ledger) -> str | None:
    """What the endpoint answers from, since when, by whom and why; None: nothing was ever decided."""
    decision = last_decision(ledger)
    return None if decision is None else f"{describe_target(decision.to)}, {_signed(decision)}"


def name_of(target: Target | None) -> str | None:
    """What --while takes: the version, or the branch that is followed."""
    return None if target is None else target.version or target.follow


def means(seen: str | None, target: Target | None) -> bool:
    """Whether a name that --while has is that of what is in force: the version, or the branch that is followed.

    A version or a state of the branch that is followed is none: somebody may have let that be served since it was seen. An
    alias is none either: it may have been moved since, together with what is served.
    """
    return seen is None if target is None else seen in (None, name_of(target))


def refuse_other(ledger: Ledger, seen: str | None, own: Target | None = None) -> None:
    """For a relative command that is to be done. ``seen``: what --while says is in force.

    ``own``: what an operation lets the endpoint answer from. Where it has done so before it was killed, it goes on: what was in
    force before is what was seen.

    Raises: NotCountedError naming the decision where another is in force than was seen, or, with nothing said, where one was
    made within the last minute. The first of a pipeline, which nobody made, is none.
    """
    decision = last_decision(ledger)
    if decision is None:
        return
    current = name_of(decision.to)
    if own is not None and decision.to == own and means(seen, decision.before):
        return
    if not means(seen, decision.to):
        raise NotCountedError(
            f"--while {seen}: in force is {in_force_words(ledger)}. Nothing was changed. What you see is now --while {current}."
        )
    age_ms = time.time_ns() // 1_000_000 - decision.when_ms
    if seen is None and decision.before is not None and age_ms < MINUTE_MS:
        raise NotCountedError(
            f"Another decision was made {max(0, age_ms) / 1000:.0f} s ago: {in_force_words(ledger)}. This command would go on "
            f"from that. Nothing was changed. Name a VERSION, or say that you have seen it: --while {current}."
        )


def _signed(decision: Serve) -> str:
    return f"since {moment(decision.when_ms)} by {decision.who} ({decision.why})"
