"""Events, served predictions and labels from several topics and partitions in one run, and labels that are numbers."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from branches import HOST, SCHEMA, SMALL, START_MS, Rooms, SteppedClock, everything, mark_at_once
from late_labels import RULES, Slow, late_fold_spec, make_late_events, x_of
from prices import HOW as NUMBERS
from prices import SCHEMA as NUMBERS_SCHEMA

from millrace.learners.protocol import Batch
from millrace.streams.branch.branch import Backends, FoldSpec, refold
from millrace.streams.branch.verify import verify
from millrace.streams.journal.entries import Step
from millrace.streams.journal.journal import Cursor, counted, summarise
from millrace.streams.journal.store import ListStore
from millrace.streams.labels.join import LabelRules
from millrace.streams.labels.served import LateLabel, Prediction, ServedCodec, encode, encode_row
from millrace.streams.parts import pack
from millrace.streams.records import Event, Record, decode_headers, split_tp
from millrace.streams.source import ListProducer
from millrace.streams.sqlite.log import SqliteLog, SqliteSource
from millrace.streams.stream import ListStream
from millrace.streams.worker.config import WorkerConfig
from millrace.streams.worker.worker import Worker, WorkerIdentity

LONG = replace(RULES, retry_ms=1 << 40)
HOW = replace(late_fold_spec("chain", LONG), served=ServedCodec(SCHEMA, 4096, "small.served"))
TOPICS = ("small", "small.served")


class Town:
    """A log of two topics in a file, and what outlives a worker."""

    def __init__(self, folder: Path, partitions: tuple[int, int]) -> None:
        self.log = SqliteLog(folder / "log.sqlite")
        for name, count in zip(TOPICS, partitions, strict=True):
            self.log.create_topic(name, count)
        self.journal, self.store, self.producer = ListStream(), ListStore(), ListProducer()
        self.refolded: dict[str, bytes] = {}  # the state that folding the journal again gives

    def backends(self) -> Backends:
        """Of a new process."""
        return Backends(SqliteSource(self.log, TOPICS), self.producer, self.journal, self.store)

    def worker(self) -> Worker:
        """Of a new process."""
        return Worker(HOW, self.backends(), replace(SMALL, step_rows=7), WorkerIdentity("main", HOST, SteppedClock()))

    def lag(self, worker: Worker) -> int:
        """Records that the worker has not read."""
        return sum(high - worker.fold.position[tp] for tp, (_, high) in self.backends().source.bounds().items())

    def send(self, topic: str, events: list[Event]) -> None:
        """Append, keyed by id where there is one."""
        records = []
        for event in events:
            key = json.loads(event.value).get("id") if event.value.endswith(b"}") else None
            records.append(Record(event.value, None if key is None else key.encode(), b"", event.timestamp_ms))
        self.log.append(topic, records)


def plain_events(rows: int, seed: int) -> list[Event]:
    """Rows of the event topic, labelled or not, over the same time as the served ones."""
    chance, now_ms, events = random.Random(seed), START_MS, []
    for at in range(rows):
        now_ms += chance.choice([0, 10, 60, 60])
        row = {"x": [chance.randrange(-4, 5) for _ in range(3)], "town": chance.choice("pq")}
        row |= {"kind": chance.choice("abc")} if chance.random() < 0.8 else {}
        events.append(Event(at, now_ms, None, b"", json.dumps(row).encode()))
    return events


def lived(folder: Path, partitions: tuple[int, int], seed: int) -> tuple[Town, Worker]:
    """A worker that is started anew every few steps while both topics grow."""
    town, chance = Town(folder, partitions), random.Random(seed)
    late, plain = make_late_events(90, seed), plain_events(60, seed)
    worker = town.worker()
    while late or plain or town.lag(worker):
        size = chance.randrange(1, 12)
        town.send("small.served", late[:size])
        town.send("small", plain[: size // 2 + 1])
        late, plain = late[size:], plain[size // 2 + 1 :]
        for _ in range(chance.randrange(1, 4)):
            list(worker.step())
            mark_at_once(worker)
        if chance.random() < 0.3:
            worker = town.worker()
    return town, worker


def as_the_rules_say(town: Town, worker: Worker) -> list[str]:
    """What differs from the slow rules, told everything in the order that the journal says."""
    slow, source = Slow(LONG), SqliteSource(town.log, TOPICS)
    firsts: dict[str, tuple[float, ...]] = {}
    for entry in counted(town.journal, "main", Cursor()):
        if not isinstance(entry, Step):
            continue
        for tp, start, stop, _, _ in entry.reads:
            for event in source.read(tp, start, stop).events:
                if split_tp(tp)[0] == "small.served":
                    if b'"kind":"prediction"' in event.value:
                        name = json.loads(event.value)["id"]
                        firsts.setdefault(name, tuple(x_of([event], name).tolist()))
                    slow.take(event)
                    continue
                slow.clock(event.timestamp_ms)
                row = json.loads(event.value)
                if "kind" in row:
                    slow.learned.append((tuple(map(float, row["x"])), row["kind"]))
                else:
                    slow.counts["passed"] += 1
        slow.clock(entry.clock_ms)
    expected = [(firsts.get(name, name), label) for name, label in slow.learned]
    return [*_other_lessons(town, expected), *_other_counts(slow, worker)]


def _other_lessons(town: Town, expected: list[tuple[tuple[float, ...], str]]) -> list[str]:
    fold, learned = HOW.fold(summarise(town.journal, "main").fork), list[tuple[tuple[float, ...], str]]()
    learn = fold.learner.learn_many

    def noted(batch: Batch) -> None:
        learned.extend((tuple(x[:3]), y) for x, y in zip(batch.x.tolist(), batch.y, strict=True))
        learn(batch)

    fold.learner.learn_many = noted
    for _ in refold(fold, counted(town.journal, "main", Cursor()), town.backends().source, HOW.reader):
        pass
    waits = fold.batches.state()
    learned += [(tuple(x[:3]), y) for x, y in zip(waits["x"].tolist(), waits["y"], strict=True)] if "x" in waits else []
    town.refolded = {name: pack(part) for name, part in fold.parts().items()}
    return [] if learned == expected else ["other rows were learned, or in another order"]


def _other_counts(slow: Slow, worker: Worker) -> list[str]:
    join, counts = worker.fold.labels, worker.fold.counts
    actual = {name: getattr(join.counts, name) for name in join.counts.__struct_fields__}
    actual |= {"settled": join.settled, "passed": counts.passed, "rejected": counts.rejected}
    return [f"{name}: {count}, not {slow.counts[name]}" for name, count in actual.items() if count != slow.counts[name]]


@pytest.mark.parametrize("partitions", [(1, 1), (2, 3)])
@pytest.mark.parametrize("seed", range(6))
def test_events_and_late_labels_in_one_run_are_learned_in_the_order_of_the_journal(tmp_path, partitions, seed):
    """Several topics and partitions in one step, with restarts: lessons, counts and state are those of the slow rules."""
    town, worker = lived(tmp_path, partitions, seed)
    assert as_the_rules_say(town, worker) == []
    assert worker.fold.records == sum(worker.fold.position.values())
    assert everything(worker) == town.refolded
    steps = [entry for entry in counted(town.journal, "main", Cursor()) if isinstance(entry, Step)]
    assert any(len({split_tp(tp)[0] for tp, *_ in step.reads}) == 2 for step in steps)
    assert verify(HOW, town.backends(), "main", SMALL.keep).findings == []


def number_recipe(default: float | None = None) -> FoldSpec:
    """Prices that become known later."""
    return replace(NUMBERS, labels=LabelRules(default=default), served=ServedCodec(NUMBERS_SCHEMA, 4096, "list"))


def price(name: str, x: list[int], answer: float) -> Prediction:
    """An answer."""
    return Prediction(name, encode_row({"x": x}), "main", 1, 3, (), (answer,))


def test_labels_that_are_numbers_are_joined_scored_and_contradicted_as_names_are():
    """0 is a label, 7 and 7.0 are the same one, and errors of the served answers stand beside the baselines."""
    told = [price("r", [1, 2], 4.0), price("s", [3, 4], 1.0), LateLabel("r", 7), LateLabel("s", 0), LateLabel("r", 7.0)]
    told += [LateLabel("r", 8.5), LateLabel("s", 1.0, 1), price("t", [5, 6], 2.0)]
    rooms = Rooms([Event(at, START_MS + at, None, b"", encode(record)) for at, record in enumerate(told)])
    worker = Worker(number_recipe(), rooms.backends(), SMALL, WorkerIdentity("main", HOST, SteppedClock()))
    while worker.fold.records < len(told):
        list(worker.step())
        mark_at_once(worker)
    output = json.loads(rooms.producer.records["small.scores"][-1].value)
    assert (output["served_scores"]["rows"], output["served_scores"]["absolute_error"]) == (2, [3.0 + 1.0])
    counts = {name: output["labels"][name] for name in ("joined", "repeated", "conflicts", "corrections")}
    assert counts == {"joined": 2, "repeated": 1, "conflicts": 1, "corrections": 1}
    assert worker.fold.batches.state()["y"].tolist() == [7.0, 0.0]
    again = Worker(number_recipe(), rooms.backends(), SMALL, WorkerIdentity("main", HOST, SteppedClock()))
    assert everything(again) == everything(worker)


@pytest.mark.parametrize(
    "record",
    [LateLabel("r", "seven"), LateLabel("r", True), LateLabel("r", 1e300), price("r", [1, 2], 1e300)],
)
def test_a_number_that_cannot_be_learned_is_refused(record):
    """Text, truth values, and what would not stay finite."""
    _, refused = number_recipe().reader.decode([Event(0, START_MS, None, b"", encode(record))], "list:0")
    assert len(refused) == 1


def test_conflicting_labels_are_dead_letters_and_stop_nobody():
    """Whoever may send labels must not be able to stop learning; every one of them has left."""
    told: list[Prediction | LateLabel] = [price("r", [1, 2], 4.0), LateLabel("r", 7)]
    told += [LateLabel("r", 8 + at) for at in range(30)]
    rooms = Rooms([Event(at, START_MS + at, None, b"", encode(record)) for at, record in enumerate(told)])
    config = WorkerConfig(step_rows=5, step_ms=0, window_rows=20, stop_share=0.5)
    worker = Worker(number_recipe(), rooms.backends(), config, WorkerIdentity("main", HOST, SteppedClock()))
    worker.run(Worker.caught_up)
    letters = rooms.producer.records["small.dead-letters"]
    offsets = [int(dict(decode_headers(letter.headers))["millrace.offset"]) for letter in letters]
    assert offsets == list(range(2, 32)) and worker.fold.counts.rejected == 30


def test_the_default_of_numbers_is_learned_when_the_horizon_ends():
    """0.0 is a default, not the lack of one."""
    rooms = Rooms([Event(0, START_MS, None, b"", encode(price("r", [1, 2], 4.0)))])
    how = replace(number_recipe(0.0), labels=LabelRules(horizon_ms=50, default=0.0))
    worker = Worker(how, rooms.backends(), SMALL, WorkerIdentity("main", HOST, SteppedClock()))
    worker.run(lambda running: running.fold.counts.learned == 1)
    assert worker.fold.labels.counts.defaulted == 1 and np.isfinite(worker.fold.learner.state_dict().truth["gram"]).all()
