"""Predictions that wait for their label, as columns: a block of rows that are used again, and who sits in which."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from millrace.learners.protocol import MISSING, Array, Batch, Floats, Value, absent, as_columns, from_columns

FIRST_SLOTS = 256

ServedAnswer = tuple[tuple[str, ...], tuple[float, ...]]  # names of the scores, and the scores, as they were served


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Predictions that met their label, in the order in which they did."""

    batch: Batch
    clock_ms: NDArray[np.int64]  # (n,)
    answered: list[ServedAnswer]

    def by_classes(self) -> list[tuple[tuple[str, ...], Floats, Array]]:
        """Names, scores (k, C) and labels (k,) of each run of rows whose scores have the same names."""
        runs, start = [], 0
        for classes, run in groupby(self.answered, key=lambda served_answer: served_answer[0]):
            scores = np.array([scores for _, scores in run], dtype=np.float64)
            assert self.batch.y is not None
            runs.append((classes, scores.reshape(len(scores), -1), self.batch.y[start : start + len(scores)]))
            start += len(scores)
        return runs


class Waiting:
    """Rows of the block. A prediction's slot is given out before the features are known, and filled with the others' of a read.

    A slot that is freed is given out again only after ``release``, so that what it holds can still be learned.
    """

    def __init__(self) -> None:
        self.slots: dict[int, int] = {}  # hash64 of the id -> its slot, oldest first, so the first is the first that is due
        self.due_ms: list[int] = []  # by slot
        self._answered: list[ServedAnswer | None] = []  # by slot
        self._free: list[int] = []
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}  # equal names are held once
        self._columns: dict[str, Array] = {}  # (slots, ...) by name, as the row was when it was read

    @property
    def first(self) -> tuple[int, int] | None:
        """Who is due next, and when."""
        for identity, slot in self.slots.items():
            return identity, self.due_ms[slot]
        return None

    def take(self, identity: int, served_answer: ServedAnswer, due_ms: int) -> int:
        """A slot for a prediction that does not wait there yet."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self.slots[identity] = slot
        self.due_ms[slot] = due_ms
        self.answer(slot, served_answer)
        return slot

    def answer(self, slot: int, served_answer: ServedAnswer) -> None:
        """Another answer for a prediction that waits there."""
        self._answered[slot] = (self._names.setdefault(served_answer[0], served_answer[0]), served_answer[1])

    def _grow(self) -> None:
        have = len(self.due_ms)
        added = max(FIRST_SLOTS, have)
        self._free += range(have + added - 1, have - 1, -1)
        self.due_ms += [0] * added
        self._answered += [None] * added
        self._names.clear()  # of answers long gone; those that wait keep theirs

    def fill(self, slots: list[int], batch: Batch) -> None:
        """Put the rows of a read into the slots that were given out for them; their labels are yet to come."""
        at = np.array(slots, dtype=np.int64)
        columns = as_columns(replace(batch, y=None))
        for name, like in {**self._columns, **columns}.items():
            self._columns[name] = self._enlarged(name, like)
            self._columns[name][at] = columns.get(name, MISSING[name])

    def _enlarged(self, name: str, like: Array) -> Array:
        """A column with a place for every slot."""
        column = self._columns.get(name, like[:0])
        added = len(self.due_ms) - len(column)
        return column if not added else np.concatenate([column, absent(name, like, added)])

    def training_rows(self, slots: list[int], y: Array, clock_ms: list[int]) -> TrainingRows:
        """The rows in these slots with their labels (n,)."""
        at = np.array(slots, dtype=np.int64)
        batch = from_columns({name: column[at] for name, column in self._columns.items()} | {"y": y})
        return TrainingRows(batch, np.array(clock_ms, dtype=np.int64), [self._of(slot) for slot in slots])

    def _of(self, slot: int) -> ServedAnswer:
        served_answer = self._answered[slot]
        assert served_answer is not None
        return served_answer

    def release(self, slots: list[int]) -> None:
        """Give these out again."""
        for slot in slots:
            self._answered[slot] = None
        for column in self._columns.values():
            if column.dtype == object:
                column[np.array(slots, dtype=np.int64)] = None
        self._free += slots

    def state(self) -> dict[str, Value]:
        """Columns of the predictions that wait, oldest first."""
        slots = list(self.slots.values())
        if not slots:
            return {"pending": np.empty(0, dtype=np.int64)}
        at, served_answers = np.array(slots, dtype=np.int64), [self._of(slot) for slot in slots]
        tables = {classes: number for number, classes in enumerate(dict.fromkeys(classes for classes, _ in served_answers))}
        return {
            "pending": np.array(list(self.slots), dtype=np.int64),
            **{name: column[at] for name, column in self._columns.items()},
            "due_ms": np.array([self.due_ms[slot] for slot in slots], dtype=np.int64),
            "classes": [list(table) for table in tables],
            "table": np.array([tables[classes] for classes, _ in served_answers], dtype=np.int64),
            "outputs": np.array([len(scores) for _, scores in served_answers], dtype=np.int64),
            "scores": np.array([score for _, scores in served_answers for score in scores], dtype=np.float64),
        }

    def load(self, state: dict[str, Value]) -> None:
        """Become what gave ``state``, from having been made just now."""
        if "x" not in state:
            return
        tables = [tuple(table) for table in state["classes"]]
        pieces = np.split(state["scores"], np.cumsum(state["outputs"])[:-1])
        columns = zip(state["pending"].tolist(), state["table"].tolist(), pieces, state["due_ms"].tolist(), strict=True)
        slots = [
            self.take(identity, (tables[table], tuple(scores.tolist())), due_ms) for identity, table, scores, due_ms in columns
        ]
        self.fill(slots, from_columns(state))
