"""A small sound learner, and for every promise of the contract a twin that breaks this one and keeps the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from millrace.learners.errors import BadInputError
from millrace.learners.protocol import Batch, Floats, State, Value

D = 6  # features of every stream in the contract suite


@dataclass(frozen=True)
class MeansServable:
    """Scores by the distance to each class mean, seen from an origin."""

    classes: tuple[str, ...]
    means: Floats  # (C, d)
    origin: Floats  # (d,)

    def predict_many(self, batch: Batch) -> Floats:
        """Scores (n, C)."""
        means, x = self.means - self.origin, batch.x - self.origin
        scores: Floats = x @ means.T - 0.5 * (means**2).sum(axis=1)
        return scores

    def arrays(self) -> dict[str, Value]:
        """All of it."""
        return {"classes": list(self.classes), "means": self.means, "origin": self.origin}


class Means:
    """Nearest class mean, learned in place; keeps every promise."""

    revision: int = 1
    tolerance: float = 1e-12
    probabilities: bool = False

    def __init__(self) -> None:
        self.classes: list[str] = []
        self.means = np.zeros((8, D))
        self.counts = np.zeros(8)
        self.origin = np.zeros(D)

    def learn_many(self, batch: Batch) -> None:
        """Move each row's class mean towards it."""
        self.check(batch)
        assert batch.y is not None
        for x, name in zip(batch.x, batch.y, strict=True):
            self.learn_one(x, str(name))

    def check(self, batch: Batch) -> None:
        """Raises: BadInputError."""
        if batch.y is None or batch.x.shape[1:] != (D,) or not np.isfinite(batch.x).all():
            raise BadInputError("column x or y does not fit")

    def learn_one(self, x: Floats, name: str) -> None:
        """One row (d,)."""
        if not self.classes:
            self.origin = self.first(x)
        if name not in self.classes:
            self.classes.append(name)
        at = self.classes.index(name)
        self.counts[at] += 1
        self.means[at] += (x - self.means[at]) / self.counts[at]

    def first(self, x: Floats) -> Floats:
        """What to keep of the first row."""
        return x.copy()

    def predict_many(self, batch: Batch) -> Floats:
        """Scores (n, C)."""
        return Means.servable(self).predict_many(batch)

    def servable(self) -> MeansServable:
        """A picture of the means."""
        return MeansServable(tuple(self.classes), self.means[: len(self.classes)].copy(), self.origin.copy())

    def state_dict(self) -> State:
        """Everything."""
        arrays = {"means": self.means.copy(), "counts": self.counts.copy(), "origin": self.origin.copy()}
        return State({"classes": list(self.classes), **arrays})

    def load_state_dict(self, state: State) -> None:
        """Go on from ``state``."""
        truth: dict[str, Any] = state.truth
        self.classes = list(truth["classes"])
        self.means, self.counts, self.origin = (truth[key].copy() for key in ("means", "counts", "origin"))


class ForgetsCounts(Means):
    """Answers alike after a restore, but learns on from other counts."""

    breaks = "resumes_exactly"

    def state_dict(self) -> State:
        """All but the counts."""
        state = super().state_dict()
        return replace(state, truth={**state.truth, "counts": np.ones(8)})


class LearnsFromQuestions(Means):
    """Takes a question for a row of the first class when it learns next."""

    breaks = "predicting_changes_nothing"

    def predict_many(self, batch: Batch) -> Floats:
        """Scores, and a count too many."""
        self.counts[0] += 1
        return super().predict_many(batch)


class KeepsInput(Means):
    """Its origin is a view of the caller's array."""

    breaks = "keeps_no_reference_to_its_input"

    def first(self, x: Floats) -> Floats:
        """The row itself."""
        return x


class SharesState(Means):
    """Gives its own arrays away as its state."""

    breaks = "state_is_a_copy"

    def state_dict(self) -> State:
        """Everything, not copied."""
        arrays = {"means": self.means, "counts": self.counts, "origin": self.origin}
        return State({"classes": list(self.classes), **arrays})


class SilentAtFirst(Means):
    """Cannot be asked before it has learned."""

    breaks = "answers_before_the_first_lesson"

    def predict_many(self, batch: Batch) -> Floats:
        """Scores, once there is a class."""
        if not self.classes:
            raise RuntimeError("not fitted")
        return super().predict_many(batch)


class LearnsLastRowTwice(Means):
    """What it learns depends on how rows are cut into batches."""

    breaks = "a_batch_equals_its_rows"

    def learn_many(self, batch: Batch) -> None:
        """All rows, and the last one again."""
        super().learn_many(batch)
        super().learn_many(batch.rows(len(batch) - 1, len(batch)))


class Hoards(Means):
    """Keeps every row it has seen."""

    breaks = "memory_stays_bounded"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Floats] = []

    def learn_many(self, batch: Batch) -> None:
        """Learn and keep."""
        super().learn_many(batch)
        self.seen.append(batch.x.copy())


class ScalesInput(Means):
    """Works on the caller's array."""

    breaks = "does_not_touch_its_input"

    def learn_many(self, batch: Batch) -> None:
        """Learn, and leave the rows halved."""
        super().learn_many(batch)
        batch.x[:] *= 0.5


class RoundsServed(Means):
    """Serves float32 means, itself answering in float64."""

    breaks = "servable_gives_equal_answers"

    def servable(self) -> MeansServable:
        """The means, less exact."""
        served = super().servable()
        return replace(served, means=served.means.astype(np.float32).astype(np.float64))


class ServesLive(Means):
    """Its servable changes while it is being served."""

    breaks = "servable_is_immutable"

    def servable(self) -> MeansServable:
        """The means that learning moves."""
        return replace(super().servable(), means=self.means[: len(self.classes)])


class LearnsThenRefuses(Means):
    """Complains about a bad row after it has learned the good ones."""

    breaks = "a_refused_batch_changes_nothing"

    def learn_many(self, batch: Batch) -> None:
        """Rows up to the first bad one."""
        for at in range(len(batch)):
            super().learn_many(batch.rows(at, at + 1))


TWINS: tuple[type[Any], ...] = (
    ForgetsCounts,
    LearnsFromQuestions,
    KeepsInput,
    SharesState,
    SilentAtFirst,
    LearnsLastRowTwice,
    Hoards,
    ScalesInput,
    RoundsServed,
    ServesLive,
    LearnsThenRefuses,
)
