"""What a branch's writer keeps: its marks, the journal entries that each version packs, and what may go once one has them.

Source: docs/design/journal.md, rules 11, 12 and 17.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from millrace.streams.branch.branch import Backends, manifest_of
from millrace.streams.branch.outputs import plain_totals
from millrace.streams.errors import DamageError
from millrace.streams.journal.entries import Act, Fork, Host, Mark
from millrace.streams.journal.journal import Cursor, checked_entry
from millrace.streams.journal.segments import entries_of, gathered, packed
from millrace.streams.journal.store import Run, Segment, Store, VersionName, kept_marks, sweep
from millrace.streams.source import Position
from millrace.streams.state.fold import Fold

log = logging.getLogger("millrace")

MARKS_A_SWEEP = 16  # kept checkpoints for each mark between two sweeps of the store: so all sweeps look at that many a mark
LEAST_VERSIONS = 2  # that stand in the journal after entries were deleted: should the newest be damaged, the other has them too


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """What a version says of its state beside the entries that led to it."""

    marks: list[Mark]  # of the checkpoints that are kept
    position: Position
    records: int
    learned: int
    scores: dict[str, dict[str, Any]]
    due: str  # why the version was made, where no act led to it
    included: list[int]  # exclusions of the fork that acts have ended

    @classmethod
    def of(cls, fold: Fold, marks: list[Mark], due: str) -> VersionFacts:
        """Of the present state."""
        scores = {"scores": plain_totals(fold.scores.totals)}
        if fold.labels is not None:
            scores["served_scores"] = plain_totals(fold.served_scores.totals)
        included = list(fold.included.get(fold.branch, ()))
        return cls(marks, dict(fold.position), fold.records, fold.fates["learned"], scores, due, included)


@dataclass(frozen=True, slots=True)
class SegmentDraft:
    """Journal entries for a version; ``segment`` stores them, in any thread."""

    fork: Fork
    host: Host
    parent: VersionName | None
    before: list[Run]
    began: Position
    raws: list[bytes]
    end: Cursor  # of the writer
    facts: VersionFacts

    def segment(self, store: Store) -> Segment:
        """Pack and store them.

        Raises: StorageError; DamageError where the journal is not what its writer wrote.
        """
        branch, facts = self.fork.branch, self.facts
        cause = self._cause()
        blob = packed(self.raws)
        first, host = self.end.offset - len(self.raws), self.host
        run = Run(store.put(branch, blob), first, self.end.offset, self.end.seq, self.end.epoch, host)
        before = gathered(store, branch, self.before)
        return Segment(
            parent=self.parent,
            cause=cause,
            entries=run,
            before=before,
            fork=self.fork,
            marks=facts.marks,
            began=self.began,
            position=facts.position,
            records=facts.records,
            learned=facts.learned,
            scores=facts.scores,
            included=facts.included,
        )

    def _cause(self) -> str:
        """The newest act among the entries; else what made the version due. Every entry is checked on the way."""
        cursor, cause = Cursor.after(self.before[-1]) if self.before else Cursor(), self.facts.due
        for raw in self.raws:
            entry = checked_entry(raw, self.fork.branch, cursor.offset, cursor)
            if cursor.take(entry) and isinstance(entry, Act):
                cause = f"{entry.cause}: {entry.description}, {entry.evidence}"
        if cursor != self.end:
            raise DamageError(
                f"Branch {self.fork.branch}: the journal up to offset {self.end.offset} is not what its writer has read and "
                "written. Restore it from a copy."
            )
        return cause


class VersionLog:
    """A branch's marks, the segments of its newest version, and what is kept of both."""

    def __init__(self, backends: Backends, fork: Fork, host: Host, keep: int, keep_entries: int) -> None:
        """``keep``: newest checkpoints; ``keep_entries``: newest in the journal where older ones go, 0: none goes."""
        self.marks: list[Mark] = []  # that count, oldest first
        self._backends = backends
        self._fork = fork
        self._host = host
        self._keep = keep
        self._keep_entries = keep_entries
        self._released = set[str]()  # versions that were let go
        self._runs: list[Run] = []
        self._position: Position = dict(fork.positions)
        self._parent: VersionName | None = None
        self._blobs: dict[str, set[str]] = {}  # what kept checkpoints list, by their names
        self._unswept = 0  # marks since the last sweep
        self._without_marks = 0  # seq of the mark of the newest version whose segment says nothing of those before

    def resume(self) -> None:
        """Go on from the newest version whose segment can be read; without one from offset 0."""
        versions = [mark for mark in self.marks if mark.version is not None]
        for mark in reversed(versions):
            segment = self._segment(mark)
            if segment is not None:
                self._runs, self._position = segment.runs, dict(segment.position)
                break
        if versions:
            self._parent = VersionName(str(versions[-1].version), versions[-1].state_sha256)
        self._released = self._release(())
        for mark in reversed(versions[1:] if self._keep_entries else []):
            if (segment := self._segment(mark)) is not None and not segment.marks:
                self._without_marks = mark.seq
                break

    def _segment(self, mark: Mark) -> Segment | None:
        try:
            return manifest_of(self._backends.store, mark).segment
        except DamageError as error:
            log.warning("Version %s: %s Its journal entries are packed again.", mark.version, error)
            return None

    def cut(self, end: Cursor, fold: Fold, due: str) -> SegmentDraft:
        """Read what the next version's segment holds: everything from where the newest one's ends to ``end``.

        Raises: DamageError where the journal cannot be read.
        """
        first = self._runs[-1].stop if self._runs else 0
        raws = [raw for _, raw in islice(self._backends.journal.read(first), end.offset - first)]
        pruned = self._keep_entries or self._backends.journal.first()
        facts = VersionFacts.of(fold, kept_marks(self.marks, self._keep, self._released) if pruned else [], due)
        return SegmentDraft(self._fork, self._host, self._parent, self._runs, self._position, raws, end.copy(), facts)

    def marked(self, mark: Mark, segment: Segment | None, owned_s: float) -> None:
        """A mark counts, and did when the writer was last sure of its branch, at ``owned_s``: let go of what need not be kept.

        First versions, in the ledger; then journal entries that versions hold; then the parts in the store.
        """
        self.marks.append(mark)
        if mark.version is not None and segment is not None:
            self._runs, self._position = segment.runs, dict(segment.position)
            self._parent = VersionName(mark.version, mark.state_sha256)
            self._without_marks = self._without_marks if segment.marks or self.marks == [mark] else mark.seq
        self._released = self._release(self.marks)
        if self._keep_entries:
            self._prune()
        declared = {
            self._fork.config_sha256,
            self._fork.features_sha256,
            str(self._fork.learner_from),
        }  # begun with, kept to compare
        kept_checkpoints = kept_marks(self.marks, self._keep, self._released)
        self._unswept += 1
        if self._unswept * MARKS_A_SWEEP >= len(kept_checkpoints):
            self._unswept = 0
            names = {mark.checkpoint for mark in kept_checkpoints}
            self._blobs = {name: blobs for name, blobs in self._blobs.items() if name in names}
            sweep(self._backends.store, self._fork.branch, kept_checkpoints, owned_s, declared, self._blobs)

    def _release(self, marks: Sequence[Mark]) -> set[str]:
        return set() if self._backends.retention is None else self._backends.retention.release(marks)

    def _prune(self) -> None:
        """Delete from the journal what is older than its newest entries and than every state that is kept for being new.

        Only where the entries that go are in segments, to the byte.
        """
        retention, first, end = (
            self._backends.retention,
            self._backends.journal.first(),
            self._runs[-1].stop if self._runs else 0,
        )
        oldest = oldest_kept(self.marks, self._keep, 0 if retention is None else retention.keep)
        enough = [run for run in self._runs if self._without_marks <= run.seq <= oldest]  # versions that stay know all marks
        stops = [run.stop for run in enough if run.stop <= end - self._keep_entries]
        if stops and stops[-1] > first and self._held(first, stops[-1]):
            self._backends.journal.delete_before(stops[-1])

    def _held(self, first: int, stop: int) -> bool:
        entries = self._backends.journal.read(first)
        try:
            for run in [run for run in self._runs if first < run.stop <= stop]:
                raws = entries_of(self._backends.store, self._fork.branch, run)[max(0, first - run.first) :]
                if raws != [raw for _, raw in islice(entries, len(raws))]:
                    raise DamageError(f"Segment {run.sha256} has other entries than the journal. Restore it from a copy.")
        except DamageError as error:
            log.warning("Nothing was deleted from the journal of branch %s: %s", self._fork.branch, error)
            return False
        return True


def oldest_kept(marks: Sequence[Mark], checkpoints: int, versions: int) -> int:
    """The seq of the oldest state that is kept for being new: so many newest checkpoints, so many newest versions (0: all).

    A version that is kept because it has a name holds nothing back: its own segment and those after it have the entries.
    """
    named = [mark for mark in marks if mark.version is not None]
    newest_marks = [*marks[-checkpoints:], *(named[-max(LEAST_VERSIONS, versions) :] if versions else named)]
    return min((mark.state_seq for mark in newest_marks), default=0)
