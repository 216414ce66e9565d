"""state(seq) = fold(branch entries 1..seq, log): the state, and the only code that changes it.

A live worker and a verification fold with this same class; what is decided live (what to read, what to reject, the clock) is
in the step and only applied here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from typing import Final, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from millrace.learners.errors import LearnerError
from millrace.learners.evaluation.drafts import seen_of
from millrace.learners.protocol import (
    Array,
    Batch,
    Corrects,
    Discounts,
    Floats,
    HasFigures,
    Learner,
    RaisesRate,
    State,
    Value,
)
from millrace.streams.formats.json_rows import Rows, has_label
from millrace.streams.journal.entries import Act, Step
from millrace.streams.labels.answered import again, as_served
from millrace.streams.labels.join import Taken
from millrace.streams.labels.served import Prediction, Served
from millrace.streams.records import Event
from millrace.streams.schema import Schema
from millrace.streams.source import Position
from millrace.streams.state.fates import OUTSIDE, Counts, fates
from millrace.streams.state.notices import noticed, outside_classes
from millrace.streams.state.scores import scores_of
from millrace.streams.state.stages import Owner, Stages

TRUTH = ("batches", "counts", "entities", "features", "learner", "join", "window")  # the parts hashed into the state's hash

REVISION = 3  # of how rows become what a learner gets; raised when the same rows would lead to another state; see CHANGELOG

COUNT_ROWS = 4096  # scored in a step before they are counted, at most about
GATHER_MS = 250  # by which a step for horizons alone comes late, so that one lets many end; records go by their own time


def is_truth(part: str) -> bool:
    """Whether a part is hashed into the state's hash."""
    return part.partition(".")[0] in TRUTH


