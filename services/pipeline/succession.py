"""Which branch goes on in the place of one that has ended; and which one is live."""

from __future__ import annotations

from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import ENDPOINT
from millrace.streams.journal.ledger import Ledger, Target


def heir_of(archive: Archive, branch: str) -> str:
    """The branch that goes on in a branch's place; itself until it has ended and that one has begun."""
    while (heir := successor_of(archive, branch)) is not None and archive.so_far(heir).fork is not None:
        branch = heir
    return branch


def successor_of(archive: Archive, branch: str) -> str | None:
    """The branch that a branch which has ended names."""
    ended_by = archive.so_far(branch).end.ended
    return None if ended_by is None else ended_by.successor


def branch_of(target: Target) -> str:
    """The branch that is followed, or whose version is served."""
    return target.follow or str(target.version).rpartition(".")[0]


def live_branch(archive: Archive, ledger: Ledger) -> str | None:
    """The branch that the endpoint answers from, or the one that goes on in its place; None: nothing was ever served."""
    target = ledger.serving.get(ENDPOINT)
    return None if target is None else heir_of(archive, branch_of(target))
