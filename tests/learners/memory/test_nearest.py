"""The nearest rows: as another library finds them, of equals the newest, and however many are asked at once."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from millrace.learners.memory.nearest import GRID, nearest, normalised
from millrace.learners.memory.newest import Newest
from millrace.learners.protocol import Floats


def rows(count: int, d: int, seed: int = 0) -> Floats:
    """Rows of length 1."""
    return normalised(np.random.default_rng(seed).normal(size=(count, d)))


@pytest.mark.parametrize(
    ("count", "d", "near"), [(500, 6, 20), (30, 2, 29), (70, 3, 70), (5, 4, 70), (1, 1, 1), (2000, 17, 70)]
)
def test_the_nearest_are_those_that_scikit_learn_finds(count: int, d: int, near: int) -> None:
    """With their cosines to the grid, whether fewer are held than asked for or as many."""
    keys, queries = rows(count, d), rows(19, d, 1)
    places, cosines = nearest(keys, queries, near)
    peer = NearestNeighbors(n_neighbors=min(near, count), metric="cosine", algorithm="brute").fit(keys)
    distances, found = peer.kneighbors(queries)
    for row in range(len(queries)):
        theirs = dict(zip(found[row].tolist(), (1.0 - distances[row]).tolist(), strict=True))
        assert set(places[row].tolist()) == set(theirs) and (np.diff(cosines[row]) >= 0.0).all()
        assert np.allclose(cosines[row], [theirs[place] for place in places[row].tolist()], rtol=0.0, atol=2.0**-29)


def test_of_rows_that_are_equally_near_the_newest_are_taken() -> None:
    """The same rows thrice, whatever the product's rounding says of them: four of them whole, and the newest of the fifth."""
    keys = np.concatenate([rows(40, 7)] * 3)
    places, _ = nearest(keys, rows(11, 7, 1), 13)
    for near in places:
        copies = [near[near % 40 == row].tolist() for row in set((near % 40).tolist())]
        assert sorted(map(len, copies)) == [1, 3, 3, 3, 3] and min(copies, key=len)[0] >= 80
    places, _ = nearest(np.tile(rows(1, 5), (90, 1)), rows(4, 5, 1), 70)
    assert (np.sort(places) == np.arange(20, 90)).all()


@pytest.mark.parametrize("kinds", [1, 7, 300])
def test_one_that_is_asked_alone_is_told_the_same_as_among_others(kinds: int) -> None:
    """Also of many keys, of which only those that reach a bound are sorted, and of which many are equal."""
    keys, queries = np.tile(rows(kinds, 5), (2100 // kinds, 1)), np.concatenate([rows(20, 5, 1), rows(kinds, 5)[:9]])
    for near in (1, 13, 70):
        cells = np.rint(queries @ keys.T * GRID)
        for row, query in enumerate(queries):
            places, cosines = nearest(keys, query[None], near)
            expected = np.lexsort((np.arange(len(keys)), cells[row]))[-near:]
            close = np.abs(cosines[0] * GRID - cells[row][expected]).max() <= 1.0
            assert close and (kinds > 100 or places[0].tolist() == expected.tolist())
            assert all(
                np.array_equal(of_all[row], alone[0])
                for of_all, alone in zip(nearest(keys, queries, near), (places, cosines), strict=True)
            )


@pytest.mark.parametrize("at_once", [1, 3, 8, 9, 64])
def test_what_is_near_does_not_depend_on_how_many_are_asked_at_once(at_once: int) -> None:
    """Though products of matrices round differently by their shape."""
    keys, queries = rows(700, 33), rows(64, 33, 1)
    whole = nearest(keys, queries, 50)
    for start in range(0, 64, at_once):
        pieces = nearest(keys, queries[start : start + at_once], 50)
        for of_all, piece in zip(whole, pieces, strict=True):
            assert np.array_equal(of_all[start : start + at_once], piece)


def test_a_row_of_zeros_stays_one_and_is_as_near_to_all() -> None:
    """Nothing is divided by its length."""
    assert np.array_equal(normalised(np.zeros((2, 3))), np.zeros((2, 3)))
    places, cosines = nearest(rows(9, 3), np.zeros((1, 3)), 4)
    assert places.tolist() == [[5, 6, 7, 8]] and not cosines.any()


def test_no_question_has_no_answer() -> None:
    """An empty batch has none near."""
    places, cosines = nearest(rows(9, 3), np.zeros((0, 3)), 4)
    assert places.shape == cosines.shape == (0, 4)


@pytest.mark.parametrize("cut", [1, 3, 7, 50])
def test_the_newest_rows_are_the_last_that_were_added_and_views_stay(cut: int) -> None:
    """However many are added at once; what was given out before is what it was."""
    column = np.random.default_rng(0).normal(size=(200, 2))
    newest, views = Newest(30, {"x": np.zeros((0, 2))}), []
    for start in range(0, 200, cut):
        newest.add({"x": column[start : start + cut]})
        stop = min(start + cut, 200)
        views.append((newest["x"], column[max(0, stop - 30) : stop]))
    for view, expected in views:
        assert np.array_equal(view, expected)
        with pytest.raises(ValueError, match="read-only"):
            view[:] = 0.0
    newest.widen("x", 3)
    assert np.array_equal(newest["x"], np.pad(column[-30:], ((0, 0), (0, 1))))
