"""Passive-aggressive classification: the smallest change of the weights by which the newest row is told apart by a margin.

Crammer et al., "Online Passive-Aggressive Algorithms", JMLR 7, 2006, whose equations and section are named below.

| symbol | name | shape |
|---|---|---|
| x | features | (n, d) |
| W, b | ``weights``, ``intercept`` | (d, C), (C,) |
| l | ``loss``, what the margin lacks | () |
| tau | ``step`` | () |
| C | ``aggressiveness`` | () |

Differs from the paper: an intercept, as one more feature that is always 1; a row's weight multiplies C, so a row of weight 0
changes nothing; classes may appear at any time, with weights of 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from millrace.learners.errors import BadInputError
from millrace.learners.linear.servable import LinearServable, finite
from millrace.learners.protocol import Array, Batch, Floats, State, Value


@dataclass(frozen=True, slots=True)
class PassiveAggressiveConfig:
    """Passive-aggressive classification, row by row.

    Raises: ValueError naming key, value and what is allowed.
    """

    task: str = "classify"  # "classify", as numbers have no classes
    aggressiveness: float = 1.0  # > 0, C, the largest step; more follows each row and its noise

    def __post_init__(self) -> None:
        """Raise ValueError for a setting out of range."""
        for key, allowed, fits in (
            ("task", '"classify"; ridge learns numbers', self.task == "classify"),
            ("aggressiveness", "a finite number above 0", 0.0 < self.aggressiveness < np.inf),
        ):
            if not fits:
                raise ValueError(f"{key} = {getattr(self, key)!r}: must be {allowed}")


class PassiveAggressive:
    """A linear classifier that learns row by row; its state is its weights.

    >>> model = PassiveAggressive(PassiveAggressiveConfig(), d=1, seed=0)
    >>> model.learn_many(Batch(np.array([[0.0], [4.0], [1.0], [5.0]]), np.array(["low", "high", "low", "high"], dtype=object)))
    >>> scores = model.predict_many(Batch(np.array([[0.0], [5.0]])))
    >>> [model.servable().classes[column] for column in scores.argmax(axis=1)]
    ['low', 'high']
    """

    revision: int = 1
    tolerance: float = 1e-9
    probabilities: bool = False

    def __init__(self, config: PassiveAggressiveConfig, d: int, seed: int) -> None:
        """Untaught, over ``d`` >= 1 features; nothing is drawn, so ``seed`` is of no consequence."""
        self.config, self.d = config, d
        self._weights, self._intercept = np.zeros((d, 0)), np.zeros(0)
        self._classes: dict[str, int] = {}  # name -> column, in order of first appearance

    def learn_many(self, batch: Batch) -> None:
        """Learn labelled rows, one after the other; a batch of none is allowed and does nothing.

        Raises: BadInputError where columns do not fit (nothing is learned then).
        """
        x, y, weight = self._checked(batch)
        for row, name, counts in zip(x, y, weight, strict=True):
            self._learn(row, self._column(name), float(counts))

    def _column(self, name: str) -> int:
        """Of a class, with weights of 0 where it is new."""
        if name not in self._classes:
            self._weights = np.pad(self._weights, ((0, 0), (0, 1)))
            self._intercept = np.pad(self._intercept, (0, 1))
        return self._classes.setdefault(name, len(self._classes))

    def _learn(self, x: Floats, right: int, counts: float) -> None:
        """Section 8: the margin to the best wrong class; the step is that of PA-I, equation (2.7), C times the row's weight."""
        scores = x @ self._weights + self._intercept
        others = np.delete(np.arange(len(scores)), right)
        if not len(others):
            return
        wrong = int(others[scores[others].argmax()])
        loss = max(0.0, 1.0 - scores[right] + scores[wrong])
        step = min(self.config.aggressiveness * counts, loss / (2.0 * (x @ x + 1.0)))
        for column, sign in ((right, step), (wrong, -step)):
            self._weights[:, column] += sign * x
            self._intercept[column] += sign

    def predict_many(self, batch: Batch) -> Floats:
        """Scores (n, C). Raises: BadInputError where ``batch.x`` is not finite numbers (n, d)."""
        return self.servable().predict_many(batch)

    def servable(self) -> LinearServable:
        """The weights as they are now, copied; immutable."""
        return LinearServable(tuple(self._classes), self._weights.copy(), self._intercept.copy())

    def state_dict(self) -> State:
        """A copy of everything."""
        arrays: dict[str, Value] = {"weights": self._weights.copy(), "intercept": self._intercept.copy()}
        return State(self._shape() | arrays | {"classes": list(self._classes)})

    def load_state_dict(self, state: State) -> None:
        """Become what gave ``state``, on copies of its arrays.

        Raises: LearnerError where the state is another learner's or another shape's.
        """
        truth = state.truth_of(self._shape())
        self._weights, self._intercept = np.array(truth["weights"], order="C"), np.array(truth["intercept"])
        self._classes = {name: column for column, name in enumerate(truth["classes"])}

    def _shape(self) -> dict[str, Value]:
        return {"kind": "passive-aggressive", "d": self.d}

    def _checked(self, batch: Batch) -> tuple[Floats, Array, Floats]:
        """x (n, d), y (n,) and weight (n,). Raises: BadInputError naming the column, what was expected and what came."""
        x = finite("x", batch.x, (self.d,))
        if batch.y is None or batch.y.shape != x.shape[:1] or not all(isinstance(name, str) for name in batch.y):
            got = None if batch.y is None else f"{batch.y.dtype} {batch.y.shape}"
            raise BadInputError(f"column y: expected {len(x)} class names, got {got}")
        weight = np.ones(len(x)) if batch.weight is None else finite("weight", batch.weight, ())
        if len(weight) != len(x) or (weight < 0.0).any():
            raise BadInputError(f"column weight: expected {len(x)} numbers >= 0, got {len(weight)}")
        return x, batch.y, weight
