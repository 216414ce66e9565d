"""The newest rows of some columns, as views that stay what they are while more rows come."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from millrace.learners.protocol import Floats


class Newest:
    """At most the newest ``rows`` rows of columns (n, ...) of float64, oldest first.

    Rows are written behind those that are there. Where there is no more room the kept ones move to new arrays, so nothing that
    was given out is ever written to.

    >>> newest = Newest(2, {"x": np.zeros((0, 1))})
    >>> newest.add({"x": np.array([[1.0], [2.0], [3.0]])})
    >>> newest["x"].ravel().tolist()
    [2.0, 3.0]
    """

    def __init__(self, rows: int, columns: Mapping[str, Floats]) -> None:
        """Those of ``columns`` first, which are as many as are kept at most."""
        self._rows = rows
        self._arrays = dict[str, Floats]()
        self._start = self._stop = 0
        self._move(columns)

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, name: str) -> Floats:
        """A column, read-only."""
        view = self._arrays[name][self._start : self._stop]
        view.flags.writeable = False
        return view

    def add(self, columns: Mapping[str, Floats]) -> None:
        """Rows (n, ...) behind the others, the same columns in each."""
        added = len(next(iter(columns.values())))
        if added >= self._rows:
            self._move({name: column[-self._rows :] for name, column in columns.items()})
            return
        if self._stop + added > len(next(iter(self._arrays.values()))):
            self._move({name: self[name] for name in self._arrays})
        for name, column in columns.items():
            self._arrays[name][self._stop : self._stop + added] = column
        self._stop += added
        self._start = max(self._start, self._stop - self._rows)

    def widen(self, name: str, width: int) -> None:
        """Give a column (n, w) of numbers more numbers, ``width`` in all, which are 0 in the rows that are there."""
        columns = {kept: self[kept] for kept in self._arrays}
        columns[name] = np.pad(columns[name], ((0, 0), (0, width - columns[name].shape[1])))
        self._move(columns)

    def _move(self, columns: Mapping[str, Floats]) -> None:
        """Into arrays with room for as many more as are kept."""
        for name, column in columns.items():
            array = np.zeros((2 * self._rows, *column.shape[1:]))
            array[: len(column)] = column
            self._arrays[name] = array
            self._start, self._stop = 0, len(column)
