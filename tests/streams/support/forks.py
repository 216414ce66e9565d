"""A log with a poisoner in it, a branch that learned it all, and a fork of that branch which leaves the poison out."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from branches import HOST, SMALL, Rooms, SteppedClock, fold_spec, make_events, mark_at_once, run_to_end
from late_labels import RULES, late_fold_spec, make_late_events

from millrace.learners.protocol import Value
from millrace.streams.branch.branch import Backends, FoldSpec
from millrace.streams.branch.forks import begin_fork, replay_fork
from millrace.streams.journal.entries import Fork
from millrace.streams.journal.exclusions import Header
from millrace.streams.journal.journal import summarise
from millrace.streams.records import Event, encode_headers
from millrace.streams.source import ListSource
from millrace.streams.stream import ListStream
from millrace.streams.worker.worker import Worker, WorkerIdentity

POISON = encode_headers((("producer", b"till-7"),))
OTHERS = encode_headers((("producer", b"till-1"),))
TILL_7 = Header("producer", "till-7")
ROWS = 80
FROM = 30  # the poisoner begins here
NO_DEFAULT = replace(RULES, default=None, memory_rows=1000)


def poisoned(events: Sequence[Event], seed: int = 0, start: int = FROM, share: float = 0.4) -> list[Event]:
    """The same records, some of those from ``start`` on by the poisoner, a few of these far in the future."""
    chance, out = random.Random(seed), []
    for at, event in enumerate(events):
        bad = at >= start and chance.random() < share
        ahead = 2000 if bad and chance.random() < 0.2 else 0
        out.append(Event(event.offset, event.timestamp_ms + ahead, event.key, POISON if bad else OTHERS, event.value))
    return out


def without_poison(events: Sequence[Event]) -> list[Event]:
    """A log that the poisoner never reached."""
    return [event for event in events if event.headers != POISON]


@dataclass
class Forked:
    """What outlives a process: the parent's rooms, and the journal of the fork."""

    parent: Rooms
    how: FoldSpec
    journal: ListStream = field(default_factory=ListStream)
    kind: type[Worker] = Worker

    def backends(self) -> Backends:
        """Of the fork, for a new process."""
        source = ListSource(self.parent.items, read_rows=self.parent.read_rows)
        return Backends(source, self.parent.producer, self.journal, self.parent.store)

    def fork(self) -> Fork:
        """From the newest version that had seen none of it."""
        marks = summarise(self.parent.journal, "main").marks
        version = [mark for mark in marks if mark.version][0]
        return replay_fork(self.how, self.backends(), "mended", version, [TILL_7])

    def worker(self) -> Worker:
        """A new process: it begins the fork if that has not been done, and opens it."""
        begin_fork(self.how, self.backends(), self.fork())
        return self.kind(self.how, self.backends(), SMALL, WorkerIdentity("mended", HOST, SteppedClock(), emits=False))


def forked(late: bool = False, seed: int = 0, read_rows: int = 5) -> Forked:
    """A branch ``main`` that learned everything, and what its fork needs."""
    how = late_fold_spec(rules=NO_DEFAULT) if late else fold_spec()
    rooms = Rooms(poisoned(make_late_events(ROWS, seed) if late else make_events(ROWS, seed), seed), read_rows=read_rows)
    run_to_end(rooms.worker(how=how), rooms.items[-1].offset + 1)
    return Forked(rooms, how)


def never_poisoned(forked_rooms: Forked, read_rows: int = 7) -> Worker:
    """A worker whose log the poisoner never reached, at its end."""
    events = without_poison(forked_rooms.parent.items)
    worker = Rooms(events, read_rows=read_rows).worker(how=forked_rooms.how)
    run_to_end(worker, events[-1].offset + 1)
    return worker


def finish(worker: Worker, end: int) -> Worker:
    """Step to the log's end."""
    run_to_end(worker, end)
    return worker


def phases_to(worker: Worker, end: int) -> Iterator[str]:
    """The phases of every step to the log's end, and each mark as one more."""
    while sum(worker.fold.position.values()) < end:
        yield from worker.step()
        mark_at_once(worker)
        yield "marked"


def truth(worker: Worker) -> dict[str, Value]:
    """What the learner knows, with the rows that wait for their batch learned."""
    copy = worker.fold
    for batch in copy.batches.release(1 << 60):
        copy.learner.learn_many(copy.features.learn(batch))
    copy.learner.solve_now()
    return copy.learner.state_dict().truth | {"weights": copy.learner.servable().weights}
