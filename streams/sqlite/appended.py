"""When the records of the embedded log were appended: one row a minute of appending and partition, none a record.

A row says when the record at its offset was appended. The records up to the next row's came within a minute of that.
The table is in the schema of ``log.py``.
"""

from __future__ import annotations

import time
from typing import Any

from millrace.streams.sqlite.database import Connection

SPAN_MS = 60_000  # of appending that one row stands for; a record is kept at most so much longer


def wall_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def stamp(connection: Connection, tp: str, start: int, end: int, now_ms: int) -> None:
    """Records are appended at ``end`` of a partition that begins at ``start``.

    What an earlier release has appended has no row. It counts as appended now, so it goes later than it might.
    """
    newest = "select appended_ms from appended where tp = ? order by offset desc limit 1"
    row = connection.execute(newest, (tp,)).fetchone()
    if row is None or not 0 <= now_ms - row[0] < SPAN_MS:
        added = (tp, start if row is None else end, now_ms)
        connection.execute("insert or replace into appended values (?, ?, ?)", added)


def first_kept(connection: Connection, tp: str, end: int, before_ms: int, now_ms: int) -> int:
    """The offset before which every record was appended before ``before_ms``; the last of a minute decides for all of it.

    A row of the future was written by a clock that was wrong. Its records are as young as the next row's at most.
    """
    kept = None
    cursor = connection.execute("select offset, appended_ms from appended where tp = ? order by offset", (tp,))
    for offset, appended_ms in cursor:
        kept = offset if kept is None else kept
        if before_ms < appended_ms + SPAN_MS <= now_ms + SPAN_MS:
            break
        kept = kept if appended_ms > now_ms else None
    cursor.close(True)
    return end if kept is None else int(kept)


def appended_ms(connection: Connection, tp: str, offset: int) -> int | None:
    """When the record at ``offset`` was appended, to the minute; None where no row says so."""
    if not connection.table_exists(None, "appended"):  # an older file that nobody may write
        return None
    query = "select appended_ms from appended where tp = ? and offset <= ? order by offset desc limit 1"
    rows: list[Any] = connection.execute(query, (tp, offset)).fetchall()
    return int(rows[0][0]) if rows else None


def forget(connection: Connection, tp: str, start: int) -> None:
    """Delete the rows that no record from ``start`` on needs."""
    older = "delete from appended where tp = ? and offset < (select max(offset) from appended where tp = ? and offset <= ?)"
    connection.execute(older, (tp, tp, start))
