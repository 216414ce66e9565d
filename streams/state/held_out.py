"""Rows that are never learned, on which the learner is asked again and again: what it kept, and what it lost.

A row is held out by a hash of its time and features, so every branch holds out the same rows, however they are read. A
reservoir keeps an even sample of those held out so far (Vitter's algorithm R, its draws by the seed and the count of rows).
Held-out rows are counted as passed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from millrace.learners.evaluation.continual import ContinualScores
from millrace.learners.protocol import Array, Batch, Floats, Value
from millrace.streams.hashing import Hashes, bits_of, mixed, mixed_bits

Answers = Callable[[Batch], tuple[tuple[str, ...], Floats]]  # encoded rows -> names of the scores, and the scores (n, C)
LOWEST = 20  # classes whose recall goes into every output, at most


@dataclass(frozen=True, slots=True)
class HeldOutConfig:
    """Rows that are held out, never learned, and evaluated again and again.

    Raises: ValueError naming key, value and what is allowed.
    """

    share: float = 0.01  # in (0, 0.5], share of labelled rows that is held out; more is surer and learns less
    rows: int = 500  # >= 1, held-out rows kept at most; more is surer and costs memory and time at each evaluation
    every_rows: int = 1000  # >= 1, learned rows from one evaluation to the next; fewer show shorter drops
    window: int = 10  # >= 2, evaluations that windowed forgetting and plasticity look at

    def __post_init__(self) -> None:
        for key, allowed, fits in (
            ("share", "a number above 0 and up to 0.5", 0.0 < self.share <= 0.5),
            ("rows", "a whole number from 1", self.rows >= 1),
            ("every_rows", "a whole number from 1", self.every_rows >= 1),
            ("window", "a whole number from 2", self.window >= 2),
        ):
            if not fits:
                raise ValueError(f"{key} = {getattr(self, key)!r}: must be {allowed}")


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A row that is held out."""

    x: Floats  # (d,), encoded: NaN where a number is missing
    y: str
    unchanged: bool  # whether the row before had the same label
    place: int  # rows to learn that came before it
    names: Array | None = None  # (g,) of categories that grow


