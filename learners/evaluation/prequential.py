"""Test-then-train scores: every row is answered before it is learned, and compared with two baselines without a model.

The baselines answer with the last label and with the commonest label (of numbers: the running mean) of the rows before.
Rows count equally whatever they weigh. The same rows give the same totals, bit for bit, however they are cut.

Source: Dawid, prequential analysis, JRSS A 1984; docs/design/learners.md#prequential-scores.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from itertools import repeat

import numpy as np

from millrace.learners.errors import BadInputError
from millrace.learners.protocol import Array, Floats, Value

SMALLEST_PROBABILITY = 1e-15  # keeps the log loss of a label that was given probability 0 finite (34.5 nats)


@dataclass(frozen=True, slots=True)
class ClassScores:
    """What one batch, or a whole stream, of class labels scored."""

    rows: int = 0
    correct: int = 0  # rows whose largest score was their label's; ties go to the first column
    correct_last: int = 0  # rows with the label of the row before
    correct_majority: int = 0  # rows with the commonest label before them; ties go to the label seen first
    squared_error: float = 0.0  # sum over rows of |scores - one-hot|^2
    log_loss: float | None = None  # sum over rows, nats; None where the learner's scores are no probabilities


@dataclass(frozen=True, slots=True, eq=False)
class ValueScores:
    """What one batch, or a whole stream, of numbers scored: sums over rows, one for each of k outputs."""

    rows: int
    absolute_error: Floats  # (k,), in the unit of y
    squared_error: Floats  # (k,), in the unit of y, squared
    absolute_error_last: Floats  # (k,), of answering with the row before; 0 before the first
    squared_error_last: Floats  # (k,)
    absolute_error_mean: Floats  # (k,), of answering with the mean of all rows before; 0 before the first
    squared_error_mean: Floats  # (k,)


class PrequentialClasses:
    """Running scores of a classifier.

    >>> scored = PrequentialClasses(probabilities=False)
    >>> batch = scored.update(np.array([[0.9, 0.1], [0.2, 0.8]]), ("a", "b"), np.array(["a", "a"], dtype=object))
    >>> batch.correct, batch.correct_last, scored.totals.rows, scored.recall()
    (1, 1, 2, {'a': 0.5})
    """

    def __init__(self, probabilities: bool) -> None:
        """No rows yet; ``probabilities``: whether scores are class probabilities, so that log loss means something."""
        self.totals = ClassScores(log_loss=0.0 if probabilities else None)
        self._places: dict[str, int] = {}  # label -> its place in the two lists, in order of first appearance
        self._label_rows: list[int] = []  # rows of each label
        self._label_hits: list[int] = []  # those answered correctly
        self._last = -1  # place of the last row's label; -1: no row yet
        self._majority = -1  # place of the commonest label so far

    def update(self, scores: Floats, classes: tuple[str, ...], y: Array) -> ClassScores:
        """Count rows with scores (n, C), whose columns are ``classes``, and labels y (n,); the batch's own numbers.

        A label that is no column yet counts as wrong, with score (and probability) 0.
        Raises: BadInputError where the shapes do not fit.
        """
        if scores.shape != (len(y), len(classes)):
            raise BadInputError(f"column scores: expected {(len(y), len(classes))}, got {scores.shape}")
        places = self._places_of(y)
        columns = {name: column for column, name in enumerate(classes)}
        label = np.array([columns.get(name, -1) for name in self._places], dtype=np.int64)[places]
        hits = scores.argmax(axis=1) == label if classes else np.zeros(len(y), dtype=bool)
        last, majority = self._count(places, hits)
        before, squared = self.totals, _squared_errors(scores, label)
        log_loss = None if before.log_loss is None else _log_losses(scores, label)
        batch = ClassScores(
            len(y),
            int(np.count_nonzero(hits)),
            last,
            majority,
            _sum(0.0, squared),
            None if log_loss is None else _sum(0.0, log_loss),
        )
        self.totals = ClassScores(
            before.rows + batch.rows,
            before.correct + batch.correct,
            before.correct_last + batch.correct_last,
            before.correct_majority + batch.correct_majority,
            _sum(before.squared_error, squared),
            None if before.log_loss is None or log_loss is None else _sum(before.log_loss, log_loss),
        )
        return batch

    @staticmethod
    def losses(scores: Floats, classes: tuple[str, ...], y: Array) -> Floats:
        """1 for each row (n,) whose largest score is not its label's, else 0; nothing is counted."""
        return (scores.argmax(axis=1) != _columns(classes, y)).astype(np.float64) if classes else np.ones(len(y))

    def recall(self) -> dict[str, float]:
        """Share of each label's rows that were answered correctly, in order of first appearance."""
        return {name: self._label_hits[at] / self._label_rows[at] for name, at in self._places.items()}

    def state(self) -> dict[str, Value]:
        """Everything, as plain values."""
        return {
            "totals": asdict(self.totals),
            "labels": list(self._places),
            "label_rows": list(self._label_rows),
            "label_hits": list(self._label_hits),
            "last": self._last,
            "majority": self._majority,
        }

    def load(self, state: dict[str, Value]) -> None:
        """Go on where ``state`` was taken."""
        self.totals = ClassScores(**state["totals"])
        self._places = {name: at for at, name in enumerate(state["labels"])}
        self._label_rows, self._label_hits = list(state["label_rows"]), list(state["label_hits"])
        self._last, self._majority = state["last"], state["majority"]

    def _places_of(self, y: Array) -> Array:
        """Where each label (n,) stands in the lists; new ones are appended."""
        try:
            return np.fromiter(map(self._places.__getitem__, y.tolist()), np.int64, len(y))
        except KeyError:
            return np.fromiter(map(self._place, y.tolist()), np.int64, len(y))

    def _count(self, at: Array, hits: Array) -> tuple[int, int]:
        """Count labels by their places (n,), and hits; how often the last and the commonest label were right."""
        if not len(at):
            return 0, 0
        last = int((at[1:] == at[:-1]).sum()) + (int(at[0]) == self._last)
        self._last = int(at[-1])
        for place, count in enumerate(np.bincount(at[hits], minlength=1).tolist()):
            self._label_hits[place] += count
        return last, self._count_majority(at)

    def _count_majority(self, places: Array) -> int:
        """Count labels by their places (n,); how often the commonest one before a row was the row's.

        A label's count only grows, so the commonest so far is the label of the row with the highest count so far. Among equal
        counts it is the label seen first.
        """
        rows, counts = np.array(self._label_rows), np.bincount(places, minlength=len(self._label_rows))
        narrow = np.min_scalar_type(len(rows))  # is sorted several times as fast
        order, first = np.argsort(places.astype(narrow), kind="stable"), np.cumsum(counts) - counts
        height = np.empty_like(places)  # (n,) rows of the row's label up to it
        height[order] = np.arange(1, len(places) + 1) + (rows - first)[places[order]]
        if self._majority >= 0:
            places, height = np.append(self._majority, places), np.append(rows[self._majority], height)
        highest = np.maximum.accumulate(height * len(rows) - places)
        best = -highest % len(rows)
        self._majority, self._label_rows = int(best[-1]), (rows + counts).tolist()
        return int((best[:-1] == places[1:]).sum())

    def _place(self, name: str) -> int:
        """Where the label stands in the lists; a new one is appended."""
        at = self._places.setdefault(name, len(self._places))
        if at == len(self._label_rows):
            self._label_rows.append(0)
            self._label_hits.append(0)
        return at


