"""Workers whose checkpoints lose something, each a broken twin that a test must catch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from millrace.streams.journal.entries import Host
from millrace.streams.journal.store import Store
from millrace.streams.worker.snapshots import Snapshots
from millrace.streams.worker.versions import SegmentDraft
from millrace.streams.worker.worker import Worker

Parts = Mapping[str, Mapping[str, Any]]


class LossySnapshots(Snapshots):
    """Stores what ``lose`` leaves of a state."""

    def __init__(self, store: Store, branch: str, lose: Callable[[Parts], Parts]) -> None:
        super().__init__(store, branch)
        self._lose = lose

    def begin(self, seq: int, parts: Parts, cut: SegmentDraft | None) -> None:
        """Store the rest of it."""
        super().begin(seq, self._lose(parts), cut)


class LossyWorker(Worker):
    """Broken: its checkpoints have what ``lose`` leaves of its state."""

    lose: ClassVar[Callable[[Parts], Parts]]

    def _open(self, host: Host) -> None:
        super()._open(host)
        self._snapshots = LossySnapshots(self._backends.store, self.branch, type(self).lose)


class WithoutRemainder(LossyWorker):
    """Broken: its checkpoints forget the rows that wait for their batch."""

    @staticmethod
    def lose(parts: Parts) -> Parts:
        """All but the rest."""
        return {**parts, "batches": {"deadline_ms": 0}}
