"""The newest learned rows: exactly those, however they were cut, in parts that are written once and go when they are old."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from numbered_rows import CUTS, numbers, rows_of

from millrace.learners.errors import LearnerError
from millrace.learners.protocol import Batch, join
from millrace.streams.parts import pack, unpack
from millrace.streams.state.window import SEGMENTS, Window

SIZES = st.integers(1, 30)


def batch_of(rows: int, regress: bool = False) -> Batch:
    """Numbered rows."""
    return rows_of([0] * rows, regress)[0]


def filled(size: int, batch: Batch, cuts: list[int]) -> Window:
    """A window that was given the rows in pieces."""
    window = Window(size)
    for start, stop in pairwise([0, *sorted(min(end, len(batch)) for end in cuts), len(batch)]):
        window.add(batch.rows(start, stop))
    return window


def packed(window: Window) -> dict[str, bytes]:
    """Its parts as they are stored."""
    return {name: pack(part) for name, part in window.parts().items()}


@given(size=SIZES, rows=st.integers(1, 120), cuts=CUTS, batch_rows=st.integers(1, 40), regress=st.booleans())
def test_the_newest_rows_come_back_in_order_in_batches(size, rows, cuts, batch_rows, regress):
    """Every column of them, in full batches but for the last; one row more than is held is refused."""
    window = filled(size, batch_of(rows, regress), cuts)
    assert window.held == min(size, rows)
    for wanted in {1, (1 + window.held) // 2, window.held}:
        batches = list(window.newest(wanted, batch_rows))
        assert numbers(join(batches)) == list(range(rows - wanted, rows))
        assert all(len(batch) == batch_rows for batch in batches[:-1]) and 1 <= len(batches[-1]) <= batch_rows
    for wanted in (0, window.held + 1):
        with pytest.raises(LearnerError, match=f"{wanted} rows are to be learned again, and {window.held} are kept"):
            next(window.newest(wanted, batch_rows))


@given(size=SIZES, rows=st.integers(0, 120), cuts=CUTS)
def test_the_same_rows_in_any_pieces_give_the_same_parts(size, rows, cuts):
    """Byte for byte; and a window restored from them at any place goes on as if nothing had happened."""
    batch = batch_of(rows)
    whole = packed(filled(size, batch, []))
    assert packed(filled(size, batch, cuts)) == whole
    for cut in cuts:
        parts = {name: unpack(blob, name) for name, blob in packed(filled(size, batch.rows(0, min(cut, rows)), [])).items()}
        restored = Window(size)
        restored.load(parts)
        restored.add(batch.rows(min(cut, rows), rows))
        assert packed(restored) == whole


def test_a_window_that_has_seen_no_row_has_no_part_and_loads_from_none():
    """So a branch that kept no rows can begin to."""
    window = Window(5)
    assert window.parts() == {} and window.held == 0
    window.load({"counts": {}})
    window.add(batch_of(2))
    assert window.held == 2


def test_a_closed_segment_never_changes_and_goes_when_the_newest_rows_no_longer_reach_it():
    """So a checkpoint writes what is new; no more than an eighth more rows are held than asked for."""
    size, seen = 80, dict[str, bytes]()
    window = Window(size)
    for at in range(400):
        window.add(batch_of(400).rows(at, at + 1))
        parts = packed(window)
        state = parts.pop("window")
        assert all(seen.setdefault(name, blob) == blob for name, blob in parts.items())
        rows = sum(len(unpack(blob, "part")["x"]) for blob in [*parts.values()])
        rows += len(unpack(state, "part").get("x", []))
        assert min(size, at + 1) <= rows < size + size // SEGMENTS
    assert len(seen) == 400 // (size // SEGMENTS)


def test_what_the_caller_does_to_its_arrays_afterwards_is_of_no_consequence():
    """Rows are copied in."""
    window, batch = Window(10), batch_of(4)
    window.add(batch)
    before = packed(window)
    batch.x[:] = 99.0
    assert packed(window) == before


def test_a_window_of_another_size_is_refused():
    """Its segments would not fit."""
    with pytest.raises(LearnerError, match="keeps 10 rows to relearn from, and 11 are asked for"):
        Window(11).load(filled(10, batch_of(4), []).parts())
