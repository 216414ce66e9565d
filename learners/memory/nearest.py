"""The nearest of some stored keys, by cosine, found by comparing with each. Exact, and the same on every machine.

Products round differently by how many rows are multiplied at once. So cosines are compared on a grid of 2^-30, and of equal
ones the newest is nearer. Rounding then decides nothing, but where a cosine lies on the border of two cells of the grid.

A partition of all cosines would take longer than the product. Instead the largest of each of some groups is taken: as many of
these as are wanted are a bound that as many cosines reach, and only those few are sorted.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from millrace.learners.protocol import Floats

GRID = 2.0**30  # cells of the grid, from a cosine of 0 to one of 1
GROUPS = 2  # for each key that is wanted; more cost more, and fewer keys reach the bound
LEAST_IN_GROUP = 4  # keys; with fewer the bound is too low to be worth it
LEAST_LENGTH = float(np.finfo(np.float64).tiny)  # keeps a row of zeros from being divided by 0
CHUNK = 8  # queries that are compared at once: so few that what lies between stays in a processor's cache

Places = NDArray[np.int64]


def normalised(rows: Floats) -> Floats:
    """Rows (n, d) of length 1; one of length 0 stays so."""
    squared = np.einsum("nd,nd->n", rows, rows)
    if len(rows) == 1:  # as a request has it: less is done by arrays, to the same bits
        return np.asarray(rows / max(math.sqrt(squared.item()), LEAST_LENGTH))
    return np.asarray(rows / np.maximum(np.sqrt(squared)[:, None], LEAST_LENGTH))


def _places(keys: int) -> int:
    """A power of two, at least as many as there are keys: a place divided by it is exact."""
    return 1 << max(keys - 1, 1).bit_length()


@lru_cache(maxsize=8)
def _fractions(keys: int) -> Floats:
    """The place of each key as a fraction (m,) below 1."""
    fractions = np.arange(keys) / _places(keys)
    fractions.flags.writeable = False
    return fractions


def nearest(keys: Floats, queries: Floats, near: int) -> tuple[Places, Floats]:
    """Which ``near`` of the keys (m, d), oldest first, are nearest to each query, and their cosines, both (n, near).

    Keys and queries have length 1. Where there are fewer keys, all of them are near. The nearest come last.
    """
    near = min(near, len(keys))
    if len(queries) == 1:
        alone = nearest_to_one(keys, queries[0], near)
        return alone[0][None], alone[1][None]
    if len(queries) <= CHUNK:
        return _nearest(keys, queries, near)
    pieces = [_nearest(keys, queries[at : at + CHUNK], near) for at in range(0, len(queries), CHUNK)]
    places, cosines = zip(*pieces, strict=True)
    return np.concatenate(places), np.concatenate(cosines)


def nearest_to_one(keys: Floats, query: Floats, near: int) -> tuple[Places, Floats]:
    """The same of one query (d,), both (near,); ``near`` is at most as large as there are keys.

    Only those that reach the bound are put on the grid. They stand by age, so a stable sort leaves the newest of equals last.
    """
    if len(keys) < GROUPS * near * LEAST_IN_GROUP:
        places, cosines = _nearest(keys, query[None], near)
        return places[0], cosines[0]
    cosines = keys.dot(query * GRID)
    groups = np.maximum.reduce(cosines[: len(keys) // (GROUPS * near) * GROUPS * near].reshape(-1, GROUPS * near))
    groups.partition(len(groups) - near)
    bound = round(float(groups[len(groups) - near])) - 0.5  # what is on the same cell as the bound reaches it
    reaching = (cosines >= bound).nonzero()[0]
    cells = np.rint(cosines.take(reaching))
    last = cells.argsort(kind="stable")[len(cells) - near :]
    return reaching.take(last), cells.take(last) / GRID


def _nearest(keys: Floats, queries: Floats, near: int) -> tuple[Places, Floats]:
    """A key's rank is its cosine's cell of the grid and, as the fraction, its place: float64 holds both exactly."""
    ranks: Floats = (queries * GRID) @ keys.T
    np.rint(ranks, out=ranks)
    ranks += _fractions(len(keys))
    largest = _largest(ranks, near)
    cells = np.floor(largest)
    largest -= cells
    largest *= _places(len(keys))
    cells /= GRID
    return largest.astype(np.int64), cells


def _largest(ranks: Floats, count: int) -> Floats:
    """The largest of each row (n, m), ascending (n, count); ``ranks`` are written to."""
    in_group = ranks.shape[1] // (GROUPS * count)
    if in_group < LEAST_IN_GROUP:
        ranks.partition(ranks.shape[1] - count, axis=1)
        largest = ranks[:, ranks.shape[1] - count :]
        largest.sort(axis=1)
        return largest
    groups = ranks[:, : in_group * GROUPS * count].reshape(len(ranks), in_group, GROUPS * count).max(axis=1)
    groups.partition(groups.shape[1] - count, axis=1)
    largest = np.empty((len(ranks), count))
    for row, bound, its_largest in zip(ranks, groups[:, groups.shape[1] - count], largest, strict=True):
        reaching = row[row >= bound]
        reaching.sort()
        its_largest[:] = reaching[len(reaching) - count :]
    return largest
