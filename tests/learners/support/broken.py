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


class Fades(Means):
    """Can let what it has learned count less; sound."""

    def discount(self, keep: float) -> None:
        """Count less; the means, and so the answers, stay."""
        self.counts *= keep


class FadesInMemory(Fades):
    """Knows of a discount only until it is restored."""

    breaks = "a_discount_is_kept"

    def __init__(self) -> None:
        super().__init__()
        self.keep = 1.0

    def discount(self, keep: float) -> None:
        """Remember it until the next lesson."""
        self.keep *= keep

    def learn_many(self, batch: Batch) -> None:
        """Now it is time."""
        self.counts *= self.keep
        self.keep = 1.0
        super().learn_many(batch)


class AnswersLater(Fades):
    """Answers from whole lessons of more than a row only, until it is told to settle; a discount does not tell it."""

    breaks = "after_a_discount_every_row_is_answered_from"

    def __init__(self) -> None:
        super().__init__()
        self.answers = super().servable()

    def learn_many(self, batch: Batch) -> None:
        """Answer from now on by the means, where that pays."""
        super().learn_many(batch)
        if len(batch) > 1 or len(self.answers.classes) < len(self.classes):
            self.answers = super().servable()

    def load_state_dict(self, state: State) -> None:
        """Answer by what came."""
        super().load_state_dict(state)
        self.answers = super().servable()

    def servable(self) -> MeansServable:
        """The last picture."""
        return self.answers

    def predict_many(self, batch: Batch) -> Floats:
        """Scores (n, C)."""
        return self.answers.predict_many(batch)


class Steps(Means):
    """Moves a class's mean by a constant share of the way to each row, which can be raised; sound."""

    def __init__(self) -> None:
        super().__init__()
        self.factor, self.left = 1.0, 0

    def raise_rate(self, factor: float, rows: int) -> None:
        """For so many rows."""
        self.factor, self.left = factor, rows

    def learn_one(self, x: Floats, name: str) -> None:
        """One row (d,), by 2 % of the way."""
        at = self.classes.index(name) if name in self.classes else len(self.classes)
        before = self.means[at].copy() if at < len(self.classes) else x
        super().learn_one(x, name)
        self.means[at] = before + 0.02 * (self.factor if self.left > 0 else 1.0) * (x - before)
        self.left -= 1

    def state_dict(self) -> State:
        """What is left of it, too."""
        state = super().state_dict()
        return replace(state, truth={**state.truth, "factor": self.factor, "left": self.left})

    def load_state_dict(self, state: State) -> None:
        """Go on from ``state``."""
        super().load_state_dict(state)
        self.factor, self.left = state.truth["factor"], state.truth["left"]


class StepsBack(Steps):
    """Takes smaller steps when it is to take larger ones."""

    breaks = "a_raised_rate_moves_answers_farther"

    def raise_rate(self, factor: float, rows: int) -> None:
        """The wrong way round."""
        super().raise_rate(1.0 / factor, rows)


class StepsInMemory(Steps):
    """Knows what is left only until it is restored."""

    breaks = "a_raised_rate_is_kept"

    def state_dict(self) -> State:
        """Nothing of it."""
        state = super().state_dict()
        return replace(state, truth={**state.truth, "left": 0})


class StepsForEver(Steps):
    """Never comes to rest."""

    breaks = "a_raised_rate_ends_after_its_rows"

    def raise_rate(self, factor: float, rows: int) -> None:
        """As long as there is anything."""
        super().raise_rate(factor, 1 << 40)


class StepsOnSteps(Steps):
    """Raises what is raised."""

    breaks = "a_rate_raised_again_is_not_raised_twice"

    def raise_rate(self, factor: float, rows: int) -> None:
        """By as much again."""
        super().raise_rate(factor * (self.factor if self.left > 0 else 1.0), rows)


ABLE_TWINS: tuple[type[Any], ...] = (FadesInMemory, AnswersLater, StepsBack, StepsInMemory, StepsForEver, StepsOnSteps)
