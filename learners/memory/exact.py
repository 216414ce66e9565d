"""The memory that holds the newest rows themselves: what is near is found by comparing with each.

Source: ReLoop2, Zhu et al., KDD 2023, arXiv 2306.08808, section 3.2.2 (the table of recent samples), equations 10 and 11.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from millrace.learners.memory.config import MemoryConfig
from millrace.learners.memory.nearest import nearest, nearest_to_one
from millrace.learners.memory.newest import Newest
from millrace.learners.protocol import Array, Floats, Value

COLUMNS = ("keys", "labels", "answers", "weight")


@dataclass(frozen=True, slots=True, eq=False)
class ExactPicture:
    """Rows as they are remembered, oldest first.

    The mean near a key is over the ``near`` nearest rows, each as much as exp(cosine / tau) times its weight.
    """

    config: MemoryConfig
    keys: Floats  # (m, d), of length 1
    labels: Floats  # (m, C), one-hot, or numbers
    answers: Floats  # (m, C), what the learner itself answered when it was asked
    weight: Floats  # (m,), above 0

    def near(self, keys: Floats) -> tuple[Floats, Floats, Array | None]:
        """The mean label and the mean answer near each key, both (n, C), and whether anything is near (n,); None: to each."""
        if not len(self.keys):
            nothing = np.zeros((len(keys), self.labels.shape[1]))
            return nothing, nothing, np.zeros(len(keys), dtype=bool)
        if len(keys) == 1:
            labels, answers = self._near_one(keys[0])
            return labels[None], answers[None], None
        places, cosines = nearest(self.keys, keys, self.config.near)
        shares = np.exp((cosines - cosines[:, -1:]) / self.config.tau) * self.weight.take(places)
        shares /= shares.sum(axis=1, keepdims=True)
        labels, answers = (
            np.matmul(shares[:, None, :], column.take(places, axis=0))[:, 0] for column in (self.labels, self.answers)
        )
        return labels, answers, None

    def _near_one(self, key: Floats) -> tuple[Floats, Floats]:
        """The same near one key (d,), both (C,), as a request has it: fewer and smaller steps, to the same bits."""
        places, cosines = nearest_to_one(self.keys, key, min(self.config.near, len(self.keys)))
        cosines -= cosines[-1:]
        cosines /= self.config.tau
        shares = np.exp(cosines, out=cosines)
        shares *= self.weight.take(places)
        shares /= np.add.reduce(shares)
        return shares @ self.labels.take(places, axis=0), shares @ self.answers.take(places, axis=0)

    def arrays(self) -> dict[str, Value]:
        """Everything ``of`` needs."""
        return {name: getattr(self, name) for name in COLUMNS}

    @classmethod
    def of(cls, config: MemoryConfig, arrays: Mapping[str, Value]) -> ExactPicture:
        """The picture that gave ``arrays``, on copies of them."""
        return cls(config, *(read_only(np.array(arrays[name], order="C")) for name in COLUMNS))


class Exact:
    """The newest rows."""

    def __init__(self, config: MemoryConfig, width: int) -> None:
        """Nothing is held of keys (width,) yet."""
        self._config = config
        wide = np.zeros((0, 0))
        self._held = Newest(config.rows, {"keys": np.zeros((0, width)), "labels": wide, "answers": wide, "weight": np.zeros(0)})

    def __len__(self) -> int:
        return len(self._held)

    def add(self, keys: Floats, labels: Floats, answers: Floats, weight: Floats) -> None:
        """Remember rows: keys (n, width) of length 1, labels and answers (n, C), weight (n,) above 0."""
        self._held.add(dict(zip(COLUMNS, (keys, labels, answers, weight), strict=True)))

    def widen(self, outputs: int) -> None:
        """Have room for more classes; labels and answers that are held have 0 there."""
        for name in ("labels", "answers"):
            self._held.widen(name, outputs)

    def now(self) -> ExactPicture:
        """What is held, for ever: nobody writes to rows that are there."""
        return ExactPicture(self._config, *(self._held[name] for name in COLUMNS))

    picture = now

    def state(self) -> dict[str, Value]:
        """A copy of everything."""
        return {name: self._held[name].copy() for name in COLUMNS}

    def load(self, state: Mapping[str, Value]) -> None:
        """Become what gave ``state``."""
        self._held = Newest(self._config.rows, {name: np.array(state[name]) for name in COLUMNS})


def read_only(array: Floats) -> Floats:
    """A view that cannot be written to."""
    view = array.view()
    view.flags.writeable = False
    return view
