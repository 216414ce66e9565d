"""An append-only stream of bytes with offsets: what a journal and a ledger are written to."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from millrace.learners.errors import DamageError, PrunedError
from millrace.streams.sqlite import connect, storage_errors

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
        gone = max(0, min(offset - self.deleted, len(self.values) - 1))
        self.values, self.deleted = self.values[gone:], self.deleted + gone


def pruned(what: str, start: int, first: int) -> PrunedError:
    """What a stream says of an offset that it had and has no longer."""
    return PrunedError(f"{what}: entries {start} to {first - 1} are not there any more; it begins at offset {first}.")


@dataclass(frozen=True, slots=True)
class Coming:
    """The acknowledgement of a value that another thread is writing."""

    stored: Future[int]

    def offset(self) -> int:
        """Wait until it lies on the disk. Raises: StorageError where the disk refused it."""
        return self.stored.result()


class SqliteStream:
    """A stream in its own SQLite file; an append is on the disk when it is acknowledged.

    Appends run in a thread of their own, so that a caller can work while the disk syncs.
    """

    SCHEMA = "create table if not exists entries (offset integer primary key, value blob not null)"
    CHUNK = 1024  # entries a query

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = connect(path, self.SCHEMA)
        self._writes = connect(path, self.SCHEMA)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="append")
        self._newest: Future[int] | None = None

    def send(self, value: bytes) -> Coming:
        """Start to commit ``value`` at the next offset."""
        self._newest = self._thread.submit(self._append, value)
        return Coming(self._newest)

    def _append(self, value: bytes) -> int:
        append = "insert into entries select coalesce(max(offset) + 1, 0), ? from entries returning offset"
        with storage_errors(self.path):
            rows: list[Any] = self._writes.execute(append, (value,)).fetchall()  # to its end: only then it is committed
        return int(rows[0][0])

    def read(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Everything from ``start`` to the end, what this object has sent included.

        Raises: DamageError where an offset is missing; PrunedError where every one before the next that is there is.
        """
        if self._newest is not None:
            wait([self._newest])
        query = "select offset, value from entries where offset >= ? order by offset limit ?"
        while True:
            with storage_errors(self.path):
                rows: list[Any] = self._connection.execute(query, (start, self.CHUNK)).fetchall()
            if rows and rows[0][0] > start and self.first() >= rows[0][0]:
                raise pruned(str(self.path), start, self.first())
            for offset, value in rows:
                if offset != start or not isinstance(value, bytes):
                    raise DamageError(f"{self.path}: entry {start} is missing or not bytes. Restore the file from a copy.")
                yield offset, value
                start += 1
            if len(rows) < self.CHUNK:
                return

    def first(self) -> int:
        """The lowest offset."""
        with storage_errors(self.path):
            rows: list[Any] = self._connection.execute("select coalesce(min(offset), 0) from entries").fetchall()
        return int(rows[0][0])

    def delete_before(self, offset: int) -> None:
        """In one transaction; the newest stays, since the next offset follows from it."""
        delete = "delete from entries where offset < ? and offset < (select max(offset) from entries)"
        with storage_errors(self.path):
            self._connection.execute(delete, (offset,)).fetchall()

    def close(self) -> None:
        """Close the file."""
        self._thread.shutdown()
        self._writes.close()
        self._connection.close()
