"""Runs of a small pipeline that die once and are begun again until they reach the end of their events."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from branches import Rooms, dies, everything, run_to_end

from millrace.streams.branch.branch import FoldSpec
from millrace.streams.records import Event
from millrace.streams.source import Crash, CrashError
from millrace.streams.worker.worker import Worker


@dataclass(frozen=True)
class CrashRuns:
    """Runs over the same events; each leaves what outlived its workers, and the state at the end as ``result``."""

    events: Sequence[Event]
    how: Callable[[], FoldSpec]

    def survive(self, rooms: Rooms, kind: type[Worker] = Worker) -> Worker:
        """Start workers until one reaches the end."""
        while True:
            try:
                worker = rooms.worker(kind, how=self.how())
                run_to_end(worker, len(self.events))
            except CrashError:
                continue
            return worker

    def crash_before(self, event: int, kind: type[Worker] = Worker) -> Rooms:
        """Run to the end, dying once before that event."""
        rooms = Rooms([*self.events[:event], Crash(), *self.events[event:]])
        rooms.result = everything(self.survive(rooms, kind))
        return rooms

    def crash_after_phase(self, count: int, kind: type[Worker] = Worker) -> Rooms:
        """Run to the end, dying once after so many phases of steps (each mark is a phase too), if there are so many."""
        rooms = Rooms(self.events)
        worker, phases, rooms.died = rooms.worker(kind, how=self.how()), itertools.count(1), False
        while not rooms.died and sum(worker.fold.position.values()) < len(self.events):
            rooms.died = dies(worker, phases, count)
        rooms.result = everything(self.survive(rooms, kind))
        return rooms
