"""A memory behind the scale of its keys: the first rows wait until the scale stands, which then never moves.

So no key is ever stale, whatever the learner goes through.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from millrace.learners.linear.scale import Scale
from millrace.learners.memory.config import MemoryConfig
from millrace.learners.memory.exact import Exact, ExactPicture
from millrace.learners.memory.nearest import normalised
from millrace.learners.memory.newest import Newest
from millrace.learners.memory.sketch import Sketch, SketchPicture
from millrace.learners.protocol import Floats, Value

CLIP = 10.0  # deviations of a feature in a key
LOWEST, HIGHEST = np.array(-CLIP), np.array(CLIP)  # as arrays, which NumPy takes sooner than numbers
COLUMNS = ("x", "labels", "answers", "weight")  # of rows that wait
Form = Exact | Sketch  # what holds keys, labels, answers and weights
Picture = ExactPicture | SketchPicture  # a memory as it is


class Scaled:
    """Rows of ``d`` features, remembered by their keys."""

    def __init__(self, config: MemoryConfig, d: int, seed: int) -> None:
        """Nothing is remembered yet; ``seed`` draws the planes of a sketch."""
        self._config, self._d = config, d
        self._scale = Scale(d, config.warm_up_rows)
        self._form: Form = Sketch(config, d + 1, seed) if config.form == "sketch" else Exact(config, d + 1)
        self._waiting = self._waiting_rows({"x": np.zeros((0, d)), "weight": np.zeros(0)})
        self._outputs = 0

    def _waiting_rows(self, columns: Mapping[str, Floats]) -> Newest:
        wide = np.zeros((0, 0))
        whole = {"labels": wide, "answers": wide} | dict(columns)
        return Newest(self._config.warm_up_rows, {name: whole[name] for name in COLUMNS})

    @property
    def scale(self) -> tuple[Floats, Floats]:
        """Mean and deviation of features, both (d,)."""
        return self._scale.mean, self._scale.deviation

    def add(self, x: Floats, labels: Floats, answers: Floats, weight: Floats) -> None:
        """Remember rows x (n, d), with labels and answers (n, C), and weight (n,) above 0."""
        self._widen(labels.shape[1])
        missing = 0 if self._scale.complete else self._config.warm_up_rows - len(self._waiting)
        if missing and len(x):
            first = (column[:missing] for column in (x, labels, answers, weight))
            self._waiting.add(dict(zip(COLUMNS, first, strict=True)))
            self._scale.take(x[:missing])
            if self._scale.complete:
                self._keep(*(self._waiting[name] for name in COLUMNS))
                self._waiting = self._waiting_rows({"x": np.zeros((0, self._d)), "weight": np.zeros(0)})
        if len(x) > missing:
            self._keep(x[missing:], labels[missing:], answers[missing:], weight[missing:])

    def _keep(self, x: Floats, labels: Floats, answers: Floats, weight: Floats) -> None:
        self._form.add(keys_of(x, *self.scale), labels, answers, weight)

    def _widen(self, outputs: int) -> None:
        """Have room for more classes, which nothing remembered has anything of."""
        if outputs > self._outputs:
            self._outputs = outputs
            self._form.widen(outputs)
            if not self._scale.complete:
                for name in ("labels", "answers"):
                    self._waiting.widen(name, outputs)

    def now(self) -> Picture:
        """What is remembered, until the next row."""
        return self._form.now()

    def picture(self) -> Picture:
        """What is remembered, for ever."""
        return self._form.picture()

    def state(self) -> dict[str, Value]:
        """A copy of everything."""
        waiting = {f"waiting.{name}": self._waiting[name].copy() for name in COLUMNS}
        return {"outputs": self._outputs} | self._scale.state() | self._form.state() | waiting

    def load(self, state: Mapping[str, Value]) -> None:
        """Become what gave ``state``, on copies of its arrays."""
        self._outputs = state["outputs"]
        self._scale.load(dict(state))
        self._form.load(state)
        self._waiting = self._waiting_rows({name: np.array(state[f"waiting.{name}"]) for name in COLUMNS})


def keys_of(x: Floats, mean: Floats, deviation: Floats) -> Floats:
    """Keys (n, d + 1) of length 1 of rows x (n, d): features in deviations from their mean, and a 1.

    By the 1 a key says how far from the mean its row is, and not in which direction alone; of one feature it would be the sign.
    """
    key = np.empty((len(x), len(mean) + 1))
    key[:, -1] = 1.0
    z = key[:, :-1]
    np.subtract(x, mean, out=z)
    z /= deviation
    np.minimum(np.maximum(z, LOWEST, out=z), HIGHEST, out=z)
    return normalised(key)


def picture_of(config: MemoryConfig, arrays: Mapping[str, Value], width: int, seed: int) -> Picture:
    """The picture of keys (width,) that gave ``arrays``, on copies of them."""
    if config.form == "sketch":
        return SketchPicture.of(config, arrays, width, seed)
    return ExactPicture.of(config, arrays)
