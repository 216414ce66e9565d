"""Rows may come cut in any way: a memory around each kind of learner ends at the same bits."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from cases import CASES
from promises import ROWS, asked

LESSONS = 4
KINDS = sorted(name for name in CASES if name.endswith("+memory"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_cut_differently_lead_to_the_same_bits(kind: str) -> None:
    """Whole lessons, single rows and cuts at random places; the state and the answers."""
    make, lessons = CASES[kind]
    chance, results = np.random.default_rng(7), []
    for size in (ROWS, 1, None, None):
        learner = make()
        for seed in range(LESSONS):
            inner = set(chance.choice(np.arange(1, ROWS), 3, replace=False)) if size is None else set(range(size, ROWS, size))
            for start, stop in pairwise([0, *sorted(inner), ROWS]):
                learner.learn_many(lessons(seed).rows(int(start), int(stop)))
        results.append((learner.state_dict().truth, asked(learner)))
    for truth, answers in results[1:]:
        assert same(truth, results[0][0])
        assert np.array_equal(answers, results[0][1])


def test_a_twin_that_is_one_bit_off_is_seen() -> None:
    """In any part of a state."""
    truth = {"a": np.array([1.0, 2.0]), "b": {"c": 3}, "n": np.nan}
    assert same(truth, {"a": np.array([1.0, 2.0]), "b": {"c": 3}, "n": np.nan})
    assert not same(truth, truth | {"a": np.array([1.0, np.nextafter(2.0, 3.0)])})
    assert not same(truth, truth | {"b": {"c": 4}}) and not same(truth, {"a": truth["a"]})


def same(one: Any, other: Any) -> bool:
    """Whether two parts of states are equal, NaN to NaN."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(part, other[name]) for name, part in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    one, other = np.asarray(one), np.asarray(other)
    return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
