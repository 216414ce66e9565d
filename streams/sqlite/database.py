"""The one door to SQLite: safe settings, and its errors in our words.

SQLite older than 3.51.3 can corrupt a write-ahead log that several processes reset at once, so those use the rollback
journal instead. The ``apsw`` wheel brings its own, newer SQLite; Python's ``sqlite3`` is not used.

Source: docs/design/journal.md, rule 1; docs/decisions/0003-sqlite-through-apsw.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import apsw

from millrace.streams.errors import DamageError, StorageError

Connection = apsw.Connection
WAL_IS_SAFE_FROM = (3, 51, 3)
BUSY_MS = 30_000  # how long a writer waits for another process's commit


def journal_mode(version: str) -> str:
    """The journal mode that is safe for several processes in this version of SQLite.

    >>> journal_mode("3.40.1"), journal_mode("3.54.1")
    ('delete', 'wal')
    """
    return "wal" if tuple(int(part) for part in version.split(".")) >= WAL_IS_SAFE_FROM else "delete"


def connect(path: Path, schema: str) -> Connection:
    """Open or create the database at ``path`` with every commit on the disk before it returns.

    Where nobody may write, as on a copy for an auditor, it is opened for reading.
    Raises: StorageError where the path cannot be used, DamageError where the file is not a database.
    """
    with storage_errors(path):
        if path.is_file() and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
            return _read_only(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = apsw.Connection(str(path))
        connection.set_busy_timeout(BUSY_MS)
        connection.execute(f"pragma journal_mode = {journal_mode(apsw.sqlite_lib_version())}")
        connection.execute("pragma synchronous = full")
        with transaction(connection):
            connection.execute(schema)
        return connection


def _read_only(path: Path) -> Connection:
    """Opened for reading. A file without a write-ahead log beside it holds everything; SQLite reads it without a lock file."""
    log = path.with_name(f"{path.name}-wal")
    is_complete = not log.exists() or not log.stat().st_size
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    return apsw.Connection(f"file:{quote(str(path.absolute()))}{'?immutable=1' if is_complete else ''}", flags=flags)


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """All of it or nothing, with the write lock taken first so that no other process comes between."""
    connection.execute("begin immediate")
    try:
        yield
        connection.execute("commit")
    except BaseException:  # whatever stopped us, interrupts included, the transaction must not stay open
        if connection.in_transaction:  # a full disk has ended it already
            connection.execute("rollback")
        raise


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system raise into one sentence that says what to do."""
    try:
        yield
    except apsw.FullError as error:
        raise StorageError(f"{path}: the disk is full ({error}); nothing acknowledged was lost. {_FREE_SPACE}") from error
    except (apsw.ReadOnlyError, apsw.CantOpenError, apsw.PermissionsError, apsw.AuthError) as error:
        raise StorageError(f"{path}: cannot be opened for writing ({error}). {_WRITABLE}") from error
    except (apsw.BusyError, apsw.LockedError) as error:
        raise StorageError(f"{path}: held by another process for over {BUSY_MS} ms. Stop it and start again.") from error
    except (apsw.CorruptError, apsw.NotADBError, apsw.FormatError) as error:
        raise DamageError(f"{path}: not a sound SQLite database ({error}). Restore it from a copy.") from error
    except apsw.SQLError as error:
        raise DamageError(
            f"{path}: its tables are not ours ({error}). Use the release that wrote it, or another folder."
        ) from error
    except UnicodeDecodeError as error:
        raise DamageError(f"{path}: bytes stand where text should ({error.reason}). Restore it from a copy.") from error
    except apsw.IOError as error:
        raise StorageError(f"{path}: the disk refused ({error}); nothing acknowledged was lost. {_FREE_SPACE}") from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}. {_WRITABLE}") from error


_FREE_SPACE = "Free space or mend the disk, then start again: the run goes on where its journal ends."
_WRITABLE = "Make the folder writable, or name another with --home."
