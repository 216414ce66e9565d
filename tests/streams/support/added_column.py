"""What becomes of a column that was added to `Batch`; run by test_columns.py on a copy of the tree, never imported by it.

Usage: added_column.py COLUMN FOLDER. FOLDER holds states that were stored before the column was added. Prints JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from millrace.learners.protocol import COLUMNS, Batch, join
from millrace.streams.labels.pending import Waiting
from millrace.streams.parts import pack, unpack
from millrace.streams.state.microbatch import MicroBatches
from millrace.streams.state.window import Window

ANSWERED = (("ham",), (1.0,))


def batch_of(rows: int, added: Mapping[str, Any]) -> Batch:
    """Rows with a number each, from 0."""
    x = np.arange(float(rows))
    return Batch(x[:, None], x.astype(str).astype(object), t=np.arange(rows), weight=np.ones(rows), **added)


def batches_with(batch: Batch, state: Mapping[str, Any] | None = None) -> MicroBatches:
    """A collection that went on from a stored state, if any, and then got these rows."""
    batches = MicroBatches(rows=100, wait_ms=1000)
    batches.load({"deadline_ms": 0} if state is None else dict(state))
    assert list(batches.cut(batch, np.zeros(len(batch), dtype=np.int64))) == []
    return batches


def window_with(batch: Batch, parts: Mapping[str, Any] | None = None) -> Window:
    """A window that went on from stored parts, if any, and then got these rows."""
    window = Window(rows=16)
    window.load({} if parts is None else parts)
    window.add(batch)
    return window


def waiting_with(batch: Batch, state: Mapping[str, Any] | None = None) -> Waiting:
    """Predictions that went on waiting from a stored state, if any, and then got these rows."""
    waiting = Waiting()
    waiting.load({} if state is None else dict(state))
    first = len(waiting.slots)
    waiting.fill([waiting.take(first + at, ANSWERED, 99) for at in range(len(batch))], batch)
    return waiting


def learned(waiting: Waiting) -> Batch:
    """All that wait, with labels."""
    slots = list(waiting.slots.values())
    return waiting.training_rows(slots, np.full(len(slots), "ham", dtype=object), [0] * len(slots)).batch


def stored(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state as it comes back from its bytes."""
    return unpack(pack(state), "a state of this test")


def write_states(folder: Path, rows: int) -> None:
    """Store what waits, is kept and is collected, in today's columns."""
    batch = batch_of(rows, {})
    for name, state in {
        "batches": batches_with(batch).state(),
        "waiting": waiting_with(batch).state(),
        **window_with(batch).parts(),
    }.items():
        (folder / name).write_bytes(pack(state))


def main(name: str, folder: Path) -> None:
    """Send the column through everything that keeps rows, and go on from states that lack it."""
    values = np.array([10.0, 11.0, 12.0, 13.0])
    batch, older = batch_of(4, {name: values}), {file.name: unpack(file.read_bytes(), file.name) for file in folder.iterdir()}
    nothing = batch_of(0, {})

    def of(batch: Batch) -> list[float] | None:
        column = getattr(batch, name)
        return None if column is None else column.tolist()

    window_parts = {part: stored(state) for part, state in window_with(batch).parts().items()}
    older_window = {part: state for part, state in older.items() if part.startswith("window")}
    seen = {
        "columns": list(COLUMNS),
        "only": of(batch.only(np.array([3, 1]))),
        "rows": of(batch.rows(1, 3)),
        "join": of(join([batch, batch_of(2, {}), batch])),
        "batches": of(next(batches_with(nothing, stored(batches_with(batch).state())).release(5000))),
        "window": of(next(window_with(nothing, window_parts).newest(4, batch_rows=4))),
        "waiting": of(learned(waiting_with(nothing, stored(waiting_with(batch).state())))),
        "older batches": of(next(batches_with(nothing, older["batches"]).release(5000))),
        "older window": of(next(window_with(nothing, older_window).newest(3, batch_rows=3))),
        "older waiting": of(learned(waiting_with(nothing, older["waiting"]))),
        "older batches gone on": of(next(batches_with(batch, older["batches"]).release(5000))),
        "older window gone on": of(next(window_with(batch, older_window).newest(7, batch_rows=7))),
        "older waiting gone on": of(learned(waiting_with(batch, older["waiting"]))),
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
