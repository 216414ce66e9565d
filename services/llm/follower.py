"""Which draft a replica's engine has, kept up to date: the ledger says which version to serve, and the store has its weights.

Drafts are served by version, never as the newest of a branch. What cannot be read or swapped in is said and counted, and the
engine keeps what it has. What an engine has refused is not offered again before the ledger says something else.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from millrace.learners.draft.folder import WEIGHTS, digest
from millrace.learners.errors import MillraceError
from millrace.learners.table import algorithm_of
from millrace.services.errors import SwapRefusedError
from millrace.services.llm.swapping import DraftFile
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.bundle import Identity
from millrace.services.pipeline.instance import Instance
from millrace.services.serving.follower import Decisions
from millrace.streams.errors import StorageError
from millrace.streams.journal.ledger import Target, describe_target
from millrace.streams.schema import Schema

log = logging.getLogger("millrace")

POLL_S = 0.1  # between two polls of the ledger
RETRY_S = 1.0  # after something could not be read


class Swaps(Protocol):
    """What a follower asks of an engine."""

    async def swap(self, draft: DraftFile, newer: bool) -> float:
        """Put another draft in place; seconds that steps waited. Raises: SwapRefusedError."""


@dataclass(frozen=True, slots=True)
class HeldDraft:
    """What answers now: the target, with this draft."""

    identity: Identity
    schema: Schema
    outputs: int = 1  # it answers before anything was learned


class DraftFollower:
    """One replica's draft. ``held`` is read by requests and assigned here only."""

    def __init__(self, instance: Instance, folder: Path) -> None:
        """``folder``: where drafts lie while the engine has them."""
        self.held: HeldDraft | None = None
        self.swapped = 0  # drafts that took another one's place
        self.refused = 0  # times that what the ledger says could not be had
        self.said = ""  # why the engine has another draft than the ledger says; empty: it has not
        self._instance = instance
        self._folder = folder
        self._archive = Archive(instance)
        self._decisions = Decisions(instance)
        self._target: Target | None = None  # what the ledger said last
        self._passed_by: Target | None = None  # what the engine has refused
        self._file: DraftFile | None = None  # of what is held

    @property
    def described_target(self) -> str:
        """What the ledger says to serve, in words."""
        return describe_target(self._target)

    async def first(self) -> DraftFile:
        """What the engine is to begin with: waits until the ledger says a version, and for its weights to be there.

        Raises: MillraceError where they cannot be read.
        """
        while (version := await self._version()) is None:
            await asyncio.sleep(POLL_S)
        return await asyncio.to_thread(self._written, version)

    async def catch_up(self, engine: Swaps) -> None:
        """Swap until the engine has what the ledger says now, which may have changed while the engine began.

        Raises: MillraceError where it cannot have that.
        """
        while (version := await self._version()) not in (None, self._held_version):
            await self._go_to(str(version), engine)

    def begun(self, draft: DraftFile) -> None:
        """The engine has begun with it."""
        self._hold(draft)

    async def run(self, engine: Swaps) -> None:
        """Follow the ledger, for ever."""
        while True:
            try:
                version = await self._version()
                if version not in (None, self._held_version) and self._target != self._passed_by:
                    await self._go_to(str(version), engine)
                elif version == self._held_version:
                    self.said, self._passed_by = "", None
                wait_s = POLL_S
            except SwapRefusedError as error:
                self._passed_by = self._target
                self._note(error)
                wait_s = POLL_S
            except MillraceError as error:
                self._note(error)
                wait_s = RETRY_S
            await asyncio.sleep(wait_s)

    @property
    def _held_version(self) -> str | None:
        return None if self.held is None else self.held.identity.version

    async def _version(self) -> str | None:
        """That the ledger says to serve; None where it says none, or a branch. Raises: MillraceError."""
        self._target = await asyncio.to_thread(self._decisions.target)
        return None if self._target is None else self._target.version

    async def _go_to(self, version: str, engine: Swaps) -> None:
        """Raises: SwapRefusedError where the engine cannot have that draft; another MillraceError where it cannot now."""
        draft = await asyncio.to_thread(self._written, version)
        with gone_unless_kept(draft.folder) as keep:
            seconds = await engine.swap(draft, goes_on(self._held_version, version))
            keep()
        self.swapped += 1
        self._hold(draft)
        log.info("the ledger says %s: the engine has it after %.0f ms", self.described_target, 1000 * seconds)

    def _hold(self, draft: DraftFile) -> None:
        before, self._file = self._file, draft
        self.held = HeldDraft(draft.identity, self._instance.loaded.pipeline.schema)
        self.said, self._passed_by = "", None
        if before is not None:
            shutil.rmtree(before.folder, ignore_errors=True)

    def _note(self, error: MillraceError) -> None:
        """Count a failure once for as long as it lasts, and say it where status looks."""
        if self.said != str(error):
            self.refused += 1
            self.said = str(error)
            log.warning("%s Draft %s goes on.", error, self._held_version)

    def _written(self, version: str) -> DraftFile:
        """A version's draft in a folder of its own. Raises: MillraceError."""
        parts = self._archive.parts(self._archive.mark(version))
        draft: Any = algorithm_of(parts.kind).ready().servable(dict(parts.serve))
        llm = self._instance.loaded.pipeline.llm
        if llm is not None and draft.target != llm.target_sha256:
            raise SwapRefusedError(
                f"Version {version} was distilled for a target with sha256 {draft.target[:12]}, and {llm.target_sha256[:12]} "
                "answers. Serve a version of a branch that was begun with this target."
            )
        try:
            return self._file_of(draft, parts.identity)
        except OSError as error:
            raise StorageError(
                f"{self._folder}: draft {version} cannot be written: {error.strerror or error}. Make room there."
            ) from error

    def _file_of(self, draft: Any, identity: Identity) -> DraftFile:
        """Written whole, or not there."""
        self._folder.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{identity.version}-", dir=self._folder))
        with gone_unless_kept(folder) as keep:
            draft.write(folder)
            file = DraftFile(folder, digest(folder / WEIGHTS), identity)
            keep()
        return file


@contextmanager
def gone_unless_kept(folder: Path) -> Iterator[Callable[[], object]]:
    """A folder that goes with the block, unless what the block is given was called."""
    with ExitStack() as left:
        left.callback(shutil.rmtree, folder, ignore_errors=True)
        yield left.pop_all


def goes_on(held: str | None, version: str) -> bool:
    """Whether the ledger goes on on the branch of what is held, by its own words; what is read then has to be newer.

    >>> goes_on("main.7", "main.12"), goes_on("main.12", "main.7"), goes_on("main.7", "back.12")
    (True, False, False)
    """
    (branch, _, seq), (new_branch, _, new_seq) = str(held).rpartition("."), version.rpartition(".")
    return branch == new_branch and int(new_seq) > int(seq)
