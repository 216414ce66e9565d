"""The reservoir is a uniform sample of what was offered and not deleted, item by item, in bounded memory."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from millrace.learners.replay.reservoir import Reservoir

SIZE, ITEMS, SEEDS = 8, 40, 3000


def offered(seed: int, items: int, pieces: list[int], size: int = SIZE) -> Reservoir:
    """A reservoir that items 0, 1, 2 ... were offered to, in pieces of these sizes, again and again."""
    draws, reservoir, at, piece = np.random.default_rng(seed), Reservoir(size), 0, 0
    while at < items:
        stop = min(at + pieces[piece % len(pieces)], items)
        reservoir.add({"x": torch.arange(at, stop)[:, None]}, None, draws)
        at, piece = stop, piece + 1
    return reservoir


def kept(reservoir: Reservoir) -> np.ndarray:
    """The items in it."""
    return reservoir.columns["x"].numpy()[reservoir.full, 0]


def test_every_item_is_kept_equally_often() -> None:
    """After n items each was kept in M / n of the runs, the first and the last alike (chi-square, p > 0.01)."""
    counts = np.zeros(ITEMS)
    for seed in range(SEEDS):
        counts[kept(offered(seed, ITEMS, [10]))] += 1
    assert counts.sum() == SEEDS * SIZE
    assert chisquare(counts).pvalue > 0.01


def test_a_reservoir_drawn_per_batch_would_be_found_out() -> None:
    """The same test fails what public code does: every item of a batch drawn with the count before the batch."""
    counts = np.zeros(ITEMS)
    for seed in range(SEEDS):
        draws, slots = np.random.default_rng(seed), np.arange(SIZE)
        for start in range(SIZE, ITEMS, 16):
            for item in range(start, min(start + 16, ITEMS)):
                at = draws.integers(0, start + 1)
                if at < SIZE:
                    slots[at] = item
        counts[slots] += 1
    assert chisquare(counts).pvalue < 1e-6


class Told:
    """A generator that draws what it is told."""

    def __init__(self, draws: tuple[int, ...]) -> None:
        self.draws = draws

    def integers(self, low: int, high: np.ndarray) -> np.ndarray:
        """One for each upper end."""
        assert low == 0 and len(high) == len(self.draws) and all(0 <= d < top for d, top in zip(self.draws, high, strict=True))
        return np.array(self.draws)


@pytest.mark.parametrize(("size", "items"), [(1, 5), (2, 6), (3, 5), (4, 4), (5, 3)])
def test_over_all_possible_draws_every_item_is_kept_exactly_as_often(size: int, items: int) -> None:
    """M / n of all outcomes, or all of them while there is room: counted, not estimated."""
    counts, outcomes = np.zeros(items), list(product(*(range(place + 1) for place in range(items))))
    for draws in outcomes:
        reservoir = Reservoir(size)
        reservoir.add({"x": torch.arange(items)[:, None]}, None, Told(draws))
        counts[kept(reservoir)] += 1
    assert counts.tolist() == [len(outcomes) * min(size, items) / items] * items


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(0, 10_000), st.integers(1, 60))
def test_pieces_make_no_difference(pieces: list[int], seed: int, items: int) -> None:
    """Items offered one by one and in pieces of any sizes end in the same slots."""
    singly, other = offered(seed, items, [1]), offered(seed, items, pieces)
    assert singly.seen == other.seen == items
    assert np.array_equal(singly.full, other.full)
    assert np.array_equal(singly.columns["x"], other.columns["x"])


def test_after_a_deletion_the_others_stay_equally_likely() -> None:
    """A deleted item's slot waits to be drawn: old and new items are kept equally often (chi-square, p > 0.01)."""
    counts = np.zeros(ITEMS)
    for seed in range(SEEDS):
        reservoir = offered(seed, 20, [10])
        draws = np.random.default_rng(SEEDS + seed)
        reservoir.remove(np.isin(reservoir.columns["x"].numpy()[:, 0], [2, 7, 11]))
        reservoir.add({"x": torch.arange(20, ITEMS)[:, None]}, None, draws)
        counts[kept(reservoir)] += 1
    assert (counts[[2, 7, 11]] == 0).all()
    assert chisquare(np.delete(counts, [2, 7, 11])).pvalue > 0.01


def test_a_deleted_row_leaves_no_byte() -> None:
    """Its columns are overwritten and its key is gone."""
    draws, reservoir = np.random.default_rng(0), Reservoir(4)
    reservoir.add({"x": torch.full((3, 2), 7, dtype=torch.uint8)}, np.array([b"p", b"q", None], dtype=object), draws)
    assert reservoir.remove(np.array([key == b"q" for key in reservoir.keys])) == 1
    assert reservoir.columns["x"].tolist() == [[7, 7], [0, 0], [7, 7], [0, 0]]
    assert reservoir.keys.tolist() == [b"p", None, None, None] and len(reservoir) == 2 and reservoir.seen == 3


def test_drawn_rows_are_different_ones_and_uniform() -> None:
    """A draw has no row twice, never an empty slot, and each row equally often."""
    reservoir, draws = offered(0, 8, [8]), np.random.default_rng(1)
    reservoir.remove(np.arange(8) == 3)
    counts = np.zeros(8)
    for _ in range(2000):
        drawn = reservoir.draw(3, draws)["x"][:, 0].numpy()
        assert len(set(drawn.tolist())) == 3
        counts[drawn] += 1
    assert counts[3] == 0 and chisquare(np.delete(counts, 3)).pvalue > 0.01
    assert len(reservoir.draw(100, draws)["x"]) == 7
    assert Reservoir(3).draw(2, draws) == {}


def test_bytes_stay_bytes() -> None:
    """A column is kept as it came: one byte a pixel."""
    reservoir = Reservoir(5)
    reservoir.add({"x": torch.zeros(2, 12, dtype=torch.uint8)}, None, np.random.default_rng(0))
    assert reservoir.columns["x"].dtype == torch.uint8 and reservoir.columns["x"].nbytes == 60


@given(st.integers(0, 30), st.integers(0, 1000))
def test_a_restored_reservoir_goes_on_alike(items: int, seed: int) -> None:
    """State and load are each other's inverse, holes included."""
    original = offered(seed, items + 1, [4], size=6)
    original.remove(np.arange(6) == seed % 6)
    other = Reservoir(6)
    other.load(original.state())
    for reservoir in (original, other):
        reservoir.add({"x": torch.arange(100, 105)[:, None]}, None, np.random.default_rng(seed))
    assert np.array_equal(original.columns["x"], other.columns["x"]) and np.array_equal(original.full, other.full)
