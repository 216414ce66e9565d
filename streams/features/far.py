"""Which numbers are far outside everything that was learned."""

from __future__ import annotations

import numpy as np

from millrace.learners.protocol import Floats

FAR = 10.0  # widths of the learned range beyond which a value is far out


def ends_of_near(low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """The least and the largest numbers that are not far out, both (k,), by the least and the largest that were learned (k,).

    Any number is far out where none was ever learned, as ``low`` above ``high`` says.
    """
    seen = low <= high
    low, high = np.where(seen, low, 0.0), np.where(seen, high, 0.0)
    most = np.maximum(np.abs(low), np.abs(high))
    span = np.where(high > low, high - low, np.where(most > 0.0, most, 1.0))
    return np.where(seen, low - FAR * span, np.inf), np.where(seen, high + FAR * span, -np.inf)
