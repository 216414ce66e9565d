"""Analytic ridge: after any stream, exactly the ridge regression of everything seen so far.

Zhuang et al., "ACIL: Analytic Class-Incremental Learning with Absolute Memorization", NeurIPS 2022, arXiv 2205.14922;
classes may come back and batches may mix old and new ones as in G-ACIL, NeurIPS 2024, arXiv 2403.15706.

Differs from the paper: keeps the sums G and Q and solves them from time to time instead of running the recursion on the
inverse R = (G + gamma I)^-1 (faster from about ten rows a batch, and more accurate on class-ordered streams:
shared/specs/continual-learning.md, 6.1); has an intercept, scales features, weighs rows, forgets, and does regression.

| symbol | name | shape |
|---|---|---|
| phi | features, x or relu(x A^T) | (n, d_phi) |
| A | ``projection``, uniform in +-1 / sqrt(d) | (expand, d) |
| G, Q, s, t, n, y2 | ``sums``, see normal_equations.py | |
| W, b | ``weights``, ``intercept`` | (d_phi, C), (C,) |
| gamma, lambda | ``gamma``, ``decay`` | () |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import lapack

from millrace.learners.errors import BadInputError, LearnerError
from millrace.learners.linear import LinearServable, expanded, finite
from millrace.learners.normal_equations import Solution, Sums, solve
from millrace.learners.protocol import Array, Batch, Floats, State, Value


@dataclass(frozen=True, slots=True)
class RidgeConfig:
    """What a ridge is told once.

    Raises: ValueError naming key, value and what is allowed.
    """

    task: str = "classify"  # "classify": y are class names; "regress": y are numbers (n,) or (n, k)
    gamma: float = 1.0  # > 0, penalty in rows (with standardise); more is flatter and safer, less follows the data
    intercept: bool = True  # answers may have a mean of their own, which gamma does not pull to 0
    standardise: bool = True  # every feature counts the same whatever its unit, by the exact deviation at solve time
    solve_rows: int = 1024  # >= 1, learned rows from one solve to the next; more is cheaper and staler
    decay: float = 1.0  # in (0, 1], weight kept per learned row; less forgets faster (window 1 / (1 - decay) rows)
    expand: int = 0  # >= 0, random ReLU features in place of x; more is finer and costs its square; 0: x itself

    def __post_init__(self) -> None:
        for key, allowed, fits in (
            ("task", '"classify" or "regress"', self.task in ("classify", "regress")),
            ("gamma", "a finite number above 0", 0.0 < self.gamma < np.inf),
            ("solve_rows", "a whole number from 1", isinstance(self.solve_rows, int) and self.solve_rows >= 1),
            ("decay", "a number above 0 and up to 1", 0.0 < self.decay <= 1.0),
            ("expand", "a whole number from 0", isinstance(self.expand, int) and self.expand >= 0),
        ):
            if not fits:
                raise ValueError(f"{key} = {getattr(self, key)!r}: must be {allowed}")


class Ridge:
    """Ridge regression that learns online, to class names (one-hot) or to numbers.

    Solves after every ``solve_rows`` learned rows, and after a batch that brings a class (or the first numbers); never
    because it was asked.

    >>> ridge = Ridge(RidgeConfig(gamma=0.1), d=1, seed=0)
    >>> names = np.array(["low", "low", "high", "high"], dtype=object)
    >>> ridge.learn_many(Batch(np.array([[0.0], [1.0], [4.0], [5.0]]), names))
    >>> ridge.servable().classes
    ('low', 'high')
    >>> ridge.predict_many(Batch(np.array([[0.5], [4.5]]))).argmax(axis=1)
    array([0, 1])
    """

    revision: int = 1
    tolerance: float = 1e-8
    probabilities: bool = False

    def __init__(self, config: RidgeConfig, d: int, seed: int) -> None:
        """An untaught ridge over ``d`` >= 1 features; ``seed`` draws the projection, if there is one."""
        self.config = config
        self.d = d
        self.rows = 0  # learned, whatever they weighed
        self.solved_rows = 0  # value of ``rows`` at the last solve
        self._projection = _projection(config.expand, d, seed) if config.expand else None
        self._sums = Sums.empty(config.expand or d)
        self._classes: dict[str, int] = {}  # name -> column, in order of first appearance
        self._counts = np.zeros(0, dtype=np.int64)  # (C,) learned rows of each class
        columns = 0 if config.task == "classify" else 1
        self._keep(Solution(np.zeros((config.expand or d, columns), order="F"), np.zeros(columns), 0.0, config.gamma))

    @property
    def residual(self) -> float:
        """||A V - B|| / ||B|| of the last solve; above 1e-8 the answers are not to be trusted."""
        return self._solution.residual

    def learn_many(self, batch: Batch) -> None:
        """Learn labelled rows; a batch of none is allowed and does nothing.

        Raises: BadInputError where columns do not fit (nothing is learned then); LearnerError where solving fails.
        """
        if not len(batch):
            return
        x, y, weight = self._checked(batch)
        known = len(self._sums.targets)
        targets = self._targets(y)
        due = len(x) - (self.rows + len(x)) % self.config.solve_rows  # rows up to the last multiple of solve_rows
        grown = targets.shape[1] > known
        cut = due if due > 0 and not grown else len(x)
        self._add(x[:cut], targets[:cut], None if weight is None else weight[:cut])
        if due > 0 or grown:
            self._solve()
        if cut < len(x):
            self._add(x[cut:], targets[cut:], None if weight is None else weight[cut:])

    def predict_many(self, batch: Batch) -> Floats:
        """Scores (n, C) in the order of ``servable().classes``, or values (n, k); 0 before the first lesson.

        Raises: BadInputError where ``batch.x`` is not finite numbers (n, d).
        """
        return self._servable.predict_many(batch)

    def servable(self) -> LinearServable:
        """The last solution, immutable."""
        return self._servable

    def state_dict(self) -> State:
        """A copy of everything, G as its packed lower triangle."""
        sums, solution, columns = self._sums, self._solution, len(self._sums.targets)
        packed = lapack.dtrttp(sums.gram, uplo="L")[0]
        truth = {
            **self._shape(),
            "gram": packed,  # (d_phi (d_phi + 1) / 2,), LAPACK order
            "cross": sums.cross[:columns].copy(),
            "features": sums.features.copy(),
            "targets": sums.targets.copy(),
            "squares": sums.squares.copy(),
            "weight": sums.weight,
            "rows": self.rows,
            "classes": list(self._classes),
            "counts": self._counts.copy(),
            "projection": None if self._projection is None else self._projection.copy(),
        }
        derived: dict[str, Value] = {
            "weights": solution.weights.copy(order="F"),
            "intercept": solution.intercept.copy(),
            "residual": solution.residual,
            "gamma": solution.gamma,
            "solved_rows": self.solved_rows,
        }
        return State(truth, derived)

    def load_state_dict(self, state: State) -> None:
        """Become the ridge that gave ``state``, on copies of its arrays.

        Raises: LearnerError where the state is another learner's or another shape's.
        """
        truth, derived, ours = state.truth, state.derived, self._shape()
        theirs = {key: truth.get(key) for key in ours}
        if theirs != ours:
            raise LearnerError(f"this state is of {theirs} and this learner is {ours}; restore it into one like it")
        copied: dict[str, Any] = {k: np.array(v) if isinstance(v, np.ndarray) else v for k, v in truth.items()}
        gram = lapack.dtpttr(self.config.expand or self.d, copied["gram"], uplo="L")[0]
        sums = (copied[key] for key in ("cross", "features", "targets", "squares", "weight"))
        self._sums = Sums(gram, *sums)
        self._classes = {name: column for column, name in enumerate(copied["classes"])}
        self._counts, self._projection, self.rows = copied["counts"], copied["projection"], copied["rows"]
        weights = np.array(derived["weights"], order="F")
        self._keep(Solution(weights, np.array(derived["intercept"]), derived["residual"], derived["gamma"]))
        self.solved_rows = derived["solved_rows"]

    def _shape(self) -> dict[str, Value]:
        """What a state must agree on with its learner."""
        return {"kind": "ridge", "task": self.config.task, "d": self.d, "expand": self.config.expand}

    def _checked(self, batch: Batch) -> tuple[Floats, Array, Floats | None]:
        """x (n, d), y (n,) or (n, k), and weight (n,) with the decay in it, or None where all are 1.

        Raises: BadInputError naming the column, what was expected and what came.
        """
        x = finite("x", batch.x, (self.d,))
        if batch.y is None or batch.y.shape[:1] != x.shape[:1]:
            raise BadInputError(f"column y: expected {len(x)} labels, got {None if batch.y is None else batch.y.shape}")
        y = _names(batch.y) if self.config.task == "classify" else self._numbers(batch.y)
        weight = None if batch.weight is None else finite("weight", batch.weight, ())
        if weight is not None and (len(weight) != len(x) or weight.min() < 0.0):
            least = weight.min(initial=0.0)
            raise BadInputError(f"column weight: expected {len(x)} numbers >= 0, got {len(weight)}, least {least}")
        return x, y, weight

    def _numbers(self, y: Array) -> Floats:
        """Regression targets (n, k), k as learned before."""
        k = len(self._sums.targets) or (1 if y.ndim == 1 else max(1, y.shape[-1]))
        return finite("y", y[:, None] if y.ndim == 1 else y, (k,))

    def _targets(self, y: Array) -> Floats:
        """Target columns (n, C), one-hot for classes, with room made for those that are new."""
        if self.config.task == "regress":
            self._sums.grow(y.shape[1])
            return y
        known = list(map(self._classes.get, names := y.tolist()))
        new = None in known
        columns = np.array([self._classes.setdefault(str(name), len(self._classes)) for name in names] if new else known)
        self._sums.grow(len(self._classes))
        counts = np.bincount(columns, minlength=len(self._classes))
        counts[: len(self._counts)] += self._counts
        self._counts = counts
        one_hot = np.zeros((len(y), len(self._classes)), order="F")
        one_hot[np.arange(len(y)), columns] = 1.0
        return one_hot

    def discount(self, keep: float) -> None:
        """Let everything learned so far weigh ``keep`` of what it did, in (0, 1]; the answers follow at once.

        Raises: LearnerError where solving fails.
        """
        if not 0.0 < keep <= 1.0:
            raise BadInputError(f"keep = {keep}: must be above 0 and up to 1")
        width = len(self._sums.features)
        self._sums.add(np.zeros((0, width)), np.zeros((0, len(self._sums.targets))), None, keep)
        if len(self._sums.targets):
            self._solve()

    def _add(self, x: Floats, targets: Floats, weight: Floats | None) -> None:
        """Sum up rows: row i of n weighs decay^(n - 1 - i), and what was there before decay^n."""
        decay = self.config.decay
        if decay < 1.0:
            faded: Floats = np.power(decay, np.arange(len(x) - 1, -1, -1, dtype=np.float64))
            weight = faded if weight is None else weight * faded
        self._sums.add(expanded(x, self._projection), targets, weight, decay ** len(x))
        self.rows += len(x)

    def _solve(self) -> None:
        """Answer from now on by the sums as they are."""
        self._keep(solve(self._sums, self.config.gamma, self.config.intercept, self.config.standardise))
        self.solved_rows = self.rows

    def _keep(self, solution: Solution) -> None:
        """Answer from now on by ``solution``."""
        self._solution = solution
        self._servable = LinearServable(tuple(self._classes), solution.weights, solution.intercept, self._projection)


def _names(y: Array) -> Array:
    """Class names (n,), each a str. Raises: BadInputError."""
    names = y.ravel().tolist()
    strange = [] if set(map(type, names)) == {str} else [name for name in names if not isinstance(name, str)]
    if y.ndim != 1 or strange:
        raise BadInputError(f"column y: expected class names (n,), got {y.shape} with {strange[:1]}")
    return y


def _projection(features: int, d: int, seed: int) -> Floats:
    """A (features, d), uniform in +-1 / sqrt(d), the reference code's initialisation. Source: ACIL, Buffer.py."""
    bound = 1.0 / np.sqrt(d)
    return np.random.Generator(np.random.PCG64(seed)).uniform(-bound, bound, (features, d))
