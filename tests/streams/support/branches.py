"""A small pipeline in memory, and a learner that notices every row, its order and its batch."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.learners.linear.softmax import Softmax, SoftmaxConfig
from millrace.learners.protocol import Array, Batch, State, Value
from millrace.streams.branch.branch import Backends, FoldSpec
from millrace.streams.formats.json_rows import Codec
from millrace.streams.journal.entries import Host
from millrace.streams.journal.retention import Retention
from millrace.streams.journal.segments import Journal
from millrace.streams.journal.store import ListStore
from millrace.streams.parts import pack
from millrace.streams.records import Event
from millrace.streams.schema import Field, Label, Schema
from millrace.streams.source import ListProducer, ListSource
from millrace.streams.stream import ListStream
from millrace.streams.worker.clock import Clock
from millrace.streams.worker.config import WorkerConfig
from millrace.streams.worker.worker import Worker, WorkerIdentity

HOST = Host("test", "test", 1, None, "test")
START_MS = 1_700_000_000_000
SCHEMA = Schema(
    (
        Field("x", size=3),
        Field("age", missing="mean"),
        Field("town", type="categorical", categories="grow", max=3, missing="category"),
    ),
    Label("kind"),
    weight="w",
)
SMALL = WorkerConfig(step_rows=5, step_ms=0, checkpoint_rows=11, version_rows=23, keep=2, window_rows=1000)


class SteppedClock(Clock):
    """A clock that moves when somebody waits, and otherwise stands."""

    def __init__(self) -> None:
        self.ms = START_MS + 10_000_000

    def now_ms(self) -> int:
        """What it shows."""
        return self.ms

    def monotonic_ms(self) -> int:
        """What it shows."""
        return self.ms

    def sleep(self, seconds: float) -> None:
        """Go on by that much."""
        self.ms += max(1, round(seconds * 1000))


@dataclass(frozen=True)
class Answer:
    """What a ``Chain`` serves: zeros."""

    classes: tuple[str, ...] = ()

    def predict_many(self, batch: Batch) -> Array:
        """No class is known, so no column."""
        return np.zeros((len(batch), len(self.classes)))

    def arrays(self) -> dict[str, Value]:
        """Nothing to keep."""
        return {"classes": list(self.classes)}


class Chain:
    """A learner whose state is a checksum over every batch it learned, in order: once, twice or never shows."""

    revision = 1
    tolerance = 0.0
    probabilities = False

    def __init__(self) -> None:
        self.chain = 0
        self.rows = 0

    def learn_many(self, batch: Batch) -> None:
        """Chain the batch on."""
        labels = json.dumps(list(batch.y)).encode()
        self.chain = zlib.crc32(labels, zlib.crc32(batch.x.tobytes(), self.chain))
        self.rows += len(batch)

    def predict_many(self, batch: Batch) -> Array:
        """As the servable."""
        return self.servable().predict_many(batch)

    def state_dict(self) -> State:
        """The chain."""
        return State({"chain": self.chain, "rows": self.rows}, {})

    def load_state_dict(self, state: State) -> None:
        """Go on with a chain."""
        self.chain, self.rows = state.truth["chain"], state.truth["rows"]

    def servable(self) -> Answer:
        """Zeros."""
        return Answer()


def make_events(rows: int, seed: int = 0) -> list[Event]:
    """Rows as producers send them: four kinds that appear one by one, gaps, no label here and there, broken ones."""
    rng = np.random.default_rng(seed)
    events = []
    for at in range(rows):
        kind = int(rng.integers(0, 1 + min(3, 4 * at // rows)))
        row = {"x": rng.integers(-4, 5, 3).tolist(), "kind": "abcd"[kind], "w": int(rng.integers(1, 3))}
        if rng.random() < 0.7:
            row["age"] = int(rng.integers(18, 80))
        if rng.random() < 0.8:
            row["town"] = "pqrstu"[int(rng.integers(0, 6))]
        if rng.random() < 0.1:
            del row["kind"]
        value = b"{broken" if rng.random() < 0.05 else json.dumps(row).encode()
        events.append(Event(at, START_MS + 40 * at + int(rng.integers(0, 80)), b"k%d" % (at % 3), b"", value))
    return events


def fold_spec(learner: str = "ridge", batch_rows: int = 7, batch_wait_ms: int = 200) -> FoldSpec:
    """How the small pipeline folds; batches of 7 fit neither steps of 5 nor checkpoints of 11."""
    make = {
        "chain": Chain,
        "ridge": lambda: Ridge(RidgeConfig(solve_rows=9), SCHEMA.width, 0),
        "softmax": lambda: Softmax(SoftmaxConfig(step_rows=10, warm_up_rows=100), SCHEMA.width, 0),
    }[learner]
    return FoldSpec("small", SCHEMA, Codec(SCHEMA, 4096), learner, make, batch_rows, batch_wait_ms, 0, b"{}")


@dataclass
class Rooms:
    """What outlives a worker: its journal, its store, what it produced, and the events."""

    items: list
    journal: ListStream = field(default_factory=ListStream)
    store: ListStore = field(default_factory=ListStore)
    producer: ListProducer = field(default_factory=ListProducer)
    read_rows: int = 5
    retention: Retention | None = None

    def backends(self) -> Backends:
        """Doors of a new process: a source at its beginning, the rest as it was left."""
        source = ListSource(self.items, read_rows=self.read_rows)
        return Backends(source, self.producer, self.whole_journal(), self.store, self.retention)

    def whole_journal(self) -> Journal:
        """The journal, and before it what segments have of it."""
        return Journal(self.journal, self.store, "main")

    def worker(self, kind: type[Worker] = Worker, config: WorkerConfig = SMALL, how: FoldSpec | None = None) -> Worker:
        """A new process's worker on branch main."""
        return kind(how or fold_spec(), self.backends(), config, WorkerIdentity("main", HOST, SteppedClock()))


def run_to_end(worker: Worker, records: int) -> None:
    """Step until so many records were read, marking whatever is due at once."""
    while sum(worker.fold.position.values()) < records:
        for _ in worker.step():
            pass
        mark_at_once(worker)


def mark_at_once(worker: Worker) -> None:
    """Begin a snapshot if one is due, wait for it, mark it."""
    worker.mark_when_due(wait=True)
    worker.mark_when_due(wait=True)


def dies(worker: Worker, phases: Iterator[int], count: int) -> bool:
    """One step and its mark; whether the process dies after so many phases (each mark is a phase too)."""
    for _ in worker.step():
        if next(phases) == count:
            return True
    mark_at_once(worker)
    return next(phases) == count


def everything(worker: Worker) -> dict[str, bytes]:
    """The whole state, derived parts and scores too, as bytes."""
    return {name: pack(part) for name, part in worker.fold.parts().items()}


def without_seqs(worker: Worker) -> dict[str, bytes]:
    """The whole state, but for the steps that alarms are named after: a crash adds an `open`, so what follows stands later."""
    parts = worker.fold.parts()
    raised = [(branch, number, alarm) for branch, _, number, alarm in parts["detectors"].pop("alarms", [])]
    return {name: pack(part) for name, part in (parts | {"raised": {"alarms": raised}}).items()}


def with_learner(how: FoldSpec, make) -> FoldSpec:
    """The same recipe with another learner."""
    return replace(how, make_learner=make)
