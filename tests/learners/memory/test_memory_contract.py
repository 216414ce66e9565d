"""A broken memory fails the promise that it breaks, and a sound one with the same keys keeps it.

So the contract suite, which runs on a memory around every learner, would find a memory that is broken so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from broken import D
from cases import MEMORY, classes, config_of
from promises import PROMISES

from millrace.learners.memory.config import MemoryConfig, Remembering
from millrace.learners.memory.learner import ErrorMemory
from millrace.learners.memory.servable import MemoryServable
from millrace.learners.protocol import Batch, Corrected, State, join
from millrace.learners.table import LEARNERS

STEPS_OF_SEVEN = {"step_rows": 7, "strength": 0.9}  # so that rows wait at the end of each lesson


class ForgetsWaitingRows(ErrorMemory):
    """Its state lacks the rows of the step that is being gathered."""

    breaks, memory = "resumes_exactly", STEPS_OF_SEVEN

    def state_dict(self) -> State:
        whole = super().state_dict()
        return replace(whole, truth={name: value for name, value in whole.truth.items() if not name.startswith("waiting.")})


class ForgetsItsLosses(ErrorMemory):
    """A restored one begins to compare shares anew."""

    breaks, memory = "resumes_exactly", {"form": "sketch"}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(replace(state, truth=state.truth | {"losses": np.array([0.0, 1.0, 1.0, 1.0, 1.0])}))


class RemembersQuestions(ErrorMemory):
    """A row that was asked is taken for one that was labelled."""

    breaks, memory = "predicting_changes_nothing", STEPS_OF_SEVEN

    def predict_many(self, batch: Batch) -> Any:
        scores = super().predict_many(batch)
        if self._rows:
            self._memory.add(batch.x, np.ones_like(scores), scores, np.ones(len(scores)))
        return scores


class KeepsReferences(ErrorMemory):
    """Rows that wait are views of the caller's arrays."""

    breaks, memory = "keeps_no_reference_to_its_input", STEPS_OF_SEVEN

    def learn_many(self, batch: Batch) -> None:
        self._check(batch)
        rows = join([*self._waiting, batch])
        stop = len(rows) - len(rows) % 7
        for at in range(0, stop, 7):
            self._step(rows.rows(at, at + 7))
        self._waiting = [rows.rows(stop, len(rows))]


class GivesItsStateAway(ErrorMemory):
    """The cells of its state are its own."""

    breaks, memory = "state_is_a_copy", {"form": "sketch", "strength": 0.9}

    def state_dict(self) -> State:
        whole = super().state_dict()
        return replace(whole, truth=whole.truth | {"memory.cells": self._memory._form._cells})  # type: ignore[attr-defined]


class NeedsALesson(ErrorMemory):
    """It has no finite answer before."""

    breaks, memory = "answers_before_the_first_lesson", {}

    def predict_many(self, batch: Batch) -> Any:
        return super().predict_many(batch) if self._rows else np.full((len(batch), 1), np.nan)


class StepsByBatch(ErrorMemory):
    """A batch is a step, however many rows it has."""

    breaks, memory = "a_batch_equals_its_rows", {"strength": 0.9}

    def learn_many(self, batch: Batch) -> None:
        self._check(batch)
        self._step(batch)


class NeverForgets(ErrorMemory):
    """It keeps every row that it was taught."""

    breaks, memory = "memory_stays_bounded", {}

    def _step(self, rows: Batch) -> None:
        self.hoard = [*getattr(self, "hoard", []), rows.x.copy()]
        super()._step(rows)


class ScalesInPlace(ErrorMemory):
    """It scales the caller's rows."""

    breaks, memory = "does_not_touch_its_input", {}

    def learn_many(self, batch: Batch) -> None:
        super().learn_many(batch)
        batch.x[:] *= 2.0


class ServesUncorrected(ErrorMemory):
    """What it serves are the answers of its base."""

    breaks, memory = "servable_gives_equal_answers", {"strength": 0.9}

    def predict_many(self, batch: Batch) -> Any:
        return self._serving(self._memory.now()).predict_many(batch)

    def servable(self) -> MemoryServable:
        return replace_share(super().servable())


class ChangesWhatItGave(ErrorMemory):
    """What it has given out changes with the next step."""

    breaks, memory = "servable_is_immutable", {"form": "sketch", "strength": 0.9}

    def servable(self) -> MemoryServable:
        self.given = super().servable()
        return self.given

    def _step(self, rows: Batch) -> None:
        super()._step(rows)
        if hasattr(self, "given"):
            object.__setattr__(self.given, "share", 0.0)


class LooksTooLate(ErrorMemory):
    """It learns the good rows of a batch before it looks at the others."""

    breaks, memory = "a_refused_batch_changes_nothing", {"strength": 0.9}

    def _check(self, batch: Batch) -> None:
        for row in range(0, len(batch) - 1, 8):
            part = batch.rows(row, row + 8)
            if part.y is not None and np.isfinite(part.x).all() and part.x.shape[1] == D:
                self._step(part)
                break
        super()._check(batch)


TWINS = [
    ForgetsWaitingRows, ForgetsItsLosses, RemembersQuestions, KeepsReferences, GivesItsStateAway, NeedsALesson, StepsByBatch,
    NeverForgets, ScalesInPlace, ServesUncorrected, ChangesWhatItGave, LooksTooLate,
]  # fmt: skip


def replace_share(served: MemoryServable) -> MemoryServable:
    """The same without a correction."""
    fields = (served.base, served.picture, served.config, served.names, 0.0, served.mean, served.deviation)
    return MemoryServable(*fields, served.seed, served.task)


def made(kind: type[Any], memory: dict[str, Any]) -> Any:
    """A memory of this kind around a ridge."""
    config = Remembering(config_of("ridge"), MemoryConfig(**MEMORY | memory))
    return kind(LEARNERS["ridge"].learner(config.base, D, 3), config, D, 3)


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.__name__)
def test_a_broken_memory_fails_its_promise(twin: Any) -> None:
    """And the sound one with its keys keeps it."""
    (promise,) = [promise for promise in PROMISES if promise.__name__ == twin.breaks]
    promise(lambda: made(ErrorMemory, twin.memory), classes)
    with pytest.raises((AssertionError, RuntimeError)):
        promise(lambda: made(twin, twin.memory), classes)


def test_each_promise_has_a_broken_memory() -> None:
    """None is without its proof."""
    assert {twin.breaks for twin in TWINS} == {promise.__name__ for promise in PROMISES}


def test_what_a_correction_is_made_of_has_names() -> None:
    """Scores, answers, errors, in this order."""
    assert [*Corrected.__dataclass_fields__] == ["scores", "answers", "errors"]