class Fold:
    """The state of one branch. What it is made of is given when it is made; from then on only its own methods change it."""

    def __init__(
        self, schema: Schema, make_learner: Callable[[], Learner], stages: Stages, position: Position, owner: Owner
    ) -> None:
        self.make_learner: Final = make_learner
        self.features: Final = stages.features
        self.batches: Final = stages.batches
        self.labels: Final = stages.labels
        self.drift: Final = stages.drift
        self.window: Final = stages.window
        self.held_out: Final = stages.held_out
        self.entities: Final = stages.entities
        self.branch: Final = owner.branch
        self.answers_of: Final = owner.answers_of
        self.learner = make_learner()
        self._corrects = isinstance(self.learner.servable(), Corrects)  # so it is told of each row what it answered then
        self.left_out_as = "passed" if schema.task == "distil" else "outside_classes"  # the fate of what a learner leaves out
        self.scores = scores_of(schema.task, self.learner.probabilities)
        self.served_scores = scores_of(schema.task, self.learner.probabilities)  # as answered
        self.conflicts: list[tuple[str, Event]] = []  # labels of the newest step that contradict another
        self._scored: list[tuple[tuple[str, ...], Floats, Array]] = []  # batches of this step that ``scores`` has not counted
        self._scored_rows = 0  # in them
        self._given: list[float] = []  # of the rows in ``batches``: the loss as served; NaN where the own answer is scored
        self.included: dict[str, list[int]] = {}  # exclusions that acts have ended: places in a fork's list, by branch
        self.position = dict(position)
        self.clock_ms = 0
        self.counts = Counts()
        self._noticed: dict[str, Value] | None = None  # None: since then something changed
        self.outside_classes = 0  # of ``counts.learned``, which is in the state's hash: rows that the learner left out

    @property
    def records(self) -> int:
        """Records read so far: learned, passed, rejected and waiting add up to it."""
        settled = 0 if self.labels is None else self.labels.settled
        return self.counts.learned + self.counts.passed + self.counts.rejected + self.waiting + settled

    @property
    def waiting(self) -> int:
        """Rows that wait for their batch, predictions for their label, labels for their prediction."""
        return self.batches.waiting + (0 if self.labels is None else self.labels.waiting)

    def due(self, clock_ms: int) -> bool:
        """Whether something has waited long enough."""
        due_ms = None if self.labels is None else self.labels.due_ms
        return self.batches.due(clock_ms) or (due_ms is not None and clock_ms >= due_ms + GATHER_MS)

    @property
    def fates(self) -> dict[str, int]:
        """The counts as they are shown: rows that the learner left out apart from those that it learned."""
        return fates(msgspec.structs.asdict(self.counts), {self.left_out_as: self.outside_classes})

    def noticed(self) -> dict[str, Value]:
        """What was learned otherwise than its records say, or not at all; looked for once a step."""
        if self._noticed is None:
            seen = noticed(self.features, self.learner, self.scores.totals)
            outside = self.outside_classes if self.left_out_as == "outside_classes" else 0
            self._noticed = seen | ({"outside_classes": outside} if outside else {})
        return self._noticed

    def figures(self) -> dict[str, Value]:
        """What the learner knows of itself; empty for most."""
        if not issubclass(type(self.learner), HasFigures):  # of a class this is remembered, of an object looked for anew
            return {}
        return cast(HasFigures, self.learner).figures()

    def step(self, step: Step, rows: Sequence[Rows | Served]) -> None:
        """Apply one step whose reads decoded to ``rows``, in segments that end where a training batch fills."""
        self.conflicts, self._noticed = [], None
        if self.drift is not None:
            self.drift.begin_step(step.branch, step.seq)
        for piece in rows:
            self.counts.passed += piece.left_out
            if isinstance(piece, Served):
                for part in self._parts_of(piece):
                    self._join(step, part)
            else:
                for rows_until in self._between_horizons(step, piece):
                    self._take(step, rows_until)
        self.clock_ms = step.clock_ms
        self._expire(step, self.clock_ms)
        for batch in self.batches.release(self.clock_ms):
            self._learn(batch)
        self._count_scored()
        if self.entities is not None:
            self.entities.let_go(self.clock_ms)
        self.position.update({tp: stop for tp, _, stop, _, _ in step.reads})
        self.counts.rejected += len(step.rejected) + (step.refused_with or 0)

    def _between_horizons(self, step: Step, rows: Rows) -> Iterator[Rows]:
        """Rows in pieces that end where a horizon does, so that what it brings is learned in its place."""
        if self.labels is None:
            yield rows
            return
        clock_ms, start = np.maximum.accumulate(np.maximum(rows.t, self.clock_ms)), 0
        while self.labels.due_ms is not None:
            at = int(np.searchsorted(clock_ms, self.labels.due_ms))
            if at == len(rows):
                break
            yield rows.only(np.arange(start, at))
            self._expire(step, int(clock_ms[at]))
            start = at
        yield rows.only(np.arange(start, len(rows))) if start else rows

    def _take(self, step: Step, rows: Rows) -> None:
        """Rows in log order through features and training batches."""
        clock_ms = np.maximum.accumulate(np.maximum(rows.t, self.clock_ms))
        past = None if self.entities is None else self.entities.of_stream(rows, clock_ms)
        batch = self.features.encode(rows, past)
        labelled = has_label(rows) if step.use == "learn" else np.zeros(len(rows), dtype=bool)
        self.counts.passed += int((~labelled).sum())
        self.clock_ms = int(clock_ms[-1]) if len(rows) else self.clock_ms
        if not labelled.all():
            batch, clock_ms = batch.only(labelled), clock_ms[labelled]
        self._collect(batch, clock_ms, np.full(len(batch), np.nan))

    def _join(self, step: Step, served: Served) -> None:
        """Served predictions and labels in log order; what they become is learned in the order in which it does."""
        assert self.labels is not None
        clock_ms = np.maximum.accumulate(np.maximum(served.t, self.clock_ms))
        taken = self.labels.take(served, clock_ms)
        self.clock_ms = int(clock_ms[-1]) if len(served) else self.clock_ms
        rows = served.rows.only(np.array(taken.fresh, dtype=np.int64))
        past = None if self.entities is None else self.entities.of_served(served, taken.fresh, clock_ms, self.answers_of)
        fresh = self.features.encode(rows, past)
        if self._corrects:
            predictions = [record for record in served.records if isinstance(record, Prediction)]
            fresh = replace(fresh, asked=as_served([predictions[row] for row in taken.fresh]))
        self._answer_again(served, taken, fresh)
        self.labels.fill(taken, fresh)
        self.conflicts += [(served.tp, served.events[at]) for at in taken.conflicts]
        self.counts.rejected += len(taken.conflicts)
        self._apply(step, taken)

    def _parts_of(self, served: Served) -> Iterator[Served]:
        """The whole; or where another branch answered, parts in which nothing is learned before the last prediction.

        So this branch's own answer is that of the state which all records before it led to, however they were read.
        """
        assert self.labels is not None
        if not any(isinstance(record, Prediction) and record.branch != self.answers_of for record in served.records):
            yield served
            return
        is_prediction = np.array([isinstance(record, Prediction) for record in served.records], dtype=bool)
        clock_ms = np.maximum.accumulate(np.maximum(served.t, self.clock_ms))
        for start, stop in pairwise([0, *(np.flatnonzero(np.diff(is_prediction)) + 1).tolist(), len(served)]):
            first_ms, last_ms = int(clock_ms[start]), int(clock_ms[stop - 1])
            may_learn = self.batches.due(last_ms) or self.labels.may_learn(served.ids[start:stop], first_ms, last_ms)
            for first, last in pairwise(range(start, stop + 1) if is_prediction[start] and may_learn else (start, stop)):
                for batch in self.batches.release(int(clock_ms[first])):
                    self._learn(batch)
                yield served.part(first, last)

    def _answer_again(self, served: Served, taken: Taken, fresh: Batch) -> None:
        """What another branch answered says nothing about this one, so here the row is answered as this state would."""
        assert self.labels is not None
        branches = [record.branch for record in served.records if isinstance(record, Prediction)]
        foreign = np.array([branches[row] != self.answers_of for row in taken.fresh], dtype=bool)
        if foreign.any():
            servable = self.learner.servable()
            x = self.features.answer(fresh.only(foreign)).x
            places, (scores, asked) = np.flatnonzero(foreign).tolist(), again(servable, x)
            if asked is not None and fresh.asked is not None:
                fresh.asked[places] = asked
            self.labels.answer(places, taken, servable.classes, scores)

    def _expire(self, step: Step, clock_ms: int) -> None:
        """Let horizons end by the clock."""
        if self.labels is not None:
            taken = Taken()
            self.labels.advance(clock_ms, taken)
            self._apply(step, taken)

    def _apply(self, step: Step, taken: Taken) -> None:
        assert self.labels is not None
        self.counts.passed += taken.passed
        training_rows = self.labels.training_rows(taken)
        if training_rows is None:
            return
        if step.use != "learn":
            self.counts.passed += len(training_rows.batch)
            return
        losses = []
        for classes, scores, y in training_rows.by_classes():
            losses.append(self.served_scores.losses(scores, classes, y))
            self.served_scores.update(scores, classes, y)
        self._collect(training_rows.batch, training_rows.clock_ms, np.concatenate(losses))

    def _collect(self, batch: Batch, clock_ms: NDArray[np.int64], served_losses: Floats) -> None:
        """Rows into batches, with their losses as served (n,), NaN where the own answer is to be scored."""
        if self.held_out is not None:
            stay = self.held_out.take(batch, self.counts.learned + self.batches.waiting)
            self.counts.passed += int((~stay).sum())
            batch, clock_ms, served_losses = batch.only(stay), clock_ms[stay], served_losses[stay]
        if self.labels is not None:
            self._given += served_losses.tolist()
        for full in self.batches.cut(batch, clock_ms):
            self._learn(full)

    def _learn(self, batch: Batch) -> None:
        """Test, then train: every row is scored by the state after the last batch before its own."""
        if batch.y is None:
            raise LearnerError("A training batch has no labels; batches are made of labelled rows only.")
        served_losses, self._given = self._given[: len(batch)], self._given[len(batch) :]
        losses = np.array(served_losses) if served_losses else np.full(len(batch), np.nan)
        unscored = np.isnan(losses)
        scored = batch if not served_losses or unscored.all() else batch.only(unscored)
        servable = self.learner.servable()
        if scored.y is not None and len(scored):
            scores = servable.predict_many(self.features.answer(scored))
            truth = scored.y if scored.sequences is None else seen_of(scored)
            if self.drift is not None:
                self._count_scored()
                losses[unscored] = self.scores.losses(scores, servable.classes, truth)
            self._scored.append((servable.classes, scores, truth))
            self._scored_rows += len(scored)
            if self._scored_rows >= COUNT_ROWS:
                self._count_scored()
        if self.drift is not None:
            self.drift.feed(losses, batch.y if batch.y.dtype == object else None, self.counts.learned)
        outside_before = outside_classes(self.learner)
        self.learner.learn_many(self.features.learn(batch))
        self.outside_classes += outside_classes(self.learner) - outside_before
        if self.window is not None:
            self.window.add(replace(batch, asked=None))  # a learner that begins afresh answered none of them
        self.counts.learned += len(batch)
        if self.held_out is not None:
            self.held_out.look(self._answer, self.counts.learned)

    def _answer(self, batch: Batch) -> tuple[tuple[str, ...], Floats]:
        """Names of the scores, and the scores, of rows as they wait."""
        servable = self.learner.servable()
        return servable.classes, servable.predict_many(self.features.answer(batch))

    def _count_scored(self) -> None:
        """Count scored batches, those with the same columns at once: bit for bit what they would count one by one."""
        scored, self._scored, self._scored_rows = self._scored, [], 0
        for (classes, _), same in groupby(scored, key=lambda batch: (batch[0], batch[1].shape[1])):
            _, scores, y = zip(*same, strict=True)
            self.scores.update(np.concatenate(scores), classes, np.concatenate(y))

    def act(self, act: Act) -> None:
        """Apply what a live writer decided.

        Raises: LearnerError where this learner cannot do it.
        """
        self._noticed = None
        if act.op == "include":
            self.included.setdefault(act.branch, []).append(int(act.args["exclusion"]))
        elif act.op == "reset":
            self.learner = self.make_learner()
        elif act.op == "relearn":
            self._relearn(int(act.args["rows"]))
        elif act.op == "discount":
            if not isinstance(self.learner, Discounts):
                raise LearnerError("This learner cannot discount what it has learned. Use the release that wrote this branch.")
            self.learner.discount(act.args["keep"])
        elif act.op == "raise-rate":
            if not isinstance(self.learner, RaisesRate):
                raise LearnerError("This learner has no rate to be raised. Use the release that wrote this branch.")
            self.learner.raise_rate(act.args["factor"], int(act.args["rows"]))

    def _relearn(self, rows: int) -> None:
        """A fresh learner that has learned the newest rows only. They are neither counted nor scored again."""
        if self.window is None:
            raise LearnerError("No rows are kept to be learned again. Use the release that wrote this branch.")
        self.learner = self.make_learner()
        for batch in self.window.newest(rows, self.batches.rows):
            self.learner.learn_many(self.features.answer(batch))  # the tables have learned them already
        if isinstance(self.learner, Discounts):
            self.learner.discount(1.0)  # nothing weighs less, and all of them are answered from at once

    def parts(self) -> dict[str, dict[str, Value]]:
        """A copy of the whole state, part by part. ``TRUTH`` names the parts that are the record of truth."""
        state = self.learner.state_dict()
        return (
            {
                "batches": self.batches.state(),
                "counts": {
                    "position": dict(self.position),
                    "clock_ms": self.clock_ms,
                    "counts": msgspec.to_builtins(self.counts),
                    **({"included": {name: list(places) for name, places in self.included.items()}} if self.included else {}),
                },
                "features": self.features.state(),
                "learner": state.truth,
                "derived": state.derived,
                "scores": self.scores.state(),
                "serve": self.learner.servable().arrays(),
            }
            | ({"outside": {OUTSIDE[self.left_out_as]: self.outside_classes}} if self.outside_classes else {})
            | self._join_parts()
            | ({} if self.drift is None else {"detectors": self.drift.state()})
            | ({} if self.window is None else self.window.parts())
            | ({} if self.held_out is None else {"held_out": self.held_out.state()})
            | ({} if self.entities is None else self.entities.parts())
        )

    def _join_parts(self) -> dict[str, dict[str, Value]]:
        if self.labels is None:
            return {}
        losses = {"given": [None if np.isnan(loss) else loss for loss in self._given]}
        parts = self.labels.parts()
        return parts | {"join": parts["join"] | losses, "served_scores": self.served_scores.state()}

    def load(self, parts: dict[str, dict[str, Value]]) -> None:
        """Become the state that gave ``parts``."""
        self._noticed = None
        self.batches.load(parts["batches"])
        self.position = dict(parts["counts"]["position"])
        self.clock_ms = parts["counts"]["clock_ms"]
        self.counts = msgspec.convert(parts["counts"]["counts"], Counts)
        self.included = {name: list(places) for name, places in parts["counts"].get("included", {}).items()}
        self.features.load(parts["features"])
        self.learner.load_state_dict(State(parts["learner"], parts["derived"]))
        self.outside_classes = parts.get("outside", {}).get(OUTSIDE[self.left_out_as], 0)
        self.scores.load(parts["scores"])
        if self.labels is not None:
            self.labels.load(parts)
            self._given = [np.nan if loss is None else loss for loss in parts["join"]["given"]]
            self.served_scores.load(parts["served_scores"])
        if self.drift is not None and "detectors" in parts:  # not where a branch begins with fresh ones; see ``carried``
            self.drift.load(parts["detectors"])
        if self.window is not None:
            self.window.load(parts)
        if self.held_out is not None and "held_out" in parts:
            self.held_out.load(parts["held_out"])
        if self.entities is not None:
            self.entities.load(parts)
