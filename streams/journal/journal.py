"""Which entries of a branch count, and the fence by which a writer learns that it still owns the branch.

Source: docs/design/journal.md, rules 3 and 4. Nothing here knows where the stream lies.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from millrace.streams.checksummed import seal
from millrace.streams.errors import DamageError, EndedError, ReplacedError
from millrace.streams.journal.entries import Act, End, Entry, Fork, Host, Mark, Open, StateName, Step, decode_entry
from millrace.streams.journal.segments import Journal
from millrace.streams.journal.store import Run
from millrace.streams.source import Position
from millrace.streams.stream import Ack, Stream

OPEN_TRIES = 50  # against an owner that goes on writing


@dataclass(slots=True)
class Cursor:
    """How far a reader has come, and by that which entry counts next."""

    offset: int = 0  # the next one to read
    seq: int = 0  # of the last counted entry; 0 before the fork
    epoch: int = 0
    ended: End | None = None  # nothing counts after it

    def take(self, entry: Entry) -> bool:
        """Pass one entry; True if it counts, False if it is dead, for every reader, for ever."""
        self.offset += 1
        if isinstance(entry, Fork) or self.seq == 0:
            counts = isinstance(entry, Fork) and self.seq == 0 and (entry.seq, entry.epoch) == (1, 0)
        elif isinstance(entry, Open):
            counts = entry.epoch == self.epoch + 1 and entry.after_seq == self.seq and entry.seq == self.seq + 1
        else:
            counts = entry.epoch == self.epoch and entry.seq == self.seq + 1
        counts = counts and self.ended is None
        if counts:
            self.seq, self.epoch = entry.seq, entry.epoch
            self.ended = entry if isinstance(entry, End) else None
        return counts

    def ahead(self, entry: Entry) -> bool:
        """Whether no honest writer could have appended the entry here: something before it is gone.

        What a writer appends in vain is behind (another has the branch) or level (it lost the race to open), never ahead.
        """
        if isinstance(entry, Fork):
            return False
        if isinstance(entry, Open):
            return entry.epoch > self.epoch + 1 or entry.after_seq > self.seq
        return entry.epoch > self.epoch or (entry.epoch == self.epoch and entry.seq > self.seq + 1)

    @staticmethod
    def after(run: Run) -> Cursor:
        """Where a segment's entries end."""
        return Cursor(run.stop, run.seq, run.epoch)

    def copy(self) -> Cursor:
        """Another cursor at the same place."""
        return replace(self)

    def refuse_ended(self) -> None:
        """Raises: EndedError naming the successor where the branch goes no further."""
        if self.ended is not None:
            heir = self.ended.successor
            raise EndedError(
                f"Branch {self.ended.branch} has ended ({self.ended.cause}). "
                + (f"Branch {heir} goes on in its place: name it with --branch {heir}." if heir else "Nothing goes on from it.")
            )


def counted(stream: Stream, branch: str, cursor: Cursor) -> Iterator[Entry]:
    """The entries that count, from ``cursor`` to the stream's end; ``cursor`` moves along.

    Raises: DamageError naming the offset of an entry that is damaged, of another branch, or behind a gap.
    """
    for offset, raw in stream.read(cursor.offset):
        entry = checked_entry(raw, branch, offset, cursor)
        if cursor.take(entry):
            yield entry


def checked_entry(raw: bytes, branch: str, offset: int, cursor: Cursor) -> Entry:
    """The entry at ``offset``, where ``cursor`` stands.

    Raises: DamageError where it is damaged, of another branch, or behind a gap.
    """
    place = f"Branch {branch}: the journal entry at offset {offset} (after seq {cursor.seq})"
    entry = decode_entry(raw, place)
    if entry.branch != branch:
        raise DamageError(f"{place} is of branch {entry.branch}. Restore the journal from a copy.")
    if isinstance(entry, Mark) and entry.version not in (None, f"{branch}.{entry.state_seq}"):
        raise DamageError(f"{place} names a version {entry.version} of another state. Restore the journal from a copy.")
    if cursor.ahead(entry):
        raise DamageError(
            f"{place} has seq {entry.seq} of epoch {entry.epoch}, so entries between are gone. Restore the journal from a copy."
        )
    return entry


@dataclass(slots=True)
class Summary:
    """What one pass over a branch finds."""

    fork: Fork | None = None
    marks: list[Mark] = field(default_factory=list)  # oldest first
    end: Cursor = field(default_factory=Cursor)
    included: set[int] = field(default_factory=set)  # exclusions that acts have ended, by their place in the fork's list
    position: Position = field(default_factory=dict)  # the next offset of every partition, after the newest step
    act: Act | None = None  # the newest that was not deleted with the stream's beginning

    @property
    def newest_version(self) -> str | None:
        """The id of the newest version."""
        return newest_version(self.marks)


def newest_version(marks: Sequence[Mark]) -> str | None:
    """The id of the newest version among marks, oldest first."""
    return next((mark.version for mark in reversed(marks) if mark.version is not None), None)


def summarise(stream: Stream, branch: str) -> Summary:
    """One pass over what the branch's stream has; the newest version says what was deleted from it, but for the marks of
    checkpoints that are not kept.

    Raises: DamageError naming the offset of a damaged entry.
    """
    summary = empty_summary(stream)
    extend(summary, stream, branch)
    return summary


