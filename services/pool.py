"""Threads for the requests that would hold the event loop up, and a bound on how many may wait for one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from millrace.learners.errors import OverloadedError

A = TypeVarTuple("A")
T = TypeVar("T")

THREADS = 2  # large requests at work; NumPy lets go of the interpreter for part of each
WAITING = 64  # that are at work or wait


class Pool:
    """Threads of their own: what follows the ledger must never wait for a large request."""

    def __init__(self, threads: int = THREADS, waiting: int = WAITING) -> None:
        self.taken = 0  # places; given back by the thread, since a caller who leaves does not end the work
        self._waiting = waiting
        self._threads = ThreadPoolExecutor(threads, "answers")

    async def run(self, work: Callable[[*A], T], *args: *A) -> T:
        """What ``work`` returns. Raises: OverloadedError where too many wait, and whatever it raises."""
        if self.taken >= self._waiting:
            raise OverloadedError(f"{self.taken} large requests are being answered already. Ask again, or send smaller ones.")
        loop = asyncio.get_running_loop()
        future = self._threads.submit(work, *args)
        self.taken += 1
        future.add_done_callback(lambda done: self._give_back(loop, done))
        return await asyncio.wrap_future(future)

    def _give_back(self, loop: asyncio.AbstractEventLoop, _done: Future[T]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._free)

    def _free(self) -> None:
        self.taken -= 1
