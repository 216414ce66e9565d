"""Where sums are taken from: of each feature and target the value of a learned row, moved at fixed counts of learned rows.

| symbol | name | shape |
|---|---|---|
| c | ``centre``, values of learned rows | (d,) |
| s, q, n | sum w (phi - c), sum w (phi - c)^2, sum w | (d,), (d,), () |
| m, v | mean s / n seen from c, and variance q / n - m^2 | (d,), (d,) |

A row's value and never a mean: differences of whole numbers are whole, so sums over them stay exact, however a stream is cut.
Sums lose digits as (m^2 / v): log10 of it, one at FAR deviations.

Source: docs/design/learners.md#centre.
"""

from __future__ import annotations

import math

import numpy as np

from millrace.learners.protocol import Floats

FAR = 3.1  # deviations from the centre to the mean, above which the centre moves; no share of ones lies at just so many
LONGEST = 1024  # learned rows from one look to the next, at most
FADES = 4.0  # windows of 1 / (1 - decay) rows from one look to the next, at most: what faded by e^-4 in between


def next_look(rows: int, decay: float) -> int:
    """The count of learned rows after ``rows`` at which centres may move: powers of two, and multiples of a period.

    The period is LONGEST, or FADES windows where rows fade faster.
    """
    period = LONGEST if decay == 1.0 else max(1, min(LONGEST, math.ceil(FADES / (1.0 - decay))))
    return min(1 << rows.bit_length(), rows - rows % period + period)


def moved(centre: Floats, total: Floats, squares: Floats, weight: float, value: Floats) -> Floats:
    """c, with ``value`` (d,) of a newer row where m lies over FAR deviations away and that value twice as near to it.

    ``total`` (d,), ``squares`` (d,) and ``weight`` > 0 are s, q and n. The very same c where no mean lies so far away.
    """
    mean = total / weight
    variance = np.maximum(squares / weight - mean**2, 0.0)
    far = mean**2 > FAR**2 * variance
    if not far.any():
        return centre
    nearer = np.abs(value - centre - mean) < 0.5 * np.abs(mean)
    chosen: Floats = np.where(far & nearer, value, centre)
    return chosen
