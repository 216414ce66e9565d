"""A journal is segments and a tail: what its stream has deleted comes back, to the byte, from its versions.

Every version names the packed entries since its parent, and the runs before them back to offset 0 (``store.Segment``). So any
version whose mark is in the stream and whose manifest can be read gives back everything that was deleted.

Source: docs/design/journal.md, rules 12 and 17.
"""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Iterator, Sequence

import msgspec

from millrace.streams.errors import DamageError, PrunedError
from millrace.streams.journal.entries import Mark, decode_entry
from millrace.streams.journal.store import Run, Segment, Store, read_checkpoint
from millrace.streams.stream import Ack, Stream

log = logging.getLogger("millrace")

PLAIN, DEFLATED = b"\x00", b"\x01"  # the first byte of a packed run
WIDTH = 16  # so many runs of one level become one of the next
LEVELS = 2  # so a blob holds those of 256 versions at most
_LENGTH = struct.Struct(">I")


def packed(entries: Sequence[bytes]) -> bytes:
    """Entries as one blob: each after its length, deflated where that is smaller.

    >>> unpacked(packed([b"one", b"", b"three" * 9]), "here") == [b"one", b"", b"three" * 9]
    True
    """
    plain = b"".join(part for entry in entries for part in (_LENGTH.pack(len(entry)), entry))
    deflated = zlib.compress(plain, 6)
    return DEFLATED + deflated if len(deflated) < len(plain) else PLAIN + plain


def unpacked(blob: bytes, where: str) -> list[bytes]:
    """The entries in a blob. Raises: DamageError naming ``where`` if it is none of ours."""
    try:
        plain = zlib.decompress(blob[1:]) if blob[:1] == DEFLATED else blob[1:]
        entries, at = [], 0
        while at < len(plain):
            (length,) = _LENGTH.unpack_from(plain, at)
            at += _LENGTH.size + length
            entries.append(plain[at - length : at])
    except (zlib.error, struct.error) as error:
        raise DamageError(f"{where} cannot be unpacked ({error}). Restore it from a copy.") from error
    if at != len(plain) or blob[:1] not in (PLAIN, DEFLATED):
        raise DamageError(f"{where} ends within an entry. Restore it from a copy.")
    return entries


def entries_of(store: Store, branch: str, run: Run) -> list[bytes]:
    """The entries of a run.

    Raises: DamageError where its blob is missing or damaged, with what can no longer be proved.
    """
    try:
        entries = unpacked(store.get(branch, run.sha256), f"{branch}/{run.sha256}")
        if len(entries) != run.count:
            raise DamageError(f"{branch}/{run.sha256} has {len(entries)} entries. Restore it from a copy.")
    except DamageError as error:
        raise DamageError(
            f"Branch {branch}: the segment with the journal entries at offsets {run.first} to {run.stop - 1} (up to seq "
            f"{run.seq}) cannot be read. {error} Until then nothing that was learned up to seq {run.seq} can be folded again "
            "beyond the checkpoints before it."
        ) from error
    return entries


def gathered(store: Store, branch: str, runs: Sequence[Run]) -> list[Run]:
    """The runs, with ``WIDTH`` of one level made one of the next, so that a long history is few blobs.

    Where one cannot be read they stay apart. Raises: StorageError.
    """
    merged = list(runs)
    for level in range(LEVELS):
        level_runs = [run for run in merged if run.level == level]
        if len(level_runs) < WIDTH:
            break
        try:
            entries = [entry for run in level_runs for entry in entries_of(store, branch, run)]
        except DamageError as error:
            log.warning("Segments stay apart: %s", error)
            break
        blob_name = store.put(branch, packed(entries))
        merged_run = msgspec.structs.replace(level_runs[-1], sha256=blob_name, first=level_runs[0].first, level=level + 1)
        merged = [run for run in merged if run.level > level] + [merged_run]
    return merged


class Journal:
    """A branch's journal, whole: a stream, and before it the segments of its versions."""

    def __init__(self, stream: Stream, store: Store, branch: str) -> None:
        self._stream = stream
        self._store = store
        self._branch = branch

    def send(self, value: bytes) -> Ack:
        """Start appending to the stream."""
        return self._stream.send(value)

    def first(self) -> int:
        """The oldest offset that the stream has; what is before it is read from segments."""
        return self._stream.first()

    def delete_before(self, offset: int) -> None:
        """Delete from the stream. Only the branch's writer does, and only what a version holds."""
        self._stream.delete_before(offset)

    def read(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Offsets and values from ``start`` to the present end, whether they were deleted from the stream or not.

        Raises: DamageError where they were, and no version has them whole.
        """
        while True:
            try:
                for offset, value in self._stream.read(start):
                    yield offset, value
                    start = offset + 1
            except PrunedError:
                for run in self.runs():
                    if run.stop > start:
                        yield from list(enumerate(entries_of(self._store, self._branch, run), run.first))[start - run.first :]
                        start = run.stop
            else:
                return

    def segment(self) -> Segment | None:
        """What the newest version says of what was deleted; None where nothing was.

        Raises: DamageError where no version can be read that has it.
        """
        while first := self._stream.first():
            try:
                versions = list(self._versions(first))
            except PrunedError:
                continue
            for mark in reversed(versions):
                segment = self._segment_of(mark)
                if segment is not None and segment.entries.stop >= first:
                    return segment
            raise DamageError(
                f"The journal of branch {self._branch} begins at offset {first}, and no version there that can be read has the "
                "entries before. Restore the journal or the store from a copy."
            )
        return None

    def runs(self) -> list[Run]:
        """Where the entries that were deleted are, and some after them."""
        segment = self.segment()
        return [] if segment is None else segment.runs

    def _versions(self, first: int) -> Iterator[Mark]:
        """The versions marked in the stream, dead ones too: what they say of entries before them is true all the same."""
        for offset, value in self._stream.read(first):
            try:
                entry = decode_entry(value, f"offset {offset}")
            except DamageError:
                continue  # whoever reads that far says so
            if isinstance(entry, Mark) and entry.version is not None and entry.branch == self._branch:
                yield entry

    def _segment_of(self, mark: Mark) -> Segment | None:
        try:
            return read_checkpoint(self._store, self._branch, str(mark.checkpoint)).segment
        except DamageError:
            return None
