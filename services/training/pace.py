"""When weights leave: as soon as they have changed and the last ones have arrived, within a share of the trainer's time."""

from __future__ import annotations

import time
from collections.abc import Callable

SHARE = 0.1  # in (0, 1), of the trainer's time that goes into weights on their way, at most; more: fresher, and slower learning
EARLIEST_S = 0.05  # between two of them, whatever they cost here: every replica opens them too
STORE_BYTES_S = 256 << 20  # a second, at most: as many as Ray's object store holds


class Pace:
    """The least time between one state that is let out and the next, by what the last one cost."""

    def __init__(self, share: float = SHARE, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._rest_per_cost = 1 / share - 1
        self._monotonic_s = monotonic_s
        self._next_s = monotonic_s()

    @property
    def allows(self) -> bool:
        """Whether the next may leave."""
        return self._monotonic_s() >= self._next_s

    @property
    def left_s(self) -> float:
        """Seconds until it may."""
        return max(0.0, self._next_s - self._monotonic_s())

    def spent(self, cost_s: float, size: int) -> None:
        """Weights of ``size`` bytes have arrived, and took ``cost_s`` seconds of the trainer's time."""
        rest_s = max(EARLIEST_S, cost_s * self._rest_per_cost, size / STORE_BYTES_S)
        self._next_s = self._monotonic_s() + rest_s
