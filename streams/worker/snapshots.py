"""Checkpoints written off the learning thread: the state is copied there, packed, hashed and stored here."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from millrace.streams.branch.branch import save_checkpoint
from millrace.streams.journal.store import Checkpoint, Store
from millrace.streams.worker.versions import SegmentDraft


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A stored checkpoint that no mark names yet."""

    checkpoint: str
    manifest: Checkpoint
    version: str | None


class Snapshots:
    """At most one snapshot on its way at a time."""

    def __init__(self, store: Store, branch: str) -> None:
        self._store = store
        self._branch = branch
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="snapshot")
        self._coming: Future[Snapshot] | None = None

    @property
    def busy(self) -> bool:
        """Whether one is on its way."""
        return self._coming is not None

    def begin(self, seq: int, parts: Mapping[str, Mapping[str, object]], cut: SegmentDraft | None) -> None:
        """Store a copy of the state after entry ``seq``; as a version where journal entries are ``cut`` for it."""

        def save() -> Snapshot:
            segment = None if cut is None else cut.segment(self._store)
            version = None if cut is None else f"{self._branch}.{seq}"
            return Snapshot(*save_checkpoint(self._store, self._branch, seq, parts, segment), version)

        self._coming = self._thread.submit(save)

    def finished(self, wait: bool) -> Snapshot | None:
        """The snapshot that has been stored since, once. Raises: StorageError where it could not be stored."""
        if self._coming is None or not (wait or self._coming.done()):
            return None
        coming, self._coming = self._coming, None
        return coming.result()

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown()
