"""How a worker waits for more: the longer nothing came, and at once again when something does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from branches import HOST, SMALL, Rooms, SteppedClock, fold_spec, make_events

from millrace.streams.records import Event, Read
from millrace.streams.source import ListSource
from millrace.streams.worker.worker import LONGEST_S, PAUSE_S, QUIET_SHARE, Worker, WorkerIdentity

EVENTS = make_events(10)
SILENT = 150  # looks in a row that find nothing


class Waited(SteppedClock):
    """A clock that remembers for how long it was waited."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []
        self.since_ms: list[int] = []  # when each of them began

    def sleep(self, seconds: float) -> None:
        """Remember it, and go on by that much."""
        self.pauses.append(seconds)
        self.since_ms.append(self.ms)
        super().sleep(seconds)


class Halting(ListSource):
    """Gives half of its events, then nothing for so many looks, then the rest."""

    def __init__(self, events: Sequence[Event]) -> None:
        super().__init__(events, read_rows=len(events) // 2)
        self._silent = iter(range(SILENT))
        self._gave = False

    def next_batch(self, limit: int) -> list[Read]:
        """Half of them, where it is not silent."""
        if self._gave and next(self._silent, None) is not None:
            return []
        self._gave = True
        return super().next_batch(limit)


class Woken(Halting):
    """Knows by itself when there is more."""

    def __init__(self, events: Sequence[Event]) -> None:
        super().__init__(events)
        self.waits: list[float] = []

    def wait(self, seconds: float) -> None:
        """Remember it."""
        self.waits.append(seconds)


def worker_on(source: ListSource, clock: SteppedClock) -> Worker:
    """A worker of a new branch, that learns each row at once: no batch is left to be released in the silence."""
    backends = replace(Rooms([]).backends(), source=source)
    return Worker(fold_spec(batch_rows=1), backends, SMALL, WorkerIdentity("main", HOST, clock))


def test_pauses_grow_while_nothing_comes_and_begin_anew_when_something_does() -> None:
    """From the first to the longest, never past a tenth of the silence; so looks at ledgers are never further apart either."""
    clock, turns = Waited(), list[int]()
    worker = worker_on(Halting(EVENTS), clock)

    def is_over(_: Worker) -> bool:
        turns.append(clock.ms)
        return len(clock.pauses) == SILENT + 10

    worker.run(is_over)
    silence, after = clock.pauses[:SILENT], clock.pauses[SILENT:]
    assert silence[0] == PAUSE_S and silence == sorted(silence) and silence[-1] == LONGEST_S
    quiet_s = [(ms - clock.since_ms[0]) / 1000 for ms in clock.since_ms[:SILENT]]
    assert silence == pytest.approx([min(LONGEST_S, max(PAUSE_S, QUIET_SHARE * quiet)) for quiet in quiet_s])
    assert worker.fold.records == len(EVENTS) and after[0] == PAUSE_S
    assert max(later - earlier for earlier, later in pairwise(turns)) == 1000 * LONGEST_S


def test_a_source_that_is_woken_is_waited_for_and_nobody_sleeps() -> None:
    """As on Kafka, where a fetch waits at the brokers."""
    clock, source = Waited(), Woken(EVENTS)
    worker = worker_on(source, clock)
    worker.run(lambda _: len(source.waits) > SILENT)
    assert worker.fold.records == len(EVENTS) and not clock.pauses
    assert set(source.waits) == {PAUSE_S}  # this clock stands, so nothing was quiet for long