class HeldOut:
    """The reservoir, and the figures of its evaluations."""

    def __init__(self, config: HeldOutConfig, seed: int) -> None:
        """Nothing held out yet."""
        self.config = config
        self.scores = ContinualScores(config.window)
        self.rows = 0  # held out so far
        self._pending: list[Row] = []  # those that the reservoir has not been offered yet
        self._offered = 0  # the others; the reservoir has all of them or a sample
        self._seed = np.array([seed % 2**64], dtype=np.uint64)
        self._x: Floats = np.zeros((0, 0))  # (k, d) the reservoir, encoded
        self._names: Array | None = None  # (k, g) of categories that grow
        self._y: Array = np.zeros(0, dtype=object)  # (k,) their labels
        self._unchanged = np.zeros(0, dtype=bool)  # (k,) whether the row before had the same label
        self._last: str | None = None  # label of the newest labelled row
        self._labels: Counter[str] = Counter()  # of rows that were not held out
        self._evaluated = 0  # learned rows // every_rows at the newest evaluation

    def take(self, batch: Batch, before: int) -> NDArray[np.bool_]:
        """Hold out some of these labelled rows; which stay to be learned (n,). ``before``: rows to learn that came before.

        They wait until a row after them has been learned, so that no evaluation depends on how many rows were read at once.
        """
        if batch.y is None or not len(batch):
            return np.ones(len(batch), dtype=bool)
        chosen = hashes(batch) < np.uint64(self.config.share * 2.0**64)
        stay: NDArray[np.bool_] = ~chosen
        labels, places = [self._last, *batch.y.tolist()], before + np.cumsum(stay)
        self._last = labels[-1]
        for at in np.flatnonzero(chosen):
            names = None if batch.names is None else batch.names[at]
            self._pending.append(Row(batch.x[at].copy(), batch.y[at], labels[at + 1] == labels[at], int(places[at]), names))
        self.rows += int(chosen.sum())
        self._labels.update(batch.y[stay].tolist())
        return stay

    def look(self, answer: Answers, learned: int) -> None:
        """Evaluate what answers, if ``learned`` rows in all make it due."""
        while self._pending and self._pending[0].place < learned:
            self._offer(self._pending.pop(0))
        evaluations_due = learned // self.config.every_rows
        if evaluations_due > self._evaluated and len(self._y):
            classes, scores = answer(Batch(self._x, names=self._names))
            predicted = np.array(classes, dtype=object)[scores.argmax(axis=1)] if classes else np.full(len(self._y), None)
            rows, right = Counter(self._y.tolist()), Counter(self._y[predicted == self._y].tolist())
            self.scores.update({name: (right[name], count) for name, count in rows.items()})
        self._evaluated = max(evaluations_due, self._evaluated)

    def figures(self) -> dict[str, Any]:
        """What is known of the evaluations, beside two answers without a model; empty before the first evaluation.

        ``recall``: of the classes with the lowest, at most LOWEST.
        """
        figures = self.scores.figures()
        if not figures:
            return {}
        commonest = max(self._labels, key=self._labels.__getitem__, default=None)  # ties go to the label seen first
        baselines = {
            "accuracy_last": float(self._unchanged.mean()),
            "accuracy_majority": float((self._y == commonest).mean()),
        }
        lowest = sorted(self.scores.recall().items(), key=lambda class_recall: class_recall[1])[:LOWEST]
        counts = {"evaluations": self.scores.evaluations, "rows": self.rows, "kept": len(self._y)}
        return counts | figures | baselines | {"recall": dict(lowest)}

    def _offer(self, row: Row) -> None:
        """One more row: into a free place, or with chance kept / offered into another's. Source: Vitter, TOMS 1985."""
        self._offered += 1
        if len(self._y) < self.config.rows:
            self._x = np.concatenate([self._x.reshape(len(self._y), len(row.x)), row.x[None]])
            self._y = np.append(self._y, np.array([row.y], dtype=object))
            if row.names is not None:
                self._names = row.names[None] if self._names is None else np.concatenate([self._names, row.names[None]])
            self._unchanged = np.append(self._unchanged, row.unchanged)
            return
        place = int(mixed(np.array([self._offered], dtype=np.uint64) ^ mixed(self._seed))[0] % np.uint64(self._offered))
        if place < len(self._y):
            self._x[place], self._y[place], self._unchanged[place] = row.x, row.y, row.unchanged
            if self._names is not None:
                self._names[place] = row.names

    def state(self) -> dict[str, Value]:
        """Everything, as arrays and plain values."""
        figures = {f"scores.{name}": value for name, value in self.scores.state().items()}
        return figures | {
            "rows": self.rows,
            "offered": self._offered,
            "pending": np.array([row.x for row in self._pending]),
            "pending_rows": [[row.y, row.unchanged, row.place, *_listed(row.names)] for row in self._pending],
            "x": self._x.copy(),
            **({} if self._names is None else {"names": self._names.copy()}),
            "y": self._y.copy(),
            "unchanged": self._unchanged.astype(np.int64),
            "last": self._last,
            "labels": [[name, count] for name, count in self._labels.items()],
            "evaluated": self._evaluated,
        }

    def load(self, state: dict[str, Value]) -> None:
        """Go on where ``state`` was taken."""
        self.scores.load({name.removeprefix("scores."): value for name, value in state.items() if name.startswith("scores.")})
        self.rows, self._last, self._evaluated = state["rows"], state["last"], state["evaluated"]
        self._x, self._y = np.array(state["x"]), np.array(state["y"], dtype=object)
        self._unchanged = np.array(state["unchanged"], dtype=bool)
        self._labels = Counter(dict(state["labels"]))
        self._offered = state["offered"]
        rows = zip(np.array(state["pending"]), state["pending_rows"], strict=True)
        self._pending = [_row(x, *rest) for x, rest in rows]
        self._names = np.array(state["names"], dtype=object) if "names" in state else None


def hashes(batch: Batch) -> Hashes:
    """A number (n,), even over 64 bits, of each row's time, features and names, as the record has them."""
    x = bits_of(batch.x)
    if batch.names is not None:
        x = np.concatenate([x, [_text_hashes(row) for row in batch.names.tolist()]], axis=1)
    total = mixed_bits(x).sum(axis=1, dtype=np.uint64)
    t = np.zeros(len(batch), dtype=np.uint64) if batch.t is None else batch.t.astype(np.uint64)
    return mixed(total + mixed(t))


def _text_hashes(names: Sequence[str | None]) -> Hashes:
    """A number (g,) of each name; of none it is 0."""
    return np.array([0 if name is None else crc32(name.encode()) + 1 for name in names], dtype=np.uint64)


def _listed(names: Array | None) -> list[list[str | None]]:
    return [] if names is None else [names.tolist()]


def _row(x: Floats, y: str, unchanged: bool, place: int, names: list[str | None] | None = None) -> Row:
    return Row(x, y, unchanged, place, None if names is None else np.array(names, dtype=object))
