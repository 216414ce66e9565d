"""An append-only stream in a SQLite file of its own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.streams.errors import DamageError
from millrace.streams.sqlite.database import connect, storage_errors
from millrace.streams.stream import pruned


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
    READ_ROWS = 1024  # entries a query

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
                rows: list[Any] = self._connection.execute(query, (start, self.READ_ROWS)).fetchall()
            if rows and rows[0][0] > start and self.first() >= rows[0][0]:
                raise pruned(str(self.path), start, self.first())
            for offset, value in rows:
                if offset != start or not isinstance(value, bytes):
                    raise DamageError(f"{self.path}: entry {start} is missing or not bytes. Restore the file from a copy.")
                yield offset, value
                start += 1
            if len(rows) < self.READ_ROWS:
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
