"""What exclusions name: how many records before the fork's positions, and whether each names any at all.

What a version has read of what is to be left out stays in it. An exclusion that names nothing would leave out nothing, and
is a typing error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from millrace.learners.errors import BadInputError
from millrace.services.moments import moment
from millrace.streams.journal.entries import Fork
from millrace.streams.journal.exclusions import Exclusion, Header, Key, OffsetRange, Time, describe, left_out
from millrace.streams.records import Event, decode_headers
from millrace.streams.source import Source

READ_ROWS = 4096  # at a time
NEAREST = 3  # values that are named where one names nothing
MOST_VALUES = 10_000  # of headers that are looked at for that


class Named:
    """Which of some exclusions have named a record."""

    def __init__(self, exclude: Sequence[Exclusion]) -> None:
        """None has yet."""
        self.exclude = tuple(exclude)
        self.idle = list(exclude)  # those that have named none

    def look(self, events: Sequence[Event], tp: str) -> None:
        """Note those that name one of these records."""
        self.idle = [exclusion for exclusion in self.idle if not any(exclusion.names(event, tp) for event in events)]


def read_before(source: Source, fork: Fork, exclude: Sequence[Exclusion]) -> dict[str, int]:
    """How many of the records that the log still has before the fork's positions any of ``exclude`` names, by topic."""
    if fork.parent is None or not exclude:
        return {}
    before = _before(source, fork, exclude)
    return dict(Counter(tp.rpartition(":")[0] for tp, event in before if left_out(exclude, event, tp)))


def refuse_idle(source: Source, fork: Fork, named: Named) -> None:
    """Raises: BadInputError for an exclusion that names no record of the log, with the nearest values that there are.

    ``named`` has looked at what follows the fork's positions; what is before them is looked at here.
    """
    if named.idle:
        for tp, event in _before(source, fork, named.idle):
            named.look([event], tp)
    if named.idle:
        exclusion = named.idle[0]
        raise BadInputError(
            f"No record of the log is named by {describe(exclusion)}, so it would leave out nothing. "
            + _instead(source, exclusion)
        )


def _instead(source: Source, exclusion: Exclusion) -> str:
    """What the log has in its place."""
    bounds = source.bounds()
    if isinstance(exclusion, OffsetRange):
        low, high = bounds[exclusion.tp]
        return f"{exclusion.tp} has offsets {low} to {high - 1}." if high > low else f"{exclusion.tp} is empty."
    events = (event for tp, (low, high) in bounds.items() for event in _events(source, tp, low, high))
    if isinstance(exclusion, Time):
        times = [event.timestamp_ms for event in events]
        asked = f"Asked for: {moment(exclusion.start_ms)} until {moment(exclusion.stop_ms)}."
        return f"{asked} Records are of {moment(min(times))} to {moment(max(times))}." if times else "The log is empty."
    if isinstance(exclusion, Key):
        return f"Of {sum(event.key is not None for event in events)} records with a key none has this one, known by its hash."
    return _nearest_headers(exclusion, events)


def _nearest_headers(exclusion: Header, events: Iterator[Event]) -> str:
    """The nearest values of the same header; or the nearest headers, where no record has such a one."""
    counts = Counter[tuple[str, str]]()
    for event in events:
        if len(counts) < MOST_VALUES:
            counts.update(_texts(event.headers))
    values = [value for name, value in counts if name == exclusion.name]
    if values:
        near = get_close_matches(exclusion.value, values, NEAREST, 0.5) or values[:NEAREST]
        pairs = [(exclusion.name, value) for value in near]
    else:
        names = [name for name, _ in counts]
        same = [pair for pair in counts if pair[1] == exclusion.value]
        near = get_close_matches(exclusion.name, names, NEAREST, 0.5)
        pairs = (same + [pair for pair in counts if pair[0] in near] or list(counts))[:NEAREST]
    found = ", ".join(f"{name}={value} ({counts[name, value]} records)" for name, value in pairs)
    return f"The nearest there are: {found}." if found else "No record has a header."


def _texts(raw: bytes) -> list[tuple[str, str]]:
    """Headers that are text."""
    try:
        return [(name, value.decode()) for name, value in decode_headers(raw)] if raw else []
    except (UnicodeDecodeError, ValueError):  # another program's headers need not be text
        return []


def _events(source: Source, tp: str, begin: int, stop: int) -> Iterator[Event]:
    for first in range(begin, stop, READ_ROWS):
        yield from source.read(tp, first, min(first + READ_ROWS, stop)).events


def _before(source: Source, fork: Fork, exclude: Sequence[Exclusion]) -> Iterator[tuple[str, Event]]:
    bounds = source.bounds()
    for tp, end in fork.positions.items():
        begin, stop = _span(exclude, tp, bounds[tp][0], end)
        yield from ((tp, event) for event in _events(source, tp, begin, stop))


def _span(exclude: Sequence[Exclusion], tp: str, low: int, end: int) -> tuple[int, int]:
    """The offsets of a partition that need be looked at: those of the ranges, where there is nothing but ranges."""
    ranges = [exclusion for exclusion in exclude if isinstance(exclusion, OffsetRange)]
    if len(ranges) < len(exclude):
        return low, end
    here = [span for span in ranges if span.tp == tp]
    return max(low, min((span.start for span in here), default=end)), min(end, max((span.stop for span in here), default=low))
