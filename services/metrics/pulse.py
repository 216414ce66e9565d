"""Whether a process goes on: its main loop beats, and whoever asks hears by how long the next beat is late."""

from __future__ import annotations

import time

PATIENCE_S = 30.0  # that a beat may be late: a busy machine is slow


class Pulse:
    """One thread beats, others ask.

    >>> Pulse().late_s()
    0.0
    """

    def __init__(self) -> None:
        self.beat()

    def beat(self, next_s: float = 0.0) -> None:
        """It goes on; ``next_s``: seconds that its next step may take beyond the patience."""
        self._expected_s = time.monotonic() + next_s

    def late_s(self) -> float:
        """Seconds since the next beat was expected, once they are more than the patience; else 0."""
        late_s = time.monotonic() - self._expected_s
        return late_s if late_s > PATIENCE_S else 0.0
