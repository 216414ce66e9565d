"""The time outside: what a worker waits by, and what it takes for ahead of its time."""

from __future__ import annotations

import time


class Clock:
    """The wall clock. It decides when to look again and what is ahead of its time; it never reaches a learner."""

    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        """Milliseconds since some moment; nobody sets this clock back."""
        return time.monotonic_ns() // 1_000_000

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)
