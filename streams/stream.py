"""An append-only stream of bytes with offsets: what a journal and a ledger are written to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from millrace.streams.errors import PrunedError

UNKNOWN = -1  # an acknowledgement that does not say where the value lies


class Ack(Protocol):
    """A value on its way."""

    def offset(self) -> int:
        """Wait for the acknowledgement: the value's offset, or ``UNKNOWN``."""


class Stream(Protocol):
    """Append and read; several writers may append, everybody reads the same order. An offset is never given twice."""

    def send(self, value: bytes) -> Ack:
        """Start appending ``value``."""

    def read(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Offsets and values from ``start`` to the present end.

        Raises: PrunedError where values from there on were deleted, before or while they are read.
        """

    def first(self) -> int:
        """The offset of the oldest value that is there; 0 where none was ever deleted."""

    def delete_before(self, offset: int) -> None:
        """Delete the values before ``offset``, but never the newest one; offsets stay as they are."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The acknowledgement of a value that is already on the disk."""

    at: int

    def offset(self) -> int:
        """Where it lies."""
        return self.at


class ListStream:
    """A stream in memory, for tests and for looking at one branch without a disk."""

    def __init__(self) -> None:
        self.values: list[bytes] = []  # from offset ``deleted`` on
        self.deleted = 0

    def send(self, value: bytes) -> Stored:
        """Append at the end."""
        self.values.append(value)
        return Stored(self.deleted + len(self.values) - 1)

    def read(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Everything from ``start``. Raises: PrunedError."""
        if start < self.deleted:
            raise pruned("This stream", start, self.deleted)
        yield from list(enumerate(self.values, self.deleted))[start - self.deleted :]

    def first(self) -> int:
        """How many were deleted."""
        return self.deleted

    def delete_before(self, offset: int) -> None:
        """Forget the oldest."""
        forgotten = max(0, min(offset - self.deleted, len(self.values) - 1))
        self.values, self.deleted = self.values[forgotten:], self.deleted + forgotten


def pruned(stream_name: str, start: int, first: int) -> PrunedError:
    """What a stream says of an offset that it had and has no longer."""
    return PrunedError(f"{stream_name}: entries {start} to {first - 1} are not there any more; it begins at offset {first}.")
