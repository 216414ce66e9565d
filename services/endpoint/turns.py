"""How many requests a replica works on at once, and how many more may wait for their turn."""

from __future__ import annotations

import asyncio
from types import TracebackType

from millrace.services.config.sections import ServingConfig
from millrace.services.errors import OverloadedError


class Turns:
    """A block under it runs at most ``limits.in_flight`` times at once; ``limits.queued`` more wait, in order."""

    def __init__(self, limits: ServingConfig = ServingConfig()) -> None:  # noqa: B008 it is frozen
        self.waiting = 0
        self._limits = limits
        self._free = asyncio.Semaphore(limits.in_flight)

    async def __aenter__(self) -> None:
        """Raises: OverloadedError where as many wait already as may."""
        if self._free.locked() and self.waiting >= self._limits.queued:
            raise OverloadedError(
                f"{self._limits.in_flight} requests are at work (serving.in_flight) and {self.waiting} wait (serving.queued). "
                "Ask again."
            )
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._free.release()
