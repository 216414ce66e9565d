"""The least and the largest number of each feature of some rows."""

from __future__ import annotations

from weakref import ref

import numpy as np

from millrace.learners.protocol import Floats

Ends = tuple[Floats, Floats]  # least and largest value of each feature, (width,) each

ABREAST = 16  # rows taken as one: NumPy reduces row by row, and a few long rows take half as long as many short ones


class NewestEnds:
    """The ends of the newest rows, worked out once for rows that are answered and then learned; the rows are not kept."""

    def __init__(self) -> None:
        self._newest: tuple[ref[Floats], Ends] | None = None
        self._row_by_row = False  # since an end was 0

    def of(self, x: Floats) -> Ends:
        """Least and largest number of each column of x (n, width), n >= 1; NaN where a column has one.

        Whether an end is 0.0 or -0.0 hangs on the order of the rows, so where one is 0 they are taken one by one.
        """
        if (newest := self._newest) is None or newest[0]() is not x:
            newest = self._newest = ref(x), self._ends(x)
        return newest[1]

    def _ends(self, x: Floats) -> Ends:
        if not self._row_by_row and len(x) % ABREAST == 0 and x.size and x.flags.c_contiguous:
            low, high = _abreast(np.minimum, x), _abreast(np.maximum, x)
            if np.count_nonzero(low) == len(low) and np.count_nonzero(high) == len(high):
                return low, high
            self._row_by_row = True
        return np.minimum.reduce(x, axis=0), np.maximum.reduce(x, axis=0)


def _abreast(take: np.ufunc, x: Floats) -> Floats:
    groups = take.reduce(x.reshape(len(x) // ABREAST, -1), axis=0).reshape(ABREAST, -1)
    return np.asarray(take.reduce(groups, axis=0))
