"""What a test does to a SQLite file behind our back."""

from __future__ import annotations

from pathlib import Path

import apsw


def change(path: Path, statement: str) -> None:
    """Execute a statement on the database and leave everything in its one file."""
    connection = apsw.Connection(str(path))
    connection.execute(statement)
    connection.execute("pragma wal_checkpoint(truncate)")
    connection.close()
