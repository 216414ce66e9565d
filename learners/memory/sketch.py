"""The memory that holds sums of rows in the cells that their keys fall into: its size depends on no number of rows.

Each of several arrays cuts the space by ``bits`` random planes through the origin, and a key falls into one cell of each. What
is near a key is what fell into the same cells. Sums are pooled over the arrays before they are divided.

Differs from the paper: it takes a softmax over the arrays' means, which few rows in a cell make noisy, and empties the cells
from time to time. Here a row counts half after ``half_life_rows`` more. So each is written with 2^(rows / half-life) times
its weight, and no other is touched: only quotients of sums are ever read.

Source: ReLoop2, Zhu et al., KDD 2023, arXiv 2306.08808, section 3.2.2; Coleman and Shrivastava, "Sub-linear RACE Sketches for
Approximate Kernel Density Estimation on Streaming Data", WWW 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from millrace.learners.memory.config import MemoryConfig
from millrace.learners.memory.exact import read_only
from millrace.learners.protocol import Array, Floats, Value

HALVINGS = 64  # after which all cells are divided by 2^64, so that what is written stays finite
LEAST = (
    2.0**-900
)  # weight of a cell that is emptied then: soon its sums would be too small for float64 to hold all their digits


@dataclass(frozen=True, slots=True, eq=False)
class SketchPicture:
    """Cells as they are: of each array 2^bits, with the rows' weight, the sum of labels, and that of answers."""

    planes: Floats  # (d, arrays * bits), a normal to each
    count: int  # of arrays
    cells: Floats  # (arrays * 2^bits, 1 + 2 C)

    def near(self, keys: Floats) -> tuple[Floats, Floats, Array]:
        """The mean label and the mean answer near each key, both (n, C), and whether a row fell into its cells (n,)."""
        sums = self.cells[cells_of(keys, self.planes, self.count)].sum(axis=1)
        weight, outputs = sums[:, :1], (sums.shape[1] - 1) // 2
        means = sums[:, 1:] / np.where(weight > 0.0, weight, 1.0)
        return means[:, :outputs], means[:, outputs:], weight[:, 0] > 0.0

    def arrays(self) -> dict[str, Value]:
        """Everything ``of`` needs; planes are drawn again."""
        return {"cells": self.cells}

    @classmethod
    def of(cls, config: MemoryConfig, arrays: Mapping[str, Value], width: int, seed: int) -> SketchPicture:
        """The picture that gave ``arrays``, on copies of them."""
        return cls(planes(config, width, seed), config.arrays, read_only(np.array(arrays["cells"], order="C")))


class Sketch:
    """The cells."""

    def __init__(self, config: MemoryConfig, width: int, seed: int) -> None:
        """Nothing is held of keys (width,) yet; ``seed`` draws the planes."""
        self._config = config
        self._planes = planes(config, width, seed)
        self._cells = np.zeros((config.arrays << config.bits, 1))
        self._rows = 0  # since all cells were divided

    def add(self, keys: Floats, labels: Floats, answers: Floats, weight: Floats) -> None:
        """Remember rows: keys (n, width) of length 1, labels and answers (n, C), weight (n,) above 0."""
        rows = np.concatenate([np.ones((len(keys), 1)), labels, answers], axis=1) * weight[:, None]
        for cells, row in zip(cells_of(keys, self._planes, self._config.arrays), rows, strict=True):
            self._rows += 1
            self._cells[cells] += row * 2.0 ** (self._rows / self._config.half_life_rows)
            if self._rows == HALVINGS * self._config.half_life_rows:
                self._cells *= 2.0**-HALVINGS
                self._cells[self._cells[:, 0] < LEAST] = 0.0
                self._rows = 0

    def widen(self, outputs: int) -> None:
        """Have room for more classes, of which there is nothing in any cell."""
        weight, labels, answers = np.split(self._cells, [1, 1 + (self._cells.shape[1] - 1) // 2], axis=1)
        more = ((0, 0), (0, outputs - labels.shape[1]))
        self._cells = np.concatenate([weight, np.pad(labels, more), np.pad(answers, more)], axis=1)

    def now(self) -> SketchPicture:
        """What is held, until a row is added."""
        return SketchPicture(self._planes, self._config.arrays, self._cells)

    def picture(self) -> SketchPicture:
        """What is held, for ever."""
        return SketchPicture(self._planes, self._config.arrays, read_only(self._cells.copy()))

    def state(self) -> dict[str, Value]:
        """A copy of everything but the planes."""
        return {"cells": self._cells.copy(), "rows": self._rows}

    def load(self, state: Mapping[str, Value]) -> None:
        """Become what gave ``state``."""
        self._cells, self._rows = np.array(state["cells"], order="C"), state["rows"]


def planes(config: MemoryConfig, width: int, seed: int) -> Floats:
    """Normals (width, arrays * bits) of random planes, the same for the same seed."""
    return read_only(np.random.default_rng([seed, config.bits]).standard_normal((width, config.arrays * config.bits)))


def cells_of(keys: Floats, normals: Floats, arrays: int) -> NDArray[np.int64]:
    """The cell (n, arrays) of each array that keys (n, d) fall into: which side of each of its planes they are on."""
    bits = normals.shape[1] // arrays
    sides = (keys @ normals > 0.0).reshape(len(keys), arrays, bits)
    return np.asarray(sides @ (1 << np.arange(bits)) + (np.arange(arrays) << bits), dtype=np.int64)
