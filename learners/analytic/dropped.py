"""Which features carry no digits, and why: what a learner of sums gives no weight to, and what a column came too coarse for."""

from __future__ import annotations

import numpy as np

from millrace.learners.analytic.normal_equations import Sums, centred_squares
from millrace.learners.linear.decoded import NEWEST
from millrace.learners.protocol import Array, Floats

SAME = "constant: its values are all the same, or differ by their own rounding, so it has no weight"
LOST = (
    "lost: what is left of it is less than the rounding of rows that are gone and lay far from the others, so it has no "
    "weight; if its values differ, learn the log on a new branch that leaves those rows out"
)
COARSE = (
    "float32: every value is a float32, and steps of float32 are wider here than the values deviate; "
    "send it as float64, or counted from a nearer zero"
)
BELOW = (1 << 29) - 1  # bits of a float64 that a float32 has not


def warnings_of(sums: Sums, intercept: bool, finer: Array) -> dict[int, str]:
    """Why a feature has no weight, or less than it could have, by feature. ``finer`` (d,): 1 where some value is no float32.

    Without an intercept constant features count, and none is without weight but zeros.
    """
    if sums.weight <= 0.0:
        return {}
    mean = sums.features / sums.weight
    centred, varies = centred_squares(sums, mean)
    kept = varies if intercept else np.diag(sums.gram) > 0.0
    reasons = list[tuple[Array, str]]()
    if not kept.all():
        lost = ~kept & (sums.largest > np.maximum(np.diag(sums.gram), 0.0))
        reasons += [(~kept, SAME), (lost, LOST)]
    if not finer.all():
        largest = float(np.finfo(np.float32).max)
        step = np.spacing(np.minimum(np.abs(sums.centre + mean), largest).astype(np.float32)).astype(np.float64)
        coarse = varies & (finer == 0) & (step > np.sqrt(np.maximum(centred, 0.0) / sums.weight))
        reasons.append((coarse, COARSE))
    return dict(sorted((int(at), why) for chosen, why in reasons for at in np.flatnonzero(chosen)))


def note_finer(finer: Array, x: Floats) -> None:
    """Set ``finer`` (d,) to 1 for the features of which a value in x (n, d) is finer than float32 can say."""
    known = np.count_nonzero(finer)
    if known == len(finer) or NEWEST.has_single(x):
        return
    values = x[:, finer == 0] if known else x
    if _are_single(values):
        return
    with np.errstate(over="ignore"):
        differs = values.astype(np.float32) != values
    finer[finer == 0] = differs.any(axis=0)


def _are_single(values: Floats) -> bool:
    """Whether each value is a float32: it has none of the bits below one's last, and is in its range.

    A cast out of range raises: a value that is too large, and one so small that bits are lost.
    """
    if np.bitwise_or.reduce(values.view(np.int64), axis=None) & BELOW:
        return False
    try:
        with np.errstate(over="raise", under="raise"):
            values.astype(np.float32)
    except FloatingPointError:
        return False
    return True
