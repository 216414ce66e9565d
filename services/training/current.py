"""The newest weights of every branch, and nothing else: what the trainer publishes and every replica waits for.

It runs as one named Ray actor. It may die at any time: replicas go on with what they hold, and the trainer's next beat fills it
again. Numbers pass by value, so that this process owns the objects it hands out: an object dies with its owner.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.services.pipeline.bundle import Identity

Blob = NDArray[np.uint8]
SILENT_S = 10.0  # after which a replica is no longer spoken of


@dataclass(frozen=True, slots=True)
class Publication:
    """A state that the trainer has let out."""

    identity: Identity
    sha256: str  # of the bundle's bytes
    as_of_ms: int  # the state took in everything that the log had by then


@dataclass(frozen=True, slots=True)
class News:
    """What a replica hears."""

    publication: Publication
    blob: Any  # what ``put`` gave for the bundle's bytes


@dataclass(frozen=True, slots=True)
class Presence:
    """What a replica says of itself, every other second."""

    replica: str
    pid: int
    serves: str  # what the ledger tells it to, in words
    answers: str  # the state that answers now; empty: none yet
    staleness_ms: int | None
    stored: int  # of its answers' records
    waiting: int
    dropped: int
    rows: int = 0  # that it answered
    requests: tuple[tuple[str, str, str, int], ...] = ()  # protocol, kind of call, status, how many
    latencies: tuple[tuple[str, tuple[int, ...], int], ...] = ()  # protocol, answers by bucket, nanoseconds of all
    completions: tuple[tuple[str, int], ...] = ()  # of a language model: what became of them, how many
    swaps: tuple[tuple[str, int], ...] = ()  # of its draft: done or refused, how many
    said: str = ""  # why it does not answer from what it is told to; nothing where it does
    series: str = ""  # of its engine, as text for Prometheus


class NewestWeights:
    """Holds the newest publication of each branch; a lower (epoch, seq) is refused."""

    def __init__(self, put_blob: Callable[[Blob], Any]) -> None:
        self._put = put_blob
        self._newest: dict[str, News] = {}
        self._changed = asyncio.Condition()
        self._heard: dict[str, tuple[float, Presence]] = {}  # replica -> when, and what it said last

    async def hear(self, presence: Presence) -> None:
        """Remember what a replica says of itself."""
        self._heard[presence.replica] = (time.monotonic(), presence)

    async def replicas(self) -> list[Presence]:
        """Those that were heard of lately."""
        since_s = time.monotonic() - SILENT_S
        self._heard = {name: last_heard for name, last_heard in self._heard.items() if last_heard[0] >= since_s}
        return [presence for _, presence in self._heard.values()]

    async def publish(self, publication: Publication, blob: Blob) -> bool:
        """Keep it and wake who waits; False where something newer of that branch is here already."""
        newest = self._newest.get(publication.identity.branch)
        if newest is not None and newest.publication.identity.place > publication.identity.place:
            return False
        self._newest[publication.identity.branch] = News(publication, self._put(blob))
        await self._wake()
        return True

    async def beat(self, publication: Publication) -> bool:
        """The trainer is alive and its state took in everything by then; False where that state is not here."""
        branch = publication.identity.branch
        newest = self._newest.get(branch)
        if newest is None or newest.publication.identity.place < publication.identity.place:
            return False
        if newest.publication.identity == publication.identity:
            as_of_ms = max(newest.publication.as_of_ms, publication.as_of_ms)
            self._newest[branch] = replace(newest, publication=replace(newest.publication, as_of_ms=as_of_ms))
            await self._wake()
        return True

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def next(self, branch: str, after: Publication | None, timeout_s: float) -> News | None:
        """What is newer than ``after``, as soon as there is such a thing; None where there was none in time."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self._is_news(branch, after))
        except TimeoutError:
            return None
        return self._newest[branch]

    def _is_news(self, branch: str, after: Publication | None) -> bool:
        newest = self._newest.get(branch)
        if newest is None or after is None:
            return newest is not None
        newest_publication, known_publication = newest.publication, after
        return (*newest_publication.identity.place, newest_publication.as_of_ms) > (
            *known_publication.identity.place,
            known_publication.as_of_ms,
        )
