"""Which versions are kept: the newest of each branch, what the ledger names, and nothing else.

A version goes in two steps: a ``release`` in the ledger, which counts only for what nothing names there, then its parts. So
whoever names a version either comes first, and keeps it, or is told. Source: docs/design/journal.md, rules 10 and 11.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from millrace.streams.errors import DamageError, StorageError
from millrace.streams.journal.entries import Mark
from millrace.streams.journal.ledger import Ledger, Release, append_decision
from millrace.streams.sharding import merging_branch
from millrace.streams.source import Position
from millrace.streams.stream import Stream

log = logging.getLogger("millrace")


@dataclass(slots=True)
class Retention:
    """The policy of a pipeline, and its ledger."""

    stream: Stream
    keep: int  # newest versions of each branch; 0: all
    look_s: float = 0.5  # between two looks for what operators decided, at least
    _looked_s: float = float("-inf")
    _ledger: Ledger = field(default_factory=lambda: Ledger("The ledger"))

    def released(self) -> set[str]:
        """Versions whose parts may be gone."""
        self._ledger.follow(self.stream)
        return self._ledger.released

    def included(self, branch: str) -> set[int]:
        """Exclusions of a branch that operators have ended; where the ledger cannot be read, those that were known."""
        self._look()
        return {place for name, place in self._ledger.included if name == branch}

    def passed_by(self, branch: str) -> Position:
        """Where, by partition, the records end that operators have let a branch, or its shards, go past.

        Where the ledger cannot be read, those that were known.
        """
        self._look()
        return self._ledger.passed_by.get(merging_branch(branch), {})

    def _look(self) -> None:
        if time.monotonic() - self._looked_s >= self.look_s:
            self._looked_s = time.monotonic()
            try:
                self._ledger.follow(self.stream)
            except (DamageError, StorageError) as error:
                log.warning("The ledger was not heeded: %s", error)

    def release(self, marks: Sequence[Mark]) -> set[str]:
        """Let go of what the policy no longer keeps among a branch's marks; every version that was let go so far.

        Where the ledger cannot be read or written no more versions are let go, and learning goes on.
        """
        try:
            if unneeded := self._left(marks):
                reason, when_ms = f"versions.keep = {self.keep}", time.time_ns() // 1_000_000
                append_decision(self.stream, Release(who="retention", why=reason, when_ms=when_ms, versions=unneeded))
            return self.released()
        except (DamageError, StorageError) as error:
            log.warning("No version was let go: %s", error)
            return self._ledger.released

    def _left(self, marks: Sequence[Mark]) -> list[str]:
        versions = [mark.version for mark in marks if mark.version is not None]
        old = versions[: -self.keep] if self.keep else []
        settled = self.released() | self._ledger.named
        return [version for version in old if version not in settled]
