"""Marked states of a pipeline, read from journal and store."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from millrace.learners.errors import MillraceError
from millrace.learners.table import LEARNERS
from millrace.services.pipeline.bundle import Bundle, Parts, identity_of, open_parts
from millrace.services.pipeline.instance import Instance, require_branch
from millrace.streams.branch.branch import load_part
from millrace.streams.errors import DamageError
from millrace.streams.journal.entries import Mark
from millrace.streams.journal.journal import Summary, empty_summary, extend
from millrace.streams.journal.segments import Journal

log = logging.getLogger("millrace")


NEEDED = ("serve", "features", "counts")  # parts of a checkpoint


@dataclass(slots=True)
class Archive:
    """Marked states, read from journal and store."""

    instance: Instance
    _summaries: dict[str, Summary] = field(default_factory=dict)
    _journals: dict[str, Journal] = field(default_factory=dict)

    def version(self, version: str) -> Bundle:
        """Raises: MillraceError where there is no such version, DamageError where its parts are not whole."""
        return self.bundle(self.mark(version))

    def check(self, version: str) -> None:
        """Read a version, and open it where that imports nothing that takes seconds or may be missing (torch).

        What is not opened here is opened by the replicas, which go on with what they hold where it cannot be.
        Raises: as ``version``.
        """
        parts = self.parts(self.mark(version))
        if not LEARNERS[parts.kind].needs:
            open_parts(parts, self.instance.loaded.pipeline.schema)

    def mark(self, version: str) -> Mark:
        """The mark of a version. Raises: MillraceError where there is none."""
        branch = version.rpartition(".")[0]
        if not branch:
            raise MillraceError(f"There is no version or alias {version!r}; `millrace versions` lists them.")
        marks = [mark for mark in self.marks(branch) if mark.version == version]
        if not marks:
            newest = ", ".join(str(mark.version) for mark in self.marks(branch)[-8:] if mark.version) or "none"
            raise MillraceError(f"There is no version {version}. The newest of branch {branch}: {newest}.")
        return marks[0]

    def newest(self, branch: str) -> Bundle | None:
        """The newest marked state whose parts are whole, or None."""
        if not self.instance.has_branch(branch):
            return None
        for mark in reversed(self.marks(branch)):
            if mark.checkpoint is None:
                continue
            try:
                return self.bundle(mark)
            except DamageError as error:
                log.warning("%s; trying the checkpoint before", error)
        return None

    def marks(self, branch: str) -> list[Mark]:
        """Of a branch, oldest first. Raises: MillraceError where there is no such branch."""
        return self.summary(branch).marks

    def summary(self, branch: str) -> Summary:
        """Of a branch's journal, as far as it goes by now. Raises: MillraceError where there is no such branch."""
        if branch not in self._journals:
            require_branch(self.instance, branch)
            self._journals[branch] = self.instance.journal(branch)
        if branch not in self._summaries:
            self._summaries[branch] = empty_summary(self._journals[branch])
        extend(self._summaries[branch], self._journals[branch], branch)
        return self._summaries[branch]

    def so_far(self, branch: str) -> Summary:
        """As ``summary``; empty where there is no such branch yet."""
        return self.summary(branch) if self.instance.has_branch(branch) else Summary()

    def bundle(self, mark: Mark) -> Bundle:
        """The state that a mark names. Raises: DamageError."""
        return open_parts(self.parts(mark), self.instance.loaded.pipeline.schema)

    def parts(self, mark: Mark) -> Parts:
        """What answering needs of the state that a mark names. Raises: DamageError."""
        state_parts = {name: load_part(self.instance.store(), mark, name) for name in NEEDED}
        as_of_ms = min(int(state_parts["counts"]["clock_ms"]), time.time_ns() // 1_000_000)
        kind = self.instance.loaded.pipeline.learner["kind"]
        return Parts(identity_of(mark), as_of_ms, kind, state_parts["features"], state_parts["serve"])
