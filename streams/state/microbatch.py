"""Training batches, cut by rows and never by reads. Source: docs/design/journal.md, rule 7."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from millrace.learners.protocol import Batch, Value, from_columns, join, stored_columns


class MicroBatches:
    """Collects rows until a batch is full, or until the journal's clock says that it has waited long enough.

    The same rows in any pieces give the same batches.
    """

    def __init__(self, rows: int, wait_ms: int) -> None:
        self.rows = rows  # of a full batch, >= 1
        self._wait_ms = wait_ms  # by the journal's clock, from a batch's first row to its release
        self._pieces: list[Batch] = []
        self._deadline_ms = 0  # of the batch that is being collected
        self.waiting = 0  # rows collected and not yet released

    def cut(self, batch: Batch, clock_ms: NDArray[np.int64]) -> Iterator[Batch]:
        """The batches that end within these rows; ``clock_ms`` (n,) is the clock at each row, never decreasing."""
        at = 0
        while at < len(batch):
            if self.waiting and clock_ms[at] >= self._deadline_ms:
                yield self._take()
            if not self.waiting:
                self._deadline_ms = int(clock_ms[at]) + self._wait_ms
            deadline_row = max(int(clock_ms.searchsorted(self._deadline_ms)), at + 1)
            stop = min(at + self.rows - self.waiting, deadline_row, len(batch))
            self._pieces.append(batch.rows(at, stop))
            self.waiting += stop - at
            at = stop
            if self.waiting == self.rows:
                yield self._take()

    def due(self, clock_ms: int) -> bool:
        """Whether a part of a batch has waited long enough."""
        return bool(self.waiting) and clock_ms >= self._deadline_ms

    def release(self, clock_ms: int) -> Iterator[Batch]:
        """The part of a batch that is due, if any."""
        if self.due(clock_ms):
            yield self._take()

    def _take(self) -> Batch:
        pieces, self._pieces, self.waiting = self._pieces, [], 0
        return join(pieces)

    def state(self) -> dict[str, Value]:
        """The rows that wait, and until when."""
        if not self.waiting:
            return {"deadline_ms": 0}
        columns = stored_columns(join(self._pieces))
        return {"deadline_ms": self._deadline_ms} | {name: column.copy() for name, column in columns.items()}

    def load(self, state: dict[str, Value]) -> None:
        """Collect on from ``state``."""
        self._pieces, self.waiting = [], 0
        self._deadline_ms = state["deadline_ms"]
        if "x" in state:
            self._pieces = [from_columns(state)]
            self.waiting = len(self._pieces[0])
