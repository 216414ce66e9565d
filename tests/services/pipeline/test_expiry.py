"""Retention: by the time of appending, never past what a begun branch has still to read, and named by `status`."""

from __future__ import annotations

import time
from pathlib import Path

import apsw
import pytest
from pipelines import PIPELINE, facts, flower_rows, here, pipeline_in

from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.expiry import expire
from millrace.services.pipeline.instance import Instance
from millrace.streams.journal.journal import Cursor, Writer
from millrace.streams.records import Record
from millrace.streams.sqlite.log import SqliteLog

KEPT = PIPELINE + "[log]\nretention_hours = 24\n"
HOUR_MS = 3_600_000


def now_ms() -> int:
    """The wall clock."""
    return time.time_ns() // 1_000_000


def three_days_ago() -> str:
    """The day, as `status` says it."""
    return time.strftime("%Y-%m-%d", time.gmtime(now_ms() / 1000 - 72 * 3600))


def log_of(folder: Path, ago_ms: int = 0) -> SqliteLog:
    """The pipeline's log, to which is appended as it was so long ago."""
    log = SqliteLog(folder / ".millrace/digits/log.sqlite", lambda: now_ms() - ago_ms)
    log.create_topic("digits")
    return log


def done(folder: Path, *words: str) -> None:
    """A command that ends well."""
    result = here(words[0], "digits.toml", *words[1:], cwd=folder)
    assert result.exit_code == 0, result.output


def held(folder: Path) -> tuple[int, int]:
    """Bounds of the log."""
    log = log_of(folder)
    bounds = log.bounds("digits:0")
    log.close()
    return bounds


@pytest.mark.parametrize("timestamp_ms", [0, -1, 10**15])
def test_a_records_own_timestamp_neither_lets_it_go_nor_keeps_others(timestamp_ms: int, tmp_path: Path) -> None:
    """Of 1970 or of the year 33658: what was appended just now stays, what was appended two days ago goes."""
    pipeline_in(tmp_path, rows=1, text=KEPT)
    for ago_ms in (48 * HOUR_MS, 0):
        log_of(tmp_path, ago_ms).append("digits", [Record(row, timestamp_ms=timestamp_ms) for row in flower_rows(40)])
    done(tmp_path, "send", "rows.jsonl")
    assert held(tmp_path) == (40, 81)


def test_what_a_begun_branch_has_still_to_read_stays_and_status_says_for_whom(tmp_path: Path) -> None:
    """All of three days ago: 30 were read before the branch's newest checkpoint. When it has read the rest, that goes too."""
    pipeline_in(tmp_path, rows=1, text=KEPT)
    days, old = [three_days_ago()], log_of(tmp_path, 72 * HOUR_MS)
    old.append("digits", [Record(row) for row in flower_rows(30)])
    done(tmp_path, "run", "--set", "log.retention_hours=0")
    old.append("digits", [Record(row) for row in flower_rows(50)])
    days.append(three_days_ago())  # another one, at midnight
    done(tmp_path, "send", "rows.jsonl")
    assert held(tmp_path) == (30, 81)
    status = facts(tmp_path)
    assert status["retention"] == "24 hours after appending"
    assert status["retention_held"] == "50 older records, by branch main, which goes on at digits:0 offset 30"
    assert str(status["oldest_record"]).startswith(tuple(f"digits:0 offset 30, appended {day}" for day in days))
    done(tmp_path, "run")
    assert held(tmp_path) == (80, 81) and facts(tmp_path)["learned"] == 81 and "retention_held" not in facts(tmp_path)
    done(tmp_path, "verify")


def test_a_branch_that_has_no_checkpoint_yet_holds_the_log_from_where_it_began(tmp_path: Path) -> None:
    """Its journal has steps and no mark, so it folds them again from the log."""
    pipeline_in(tmp_path, rows=1, text=KEPT)
    log_of(tmp_path, 72 * HOUR_MS).append("digits", [Record(row) for row in flower_rows(60)])
    place = Instance(load_pipeline(tmp_path / "digits.toml"), tmp_path / ".millrace" / "digits")
    backends = place.backends("main")
    begun = place.fold_spec.new_fork("main", backends.source)
    Writer(backends.journal, "main", Cursor()).append(begun)
    expire(place)
    assert held(tmp_path) == (0, 60)


def test_a_journal_that_cannot_be_read_keeps_the_log_and_it_is_said(tmp_path: Path, caplog) -> None:
    """Nobody knows what its branch needs."""
    pipeline_in(tmp_path, rows=1, text=KEPT)
    log_of(tmp_path, 72 * HOUR_MS).append("digits", [Record(row) for row in flower_rows(60)])
    done(tmp_path, "run", "--set", "log.retention_hours=0")
    path = tmp_path / ".millrace/digits/journal/main.sqlite"
    apsw.Connection(str(path)).execute("update entries set value = x'00' where offset = 1")
    done(tmp_path, "send", "rows.jsonl")
    assert held(tmp_path) == (0, 61) and "No record was let go: " in caplog.text


def test_a_log_of_an_earlier_release_opens_and_its_records_count_as_appended_since(tmp_path: Path) -> None:
    """It has no table of times: they go a whole limit after this release first appended, not at once."""
    pipeline_in(tmp_path, rows=1, text=KEPT)
    old = log_of(tmp_path, 72 * HOUR_MS)
    old.append("digits", [Record(row) for row in flower_rows(40)])
    old.close()
    apsw.Connection(str(tmp_path / ".millrace/digits/log.sqlite")).execute("drop table appended")
    place = Instance(load_pipeline(tmp_path / "digits.toml"), tmp_path / ".millrace" / "digits")
    expire(place)
    assert held(tmp_path) == (0, 40)
    log_of(tmp_path, 30 * HOUR_MS).append("digits", [Record(row) for row in flower_rows(1)])
    done(tmp_path, "send", "rows.jsonl")
    assert held(tmp_path) == (41, 42)
