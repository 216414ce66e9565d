"""The newest learned rows of a branch, kept so that an alarm can lead to learning only what came since its onset.

They lie in segments by the number of the row. Only the newest is open. A closed one is immutable: a checkpoint part that is
written once. It goes when the newest rows no longer reach it. The same rows give the same parts, bit for bit, however they
were cut. An empty window has no part, so a branch may begin to keep one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from millrace.learners.errors import LearnerError
from millrace.learners.protocol import Batch, Value, from_columns, join, stored_columns

SEGMENTS = 8  # of a window: so many are written once, and at most an eighth more rows are held than asked for


class Window:
    """At least the ``rows`` newest rows, as they were learned.

    >>> window = Window(rows=3)
    >>> window.add(Batch(np.arange(5.0)[:, None], np.arange(5.0)))
    >>> window.held, [batch.x.ravel().tolist() for batch in window.newest(3, batch_rows=2)]
    (3, [[2.0, 3.0], [4.0]])
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows  # to be kept, >= 1
        self._segment_rows = -(-rows // SEGMENTS)
        self._closed: dict[int, Batch] = {}  # by number, oldest first: number n has the rows from n * ``_segment_rows`` on
        self._open: list[Batch] = []
        self._open_rows = 0
        self._next = 0  # number of the open one

    @property
    def held(self) -> int:
        """Rows that can be asked for."""
        return min(self._rows, len(self._closed) * self._segment_rows + self._open_rows)

    def add(self, batch: Batch) -> None:
        """Keep copies of these rows."""
        at = 0
        while at < len(batch):
            stop = min(at + self._segment_rows - self._open_rows, len(batch))
            self._open.append(batch.only(np.arange(at, stop)))
            self._open_rows += stop - at
            at = stop
            if self._open_rows == self._segment_rows:
                self._close()

    def _close(self) -> None:
        self._closed[self._next] = join(self._open)
        self._open, self._open_rows, self._next = [], 0, self._next + 1
        while (len(self._closed) - 1) * self._segment_rows >= self._rows:
            del self._closed[next(iter(self._closed))]

    def newest(self, rows: int, batch_rows: int) -> Iterator[Batch]:
        """The last ``rows`` >= 1 rows, oldest first, in batches of ``batch_rows``; the last of them may have fewer.

        Raises: LearnerError where so many are not held.
        """
        if not 1 <= rows <= self.held:
            raise LearnerError(
                f"{rows} rows are to be learned again, and {self.held} are kept. Use the release that wrote this."
            )
        window_rows = join([*self._closed.values(), *self._open])
        for start in range(len(window_rows) - rows, len(window_rows), batch_rows):
            yield window_rows.rows(start, min(start + batch_rows, len(window_rows)))

    def parts(self) -> dict[str, dict[str, Value]]:
        """One part that changes, and one for each closed segment; none before the first row."""
        if not self._closed and not self._open:
            return {}
        state = {"rows": self._rows, "next": self._next, "closed": list(self._closed)}
        rows = stored_columns(join(self._open)) if self._open else {}  # nobody writes to them
        return {"window": state | rows} | {f"window.{number}": stored_columns(batch) for number, batch in self._closed.items()}

    def load(self, parts: Mapping[str, Mapping[str, Value]]) -> None:
        """Become the window that gave ``parts``, from having been made just now; empty where they have none.

        Raises: LearnerError where that was one of another size.
        """
        if "window" not in parts:
            return
        state = parts["window"]
        if state["rows"] != self._rows:
            raise LearnerError(f"This state keeps {state['rows']} rows to relearn from, and {self._rows} are asked for.")
        self._next = state["next"]
        self._closed = {number: from_columns(parts[f"window.{number}"]) for number in state["closed"]}
        self._open = [from_columns(state)] if "x" in state else []
        self._open_rows = sum(map(len, self._open))
