"""Records that a replay is to leave out, and that the version it begins with has read: what they taught stays in it."""

from __future__ import annotations

from collections.abc import Sequence

from millrace.streams.journal.entries import Fork
from millrace.streams.journal.exclusions import Exclusion, OffsetRange, left_out
from millrace.streams.source import Source

READ_ROWS = 4096  # at a time


def read_before(source: Source, fork: Fork, exclude: Sequence[Exclusion]) -> int:
    """How many of the records that the log still has before the fork's positions any of ``exclude`` names."""
    if fork.parent is None or not exclude:
        return 0
    bounds, count = source.bounds(), 0
    for tp, end in fork.positions.items():
        begin, stop = _span(exclude, tp, bounds[tp][0], end)
        for first in range(begin, stop, READ_ROWS):
            events = source.read(tp, first, min(first + READ_ROWS, stop)).events
            count += sum(left_out(exclude, event, tp) for event in events)
    return count


def _span(exclude: Sequence[Exclusion], tp: str, low: int, end: int) -> tuple[int, int]:
    """The offsets of a partition that need be looked at: those of the ranges, where there is nothing but ranges."""
    ranges = [exclusion for exclusion in exclude if isinstance(exclusion, OffsetRange)]
    if len(ranges) < len(exclude):
        return low, end
    here = [span for span in ranges if span.tp == tp]
    return max(low, min((span.start for span in here), default=end)), min(end, max((span.stop for span in here), default=low))
