"""Which branch goes on in the place of one that has ended."""

from __future__ import annotations

from millrace.services.pipeline.archive import Archive


def heir_of(archive: Archive, branch: str) -> str:
    """The branch that goes on in a branch's place; itself until it has ended and that one has begun."""
    while (heir := successor_of(archive, branch)) is not None and archive.so_far(heir).fork is not None:
        branch = heir
    return branch


def successor_of(archive: Archive, branch: str) -> str | None:
    """The branch that a branch which has ended names."""
    ended_by = archive.so_far(branch).end.ended
    return None if ended_by is None else ended_by.successor
