"""`millrace replay include`: what a branch has left out until now is read from its next step on.

The decision is an entry of the ledger, where a branch's writer looks twice a second. The writer journals an ``act``, after
which the exclusion is no longer in force (docs/design/journal.md, rule 9). Where no writer is live, the next one does it
before its first step. Records that were left out before stay so; a replay with `--include` learns them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from millrace.learners.errors import BadInputError, MillraceError
from millrace.services.decisions.exclusions import without_times
from millrace.services.errors import NotCountedError
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import Instance
from millrace.services.pipeline.succession import live_branch
from millrace.services.user import user_name
from millrace.streams.journal.exclusions import describe
from millrace.streams.journal.ledger import Include, append_decision


@dataclass(frozen=True, slots=True)
class Inclusion:
    """An exclusion of a branch that is to end."""

    branch: str
    place: int  # in the list of the branch's fork
    said: str  # the exclusion in words


def plan_include(instance: Instance, exclusion_text: str, branch: str | None) -> Inclusion:
    """The exclusion of ``exclusion_text``, as `millrace status` shows it; of the live branch unless ``branch`` is another.

    Raises: BadInputError naming those that are in force, where it is none of them.
    """
    archive, ledger = Archive(instance), instance.ledger()
    name = branch or live_branch(archive, ledger)
    if name is None:
        raise MillraceError("No branch is live yet, so nothing is left out.")
    summary = archive.summary(name)
    summary.end.refuse_ended()
    decided = {place for excluded_branch, place in ledger.included if excluded_branch == name}
    not_included = {
        describe(exclusion): place
        for place, exclusion in enumerate(summary.fork.exclude if summary.fork else [])
        if place not in decided
    }
    exclusion_text = without_times(exclusion_text)
    if exclusion_text not in not_included:
        listed = "; ".join(repr(text) for text in not_included) or "nothing"
        raise BadInputError(f"Branch {name} does not leave out {exclusion_text!r}. It leaves out: {listed}.")
    return Inclusion(name, not_included[exclusion_text], exclusion_text)


def include(instance: Instance, inclusion: Inclusion, reason: str) -> None:
    """Decide it. Raises: NotCountedError where another was faster."""
    when_ms = time.time_ns() // 1_000_000
    decision = Include(who=user_name(), why=reason, when_ms=when_ms, branch=inclusion.branch, exclusion=inclusion.place)
    append_decision(instance.ledger_stream(), decision)
    if decision not in instance.ledger().counted:
        raise NotCountedError(f"Branch {inclusion.branch} does not leave out {inclusion.said!r} any more: another was faster.")