class PrequentialValues:
    """Running scores of a regression.

    >>> scored = PrequentialValues()
    >>> batch = scored.update(np.array([[1.0], [2.0]]), (), np.array([2.0, 4.0]))
    >>> batch.absolute_error, batch.absolute_error_last
    (array([3.]), array([4.]))
    """

    def __init__(self) -> None:
        """No rows yet; the first batch says how many outputs there are."""
        self.totals = ValueScores(0, *np.zeros((6, 0)))
        self._last = np.zeros(0)  # (k,) y of the last row
        self._sum = np.zeros(0)  # (k,) sum of y

    def update(self, scores: Floats, classes: tuple[str, ...], y: Array) -> ValueScores:
        """Count rows with their answers (n, k) and true values y (n,) or (n, k); the batch's own numbers.

        Answers (n, 1) of a learner that does not know k yet are taken for each output. ``classes`` is empty.
        Raises: BadInputError where the shapes do not fit.
        """
        y = y[:, None] if y.ndim == 1 else y
        if scores.shape not in (y.shape, (len(y), 1)) or classes:
            raise BadInputError(f"column scores: expected {y.shape} and no classes, got {scores.shape}")
        if not self.totals.rows:
            self.totals = ValueScores(0, *np.zeros((6, y.shape[1])))
            self._last, self._sum = np.zeros((2, y.shape[1]))
        errors = y - np.stack([np.broadcast_to(scores, y.shape), *self._baselines(y)])  # (3, n, k)
        row_errors = np.stack([np.abs(errors), errors**2], axis=1).reshape(6, *y.shape)  # in the order of ValueScores
        before = (getattr(self.totals, column.name) for column in fields(ValueScores)[1:])
        totals = [_sums(total, rows) for total, rows in zip(before, row_errors, strict=True)]
        self.totals = ValueScores(self.totals.rows + len(y), *totals)
        return ValueScores(len(y), *row_errors.sum(axis=1))

    def losses(self, scores: Floats, classes: tuple[str, ...], y: Array) -> Floats:
        """|error| / (|error| + mean |error| so far) of each row (n,), in [0, 1), the mean over outputs; nothing is counted.

        A half is as wrong as ever; errors twice as large give two thirds. ``classes`` is empty.
        """
        y = y[:, None] if y.ndim == 1 else y
        errors = np.abs(y - np.broadcast_to(scores, y.shape))
        usual = self.totals.absolute_error / max(self.totals.rows, 1) if self.totals.rows else np.zeros(y.shape[1])
        total = errors + usual
        return np.asarray(np.divide(errors, total, out=np.zeros_like(errors), where=total > 0).mean(axis=1))

    def state(self) -> dict[str, Value]:
        """Everything, as arrays and plain values."""
        return asdict(self.totals) | {"last": self._last.copy(), "sum": self._sum.copy()}

    def load(self, state: dict[str, Value]) -> None:
        """Go on where ``state`` was taken."""
        arrays = (np.array(state[column.name]) for column in fields(ValueScores)[1:])
        self.totals = ValueScores(state["rows"], *arrays)
        self._last, self._sum = np.array(state["last"]), np.array(state["sum"])

    def _baselines(self, y: Floats) -> tuple[Floats, Floats]:
        """The last value and the running mean before each row, both (n, k); goes on past the rows."""
        values = np.concatenate([self._last[None], y])
        sums = np.cumsum(np.concatenate([self._sum[None], y]), axis=0)
        counts = np.maximum(self.totals.rows + np.arange(len(y)), 1)
        self._last, self._sum = values[-1], sums[-1]
        return values[:-1], sums[:-1] / counts[:, None]


