"""Rows that a learner has just answered, so that it need not look at them again to learn them.

Test, then train: the rows that are learned are nearly always those that were answered before, the very same array. They were
found finite then, and seen from the same centre. An array that may be written to is never taken for the same.
"""

from __future__ import annotations

from weakref import ref

from millrace.learners.protocol import Array, Floats

KEPT_BYTES = 1 << 22  # of what is kept at a time; above it, working it out again costs little beside the rest


class Answered:
    """The newest rows that were answered, as they were seen; the rows themselves are kept by nobody."""

    def __init__(self) -> None:
        self._rows: ref[Array] | None = None
        self._seen: tuple[Floats | None, Floats] | None = None  # from which centre, and how

    def note(self, x: Array, centre: Floats | None, seen: Floats) -> None:
        """Rows x (n, d) were found fit, and seen from ``centre`` (d_phi,), None being 0, they are ``seen`` (n, d_phi)."""
        fixed = not x.flags.writeable
        self._rows = ref(x) if fixed else None
        self._seen = (centre, seen) if fixed and seen.nbytes <= KEPT_BYTES else None

    def has(self, x: Array) -> bool:
        """Whether the newest rows are x itself, so that they are known to be fit."""
        return self._rows is not None and self._rows() is x

    def take(self, x: Array, centre: Floats | None) -> Floats | None:
        """The newest rows as seen from ``centre``, where they are x itself and were seen from there; given once."""
        noted, self._seen = self._seen, None
        return noted[1] if noted is not None and self.has(x) and _same(noted[0], centre) else None


def _same(ours: Floats | None, theirs: Floats | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return ours.tobytes() == theirs.tobytes()
