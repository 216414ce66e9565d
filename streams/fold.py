"""state(seq) = fold(branch entries 1..seq, log): the state, and the only code that changes it.

A live worker and a verification fold with this same class; what is decided live (what to read, what to reject, the clock) is
in the step and only applied here.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from millrace.learners.errors import LearnerError
from millrace.learners.metrics import PrequentialClasses, PrequentialValues
from millrace.learners.protocol import Batch, Learner, State, Value
from millrace.streams.codec import Rows
from millrace.streams.entries import Step
from millrace.streams.features import Features
from millrace.streams.microbatch import MicroBatches
from millrace.streams.schema import Schema
from millrace.streams.source import Position

TRUTH = ("batches", "counts", "features", "learner")  # the parts hashed into the state's hash


class Counts(msgspec.Struct):
    """Where every record went; with the rows that wait they add up to the records read."""

    learned: int = 0
    passed: int = 0
    rejected: int = 0


class Fold:
    """The state of one branch."""

    def __init__(self, schema: Schema, batches: MicroBatches, learner: Learner, position: Position) -> None:
        self._schema = schema
        self.features = Features(schema)
        self.batches = batches
        self.learner = learner
        classify = schema.label.task == "classify"
        self.scores = PrequentialClasses(learner.probabilities) if classify else PrequentialValues()
        self.position = dict(position)
        self.clock_ms = 0
        self.counts = Counts()

    @property
    def records(self) -> int:
        """Records read so far: learned, passed, rejected and waiting add up to it."""
        return self.counts.learned + self.counts.passed + self.counts.rejected + self.batches.waiting

    def step(self, step: Step, rows: Sequence[Rows]) -> None:
        """Apply one step whose reads decoded to ``rows``, in segments that end where a training batch fills."""
        for piece in rows:
            self._take(step, piece)
        self.clock_ms = step.clock_ms
        for batch in self.batches.release(self.clock_ms):
            self._lesson(batch)
        self.position.update({tp: stop for tp, _, stop, _, _ in step.reads})
        self.counts.rejected += len(step.rejected)

    def _take(self, step: Step, rows: Rows) -> None:
        """Rows in log order through features and batches into lessons."""
        clock_ms = np.maximum.accumulate(np.maximum(rows.t, self.clock_ms))
        x = self.features.transform(rows)
        labelled = has_label(rows) if step.use == "learn" else np.zeros(len(rows), dtype=bool)
        self.counts.passed += int((~labelled).sum())
        self.clock_ms = int(clock_ms[-1]) if len(rows) else self.clock_ms
        batch = Batch(x, rows.y, rows.key, rows.t, rows.weight)
        if not labelled.all():
            batch, clock_ms = batch.only(labelled), clock_ms[labelled]
        for full in self.batches.cut(batch, clock_ms):
            self._lesson(full)

    def _lesson(self, batch: Batch) -> None:
        """Test, then train: every row is scored by the state after the last batch before its own."""
        if batch.y is None:
            raise LearnerError("A training batch has no labels; batches are made of labelled rows only.")
        servable = self.learner.servable()
        self.scores.update(servable.predict_many(batch), servable.classes, batch.y)
        self.learner.learn_many(batch)
        self.counts.learned += len(batch)

    def parts(self) -> dict[str, dict[str, Value]]:
        """A copy of the whole state, part by part. ``TRUTH`` names the parts that are the record of truth."""
        state = self.learner.state_dict()
        return {
            "batches": self.batches.state(),
            "counts": {
                "position": dict(self.position),
                "clock_ms": self.clock_ms,
                "counts": msgspec.to_builtins(self.counts),
            },
            "features": self.features.state(),
            "learner": state.truth,
            "derived": state.derived,
            "scores": self.scores.state(),
            "serve": self.learner.servable().arrays(),
        }

    def load(self, parts: dict[str, dict[str, Value]]) -> None:
        """Become the state that gave ``parts``."""
        self.batches.load(parts["batches"])
        self.position = dict(parts["counts"]["position"])
        self.clock_ms = parts["counts"]["clock_ms"]
        self.counts = msgspec.convert(parts["counts"]["counts"], Counts)
        self.features.load(parts["features"])
        self.learner.load_state_dict(State(parts["learner"], parts["derived"]))
        self.scores.load(parts["scores"])


def has_label(rows: Rows) -> NDArray[np.bool_]:
    """Which rows carry a label (n,); 0, "" and false are labels."""
    if rows.y.dtype == object:
        return np.array([label is not None for label in rows.y.tolist()], dtype=bool)
    return ~np.isnan(rows.y)
