"""Rows that a learner has just answered, so that what it worked out for that need not be worked out again to learn them.

Test, then train: the rows that are learned are nearly always those that were answered before, the very same array, and seen
from the same centre. An array that may be written to is never taken for the same.
"""

from __future__ import annotations

from weakref import ref

from millrace.learners.protocol import Array, Floats

KEPT_BYTES = 1 << 22  # of what is kept at a time; above it, working it out again costs little beside the rest


class Answered:
    """The newest rows that were answered, as they were seen, until they are taken; the rows themselves are kept by nobody."""

    def __init__(self) -> None:
        self._newest: tuple[ref[Array], Floats | None, Floats] | None = None  # rows, from which centre, and how

    def note(self, x: Array, centre: Floats | None, seen: Floats) -> None:
        """Rows x (n, d) are ``seen`` (n, d_phi) from ``centre`` (d_phi,), None being 0."""
        fits = seen.nbytes <= KEPT_BYTES and not x.flags.writeable
        self._newest = (ref(x), centre, seen) if fits else None

    def take(self, x: Array, centre: Floats | None) -> Floats | None:
        """The newest rows as seen from ``centre``, where they are x itself and were seen from there; given once."""
        noted, self._newest = self._newest, None
        return noted[2] if noted is not None and noted[0]() is x and _same(noted[1], centre) else None


def _same(ours: Floats | None, theirs: Floats | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return ours.tobytes() == theirs.tobytes()
