"""Seeded schedules of writers with delays, lost acknowledgements, crashes and zombies, and what must hold after each."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from branches import Rooms, fold_spec, make_events, mark_at_once
from late_labels import RULES, late_fold_spec, make_late_events

from millrace.streams.branch.branch import FoldSpec, load_checkpoint, refold, state_hash
from millrace.streams.errors import DamageError, ReplacedError
from millrace.streams.journal.entries import Mark, Open, Step
from millrace.streams.journal.journal import Cursor, counted
from millrace.streams.journal.retention import Retention
from millrace.streams.journal.store import kept_marks
from millrace.streams.parts import pack
from millrace.streams.records import Event, decode_headers
from millrace.streams.stream import UNKNOWN, ListStream, pruned
from millrace.streams.worker.config import WorkerConfig
from millrace.streams.worker.worker import Worker

ROWS = 24
EVENTS = make_events(ROWS, seed=3)
HOW = fold_spec("chain", batch_rows=4)
CONFIG = WorkerConfig(step_rows=3, step_ms=0, checkpoint_rows=7, version_rows=15, keep=2)
PRUNING = replace(CONFIG, version_rows=4, journal_keep_entries=1)
LATE = late_fold_spec("chain", replace(RULES, memory_rows=24, grace_ms=400))
LATE_EVENTS = make_late_events(ROWS, seed=229)
WRITERS = 5
TURNS = 90


class Delayed:
    """A stream on which a value may land late, or land without its writer hearing of it, or never land."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.values: list[bytes] = []  # all that ever landed
        self.flying: list[Flight] = []
        self.deleted = 0
        self.deleting: list[int] = []  # what was asked for and is done later

    def send(self, value: bytes) -> Flight:
        flight = Flight(self, value)
        self.flying.append(flight)
        self.land_some(0.3)
        return flight

    def read(self, start: int):
        self.land_some(0.2)
        if start < self.deleted:
            raise pruned("This stream", start, self.deleted)
        yield from list(enumerate(self.values))[start:]

    def first(self) -> int:
        return self.deleted

    def delete_before(self, offset: int) -> None:
        """Now, or much later, when its writer may have been replaced."""
        self.deleting.append(offset)
        self.land_some(0.3)

    def land_some(self, share: float) -> None:
        """What others have in flight may arrive at any moment, in any order."""
        for flight in self.chance.sample(self.flying, len(self.flying)):
            if self.chance.random() < share:
                flight.land()
        for offset in [due for due in self.deleting if self.chance.random() < share]:
            self.deleting.remove(offset)
            self.deleted = max(self.deleted, min(offset, len(self.values) - 1))


class Flight:
    """A value on its way."""

    def __init__(self, stream: Delayed, value: bytes) -> None:
        self.stream = stream
        self.value = value
        self.at = UNKNOWN

    def land(self) -> None:
        self.stream.flying.remove(self)
        self.at = len(self.stream.values)
        self.stream.values.append(self.value)

    def offset(self) -> int:
        fate = self.stream.chance.random()
        if self.at == UNKNOWN and fate < 0.9:
            self.stream.land_some(0.1)
            if self.at == UNKNOWN:
                self.land()
        elif self.at == UNKNOWN and fate < 0.95:
            self.stream.flying.remove(self)  # lost for good
        return self.at if fate < 0.9 else UNKNOWN  # else it stays in flight, and nobody says so


