"""The table `[worker]` of a pipeline file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """In which steps a worker reads, when it marks, and which records it rejects.

    What follows from that for learning (rejected records, the order of rows from several partitions) is in the journal.
    """

    step_rows: int = 4096  # >= 1, rows at which a step closes
    step_ms: int = 25  # >= 0, milliseconds after which a step closes with fewer rows
    checkpoint_rows: int = 50_000  # >= 1, records between two checkpoints; more takes longer to resume after a crash
    version_rows: int = 0  # >= 0, records between two versions; 0: only at the end of a run
    keep: int = 3  # >= 2, newest checkpoints kept beside those of versions
    journal_keep_entries: int = 0  # >= 0, newest entries that stay in the journal when versions hold the older ones; 0: all
    max_ahead_ms: int = 60_000  # >= 0, milliseconds; a record whose timestamp is further past the wall clock is rejected
    stop_share: float = 0.1  # in (0, 1], share of rejected records that stops the worker
    window_rows: int = 1000  # >= 1, records over which that share is taken

    def __post_init__(self) -> None:
        """Raise ValueError for a setting out of range."""
        least = {"step_rows": 1, "step_ms": 0, "checkpoint_rows": 1, "version_rows": 0, "keep": 2, "max_ahead_ms": 0}
        for name, low in (least | {"window_rows": 1, "journal_keep_entries": 0}).items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least {low}")
        if not 0.0 < self.stop_share <= 1.0:
            raise ValueError(f"stop_share = {self.stop_share}: must be above 0 and at most 1")
