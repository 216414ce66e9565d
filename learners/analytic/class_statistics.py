"""What is kept of each class besides the ridge's sums: the spread of its features, or its second moment.

| symbol | name | shape |
|---|---|---|
| c_x | ``centre``, the values of a learned row in the space of x (centre.py) | (d,) |
| n_c, mean_c, M2_c | ``weight``, ``mean`` from c_x, ``scatter`` of the rows of class c, of x | (C,), (C, d), (C, d) |
| A_c | sum over rows of class c of w phi phi^T, phi from the sums' centre, in ``packed`` | (d_phi (d_phi + 1) / 2,) each |

Rows can be taken out again as they were added. Differs from the reference code: the spread is a sum of squared distances to
the running mean (Chan, Golub, LeVeque 1979). Rounding leaves that at 0 or
more, and makes the code's E[x^2] - E[x]^2 negative.

Source: docs/design/learners.md#class-statistics.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from millrace.learners.analytic.centre import moved
from millrace.learners.analytic.linalg import lapack
from millrace.learners.analytic.normal_equations import shift_gram
from millrace.learners.protocol import Array, Floats, Value


class ClassMoments:
    """Weight, mean and sum of squared distances to the mean of each feature, class by class."""

    most: int = 2**31  # classes there is room for

    def __init__(self, d: int) -> None:
        """No class yet, over ``d`` features of x."""
        self.weight, self.centre = np.zeros(0), np.zeros(d)
        self.mean, self.scatter = np.zeros((2, 0, d))

    def grow(self, classes: int) -> None:
        """Make room for ``classes`` in all."""
        new = classes - len(self.weight)
        self.weight = np.concatenate([self.weight, np.zeros(new)])
        self.mean = np.concatenate([self.mean, np.zeros((new, self.mean.shape[1]))])
        self.scatter = np.concatenate([self.scatter, np.zeros((new, self.mean.shape[1]))])

    def move(self, x: Floats) -> None:
        """See rows from the newer row x (d,) where the mean of all lies far from where they are seen from."""
        n = self.weight.sum()
        total = self.weight @ self.mean
        squares = self.scatter.sum(axis=0) + self.weight @ self.mean**2
        centre = moved(self.centre, total, squares, n, x) if n > 0.0 else self.centre
        self.mean -= np.where(self.weight[:, None] > 0.0, centre - self.centre, 0.0)
        self.centre = centre

    def add(self, x: Floats, away: Floats, columns: Array, weight: Floats, keep: float) -> None:
        """Let what is there weigh ``keep`` and add rows x (n, d) of classes ``columns`` (n,), weights (n,)."""
        self.weight *= keep
        self.scatter *= keep
        for column in np.unique(columns):
            rows, w = x[columns == column] - self.centre, weight[columns == column]
            total = float(w.sum())
            if total > 0.0:
                mean = w @ rows / total
                self._join(int(column), total, mean, w @ (rows - mean) ** 2)

    def combine(self, other: ClassMoments, columns: list[int], sign: float) -> None:
        """Add (``sign`` 1) or take out (-1) the rows of ``other``, whose class i is column ``columns[i]`` here."""
        apart = other.centre - self.centre
        for at, column in enumerate(columns):
            self._join(column, sign * other.weight[at], other.mean[at] + apart, sign * other.scatter[at])

    def clear(self, columns: Array) -> None:
        """Forget all rows of some classes."""
        self.weight[columns], self.mean[columns], self.scatter[columns] = 0.0, 0.0, 0.0

    def deviation(self) -> Floats:
        """Standard deviation (C, d), by n - 1; 0 for a class of one row or none.

        By n / 2 where rows have faded to less than two, or n - 1 would blow up what is left of their spread.
        """
        divisor = np.maximum(self.weight - 1.0, 0.5 * self.weight)[:, None]
        variance = np.divide(self.scatter, divisor, out=np.zeros_like(self.scatter), where=divisor > 0.0)
        return np.sqrt(np.maximum(variance, 0.0))  # taking rows out may leave a negative zero of rounding

    def state(self) -> dict[str, Value]:
        """Copies of the arrays."""
        mean, scatter = self.mean.copy(), self.scatter.copy()
        centre = {"class_centre": self.centre.copy()} if self.centre.any() else {}
        return {"class_weight": self.weight.copy(), "class_mean": mean, "class_scatter": scatter} | centre

    def load(self, state: dict[str, Any]) -> None:
        """Become what gave ``state``, on copies."""
        self.weight, self.mean = np.array(state["class_weight"]), np.array(state["class_mean"])
        self.scatter = np.array(state["class_scatter"])
        self.centre = np.array(state.get("class_centre", np.zeros_like(self.centre)))

    def _join(self, column: int, weight: float, mean: Floats, scatter: Floats) -> None:
        """One class with a set of rows more, or less where ``weight`` is negative. Source: Chan et al., 1979."""
        total = self.weight[column] + weight
        if total == 0.0:
            self.weight[column] = self.mean[column] = self.scatter[column] = 0.0
            return
        apart = mean - self.mean[column]
        self.scatter[column] += scatter + apart**2 * (self.weight[column] * weight / total)
        self.mean[column] += apart * (weight / total)
        self.weight[column] = total


class ClassGrams:
    """The second moment of each class, half of it: d_phi (d_phi + 1) / 2 doubles a class."""

    def __init__(self, d_phi: int, most: int) -> None:
        """No class yet, and room for ``most``."""
        self.d_phi = d_phi
        self.most = most
        self.packed: list[Floats] = []  # rectangular full packed: half the memory, and still one block product an addition

    def grow(self, classes: int) -> None:
        """Make room for ``classes`` in all."""
        self.packed += [np.zeros(self.d_phi * (self.d_phi + 1) // 2) for _ in range(classes - len(self.packed))]

    def move(self, by: Floats, totals: Floats, weight: Floats) -> None:
        """See rows from a centre that is ``by`` (d_phi,) further; of a class, sum w phi is in ``totals``, n_c in ``weight``."""
        if not by.any():
            return
        for column, packed in enumerate(self.packed):
            gram = self.whole(packed)
            shift_gram(gram, totals[column], float(weight[column]), by)
            self.packed[column] = lapack().dtrttf(gram, uplo="L")[0]

    def add(self, x: Floats, away: Floats, columns: Array, weight: Floats, keep: float) -> None:
        """Let what is there weigh ``keep`` and add rows ``away`` (n, d_phi) of classes ``columns`` (n,), weights (n,).

        Rows are as seen from the centre of the sums.
        """
        if keep != 1.0:
            for packed in self.packed:
                packed *= keep
        for column in np.unique(columns):
            chosen = columns == column
            rows = np.asfortranarray((away[chosen] * np.sqrt(weight[chosen])[:, None]).T)  # (d_phi, n)
            c = self.packed[column]
            lapack().dsfrk(self.d_phi, rows.shape[1], 1.0, rows, 1.0, c, uplo="L", overwrite_c=1)

    def combine(self, other: ClassGrams, columns: list[int], sign: float) -> None:
        """Add (``sign`` 1) or take out (-1) the rows of ``other``, whose class i is column ``columns[i]`` here."""
        for at, column in enumerate(columns):
            self.packed[column] += sign * other.packed[at]

    def clear(self, columns: Array) -> None:
        """Forget all rows of some classes."""
        for column in columns:
            self.packed[column][:] = 0.0

    def weighed(self, shares: Floats) -> Floats:
        """sum_c shares_c A_c, packed as each is; an array of its own."""
        total = np.zeros(self.d_phi * (self.d_phi + 1) // 2)
        for share, packed in zip(shares, self.packed, strict=True):
            total += share * packed
        return total

    def state(self) -> dict[str, Value]:
        """A copy, one row a class."""
        size = self.d_phi * (self.d_phi + 1) // 2
        return {"class_grams": np.array(self.packed).reshape(len(self.packed), size)}

    def load(self, state: dict[str, Any]) -> None:
        """Become what gave ``state``, on copies."""
        self.packed = [np.array(packed) for packed in state["class_grams"]]

    def gram(self, column: int) -> Floats:
        """A_c (d_phi, d_phi), Fortran order, lower triangle."""
        return self.whole(self.packed[column])

    def whole(self, packed: Floats) -> Floats:
        """What is packed as (d_phi, d_phi), Fortran order, lower triangle."""
        whole: Floats = np.asfortranarray(np.tril(lapack().dtfttr(self.d_phi, packed, uplo="L")[0]))
        return whole


ClassStatistics = ClassMoments | ClassGrams
