"""Softmax regression by steps: multinomial logistic regression that learns by stochastic gradient descent at a constant rate.

Bishop, "Pattern Recognition and Machine Learning", 2006, sections 3.1.3 and 4.3.4, whose equations are named below.

Differs from the book: a step takes the next ``step_rows`` rows, whatever batches they come in, so a batch equals its rows bit
for bit. Rows weigh. Classes may appear at any time, with weights of 0. Features are standardised, and count up to ``CLIP``
deviations in a step. The penalty shrinks W after the step, so no rate is too large for it. (Duchi and Singer, "Efficient
Online and Batch Learning Using Forward Backward Splitting", JMLR 10, 2009, section 5.2.)

| symbol | name | shape |
|---|---|---|
| z | features (x - mu) / sigma, see scale.py | (n, d) |
| W, b | ``weights``, ``intercept``, of z | (d, C), (C,) |
| p, t | probabilities softmax(z W + b), and one-hot labels | (n, C) |
| r | ``weight`` of each row | (n,) |
| eta, lambda | ``rate``, ``l2`` | () |
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from millrace.learners.errors import BadInputError
from millrace.learners.linear.scale import Scale
from millrace.learners.linear.servable import LinearServable, finite, softmax
from millrace.learners.protocol import Array, Batch, Floats, State, Value

CLIP = 10.0  # deviations; keeps one wild row from throwing the weights far away


@dataclass(frozen=True, slots=True)
class SoftmaxConfig:
    """Softmax (logistic) regression by gradient steps.

    Raises: ValueError naming key, value and what is allowed.
    """

    task: str = "classify"  # "classify", as numbers have no classes
    rate: float = 0.1  # > 0, eta, the step along the mean gradient of its rows; more adapts faster and wavers more
    step_rows: int = 32  # >= 1, rows of a step; more is steadier and slower to adapt
    l2: float = 0.0  # >= 0, lambda, the pull of the weights towards 0 by every step; more is flatter and forgets faster
    warm_up_rows: int = 1000  # >= 1, first rows, whose mean and deviation scale the features; then they are frozen

    def __post_init__(self) -> None:
        """Raise ValueError for a setting out of range."""
        for key, allowed, fits in (
            ("task", '"classify"; softmax learns classes, ridge learns numbers too', self.task == "classify"),
            ("rate", "a finite number above 0", 0.0 < self.rate < np.inf),
            ("step_rows", "a whole number from 1", isinstance(self.step_rows, int) and self.step_rows >= 1),
            ("l2", "a finite number from 0", 0.0 <= self.l2 < np.inf),
            ("warm_up_rows", "a whole number from 1", isinstance(self.warm_up_rows, int) and self.warm_up_rows >= 1),
        ):
            if not fits:
                raise ValueError(f"{key} = {getattr(self, key)!r}: must be {allowed}")


class Softmax:
    """Softmax regression; rows wait until ``step_rows`` of them make a step.

    >>> model = Softmax(SoftmaxConfig(rate=0.5, step_rows=4), d=1, seed=0)
    >>> batch = Batch(np.array([[0.0], [1.0], [4.0], [5.0]]), np.array(["low", "low", "high", "high"], dtype=object))
    >>> for _ in range(20):
    ...     model.learn_many(batch)
    >>> model.predict_many(Batch(np.array([[0.0], [5.0]]))).round(2)
    array([[0.97, 0.03],
           [0.03, 0.97]])
    """

    revision: int = 2  # 2: the scale is taken from the first row, and answers clip features as learning does
    tolerance: float = 1e-8
    probabilities: bool = True

    def __init__(self, config: SoftmaxConfig, d: int, seed: int) -> None:
        """Untaught, over ``d`` >= 1 features; nothing is drawn, so ``seed`` is of no consequence."""
        self.config, self.d = config, d
        self._weights, self._intercept = np.zeros((d, 0)), np.zeros(0)
        self._scale = Scale(d, config.warm_up_rows)
        self._clipped = np.zeros(d, dtype=np.int64)  # (d,) learned values beyond CLIP deviations
        self._classes: dict[str, int] = {}  # name -> column, in order of first appearance
        self._factor, self._raised_rows = 1.0, 0  # rows left whose steps are ``factor`` times as large
        self._waiting: tuple[Floats, Array, Floats] = (np.zeros((0, d)), np.zeros(0, dtype=object), np.zeros(0))  # x, y, r
        self._serve()

    def learn_many(self, batch: Batch) -> None:
        """Learn labelled rows, as many as make whole steps; a batch of none is allowed and does nothing.

        Raises: BadInputError where columns do not fit (nothing is learned then).
        """
        if not len(batch):
            return
        x, y, weight = (np.concatenate(pair) for pair in zip(self._waiting, self._checked(batch), strict=True))
        rows = self.config.step_rows
        stop = len(x) - len(x) % rows
        for at in range(0, stop, rows):
            self._step(x[at : at + rows], y[at : at + rows], weight[at : at + rows])
        self._waiting = (x[stop:].copy(), y[stop:].copy(), weight[stop:].copy())
        if stop:
            self._serve()

    def _step(self, x: Floats, y: Array, weight: Floats) -> None:
        """w <- w - eta grad E (3.22), each row as much as its factor says; then the penalty of as large a step."""
        columns = np.array([self._classes.setdefault(str(name), len(self._classes)) for name in y])
        if more := len(self._classes) - len(self._intercept):
            self._weights, self._intercept = np.pad(self._weights, ((0, 0), (0, more))), np.pad(self._intercept, (0, more))
        self._scale.take(x)
        z = (x - self._scale.mean) / self._scale.deviation
        self._clipped = self._clipped + (np.abs(z) > CLIP).sum(axis=0)
        z = np.clip(z, -CLIP, CLIP)
        factor = np.where(np.arange(len(x)) < self._raised_rows, self._factor, 1.0)
        self._raised_rows = max(0, self._raised_rows - len(x))
        of_weights, of_intercept = gradient((self._weights, self._intercept), z, columns, weight * factor)
        shrink = 1.0 + self.config.rate * factor.mean() * self.config.l2
        self._weights = (self._weights - self.config.rate * of_weights) / shrink
        self._intercept = self._intercept - self.config.rate * of_intercept

    def raise_rate(self, factor: float, rows: int) -> None:
        """Let the next ``rows`` >= 1 rows, those that wait among them, count ``factor`` > 0 times in their steps' size.

        Raises: BadInputError where an argument is out of range.
        """
        if not 0.0 < factor < np.inf or rows < 1:
            raise BadInputError(f"factor = {factor}, rows = {rows}: must be a finite number above 0, a whole number from 1")
        self._factor, self._raised_rows = float(factor), int(rows)

    def predict_many(self, batch: Batch) -> Floats:
        """Probabilities (n, C). Raises: BadInputError where ``batch.x`` is not finite numbers (n, d)."""
        return self._servable.predict_many(batch)

    def noticed(self) -> dict[str, dict[int, int]]:
        """How many learned values were clipped, by column."""
        return {"clipped": {int(at): int(self._clipped[at]) for at in np.flatnonzero(self._clipped)}}

    def servable(self) -> LinearServable:
        """The weights after the last step, for x as it comes in; immutable."""
        return self._servable

    def _serve(self) -> None:
        """Answer from now on by z W + b = (x - mu) (W / sigma) + b."""
        mean, deviation = self._scale.mean, self._scale.deviation
        intercept = self._intercept - (mean / deviation) @ self._weights
        weights, bounds = self._weights / deviation[:, None], np.stack([mean - CLIP * deviation, mean + CLIP * deviation])
        self._servable = LinearServable(
            tuple(self._classes), weights, intercept, softmax=True, bounds=bounds, centre=mean, level=self._intercept
        )

    def state_dict(self) -> State:
        """A copy of everything."""
        waiting = zip(("x", "y", "weight"), self._waiting, strict=True)
        steps: dict[str, Value] = {"weights": self._weights.copy(), "intercept": self._intercept.copy()}
        raised = {"factor": self._factor, "raised_rows": self._raised_rows, "classes": list(self._classes)}
        steps["clipped"] = self._clipped.copy()
        columns = {f"waiting_{name}": np.array(column) for name, column in waiting}
        return State(self._shape() | steps | raised | columns | self._scale.state())

    def load_state_dict(self, state: State) -> None:
        """Become what gave ``state``, on copies of its arrays.

        Raises: LearnerError where the state is another learner's or another shape's.
        """
        truth = state.truth_of(self._shape())
        self._weights, self._intercept = np.array(truth["weights"], order="C"), np.array(truth["intercept"])
        self._waiting = (np.array(truth["waiting_x"]), np.array(truth["waiting_y"]), np.array(truth["waiting_weight"]))
        self._classes = {name: column for column, name in enumerate(truth["classes"])}
        self._factor, self._raised_rows = truth["factor"], truth["raised_rows"]
        self._scale.load(truth)
        self._clipped = np.array(truth["clipped"])
        self._serve()

    def _shape(self) -> dict[str, Value]:
        return {"kind": "softmax", "d": self.d}

    def _checked(self, batch: Batch) -> tuple[Floats, Array, Floats]:
        """x (n, d), y (n,) and r (n,). Raises: BadInputError naming the column, what was expected and what came."""
        x = finite("x", batch.x, (self.d,))
        if batch.y is None or batch.y.shape != x.shape[:1] or not all(isinstance(name, str) for name in batch.y):
            received = None if batch.y is None else f"{batch.y.dtype} {batch.y.shape}"
            raise BadInputError(f"column y: expected {len(x)} class names, got {received}")
        weight = np.ones(len(x)) if batch.weight is None else finite("weight", batch.weight, ())
        if len(weight) != len(x) or weight.min() < 0.0:
            raise BadInputError(f"column weight: expected {len(x)} numbers >= 0, got {len(weight)}, least {weight.min()}")
        return x, batch.y, weight


def gradient(model: tuple[Floats, Floats], z: Floats, columns: Array, weight: Floats) -> tuple[Floats, Floats]:
    """Of the mean cross-entropy (4.108) of rows z (n, d) of classes (n,), each weighed: by W (d, C) and by b (C,)."""
    weights, intercept = model
    errors = softmax(z @ weights + intercept)  # p, (4.104)
    errors[np.arange(len(z)), columns] -= 1.0  # p - t
    errors *= weight[:, None] / len(z)  # r / n
    return z.T @ errors, errors.sum(axis=0)  # (4.109)
