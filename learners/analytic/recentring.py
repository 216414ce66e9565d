"""How sums, and what is kept of each class, are taken from a centre: begun at the first learned row, moved by later ones.

Where there is no intercept, answers are measured from 0, and so are the sums. What is kept of each class in the space of x
has a centre of its own (class_statistics.py).

Source: docs/design/learners.md#centre.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np

from millrace.learners.analytic.centre import moved
from millrace.learners.analytic.class_statistics import ClassGrams, ClassMoments, ClassStatistics
from millrace.learners.analytic.normal_equations import Sums
from millrace.learners.protocol import Floats


def begin(sums: Sums, per_class: ClassStatistics | None, row: tuple[Floats, Floats, Floats | None]) -> None:
    """Let the first row that weighs anything be the centre: its x (d,), phi (d_phi,), and y (C,) where y is measured too.

    phi is of no length where there is no intercept.
    """
    x, phi, y = row
    if len(phi):
        sums.centre = phi.copy()
        if y is not None:
            sums.centre_targets = y.copy()
    if isinstance(per_class, ClassMoments):
        per_class.centre = x.copy()


def look(sums: Sums, per_class: ClassStatistics | None, row: tuple[Floats, Floats, Floats | None]) -> None:
    """Let the centre be where a newer row is, in each feature and target whose mean lies far from it; as ``begin``."""
    x, phi, y = row
    if sums.weight <= 0.0:
        return
    if len(phi):
        centre, targets = moved(sums.centre, sums.features, np.diag(sums.gram), sums.weight, phi), sums.centre_targets
        if y is not None:
            targets = moved(targets, sums.targets, sums.squares, sums.weight, y)
        if centre is not sums.centre or targets is not sums.centre_targets:
            move(sums, per_class, centre, targets)
    if isinstance(per_class, ClassMoments):
        per_class.move(x)


def move(sums: Sums, per_class: ClassStatistics | None, centre: Floats, targets: Floats) -> None:
    """See all rows from another centre, features (d_phi,) and targets (C,)."""
    if isinstance(per_class, ClassGrams):
        per_class.move(centre - sums.centre, sums.cross, sums.targets)
    sums.move(centre, targets)


def share(ours: tuple[Sums, ClassStatistics | None], theirs: tuple[Sums, ClassStatistics | None]) -> None:
    """Take over the centre of others, before any row that weighs anything."""
    ours[0].centre = theirs[0].centre.copy()
    if len(ours[0].targets) in (0, len(theirs[0].targets)) and theirs[0].centre_targets.any():
        ours[0].grow(len(theirs[0].targets))
        ours[0].centre_targets = theirs[0].centre_targets.copy()
    if isinstance(ours[1], ClassMoments) and isinstance(theirs[1], ClassMoments):
        ours[1].centre = theirs[1].centre.copy()


def seen_from(ours: Sums, theirs: tuple[Sums, ClassStatistics | None]) -> tuple[Sums, ClassStatistics | None]:
    """Others' statistics, or copies of them, seen from the centre of ``ours``.

    Of classes targets are seen from 0 wherever they are; numbers are as many on both sides, or none on one.
    """
    sums, per_class = theirs
    targets = ours.centre_targets if len(ours.targets) == len(sums.targets) else sums.centre_targets
    if np.array_equal(sums.centre, ours.centre) and np.array_equal(sums.centre_targets, targets):
        return theirs
    sums, per_class = deepcopy(sums), deepcopy(per_class)
    move(sums, per_class, ours.centre, targets)
    return sums, per_class
