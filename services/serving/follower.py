"""What a replica answers from, kept up to date: the ledger says what to serve, ``Current`` has the newest weights of a branch.

The ledger is followed by the replica itself, so a rollback needs neither trainer nor ``Current``. A bundle is fetched, checked
and made in a thread; then one assignment makes it the one that answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from millrace.learners.errors import MillraceError
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.bundle import Bundle, open_bundle
from millrace.services.pipeline.instance import ENDPOINT, Instance
from millrace.services.training.current import Publication
from millrace.streams.errors import DamageError
from millrace.streams.journal.ledger import Ledger, Target, describe_target
from millrace.streams.stream import Stream

log = logging.getLogger("millrace")

POLL_S = 0.05  # between two polls of the ledger
RETRY_S = 1.0  # after something could not be read

Fetched = tuple[Publication, bytes]
Next = Callable[[str, Publication | None, float], Awaitable[Fetched | None]]


class Decisions:
    """What the ledger says that the endpoint is to serve, as it grows."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._ledger = Ledger(instance.ledger_name)
        self._stream: Stream | None = None

    def target(self) -> Target | None:
        """By now. Raises: MillraceError."""
        if self._stream is None:
            self._stream = self._instance.ledger_stream()
        self._ledger.follow(self._stream)
        return self._ledger.serving.get(ENDPOINT)


class Follower:
    """One replica's bundle. ``held`` is read by requests and assigned here only."""

    def __init__(self, instance: Instance, following: Next) -> None:
        self.held: Bundle | None = None
        self._instance = instance
        self._archive = Archive(instance)
        self._next = following
        self._target: Target | None = None
        self._decisions = Decisions(instance)

    @property
    def described_target(self) -> str:
        """What the ledger says to serve, in words."""
        return describe_target(self._target)

    async def run(self) -> None:
        """Follow the ledger and the newest weights, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_ledger())
            tasks.create_task(self._follow_branch())

    async def _follow_ledger(self) -> None:
        while True:
            try:
                target = await asyncio.to_thread(self._decisions.target)
                if target != self._target and target is not None:
                    await self._go_to(target)
                wait_s = POLL_S
            except MillraceError as error:
                log.warning("%s What was served before goes on.", error)
                wait_s = RETRY_S
            await asyncio.sleep(wait_s)

    async def _go_to(self, target: Target) -> None:
        """Answer from another target; the one before goes on until there is something to answer from."""
        if target.version is not None:
            bundle: Bundle | None = await asyncio.to_thread(self._archive.version, target.version)
        else:
            bundle = await self._newest(str(target.follow))
        self._target = target
        if bundle is not None:
            self.held = bundle
            log.info("the ledger says %s: %s answers", target, bundle.identity.name)

    async def _newest(self, branch: str) -> Bundle | None:
        """Of a branch: what was published last, else the newest checkpoint."""
        fetched = await self._next(branch, None, 0.0)
        if fetched is not None:
            return await asyncio.to_thread(self._opened, fetched)
        return await asyncio.to_thread(self._archive.newest, branch)

    def _opened(self, fetched: Fetched) -> Bundle:
        publication, blob = fetched
        bundle = open_bundle(blob, publication.sha256, self._instance.loaded.pipeline.schema)
        return bundle.confirmed(publication.as_of_ms)

    async def _follow_branch(self) -> None:
        while True:
            target = self._target
            if target is None or target.follow is None:
                await asyncio.sleep(POLL_S)
                continue
            try:
                await self._hear(target, target.follow)
            except DamageError as error:
                log.warning("%s It is not used; what was served before goes on.", error)
                await asyncio.sleep(RETRY_S)

    async def _hear(self, target: Target, branch: str) -> None:
        """Wait for something newer, and let it answer unless the ledger has said otherwise meanwhile."""
        current = self.held if self.held is not None and self.held.identity.branch == branch else None
        after = None if current is None else Publication(current.identity, current.sha256, current.as_of_ms)
        fetched = await self._next(branch, after, RETRY_S)
        if fetched is None or self._target is not target:
            return
        if current is not None and fetched[0].sha256 == current.sha256:
            self.held = current.confirmed(fetched[0].as_of_ms)
            return
        bundle = await asyncio.to_thread(self._opened, fetched)
        if self._target is target and (current is None or bundle.identity.place > current.identity.place):
            self.held = bundle
