"""Completions that wait, or are kept to be learned again, lie in a state as bytes and not as text of its header."""

from __future__ import annotations

import numpy as np
import tiny_draft

from millrace.learners.protocol import Batch
from millrace.streams.parts import pack, unpack
from millrace.streams.state.microbatch import MicroBatches
from millrace.streams.state.window import Window

SIZES = (0, 1, 100_000, 100_000, 3)


def rows() -> Batch:
    """Rows with sequences of these sizes."""
    values = [np.random.default_rng(size).bytes(size) for size in SIZES]
    return Batch(np.empty((len(SIZES), 0)), np.zeros((len(SIZES), 2)), sequences=tiny_draft.column(values))


def header_bytes(blob: bytes) -> int:
    """Of a packed state; what reads it takes 100 MB at most."""
    return int.from_bytes(blob[:8], "little")


def test_rows_that_wait_take_no_room_in_the_header() -> None:
    """However long their sequences are; and they come back as they were."""
    waiting, again = MicroBatches(rows=9, wait_ms=100), MicroBatches(rows=9, wait_ms=100)
    assert list(waiting.cut(rows(), np.zeros(len(SIZES), dtype=np.int64))) == []
    blob = pack(waiting.state())
    assert header_bytes(blob) < 2_000 < sum(SIZES) < len(blob)
    again.load(unpack(blob, "here"))
    [batch] = again.release(100)
    assert batch.sequences is not None and batch.sequences.tolist() == rows().sequences.tolist()


def test_a_window_takes_no_room_in_the_header() -> None:
    """Neither its open segment nor a closed one."""
    window, again = Window(rows=20), Window(rows=20)
    for _ in range(2):
        window.add(rows())
    blobs = {name: pack(part) for name, part in window.parts().items()}
    assert len(blobs) > 1 and all(header_bytes(blob) < 2_000 for blob in blobs.values())
    again.load({name: unpack(blob, "here") for name, blob in blobs.items()})
    [newest] = again.newest(7, batch_rows=7)
    assert newest.sequences.tolist() == [*rows().sequences.tolist()[3:], *rows().sequences.tolist()]


def test_rows_without_sequences_are_stored_as_before() -> None:
    """The same columns, and the same bytes."""
    waiting = MicroBatches(rows=9, wait_ms=100)
    list(waiting.cut(Batch(np.ones((2, 1)), np.ones(2)), np.zeros(2, dtype=np.int64)))
    assert set(waiting.state()) == {"deadline_ms", "x", "y"}