class Schedule:
    """One seeded run of several writers on one branch, and what must hold after it."""

    def __init__(
        self,
        seed: int,
        kind: type[Worker],
        how: FoldSpec = HOW,
        events: Sequence[Event] = EVENTS,
        config: WorkerConfig = CONFIG,
    ) -> None:
        self.config = config
        self.chance = random.Random(seed)
        self.kind = kind
        self.how = how
        self.ledger = ListStream()
        retention = Retention(self.ledger, 1) if config is PRUNING else None
        self.rooms = Rooms(events, journal=Delayed(self.chance), read_rows=3, retention=retention)
        self.alive: list[tuple[Worker, object]] = []
        self.seen = Counter()

    def run(self) -> None:
        """Let chance decide who goes on, who dies, who starts; then one writer finishes undisturbed."""
        for _ in range(TURNS):
            self._turn()
        self.rooms.journal.land_some(1.0)
        self.rooms.journal.chance = random.Random(0)
        self.rooms.journal.land_some = lambda share: None
        self.rooms.journal.send = lambda value: _landed(self.rooms.journal, value)
        self.last = self.rooms.worker(Worker, self.config, self.how)
        while sum(self.last.fold.position.values()) < ROWS:
            list(self.last.step())
            mark_at_once(self.last)

    def _turn(self) -> None:
        fate = self.chance.random()
        if len(self.alive) < WRITERS and (not self.alive or fate < 0.06):
            self._start()
        elif fate < 0.09:
            self.alive.remove(self.chance.choice(self.alive))
            self.seen["crash"] += 1
        elif self.alive:
            self._go_on(self.chance.choice(self.alive))

    def _start(self) -> None:
        try:
            worker = self.rooms.worker(self.kind, self.config, self.how)
        except ReplacedError:
            self.seen["lost the race to open"] += 1
            return
        self.alive.append((worker, worker.step()))

    def _go_on(self, writer: tuple[Worker, object]) -> None:
        worker, phases = writer
        at = self.alive.index(writer)
        try:
            for _ in range(self.chance.randint(1, 8)):
                if next(phases, None) is None:
                    mark_at_once(worker)
                    phases = worker.step()
                    self.alive[at] = (worker, phases)
        except ReplacedError:
            self.alive.remove(self.alive[at])
            self.seen["fenced off"] += 1

    def broken_promises(self) -> list[str]:
        """What does not hold; nothing, if the fence holds."""
        wrong = []
        entries = list(counted(self.rooms.whole_journal(), "main", Cursor()))
        if list(self.rooms.whole_journal().read(0)) != list(enumerate(self.rooms.journal.values)):
            wrong.append("segments and journal are not what was appended")
        self.seen["deleted entries"] += self.rooms.journal.deleted
        steps = {entry.seq: entry for entry in entries if isinstance(entry, Step)}
        self.seen["epochs"] += sum(isinstance(entry, Open) for entry in entries)
        self.seen["dead entries"] += len(self.rooms.journal.values) - len(entries)
        let_out: dict[int, bytes] = {}
        for record in self.rooms.producer.records.get("small.scores", []):
            output = json.loads(record.value)
            self.seen["released"] += 1
            step = steps.get(output["seq"])
            if step is None or (step.epoch, [list(r[:3]) for r in step.reads]) != (output["epoch"], output["reads"]):
                wrong.append(f"seq {output['seq']} of epoch {output['epoch']} was let out and does not count")
            elif let_out.setdefault(output["seq"], record.value) != record.value:
                wrong.append(f"seq {output['seq']} was let out twice, differently")
        at = 0
        for step in steps.values():
            for _, start, stop, _, _ in step.reads:
                wrong += [f"read {start} to {stop} after {at}"] if start != at else []
                at = stop
        return wrong + self._wrong_states(entries, at)

    def _wrong_states(self, entries, read: int) -> list[str]:
        wrong = [] if read == ROWS else [f"{read} of {ROWS} records read"]
        fold, buried = self.how.fold(entries[0]), set()
        marks = {entry.state_seq: entry for entry in entries if isinstance(entry, Mark)}
        for entry in refold(fold, entries, self.rooms.backends().source, self.how.reader):
            buried |= {event.offset for _, event in fold.conflicts} if isinstance(entry, Step) else set()
            if entry.seq in marks and state_hash(fold.parts()) != marks[entry.seq].state_sha256:
                wrong.append(f"the mark of seq {entry.seq} is of another state")
        released = set() if self.rooms.retention is None else self.rooms.retention.released()
        for mark in kept_marks(list(marks.values()), self.config.keep, released):
            try:
                load_checkpoint(self.rooms.store, mark)
            except DamageError as error:
                wrong.append(str(error))
        wrong += [] if buried == self._conflicts_let_out() else ["dead letters of conflicts are not those of the journal"]
        same = all(pack(self.last.fold.parts()[name]) == pack(part) for name, part in fold.parts().items())
        return wrong + ([] if same else ["the last writer's state is not the fold of the journal"])

    def _conflicts_let_out(self) -> set[int]:
        letters = [decode_headers(letter.headers) for letter in self.rooms.producer.records.get("small.dead-letters", [])]
        all_headers = [dict(headers) for headers in letters]
        return {int(letter["millrace.offset"]) for letter in all_headers if letter["millrace.reason"] == b"conflicting-label"}


def _landed(stream: Delayed, value: bytes) -> Flight:
    flight = Flight(stream, value)
    stream.flying.append(flight)
    flight.land()
    flight.offset = lambda: flight.at
    return flight
