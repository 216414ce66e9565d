"""When records were appended: what retention goes by, to the minute."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.streams.records import Record
from millrace.streams.sqlite.log import SqliteLog


def test_what_was_appended_before_a_time_ends_where_a_younger_record_lies(tmp_path: Path) -> None:
    """To the minute, whatever the records' own timestamps say; deleting forgets no time that is still needed."""
    clock_ms = [0]
    log = SqliteLog(tmp_path / "log.sqlite", lambda: clock_ms[0])
    log.create_topic("t")
    assert log.outlived("t:0", 10**9) == 0 and log.appended_ms("t:0") is None
    for minute in (100, 100.5, 101, 103):
        clock_ms[0] = int(minute * 60_000)
        log.append("t", [Record(b"v", timestamp_ms=t) for t in (10**15, -1)])
    clock_ms[0] = 1000 * 60_000
    for minute, stop in ((0, 0), (100.9, 0), (101, 4), (101.9, 4), (102, 6), (103.9, 6), (104, 8), (999, 8)):
        assert log.outlived("t:0", int(minute * 60_000)) == stop, minute
    log.delete_before("t:0", 5)
    assert log.bounds("t:0") == (5, 8) and log.appended_ms("t:0") == 101 * 60_000
    assert [log.outlived("t:0", minute * 60_000) for minute in (100, 101, 102, 104)] == [5, 5, 6, 8]
    log.delete_before("t:0", 8)
    assert log.appended_ms("t:0") is None and log.outlived("t:0", 10**12) == 8


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(-90, 90), st.integers(1, 3)), min_size=1, max_size=12), st.integers(0, 40))
def test_nothing_younger_than_a_time_is_before_it_even_where_the_clock_was_wrong(
    moves: list[tuple[int, int]], limit_minutes: int
) -> None:
    """A clock that runs ahead for a while: what it stamped goes with what came next, and stops nothing for good."""
    with tempfile.TemporaryDirectory() as folder:
        true_ms, ahead_ms = 10**9, [0]
        log = SqliteLog(Path(folder) / "log.sqlite", lambda: true_ms + ahead_ms[0])
        log.create_topic("t")
        appended: list[int] = []
        for ahead, minutes in moves:
            true_ms, ahead_ms[0] = true_ms + minutes * 60_000, max(0, ahead) * 86_400_000
            log.append("t", [Record(b"v", timestamp_ms=0)])
            appended.append(true_ms)
        true_ms, ahead_ms[0] = true_ms + 60_000, 0
        log.append("t", [Record(b"v", timestamp_ms=0)])
        appended.append(true_ms)
        before_ms = true_ms - limit_minutes * 60_000
        stop = log.outlived("t:0", before_ms)
        assert all(when_ms < before_ms for when_ms in appended[:stop])
        true_ms += 10 * 60_000
        assert log.outlived("t:0", true_ms) == len(appended)
        log.close()
