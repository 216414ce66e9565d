"""Analytic ridge: after any stream, exactly the ridge regression of everything seen so far.

Zhuang et al., "ACIL: Analytic Class-Incremental Learning with Absolute Memorization", NeurIPS 2022, arXiv 2205.14922;
classes may come back and batches may mix old and new ones as in G-ACIL, NeurIPS 2024, arXiv 2403.15706.

Differs from the paper: keeps the sums G and Q and solves them from time to time, in place of the recursion on the inverse R =
(G + gamma I)^-1. That is faster from about ten rows a batch, and more accurate on class-ordered streams
(docs/design/learners.md#ridge). It also has an intercept, scales features, weighs rows, forgets, and does regression.

The same sums answer in other ways too: a ``Solver`` says how, and what must be kept of each class besides (aef_ocl.py, air.py,
slda.py, ncm.py). Taking rows out again, giving them other labels and merging workers stand in exact.py.

| symbol | name | shape |
|---|---|---|
| phi | features, x or relu(x A^T) | (n, d_phi) |
| A | ``projection``, uniform in +-1 / sqrt(d) | (expand, d) |
| G, Q, s, t, n, y2 | ``sums``, from a learned row's values, see normal_equations.py and centre.py | |
| W, b | ``weights``, ``intercept`` | (d_phi, C), (C,) |
| gamma, lambda | ``gamma``, ``decay`` | () |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from millrace.learners.analytic.background import BackgroundSolve, derived, restored
from millrace.learners.analytic.centre import next_look
from millrace.learners.analytic.class_statistics import ClassGrams
from millrace.learners.analytic.dropped import note_finer, warnings_of
from millrace.learners.analytic.normal_equations import Solution, Sums
from millrace.learners.analytic.recentring import begin, look, seen_from, share
from millrace.learners.analytic.solver import Solver, Statistics, projection, regression, served
from millrace.learners.errors import BadInputError, LearnerError
from millrace.learners.linear.answered import Answered
from millrace.learners.linear.checked import columns_of, cut_of, names_of, numbers_of, rows_of
from millrace.learners.linear.servable import LinearServable, expanded
from millrace.learners.protocol import Array, Batch, Floats, State, Value


@dataclass(frozen=True, slots=True)
class RidgeConfig:
    """Ridge regression of everything seen, exactly.

    Raises: ValueError naming key, value and what is allowed.
    """

    task: str = "classify"  # "classify" or "regress", as the label's type says
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
    because it was asked. Where its head lets the solution follow behind (background.py), that of ``solve_rows`` learned rows
    answers ``solve_rows`` later; a class is still answered from the batch that brings it, for which learning waits.

    >>> ridge = Ridge(RidgeConfig(gamma=0.1), d=1, seed=0)
    >>> names = np.array(["low", "low", "high", "high"], dtype=object)
    >>> ridge.learn_many(Batch(np.array([[0.0], [1.0], [4.0], [5.0]]), names))
    >>> ridge.servable().classes
    ('low', 'high')
    >>> ridge.predict_many(Batch(np.array([[0.5], [4.5]]))).argmax(axis=1)
    array([0, 1])
    """

    revision: int = 2  # 2: sums are from a learned row's values, so that features far from zero count
    revisions: tuple[int, ...] = (1, 2)  # that this one can be: 1 sums from 0
    tolerance: float = 1e-8
    probabilities: bool = False

    def __init__(self, config: RidgeConfig, d: int, seed: int, head: Solver | None = None) -> None:
        """An untaught ridge over ``d`` >= 1 features; ``seed`` draws the projection, if there is one.

        ``head``: another way to answer than by ridge regression.
        """
        self.config = config
        self.d = d
        self.seed = seed
        self.head = head if head is not None else Solver("ridge", config, regression)
        self._per_class = None if self.head.per_class is None else self.head.per_class()
        self.rows = 0  # learned, whatever they weighed
        self.solved_rows = 0  # value of ``rows`` at the last solve
        self._projection = projection(config.expand, d, seed) if config.expand else None
        self._sums = Sums.empty(config.expand or d)
        self._classes: dict[str, int] = {}  # name -> column, in order of first appearance
        self._counts = np.zeros(0, dtype=np.int64)  # (C,) learned rows of each class
        self._finer = np.zeros(d, dtype=np.int8)  # 1 where some learned value is no float32
        self._behind, self._answered = BackgroundSolve(), Answered()
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
        outputs = len(self._sums.targets)
        targets = self._targets(y)
        grown, start = targets.shape[1] > outputs, 0
        for stop in [len(x)] if grown else self._due(len(x)):
            self._add(*cut_of(start, stop, x, targets, weight))
            self._solve_due(grown)
            start = stop
        if start < len(x):
            self._add(*cut_of(start, len(x), x, targets, weight))

    def predict_many(self, batch: Batch) -> Floats:
        """Scores (n, C) in the order of ``servable().classes``, or values (n, k); 0 before the first update.

        Raises: BadInputError where ``batch.x`` is not finite numbers (n, d).
        """
        return self._servable.predict_many(batch)

    def servable(self) -> LinearServable:
        """The last solution, immutable."""
        return self._servable

    def state_dict(self) -> State:
        """A copy of everything, G as its packed lower triangle; a solution that is under way is waited for.

        Raises: LearnerError where that could not be solved.
        """
        truth: dict[str, Value] = {
            **self._shape(),
            **self._sums.state(),
            "rows": self.rows,
            "classes": list(self._classes),
            "counts": self._counts.copy(),
            "projection": None if self._projection is None else self._projection.copy(),
            **({} if self._per_class is None else self._per_class.state()),
            **({} if self.revision == 1 else self._sums.centre_state() | {"finer": self._finer.copy()}),
        }
        return State(truth, derived(self._solution, self.solved_rows, "") | self._behind.derived())

    def load_state_dict(self, state: State) -> None:
        """Become the ridge that gave ``state``, of the same revision, on copies of its arrays.

        Raises: LearnerError where the state is another learner's or another shape's.
        """
        truth = state.truth_of(self._shape())
        self.revision = 2 if "centre" in truth else 1
        copied: dict[str, Any] = {k: np.array(v) if isinstance(v, np.ndarray) else v for k, v in truth.items()}
        self._sums = Sums.of(copied)
        self._classes = {name: column for column, name in enumerate(copied["classes"])}
        self._counts, self._projection, self.rows = copied["counts"], copied["projection"], copied["rows"]
        self._finer = copied.get("finer", np.zeros(self.d, dtype=np.int8))
        if self._per_class is not None:
            self._per_class.load(copied)
        solution, self.solved_rows = restored(state.derived, "")
        self._keep(solution)
        self._behind.load(state.derived)

    @property
    def class_rows(self) -> dict[str, int]:
        """Learned rows of each class, in the order of the score columns."""
        return dict(zip(self._classes, self._counts.tolist(), strict=True))

    @property
    def error(self) -> float:
        """How far the last solution can be from the exact one of its sums (Solution.error); 0 where it was restored."""
        return self._solution.error

    def known(self) -> Statistics:
        """The statistics as they are; a view, so nothing may be written to it."""
        names = tuple(self._classes)
        return Statistics(self._sums, self._per_class, names, self.rows, self._projection, self.seed)

    def as_of(self, revision: int) -> None:
        """Be the untaught learner of an earlier revision, so that rows lead to the state they led to then, bit for bit.

        Raises: LearnerError where this release has no such revision.
        """
        if revision not in self.revisions:
            raise LearnerError(f"revision {revision}: this release has {', '.join(map(str, self.revisions))}")
        self.revision = revision

    def _shape(self) -> dict[str, Value]:
        """What a state must agree on with its learner."""
        shape = {"kind": self.head.kind, "task": self.config.task, "d": self.d, "expand": self.config.expand}
        return shape if self.head.kind == "ridge" else shape | {"seed": self.seed}  # pseudo-features are drawn by it

    def _checked(self, batch: Batch) -> tuple[Floats, Array, Floats | None]:
        """x (n, d), y (n, k), or columns of classes (n,), or their names where some are new, and weight (n,), None: all are 1.

        Raises: BadInputError naming the column, what was expected and what came.
        """
        x, y, weight = rows_of(batch, self.d)
        if self.config.task != "classify":
            return x, numbers_of(y, len(self._sums.targets)), weight
        if (columns := columns_of(y, self._classes)) is not None:
            return x, columns, weight
        return x, names_of(y, self._classes, None if self._per_class is None else self._per_class.most), weight

    def _targets(self, y: Array) -> Floats:
        """Target columns (n, C) of y as ``_checked`` gives it, one-hot for classes, with room made for those that are new."""
        if self.config.task == "regress":
            self._sums.grow(y.shape[1])
            return y
        if (columns := y).dtype.kind != "i":
            columns = np.array([self._classes.setdefault(str(name), len(self._classes)) for name in y.tolist()])
            self._grow()
        self._counts += np.bincount(columns, minlength=len(self._classes))
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
        if self._per_class is not None:
            self._per_class.add(np.zeros((0, self.d)), np.zeros((0, width)), np.zeros(0), np.zeros(0), keep)
        if len(self._sums.targets):
            self.solve_now()

    def _add(self, x: Floats, targets: Floats, weight: Floats | None) -> None:
        """Sum up rows, and look where the centre lies at fixed counts of them, whatever batches they come in."""
        if self.revision == 1:
            self._sum_up(x, targets, weight)
            return
        start = 0
        while start < len(x):
            due = next_look(self.rows, self.config.decay)
            stop = min(len(x), start + due - self.rows)
            if self._sums.weight == 0.0:
                for first in (np.array([start]) if weight is None else start + np.flatnonzero(weight[start:stop]))[:1]:
                    begin(self._sums, self._per_class, self._row(x[first], targets[first]))
            self._sum_up(*cut_of(start, stop, x, targets, weight))
            if self.rows == due and (weight is None or weight[stop - 1] > 0.0):
                look(self._sums, self._per_class, self._row(x[stop - 1], targets[stop - 1]))
            start = stop

    def warnings(self) -> dict[int, str]:
        """Why a feature has no weight, or came too coarse, by its column in x; none where features are expanded."""
        if self.config.expand or self.rows < 2:
            return {}
        finer = self._finer if self.revision > 1 else np.ones_like(self._finer)
        return warnings_of(self._sums, self.config.intercept, finer)

    def _row(self, x: Floats, y: Floats) -> tuple[Floats, Floats, Floats | None]:
        """One row (d,), (C,) as recentring.py takes it."""
        phi = expanded(x[None], self._projection)[0] if self.config.intercept else x[:0]
        return x, phi, y if self.config.task == "regress" else None

    def _sum_up(self, x: Floats, targets: Floats, weight: Floats | None) -> None:
        """Sum up rows: row i of n weighs decay^(n - 1 - i), and what was there before decay^n."""
        if self.revision > 1:
            note_finer(self._finer, x)
        decay = self.config.decay
        if decay < 1.0:
            faded: Floats = np.power(decay, np.arange(len(x) - 1, -1, -1, dtype=np.float64))
            weight = faded if weight is None else weight * faded
        sums, keep = self._sums, decay ** len(x)
        centred = self.revision > 1 and self.config.intercept
        if (away := self._answered.take(x, sums.centre if centred else None)) is None:
            away = expanded(x, self._projection) - sums.centre if centred else expanded(x, self._projection)
        targets = targets - sums.centre_targets if centred and self.config.task == "regress" else targets
        sums.add(away, targets, weight, keep, one_hot=self.config.task == "classify")
        if self._per_class is not None:
            self._per_class.add(x, away, targets.argmax(axis=1), np.ones(len(x)) if weight is None else weight, keep)
        self.rows += len(x)

    def _grow(self) -> None:
        """Make room for all classes there are."""
        self._sums.grow(max(len(self._classes), len(self._sums.targets)))
        self._counts = np.concatenate([self._counts, np.zeros(len(self._classes) - len(self._counts), dtype=np.int64)])
        if self._per_class is not None:
            self._per_class.grow(len(self._classes))

    def blank(self) -> Ridge:
        """An untaught one of the same make."""
        other = Ridge(self.config, self.d, self.seed, self.head)
        other._projection, other.revision = self._projection, self.revision
        return other

    def gathered(self, batch: Batch) -> Ridge:
        """One of the same make that holds the statistics of these rows alone, and has solved nothing.

        Raises: BadInputError as in learning.
        """
        other = self.blank()
        x, y, weight = other._checked(batch)
        targets = other._targets(y)
        share((other._sums, other._per_class), (self._sums, self._per_class))
        other._sum_up(x, targets, weight)
        return other

    def only_class(self, name: str) -> Ridge:
        """One of the same make that holds the statistics of one class alone; for learners that keep class grams."""
        other, at = self.blank(), self._classes[name]
        assert isinstance(self._per_class, ClassGrams)
        assert isinstance(other._per_class, ClassGrams)
        other._classes[name] = 0
        other._grow()
        row, weight = self._sums.cross[at].copy(), self._sums.targets[at : at + 1].copy()
        squares = self._sums.squares[at : at + 1].copy()
        centre = self._sums.centre.copy()
        other._sums = Sums(self._per_class.gram(at), row[None], row, weight, squares, float(weight[0]), centre)
        other._per_class.packed[0] += self._per_class.packed[at]
        other._counts, other.rows = self._counts[at : at + 1].copy(), int(self._counts[at])
        return other

    def combine(self, other: Ridge, sign: int) -> None:
        """Add (``sign`` 1) or take out (-1) all rows of ``other``, which is of the same make; solves nothing yet.

        Raises: LearnerError where they have more classes together than there is room for, or another number of outputs.
        """
        self._refuse_misfit(other)
        if self._sums.weight == 0.0 and other._sums.weight != 0.0:
            share((self._sums, self._per_class), (other._sums, other._per_class))
        sums, per_class = seen_from(self._sums, (other._sums, other._per_class))
        columns = [self._classes.setdefault(name, len(self._classes)) for name in other._classes]
        columns = columns or list(range(len(other._sums.targets)))
        self._sums.grow(max(len(columns), len(self._sums.targets)))
        self._grow()
        self._sums.combine(sums, columns, sign)
        self._counts[columns[: len(other._counts)]] += sign * other._counts
        self.rows += sign * other.rows
        self._finer |= other._finer
        if self._per_class is not None:
            self._per_class.combine(per_class, columns, sign)  # type: ignore[arg-type]  # of the same make

    def _refuse_misfit(self, other: Ridge) -> None:
        most = None if self._per_class is None else self._per_class.most
        if most is not None and len(union := self._classes.keys() | other._classes.keys()) > most:
            raise LearnerError(f"{len(union)} classes together; there is room for most_classes = {most}")
        ours, theirs = len(self._sums.targets), len(other._sums.targets)
        if self.config.task == "regress" and self.rows and other.rows and ours != theirs:
            raise LearnerError(f"one has {ours} outputs and the other {theirs}, so they are not of the same rows")

    def finish_downdate(self, squares: Floats) -> None:
        """After rows were taken out: set to 0 what only rounding is left of, and answer by the rest.

        ``squares`` (d_phi,): the features' sums of squares before.
        """
        empty = np.flatnonzero(self._counts == 0)
        self._sums.clean(squares if self.rows else np.full(len(squares), np.inf), empty)
        if self._per_class is not None:
            self._per_class.clear(empty)
        self.solve_now()

    def solve_now(self) -> None:
        """Answer from now on by the sums as they are."""
        self._behind.drop()
        self._keep(self.head.answer(self.head.config, self.known()))
        self.solved_rows = self.rows

    def _due(self, n: int) -> list[int]:
        """After which of the next ``n`` rows to solve: the last due one, and the one before where its solution answers then."""
        period = self.config.solve_rows
        last = n - (self.rows + n) % period
        return [stop for stop in ((last,) if self.head.begin is None else (last - period, last)) if stop > 0]

    def _solve_due(self, grown: bool) -> None:
        """Answer by the sums as they are, or by what was begun a period ago, and begin anew."""
        if self.head.begin is None or grown:
            self.solve_now()
            return
        if (taken := self._behind.take()) is not None:
            solution, self.solved_rows = taken
            self._keep(solution)
        self._behind.begin(self.head.begin(self.head.config, self.known()), self.rows)

    def _keep(self, solution: Solution) -> None:
        """Answer from now on by ``solution``."""
        self._solution = solution
        self._servable = served(tuple(self._classes), solution, self._projection, self._answered)
