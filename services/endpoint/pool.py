"""Threads for the requests that would hold the event loop up, and a bound on how much may wait for one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from millrace.services.config.sections import ServingConfig
from millrace.services.errors import OverloadedError

A = TypeVarTuple("A")
T = TypeVar("T")

THREADS = 2  # large requests at work at once; NumPy lets go of the interpreter for part of each


class Pool:
    """Threads of their own: what follows the ledger must never wait for a large request."""

    def __init__(self, threads: int = THREADS, waiting_bytes: int = ServingConfig().working_bytes) -> None:
        self.taken = 0  # bytes; given back by the thread, since a caller who leaves does not end the work
        self._waiting_bytes = waiting_bytes
        self._threads = ThreadPoolExecutor(threads, "answers")

    async def run(self, size: int, work: Callable[[*A], T], *args: *A) -> T:
        """What ``work`` on a request of ``size`` bytes returns.

        Raises: OverloadedError where too much waits, and whatever it raises.
        """
        if self.taken and self.taken + size > self._waiting_bytes:
            raise OverloadedError(
                f"{self.taken} bytes of requests are being answered already. Ask again, or send smaller ones."
            )
        loop = asyncio.get_running_loop()
        future = self._threads.submit(work, *args)
        self.taken += size
        future.add_done_callback(lambda _: self._give_back(loop, size))
        return await asyncio.wrap_future(future)

    def _give_back(self, loop: asyncio.AbstractEventLoop, size: int) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._free, size)

    def _free(self, size: int) -> None:
        self.taken -= size
