"""Any learner with a memory of recent errors around it, which corrects its answers at once, however slowly it learns itself.

Labels come minutes or days after the answer. Until the learner has learned them, and for ever where it may not move, rows like
those that it got wrong are answered by what came then.

Rows are taken in steps of ``step_rows``, whatever batches they come in: answered, learned by the base, and remembered. Fewer
wait. So what the base answers just before it learns a row depends on how many rows came before, and on no batch. A row that
brings what was answered when it was asked (``Batch.asked``) is remembered with that.

| symbol | name | shape |
|---|---|---|
| y | the base's ``answers`` | (n, C) |
| e | ``errors``, by what is near | (n, C) |
| lambda, gamma | ``share`` of the errors, see strength.py; ``config.gamma`` | () |

Source: ReLoop2, Zhu et al., KDD 2023, arXiv 2306.08808; docs/design/learners.md#error-memory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from millrace.learners.linear.checked import names_of, numbers_of, rows_of
from millrace.learners.linear.servable import LARGEST
from millrace.learners.memory.asked import aligned, of_texts
from millrace.learners.memory.config import Remembering
from millrace.learners.memory.scaled import Picture, Scaled
from millrace.learners.memory.servable import MemoryServable, table
from millrace.learners.memory.strength import Strength
from millrace.learners.protocol import (
    Batch,
    Floats,
    Learner,
    Notices,
    State,
    Value,
    as_columns,
    from_columns,
    join,
)

REVISION = 2  # of the memory: 2 keeps log losses, too
OWN = 100 * (REVISION - 1)  # that it adds to the revision of the learner around which it is


class ErrorMemory:
    """A learner with its memory; see ``remembering``, which makes one with the abilities of its base."""

    probabilities: bool = False  # scores are clamped, each by itself, so their sum may be off 1

    def __init__(self, base: Learner, config: Remembering, d: int, seed: int) -> None:
        """An untaught memory of rows of ``d`` features around ``base``; ``seed`` draws the planes of a sketch."""
        self.base, self.config, self.d, self.seed = base, config.memory, d, seed
        self.revision: int = base.revision + OWN
        self.tolerance: float = base.tolerance
        self._task = "unbounded" if config.unbounded and config.base.task == "classify" else config.base.task
        self._declared = frozenset(getattr(config.base, "classes", ()))
        self._freeze_rows = config.memory.freeze_base_rows
        self._most = config.memory.most_outputs(d)
        self._memory = Scaled(config.memory, d, seed)
        self._strength = Strength(config.memory.strength, self._task != "regress")
        self._names: dict[str, None] = {}  # of the memory's outputs, in order of first appearance; of numbers none
        self._waiting: list[Batch] = []  # rows of the step that is being gathered
        self._outputs = 0  # numbers of a label, where it has no classes; 0: none was seen
        self._rows = 0  # taken in steps
        self._skipped = self._crowded = 0  # rows whose answer was not finite; whose class has no room
        self._servable: MemoryServable | None = None

    @property
    def residual(self) -> float:
        """The base's, of one that solves."""
        return float(getattr(self.base, "residual", 0.0))

    def learn_many(self, batch: Batch) -> None:
        """Learn labelled rows, as many as make whole steps; a batch of none is allowed and does nothing.

        Raises: BadInputError where columns do not fit (nothing is learned then).
        """
        if not len(batch):
            return
        self._check(batch)
        if self._task == "regress":
            self._outputs = self._numbers(batch.y).shape[1]
        rows, step_rows = join([*self._waiting, batch]), self.config.step_rows
        stop = len(rows) - len(rows) % step_rows
        for at in range(0, stop, step_rows):
            self._step(rows.rows(at, at + step_rows))
        self._waiting = [rows.only(np.arange(stop, len(rows)))] if stop < len(rows) else []

    def learn_waiting(self) -> None:
        """Make a step of the rows that wait for more."""
        if self._waiting:
            rows, self._waiting = join(self._waiting), []
            self._step(rows)

    def changed(self) -> None:
        """What answers is not what it was."""
        self._servable = None

    def _check(self, batch: Batch) -> None:
        """Raises: BadInputError naming the column, what was expected and what came."""
        _, y, _ = rows_of(batch, self.d)
        if self._task == "regress":
            numbers_of(y, self._outputs)
        else:
            names_of(y, (), None)

    def _numbers(self, y: Any) -> Floats:
        return numbers_of(y, self._outputs)

    def _step(self, rows: Batch) -> None:
        """Answer rows by what is known before them; let the base learn them; remember them."""
        answers, errors, told = self._asked(rows)
        labels, fits = self._labels(rows)
        weight = np.ones(len(rows)) if rows.weight is None else rows.weight
        answers, errors = self._widened(answers), self._widened(errors)
        sound = (np.abs(answers) <= LARGEST).all(axis=1) & (np.abs(errors) <= LARGEST).all(axis=1)
        self._skipped += int((fits & ~sound).sum())
        kept = fits & sound & (weight > 0.0) & told
        self._strength.take(answers[kept], errors[kept], labels[kept], weight[kept])
        self._learn_base(rows)
        self._rows += len(rows)
        self._memory.add(rows.x[kept], labels[kept], answers[kept], weight[kept])
        self.changed()

    def _learn_base(self, rows: Batch) -> None:
        left = self._freeze_rows - self._rows if self._freeze_rows else len(rows)
        if left > 0:
            self.base.learn_many(replace(rows, asked=None).rows(0, min(left, len(rows))))

    def _asked(self, rows: Batch) -> tuple[Floats, Floats, Any]:
        """What the base answered, and its errors (n, C) by the memory's outputs: when the row was asked, or else now.

        And which rows (n,) had an answer: those that were asked, and all once the base has learned numbers, or knows a class.
        """
        servable = self._serving(self._memory.now())
        self._name(servable.classes)
        texts = [None] * len(rows) if rows.asked is None else rows.asked.tolist()
        now = np.array([text is None for text in texts], dtype=bool)
        answers, errors = np.zeros((2, len(rows), self._columns(rows)))
        if now.any():
            answered = servable.corrected(Batch(rows.x[now]))
            answers[now], errors[now] = (
                aligned(numbers, servable.classes, [*self._names]) for numbers in (answered.answers, answered.errors)
            )
        if not now.all():
            answers[~now], errors[~now] = of_texts([text for text in texts if text is not None], [*self._names])
        taught = self._rows > 0 if self._task == "regress" else bool(servable.base.classes)
        return answers, errors, ~now | taught

    def _columns(self, rows: Batch) -> int:
        return len(self._names) if self._task != "regress" else self._numbers(rows.y).shape[1]

    def _name(self, names: Any) -> None:
        """New outputs, as long as what is published has room for them."""
        for name in names:
            if name not in self._names and len(self._names) < self._most and (not self._declared or name in self._declared):
                self._names[name] = None

    def _labels(self, rows: Batch) -> tuple[Floats, Any]:
        """Labels (n, C) by the memory's outputs, one-hot or numbers, and which are learned at all (n,)."""
        assert rows.y is not None
        if self._task == "regress":
            return self._numbers(rows.y), np.ones(len(rows), dtype=bool)
        fits = np.array([not self._declared or name in self._declared for name in rows.y.tolist()], dtype=bool)
        self._name(rows.y.tolist())
        self._crowded += sum(name not in self._names for name in rows.y[fits].tolist())
        return (rows.y[:, None] == np.array([*self._names], dtype=object)[None, :]).astype(np.float64), fits

    def _widened(self, numbers: Floats) -> Floats:
        """With 0 for the classes that this step brought."""
        more = len(self._names) - numbers.shape[1] if self._task != "regress" else 0
        return np.pad(numbers, ((0, 0), (0, more))) if more else numbers

    def predict_many(self, batch: Batch) -> Floats:
        """Scores (n, C) in the order of ``servable().classes``, or values (n, k). Raises: as the base does."""
        return self.servable().predict_many(batch)

    def servable(self) -> MemoryServable:
        """What answers after the last step; immutable."""
        if self._servable is None:
            self._servable = self._serving(self._memory.picture())
        return self._servable

    def _serving(self, picture: Picture) -> MemoryServable:
        mean, deviation = self._memory.scale
        names, share = tuple(self._names), self._strength.share
        return MemoryServable(
            self.base.servable(), picture, self.config, names, share, mean.copy(), deviation.copy(), self.seed, self._task
        )

    def noticed(self) -> dict[str, Any]:
        """What the base says, and how many rows are not in the memory, or not under their class."""
        counts = {"unremembered": self._skipped, "memory_full": self._crowded}
        own = {name: count for name, count in counts.items() if count}
        return (dict(self.base.noticed()) if isinstance(self.base, Notices) else {}) | own

    def figures(self) -> dict[str, Value]:
        """lambda, and the mean losses with it and without."""
        return self._strength.figures()

    def state_dict(self) -> State:
        """A copy of everything; the base's under names that begin with ``base.``."""
        base = self.base.state_dict()
        own: dict[str, Value] = {"names": list(self._names), "outputs": self._outputs, "rows": self._rows}
        waiting = as_columns(join(self._waiting)) if self._waiting else {}
        own |= {"skipped": self._skipped, "crowded": self._crowded} | self._strength.state()
        own |= {f"waiting.{name}": column.copy() for name, column in waiting.items()}
        own |= {f"memory.{name}": value for name, value in self._memory.state().items()}
        truth, derived = ({f"base.{name}": value for name, value in part.items()} for part in (base.truth, base.derived))
        return State(self._identity() | own | truth, derived)

    def load_state_dict(self, state: State) -> None:
        """Become exactly the learner that gave ``state``, on copies of its arrays.

        Raises: LearnerError where the state is another learner's or another shape's.
        """
        truth = state.truth_of(self._identity())
        self.base.load_state_dict(State(table(truth, "base."), table(state.derived, "base.")))
        self.revision = self.base.revision + OWN
        self._names, self._outputs, self._rows = dict.fromkeys(truth["names"]), truth["outputs"], truth["rows"]
        self._skipped, self._crowded = truth["skipped"], truth["crowded"]
        self._strength.load(truth)
        self._memory.load(table(truth, "memory."))
        waiting = {name: np.array(column) for name, column in table(truth, "waiting.").items()}
        self._waiting = [from_columns(waiting)] if waiting else []
        self._servable = None

    def _identity(self) -> dict[str, Value]:
        return {"kind": "error memory", "form": self.config.form, "d": self.d}
