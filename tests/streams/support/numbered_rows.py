"""Batches of numbered rows, the numbers of those in a batch, and the places where rows are cut."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from millrace.learners.protocol import Batch

CUTS = st.lists(st.integers(0, 40), max_size=6)


def rows_of(steps_ms: list[int], regress: bool = False) -> tuple[Batch, np.ndarray]:
    """A batch of numbered rows, and the clock at each."""
    n = len(steps_ms)
    y = np.arange(n) / 2 if regress else np.array([f"c{at % 3}" for at in range(n)] + [None], dtype=object)[:-1]
    key = np.array([*(b"k%d" % at if at % 2 else None for at in range(n)), None], dtype=object)[:-1]
    t = np.arange(n, dtype=np.int64)
    return Batch(np.arange(2.0 * n).reshape(n, 2), y, key, t, np.ones(n)), np.cumsum(np.array(steps_ms, dtype=np.int64))


def numbers(batch: Batch) -> list[int]:
    """Which rows a batch holds; every column must tell the same."""
    order = (batch.x[:, 0] / 2).astype(int).tolist()
    assert batch.t.tolist() == order and batch.key.tolist() == [b"k%d" % at if at % 2 else None for at in order]
    assert batch.y.tolist() in ([f"c{at % 3}" for at in order], [at / 2 for at in order]) and len(batch.weight) == len(order)
    return order