def _columns(classes: tuple[str, ...], y: Array) -> Array:
    """The column of each label (n,), or -1 where it has none."""
    columns = {name: column for column, name in enumerate(classes)}
    return np.array(list(map(columns.get, y.tolist(), repeat(-1))), dtype=np.int64)


def _squared_errors(scores: Floats, label: Array) -> Floats:
    """|scores - one-hot|^2 of each row (n,); a label without a column (-1) misses by 1."""
    errors, rows = scores.copy(), np.flatnonzero(label >= 0)
    errors.reshape(-1)[rows * scores.shape[1] + label[rows]] -= 1.0
    errors *= errors
    return np.asarray(errors.sum(axis=1) + (label < 0))


def _log_losses(scores: Floats, label: Array) -> Floats:
    """-log of the score of each row's label (n,)."""
    has_column = label >= 0
    label_scores = np.zeros(len(label))
    label_scores[has_column] = scores[np.flatnonzero(has_column), label[has_column]]
    return -np.log(np.clip(label_scores, SMALLEST_PROBABILITY, 1.0))


def _sum(total: float, rows: Floats) -> float:
    """``total`` plus each of ``rows`` (n,), one after the other, so that cutting them changes no bit."""
    return float(_sums(np.array(total), rows))


def _sums(total: Floats, rows: Floats) -> Floats:
    """``total`` (...) plus each of ``rows`` (n, ...), one after the other."""
    return np.asarray(np.cumsum(np.concatenate([total[None], rows]), axis=0)[-1])