def empty_summary(stream: Stream) -> Summary:
    """A summary to go on with: empty, or as a version has it where the stream has deleted its beginning.

    Raises: DamageError where no version has.
    """
    segment = stream.segment() if isinstance(stream, Journal) else None
    if segment is None:
        return Summary()
    included, position = set(segment.included), dict(segment.position)
    return Summary(segment.fork, list(segment.marks), Cursor.after(segment.entries), included, position)


def place_before(stream: Stream, seq: int) -> Run | None:
    """Of what was deleted from the stream the last run that ends at ``seq`` or before: what is after it is read from there."""
    runs = stream.runs() if isinstance(stream, Journal) else []
    return next((run for run in reversed(runs) if run.seq <= seq), None)


def entries_after(stream: Stream, branch: str, seq: int) -> Iterator[Entry]:
    """The counted entries with a higher seq. Raises: as ``counted``."""
    run = place_before(stream, seq)
    return (entry for entry in counted(stream, branch, Cursor.after(run) if run else Cursor()) if entry.seq > seq)


def extend(summary: Summary, stream: Stream, branch: str) -> None:
    """Go on with a summary to the stream's end; what was read before a damaged entry stays in it.

    Raises: DamageError naming the offset of a damaged entry.
    """
    for entry in counted(stream, branch, summary.end):
        if isinstance(entry, Fork):
            summary.fork = entry
            summary.position.update(entry.positions)
        elif isinstance(entry, Step):
            summary.position.update({tp: stop for tp, _, stop, _, _ in entry.reads})
        elif isinstance(entry, Mark):
            summary.marks.append(entry)
        elif isinstance(entry, Act):
            summary.act = entry
            summary.included |= {int(entry.args["exclusion"])} if entry.op == "include" else set()


@dataclass(frozen=True, slots=True)
class Pending:
    """An entry that was sent and not yet settled."""

    entry: Entry
    raw: bytes
    ack: Ack


class Writer:
    """The one writer of a branch, as long as the fence says so. One append is in flight at a time."""

    def __init__(self, stream: Stream, branch: str, cursor: Cursor) -> None:
        self.branch = branch
        self.cursor = cursor.copy()  # what this writer knows of the stream
        self._stream = stream

    @property
    def next_seq(self) -> int:
        """The seq that the next entry must carry."""
        return self.cursor.seq + 1

    def send(self, entry: Entry) -> Pending:
        """Start appending; nothing that follows from the entry may leave before ``confirm``."""
        raw = seal(entry)
        return Pending(entry, raw, self._stream.send(raw))

    def confirm(self, pending: Pending) -> None:
        """Wait for the acknowledgement; on return the entry counts and its effects may leave.

        Raises: ReplacedError where another writer has the branch, or where the entry does not count.
        """
        if pending.ack.offset() == self.cursor.offset and self.cursor.take(pending.entry):
            return
        is_ours = self._read_on(pending.raw)
        if self.cursor.epoch > pending.entry.epoch or not is_ours:
            raise self._replaced(f"the entry with seq {pending.entry.seq} of epoch {pending.entry.epoch} does not count")

    def check(self) -> None:
        """Look whether the branch is still this writer's, without appending anything.

        Raises: ReplacedError where another writer has it.
        """
        epoch = self.cursor.epoch
        self._read_on(b"")
        if self.cursor.epoch != epoch:
            raise self._replaced(f"this is the writer of epoch {epoch}")

    def _replaced(self, reason: str) -> ReplacedError:
        self.cursor.refuse_ended()
        return ReplacedError(
            f"Branch {self.branch}: {reason}; the branch is at seq {self.cursor.seq} of epoch {self.cursor.epoch}. Another "
            "writer has taken it, or an append was lost. Nothing that does not count was let out. Stop the other writer, or "
            "start again with --take-over."
        )

    def open(self, host: Host, restored: StateName | None) -> int:
        """Take the branch; the new epoch. A busy owner may get in between, so it is tried again after what it wrote.

        Raises: EndedError where the branch goes no further; ReplacedError where another opener was faster.
        """
        self.cursor.refuse_ended()
        epoch, writer = self.cursor.epoch + 1, uuid.uuid4().hex
        for tries_left in range(OPEN_TRIES - 1, -1, -1):
            after = self.cursor.seq
            entry = Open(
                branch=self.branch, seq=after + 1, epoch=epoch, after_seq=after, restored=restored, host=host, writer=writer
            )
            try:
                self.append(entry)
            except ReplacedError:
                if not tries_left or self.cursor.epoch >= epoch:
                    raise
            else:
                break
        return epoch

    def append(self, entry: Entry) -> None:
        """``send`` and ``confirm``."""
        self.confirm(self.send(entry))

    def include(self, place: int) -> Act:
        """Say that an exclusion, by its place in the fork's list, ends here. Raises: as ``append``."""
        act = Act(
            branch=self.branch,
            seq=self.next_seq,
            epoch=self.cursor.epoch,
            op="include",
            args={"exclusion": place},
            cause="operator",
            evidence="the ledger",
        )
        self.append(act)
        return act

    def end(self, cause: str, successor: str | None) -> None:
        """Let the branch, which this writer has opened, go no further. Raises: ReplacedError where another has it by now."""
        epoch = self.cursor.epoch
        self.append(End(branch=self.branch, seq=self.next_seq, epoch=epoch, cause=cause, successor=successor))

    def _read_on(self, raw: bytes) -> bool:
        """Read to the stream's end; whether ``raw`` was among what counts."""
        found_entry = False
        for offset, value in self._stream.read(self.cursor.offset):
            entry = checked_entry(value, self.branch, offset, self.cursor)
            found_entry |= self.cursor.take(entry) and value == raw
        return found_entry
