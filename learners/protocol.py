"""What a learner is: five methods, no base class, and the records that pass through them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from millrace.learners.errors import LearnerError

Array = NDArray[Any]
Floats = NDArray[np.float64]
Value = Any  # an array, or what JSON can say: bool, int, float, str, None, lists and string-keyed dicts of these


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to learn or to predict, one column a concern; nobody writes to a batch after it is made.

    Source: docs/design/overview.md#learner.
    """

    x: Floats  # (n, d) features, finite
    y: Array | None = None  # (n,) str objects for classes; (n,) or (n, k) float64 for regression; None: no labels
    key: Array | None = None  # (n,) bytes | None objects, the records' keys
    t: NDArray[np.int64] | None = None  # (n,) milliseconds since 1970, the records' timestamps
    weight: Floats | None = None  # (n,) >= 0, more counts more; None: every row weighs 1

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, start: int, stop: int) -> Batch:
        """Rows ``start`` to ``stop``, as views."""
        return self.only(slice(start, stop))

    def only(self, cut: slice | NDArray[Any]) -> Batch:
        """The rows of a slice, as views, or those that a mask (n,) or indices choose, as copies."""
        return Batch(
            self.x[cut],
            None if self.y is None else self.y[cut],
            None if self.key is None else self.key[cut],
            None if self.t is None else self.t[cut],
            None if self.weight is None else self.weight[cut],
        )


@dataclass(frozen=True, slots=True)
class State:
    """All that changes a learner's future, as arrays and plain values.

    ``truth`` is the record of truth: equal bit for bit wherever the same rows were learned under the same host settings.
    ``derived`` was computed from it (a solution, a factor): restored with it, compared within a tolerance only.
    """

    truth: dict[str, Value] = field(default_factory=dict)
    derived: dict[str, Value] = field(default_factory=dict)

    def truth_of(self, ours: dict[str, Value]) -> dict[str, Value]:
        """``truth``, where it agrees with all that a learner says of itself in ``ours``.

        Raises: LearnerError where the state is another learner's or another shape's.
        """
        theirs = {key: self.truth.get(key) for key in ours}
        if theirs != ours:
            raise LearnerError(f"this state is of {theirs} and this learner is {ours}; restore it into one like it")
        return self.truth


class Servable(Protocol):
    """What answering needs and nothing else: immutable, equal answers to the learner it came from."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the score columns; empty for regression."""

    def predict_many(self, batch: Batch) -> Floats:
        """Scores (n, C) for classes, values (n, k) for regression."""

    def arrays(self) -> dict[str, Value]:
        """Arrays and plain values from which the same servable is made again."""


class Learner(Protocol):
    """The five methods. ``revision`` is raised when the same rows would lead to another state."""

    revision: int  # of the algorithm as written here; recorded in every fork
    tolerance: float  # largest relative difference of ``truth`` between hosts of different kind
    probabilities: bool  # whether scores are class probabilities (log loss is then reported)

    def learn_many(self, batch: Batch) -> None:
        """Learn labelled rows.

        Raises: BadInputError where columns do not fit the learner.
        """

    def predict_many(self, batch: Batch) -> Floats:
        """Scores (n, C) in the order of ``servable().classes``, or values (n, k). Pure."""

    def state_dict(self) -> State:
        """A copy of all that changes the future."""

    def load_state_dict(self, state: State) -> None:
        """Become exactly the learner that gave ``state``.

        Raises: LearnerError where the state is another learner's or another shape's.
        """

    def servable(self) -> Servable:
        """An immutable picture of what answers now."""


# Abilities: what only some learners can do, each a method beside the five. ``learners/table.py`` names those of each learner.


@runtime_checkable
class Discounts(Protocol):
    """A learner that can let what it has learned count less."""

    def discount(self, keep: float) -> None:
        """Let every row learned so far weigh ``keep`` of what it did, in (0, 1]; the answers follow at once.

        They do so with ``keep`` 1, too: then nothing weighs less, and every row learned so far is answered from.
        Raises: BadInputError where ``keep`` is out of range.
        """


@runtime_checkable
class RaisesRate(Protocol):
    """A learner that learns by steps, whose size can be raised for a while."""

    def raise_rate(self, factor: float, rows: int) -> None:
        """Take steps ``factor`` times as large for the next ``rows`` learned rows, then as before.

        ``factor`` is above 0 (1: as before), ``rows`` >= 1. Rows are counted, not calls. Where one step learns several rows,
        it is all of it as large as its first row says, or as large as its rows say on average; the learner says which. A
        second call replaces what is left of the first. What is left, and the factor, are in the state; the servable does not
        know of them, and nothing is answered otherwise before the next row is learned.
        Raises: BadInputError where an argument is out of range.
        """


def within(numbers: Floats, low: float, high: float) -> bool:
    """Whether each of the numbers is within its bounds; NaN is in none.

    Their sum of squares, one pass over them, says so nearly always; the least and the largest only where it does not, or where
    half the bound, which leaves its rounding room, is passed.
    """
    near = max(0.0, min(-low, high)) / 2.0
    if not numbers.size or np.vdot(numbers, numbers) <= near * near:
        return True
    return bool(low <= numbers.min() and numbers.max() <= high)
