"""What a learner with a memory serves: the learner's own answers, and by how much the memory holds them to be wrong.

    answer = y + lambda e,    e = gamma (mean label near - y) + (1 - gamma) (mean label near - mean answer near)

y is the learner's own answer, or its softmax where scores are no shares of 1, such as distances. A corrected one of classes is
clamped to [0, 1]. Where nothing is near it is y. With lambda = 0 it is the learner's own to the bit.

Source: ReLoop2, Zhu et al., KDD 2023, arXiv 2306.08808, equations 9 and 13; docs/design/learners.md#error-memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np

from millrace.learners.linear.servable import softmax
from millrace.learners.memory.asked import aligned
from millrace.learners.memory.config import MemoryConfig
from millrace.learners.memory.exact import read_only
from millrace.learners.memory.scaled import Picture, keys_of, picture_of
from millrace.learners.memory.strength import corrected
from millrace.learners.protocol import Batch, Corrected, Floats, Servable, Value


@dataclass(frozen=True, slots=True, eq=False)
class MemoryServable:
    """Immutable."""

    base: Servable
    picture: Picture
    config: MemoryConfig
    names: tuple[str, ...]  # of the memory's outputs; empty for regression
    share: float  # lambda
    mean: Floats  # (d,), with the deviation (d,) what keys are scaled by
    deviation: Floats
    seed: int  # of the learner, which draws a sketch's planes
    task: str  # "classify", "regress", or "unbounded": classes whose scores are no shares of 1
    classes: tuple[str, ...] = field(init=False)  # the base's, then those that only the memory knows

    def __post_init__(self) -> None:
        own = self.base.classes
        known = frozenset(own)
        more = tuple(name for name in self.names if name not in known) if own and own != self.names else ()
        object.__setattr__(self, "classes", own + more)

    def predict_many(self, batch: Batch) -> Floats:
        """Scores (n, C), or values (n, k), with their correction."""
        if self.share == 0.0:
            return self._answers(batch)
        return self.corrected(batch).scores

    def corrected(self, batch: Batch) -> Corrected:
        """The same, beside the base's own answers and their errors, all (n, C)."""
        own = self._answers(batch)
        answers = own if self.task != "unbounded" else softmax(own)
        errors = self._errors(batch.x, answers)
        if self.share == 0.0:
            return Corrected(own, answers, errors)
        return Corrected(corrected(answers, errors, self.share, self.task != "regress"), answers, errors)

    def _answers(self, batch: Batch) -> Floats:
        """The base's; of classes that only the memory knows 0, or as little as the least where scores are no shares."""
        scores = self.base.predict_many(batch)
        answers = aligned(scores, self.base.classes, self.classes)
        if self.task == "unbounded" and answers.shape[1] > scores.shape[1] > 0:
            answers[:, scores.shape[1] :] = scores.min(axis=1, keepdims=True)
        return answers

    def _errors(self, x: Floats, answers: Floats) -> Floats:
        """By how much what is near holds answers (n, C) to be wrong; 0 where nothing is near."""
        labels, near, known = self.picture.near(keys_of(x, self.mean, self.deviation))
        if not labels.shape[1] or (self.task != "regress" and not self.classes):
            return np.zeros_like(answers)
        errors: Floats = labels - near
        if self.config.gamma > 0.0:
            errors *= 1.0 - self.config.gamma
            errors += self.config.gamma * (labels - aligned(answers, self.classes, self.names))
        if known is not None:
            errors[~known] = 0.0
        return aligned(errors, self.names, self.classes)

    def arrays(self) -> dict[str, Value]:
        """Everything ``from_arrays`` needs; the arrays are read-only."""
        own = {"config": asdict(self.config), "names": list(self.names), "share": self.share, "seed": self.seed}
        own |= {"task": self.task, "mean": read_only(self.mean), "deviation": read_only(self.deviation)}
        memory = {f"memory.{name}": value for name, value in self.picture.arrays().items()}
        return own | memory | {f"base.{name}": value for name, value in self.base.arrays().items()}

    @classmethod
    def from_arrays(cls, arrays: dict[str, Value], base: Callable[[dict[str, Value]], Servable]) -> MemoryServable:
        """The servable that gave ``arrays``, on copies of them; ``base`` makes the base's of its own."""
        config, mean = MemoryConfig(**arrays["config"]), np.array(arrays["mean"])
        picture = picture_of(config, table(arrays, "memory."), len(mean) + 1, arrays["seed"])
        scale = (mean, np.array(arrays["deviation"]))
        names, share = tuple(arrays["names"]), arrays["share"]
        return cls(base(table(arrays, "base.")), picture, config, names, share, *scale, arrays["seed"], arrays["task"])


def table(arrays: dict[str, Value], prefix: str) -> dict[str, Value]:
    """What stands under names that begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
