"""A learner that never changes, for a memory to be put around, and rows whose meaning turns over."""

from __future__ import annotations

from typing import Any

import numpy as np
from broken import D

from millrace.learners.memory.abilities import remembering
from millrace.learners.memory.config import MemoryConfig, Remembering
from millrace.learners.protocol import Batch, Floats, State
from millrace.learners.table import LEARNERS

NAMES = ("a", "b", "c")
STEP = 8
MEMORY: dict[str, Any] = {"rows": 150, "near": 20, "warm_up_rows": 40, "step_rows": STEP, "half_life_rows": 60, "arrays": 12}


class Still:
    """A learner that learns only which classes there are, and always answers x W: what is answered is known beforehand."""

    revision, tolerance, probabilities = 1, 0.0, False

    def __init__(self, weights: Floats, names: tuple[str, ...] = NAMES) -> None:
        self.weights, self.classes = weights, names

    def learn_many(self, batch: Batch) -> None:
        """Nothing."""

    def predict_many(self, batch: Batch) -> Floats:
        """(n, C)."""
        return np.asarray(batch.x @ self.weights)

    def servable(self) -> Any:
        """Itself: it never changes."""
        return self

    def arrays(self) -> dict[str, Any]:
        """All of it."""
        return {"weights": self.weights}

    def state_dict(self) -> State:
        """Nothing changes."""
        return State()

    def load_state_dict(self, state: State) -> None:
        """Nothing changes."""


def memory_around(base: Any, memory: dict[str, Any], task: str = "classify", d: int = D) -> Any:
    """An error memory around a learner that is not in the table."""
    config = Remembering(LEARNERS["ridge"].config(task=task), MemoryConfig(**MEMORY | memory))
    return remembering(base, config, d, 3)


def weights(outputs: int) -> Floats:
    """Of a base."""
    return np.random.default_rng(5).normal(size=(D, outputs)) / 5.0


def labelled(rows: int, seed: int = 0) -> Batch:
    """Rows whose label turns over half way: what the base answers is right in one half at most."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, D))
    chosen = (x[:, :3].argmax(axis=1) + (np.arange(rows) >= rows // 2)) % 3
    return Batch(x, np.array(NAMES, dtype=object)[chosen], weight=rng.choice([0.0, 0.5, 1.0, 2.0], rows))
