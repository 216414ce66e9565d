"""Which branch goes on in the place of one that has ended."""

from __future__ import annotations

from millrace.services.pipeline.instance import Instance
from millrace.streams.journal.journal import Cursor, counted, summarise


def heir_of(instance: Instance, branch: str) -> str:
    """The branch that goes on in a branch's place; itself where it has not ended, or where that one has not begun yet."""
    while (heir := successor_of(instance, branch)) is not None and _begun(instance, heir):
        branch = heir
    return branch


def successor_of(instance: Instance, branch: str) -> str | None:
    """The branch that a branch which has ended names."""
    if not instance.has_branch(branch):
        return None
    ended = summarise(instance.journal(branch), branch).end.ended
    return None if ended is None else ended.successor


def _begun(instance: Instance, branch: str) -> bool:
    there = instance.has_branch(branch)
    return there and next(iter(counted(instance.journal(branch), branch, Cursor())), None) is not None
