"""Training batches: the same rows in any pieces give the same batches."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numbered_rows import CUTS, numbers, rows_of

from millrace.learners.protocol import Batch
from millrace.streams.parts import pack, unpack
from millrace.streams.state.microbatch import MicroBatches

STEPS_MS = st.lists(st.sampled_from([0, 0, 0, 1, 2, 3, 10, 100]), max_size=40)  # from one row's clock to the next
ROWS = st.integers(1, 9)
WAIT_MS = st.sampled_from([1, 2, 5, 12, 10**9])


def one_by_one(clock_ms: list[int], rows: int, wait_ms: int) -> tuple[list[list[int]], list[int]]:
    """The rule, a row at a time: row numbers of every batch, and those left waiting."""
    batches, waiting, deadline = [], [], 0
    for at, now_ms in enumerate(clock_ms):
        if waiting and now_ms >= deadline:
            batches.append(waiting)
            waiting = []
        deadline = deadline if waiting else now_ms + wait_ms
        waiting = [*waiting, at]
        if len(waiting) == rows:
            batches.append(waiting)
            waiting = []
    return batches, waiting


def cut(batches: MicroBatches, batch: Batch, clock_ms: np.ndarray, cuts: list[int]) -> list[list[int]]:
    """Row numbers of the batches that come out when the rows arrive in pieces."""
    ends = [0, *sorted(min(end, len(batch)) for end in cuts), len(batch)]
    return [
        numbers(full) for start, stop in pairwise(ends) for full in batches.cut(batch.rows(start, stop), clock_ms[start:stop])
    ]


@given(STEPS_MS, CUTS, ROWS, WAIT_MS, st.booleans())
def test_batches_are_those_of_one_row_at_a_time_however_the_rows_arrive(steps_ms, cuts, rows, wait_ms, regress) -> None:
    """Full ones by count, others by the journal's clock; what is left waits."""
    batch, clock_ms = rows_of(steps_ms, regress)
    batches = MicroBatches(rows, wait_ms)
    expected, waiting = one_by_one(clock_ms.tolist(), rows, wait_ms)
    assert cut(batches, batch, clock_ms, cuts) == expected and batches.waiting == len(waiting)


@given(STEPS_MS, st.integers(0, 40), ROWS, WAIT_MS, st.booleans())
def test_batches_go_on_from_their_state_at_any_row(steps_ms, at, rows, wait_ms, regress) -> None:
    """The state passes through the bytes of a checkpoint part."""
    batch, clock_ms = rows_of(steps_ms, regress)
    at = min(at, len(batch))
    before, after = MicroBatches(rows, wait_ms), MicroBatches(1, 1)
    first = cut(before, batch.rows(0, at), clock_ms[:at], [])
    after = MicroBatches(rows, wait_ms)
    after.load(unpack(pack(before.state()), "here"))
    second = cut(after, batch.rows(at, len(batch)), clock_ms[at:], [])
    assert after.waiting == len(one_by_one(clock_ms.tolist(), rows, wait_ms)[1])
    assert first + second == one_by_one(clock_ms.tolist(), rows, wait_ms)[0]


@given(STEPS_MS, CUTS, ROWS, WAIT_MS)
def test_the_bytes_of_a_state_do_not_tell_how_the_rows_arrived(steps_ms, cuts, rows, wait_ms) -> None:
    """Else two runs over one log would have different hashes."""
    batch, clock_ms = rows_of(steps_ms)
    whole, pieces = MicroBatches(rows, wait_ms), MicroBatches(rows, wait_ms)
    cut(whole, batch, clock_ms, [])
    cut(pieces, batch, clock_ms, cuts)
    assert pack(whole.state()) == pack(pieces.state())


def test_a_part_of_a_batch_is_released_when_the_clock_reaches_its_deadline_and_not_before() -> None:
    """Its first row's clock and the wait; a row that comes exactly then begins the next batch."""
    batch, clock_ms = rows_of([5, 3, 0])
    batches = MicroBatches(10, 7)
    assert not list(batches.cut(batch, clock_ms)) and not batches.due(11)
    assert not list(batches.release(11)) and batches.waiting == 3
    assert batches.due(12) and [numbers(part) for part in batches.release(12)] == [[0, 1, 2]]
    assert not batches.due(10**9) and not list(batches.release(10**9)) and batches.waiting == 0


def test_rows_may_change_after_a_state_was_taken() -> None:
    """A state is a copy: the array a source reuses does not reach it."""
    batch, clock_ms = rows_of([0, 0])
    batches = MicroBatches(10, 7)
    list(batches.cut(batch, clock_ms))
    state = batches.state()
    batch.x[:] = 99.0
    assert state["x"].tolist() == [[0.0, 1.0], [2.0, 3.0]]
