"""What a learner is: five methods, no base class, and the records that pass through them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from millrace.learners.errors import LearnerError

Array = NDArray[Any]
Floats = NDArray[np.float64]
Scaling = Literal[
    "none", "declared", "clip", "standardise"
]  # what a learner needs of its features; see streams/features/scale.py
Value = Any  # an array, or what JSON can say: bool, int, float, str, None, lists and string-keyed dicts of these


def column(missing: object) -> Any:
    """A column that a batch may lack. Rows without it that are joined to rows with it have ``missing`` there."""
    return field(default=None, metadata={"missing": missing})


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to learn or to predict, one column a concern; nobody writes to a batch after it is made.

    A column is declared here and nowhere else: all that cuts, joins, keeps or stores rows goes by ``COLUMNS``. A state that was
    stored before a column was declared gives rows without it.

    Source: docs/design/overview.md#learner.
    """

    x: Floats  # (n, d) features, finite; NaN in rows that wait for what stands in for a missing number
    y: Array | None = column(missing=None)  # (n,) str objects for classes; (n,) or (n, k) float64 for numbers; None: no labels
    key: Array | None = column(missing=None)  # (n,) bytes | None objects, the records' keys
    t: NDArray[np.int64] | None = column(missing=0)  # (n,) milliseconds since 1970, the records' timestamps
    weight: Floats | None = column(missing=1.0)  # (n,) >= 0, more counts more; None: every row weighs 1
    names: Array | None = column(missing=None)  # (n, g) str | None objects, categories whose columns of x are not known yet
    asked: Array | None = column(missing=None)  # (n,) str | None objects, what was answered when it was asked; memory/asked.py
    sequences: Array | None = column(missing=None)  # (n,) bytes objects, completions of a language model; draft/completion.py

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, start: int, stop: int) -> Batch:
        """Rows ``start`` to ``stop``, as views."""
        return self if start == 0 and stop >= len(self) else self.only(slice(start, stop))

    def only(self, cut: slice | NDArray[Any]) -> Batch:
        """The rows of a slice, as views, or those that a mask (n,) or indices choose, as copies."""
        chosen: list[Any] = [None if column is None else column[cut] for column in columns_of(self)]
        return Batch(*chosen)


COLUMNS = tuple(declared.name for declared in fields(Batch))  # in the order of the constructor's arguments
MISSING = {declared.name: declared.metadata.get("missing", 0.0) for declared in fields(Batch)}  # by column
columns_of: Callable[[Batch], tuple[Any, ...]] = attrgetter(*COLUMNS)  # arrays or None, in that order


def as_columns(batch: Batch) -> dict[str, Array]:
    """The columns that a batch has, by name."""
    return {name: column for name, column in zip(COLUMNS, columns_of(batch), strict=True) if column is not None}


def from_columns(columns: Mapping[str, Value]) -> Batch:
    """The batch that has these columns, of either of the two; what else is there is left alone."""
    if LENGTHS in columns:
        columns = {**columns, "sequences": unjoined(columns["sequences"], columns[LENGTHS])}
    return Batch(**{name: columns[name] for name in COLUMNS if name in columns})


LENGTHS = "sequence_lengths"  # of a stored batch: bytes of each of its ``sequences``


def stored_columns(batch: Batch) -> dict[str, Array]:
    """The same for a state: sequences as one array of bytes and their lengths, since a state's header has no room for them."""
    columns = as_columns(batch)
    if batch.sequences is not None:
        columns["sequences"], columns[LENGTHS] = joined_bytes(batch.sequences.tolist())
    return columns


def joined_bytes(values: Sequence[bytes]) -> tuple[Array, Array]:
    """One array of uint8, and the length of each (n,)."""
    return np.frombuffer(b"".join(values), np.uint8), np.array([len(value) for value in values], dtype=np.int64)


def unjoined(blob: Array, lengths: Array) -> Array:
    """What ``joined_bytes`` was given, as (n,) objects."""
    ends, whole = np.cumsum(lengths).tolist(), blob.tobytes()
    values = np.empty(len(lengths), dtype=object)
    values[:] = [whole[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)] if ends else []
    return values


def join(pieces: list[Batch]) -> Batch:
    """One batch of all rows, in order."""
    if len(pieces) == 1:
        return pieces[0]
    lengths, columns = [len(piece) for piece in pieces], zip(*map(columns_of, pieces), strict=True)
    return Batch(*[joined(name, parts, lengths) for name, parts in zip(COLUMNS, columns, strict=True)])


def joined(name: str, parts: Sequence[Array | None], lengths: Sequence[int]) -> Any:
    """One column (n, ...) of all rows; None where no piece has it. In rows of a piece that lacks it stands MISSING."""
    present = [part for part in parts if part is not None]
    if not present:
        return None
    if len(present) < len(parts):
        present = [absent(name, present[0], rows) if part is None else part for part, rows in zip(parts, lengths, strict=True)]
    return np.concatenate(present)


def absent(name: str, like: Array, rows: int) -> Array:
    """What stands for a column in so many rows that lack it, of the type of ``like``."""
    return np.full((rows, *like.shape[1:]), MISSING[name], dtype=like.dtype)


@dataclass(frozen=True, slots=True)
class State:
    """All that changes a learner's future, as arrays and plain values.

    ``truth`` is the record of truth: equal bit for bit wherever the same rows were learned under the same host settings.
    ``derived`` was computed from it (a solution, a factor): restored with it, compared within a tolerance only.
    """

    truth: dict[str, Value] = field(default_factory=dict)
    derived: dict[str, Value] = field(default_factory=dict)

    def truth_of(self, identity: dict[str, Value]) -> dict[str, Value]:
        """``truth``, where it agrees with all that a learner says of itself in ``identity``.

        Raises: LearnerError where the state is another learner's or another shape's.
        """
        state_identity = {key: self.truth.get(key) for key in identity}
        if state_identity != identity:
            raise LearnerError(f"this state is of {state_identity} and this learner is {identity}; restore it into one like it")
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


@dataclass(frozen=True, slots=True, eq=False)
class Corrected:
    """Answers, and what they are made of, all (n, C)."""

    scores: Floats  # as answered
    answers: Floats  # before they were corrected
    errors: Floats  # by which those are held to be wrong, of which a share was added


@runtime_checkable
class Corrects(Protocol):
    """A servable that corrects answers, and must be told later what they were."""

    @property
    def share(self) -> float:
        """Of the errors, which is added; at 0 ``predict_many`` does not look at them."""

    def corrected(self, batch: Batch) -> Corrected:
        """As ``predict_many``, with what the answers are made of."""


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
        know of them, and answers stay the same until the next row is learned.
        Raises: BadInputError where an argument is out of range.
        """


@runtime_checkable
class EarlierRevisions(Protocol):
    """A learner that can still be what it was at an earlier revision, so that branches begun under that one go on."""

    @property
    def revisions(self) -> tuple[int, ...]:
        """Those that it can be, its own among them."""

    def as_of(self, revision: int) -> None:
        """Be the untaught learner of that revision: the same rows lead to the state they led to then, bit for bit.

        A state is loaded as what it was of. Raises: LearnerError where this release has no such revision.
        """


@runtime_checkable
class Notices(Protocol):
    """A learner that may learn a row otherwise than it came, or not at all."""

    def noticed(self) -> dict[str, Any]:
        """How much of that there was, by the names of ``streams/state/notices.py``."""


@runtime_checkable
class HasFigures(Protocol):
    """A learner that knows figures of its own, beside the scores of its answers."""

    def figures(self) -> dict[str, Any]:
        """Numbers by name, for `status` and every output."""


@runtime_checkable
class Warns(Protocol):
    """A learner that knows which features it makes nothing of."""

    def warnings(self) -> dict[int, str]:
        """Why, by the feature's column in x, as of the rows learned so far. Pure.

        A reason is a word, a colon, and a sentence that says what to do, if anything.
        """


def within(numbers: Floats, low: float, high: float) -> bool:
    """Whether each of the numbers is within its bounds; NaN is in none.

    Their sum of squares, one pass over them, says so nearly always. Where it passes half the bound, which leaves its rounding
    room, the least and the largest decide.
    """
    bound = max(0.0, min(-low, high)) / 2.0
    if not numbers.size or np.vdot(numbers, numbers) <= bound * bound:
        return True
    return bool(low <= numbers.min() and numbers.max() <= high)
