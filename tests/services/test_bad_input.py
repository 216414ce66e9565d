"""Bad input, bad disks and lost offsets, end to end through real processes: one clear sentence, nothing lost."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
from frozen import frozen
from pipelines import (
    MILLRACE,
    PIPELINE,
    TIMEOUT_S,
    clean_environment,
    encoded,
    facts,
    fill,
    flower_rows,
    here,
    json_lines,
    make_read_only,
    millrace,
    pipeline_in,
    room,
    small_disk,
)

from millrace.streams.records import Event, Record, decode_headers
from millrace.streams.sqlite.log import SqliteLog, SqliteSource

pytestmark = pytest.mark.slow

GOOD = {"x": [1, 2, 3, 4], "site": "north", "label": "rose"}
BAD = {
    b'{"x": [1, 2, 3, 4], "site"': "unreadable",
    b'{"x": [1, 2, 3, 4], "site": "n\xffrth"}': "unreadable",
    encoded(GOOD | {"x": [1, 2, 3]}): "wrong-shape",
    encoded(GOOD | {"x": [1, 2, 3, "4"]}): "wrong-type",
    encoded(GOOD | {"x": [1, 2, 3, 1e101]}): "not-finite",
    encoded(GOOD | {"site": "west"}): "unknown-category",
    encoded(GOOD | {"colour": "red"}): "unknown-field",
    encoded({"x": [1, 2, 3, 4], "label": "rose"}): "missing-field",
    b'{"x": [1, 2, 3, 4], "site": "north", "site": "north"}': "duplicate-field",
    encoded(GOOD | {"label": "r" * 3000}): "oversized",
}


def done(folder: Path, *words: str, code: int = 0) -> str:
    """Run a command that must end with ``code``; what it said on standard error, or printed where that is 0.

    What writes runs in a process of its own, what only looks in this one.
    """
    if words[0] in ("run", "send"):
        ended = millrace(*words, "--output", "json", cwd=folder)
        exit_code, out, err = ended.returncode, ended.stdout, ended.stderr
    else:
        looked = here(*words, "--output", "json", cwd=folder)
        exit_code, out, err = looked.exit_code, looked.stdout, looked.stderr
    assert exit_code == code and "Traceback" not in err, err
    assert code == 0 or not out
    return err if code else out


def sent(folder: Path, rows: list[bytes], *more: str) -> None:
    """`millrace send` of these rows."""
    (folder / "rows.jsonl").write_bytes(b"\n".join(rows) + b"\n")
    assert json_lines(done(folder, "send", "digits.toml", "rows.jsonl", *more))[0]["sent"] == len(rows)


def events_of(folder: Path, topic: str, home: str = ".millrace") -> list[tuple[str, Event]]:
    """All records of a topic with their partitions."""
    source = SqliteSource(SqliteLog(folder / home / "digits" / "log.sqlite"), [topic])
    events = []
    while reads := source.next_batch(4096):
        events += [(read.tp, event) for read in reads for event in read.events]
    return events


def accounted(counts: dict[str, object]) -> int:
    """Records whose fate is known; the four add up to what was read."""
    total = sum(int(str(counts[name])) for name in ("learned", "passed", "rejected", "waiting"))
    assert total == counts["records"]
    return total


@pytest.mark.parametrize("partitions", [1, 3])
def test_every_bad_record_is_a_dead_letter_with_its_bytes_its_reason_and_its_place(partitions: int, tmp_path: Path) -> None:
    """Counted as rejected, beside rows that are learned and rows without a label that are passed."""
    pipeline_in(tmp_path, text=PIPELINE + f"[log]\npartitions = {partitions}\nmax_bytes = 2000\n")
    bare = [encoded({"x": [1, 2, 3, 4], "site": "south"})] * 7
    rows = flower_rows(103)
    for at, bad in enumerate(BAD):
        rows.insert(9 * at, bad)
    sent(tmp_path, rows + bare)
    assert json_lines(done(tmp_path, "run", "digits.toml"))[0]["read"] == 120
    counts = facts(tmp_path)
    assert (counts["learned"], counts["passed"], counts["rejected"], counts["waiting"]) == (103, 7, 10, 0)
    places = {(tp, event.offset): event for tp, event in events_of(tmp_path, "digits")}
    letters = [event for _, event in events_of(tmp_path, "digits.dead-letters")]
    assert len(letters) == len(BAD)
    for letter in letters:
        headers = {name: text.decode() for name, text in decode_headers(letter.headers)}
        original = places[f"{headers['millrace.topic']}:{headers['millrace.partition']}", int(headers["millrace.offset"])]
        assert letter.value == original.value and headers["millrace.reason"] == BAD[letter.value] and headers["millrace.detail"]
        assert int(headers["millrace.timestamp_ms"]) == original.timestamp_ms
    steps = [line for line in json_lines(done(tmp_path, "log", "digits.toml")) if line["kind"] == "step"]
    assert sorted(reason for step in steps for *_, reason in step["said"]["rejected"]) == sorted(BAD.values())
    assert json_lines(done(tmp_path, "verify", "digits.toml"))[0]["records"] == 120


def test_too_many_bad_records_stop_the_worker_and_a_higher_share_goes_on_without_losing_any(tmp_path: Path) -> None:
    """Exit 1 with the count, the reasons, the topic and the ways out; what was read stays accounted for."""
    pipeline_in(tmp_path, text=PIPELINE + "step_rows = 64\nwindow_rows = 200\n")
    rows = [row for good in flower_rows(300) for row in (good, b'{"x": [1, 2, 3]}')]
    sent(tmp_path, rows)
    message = done(tmp_path, "run", "digits.toml", code=1)
    assert "32 of the last 64 records were refused (wrong-shape, such as digits:0 offset 1: Expected" in message
    assert "topic digits.dead-letters, nothing is lost" in message and "raise worker.stop_share" in message
    stopped = facts(tmp_path)
    assert accounted(stopped) == 64 and stopped["lag_rows"] == 536 and stopped["rejected"] == 32
    done(tmp_path, "run", "digits.toml", code=1)
    assert accounted(facts(tmp_path)) == 128
    sent(tmp_path, flower_rows(100, seed=5))
    done(tmp_path, "run", "digits.toml", "--set", "worker.stop_share=1")
    counts = facts(tmp_path)
    assert accounted(counts) == 700 and (counts["rejected"], counts["learned"], counts["lag_rows"]) == (300, 400, 0)
    assert len(events_of(tmp_path, "digits.dead-letters")) == 300
    done(tmp_path, "verify", "digits.toml")


def test_records_ahead_of_their_time_are_rejected_and_expire_nothing(tmp_path: Path) -> None:
    """A producer with a wrong clock must not move the journal's clock into next year."""
    pipeline_in(tmp_path)
    sent(tmp_path, flower_rows(30))
    log, next_year_ms = SqliteLog(tmp_path / ".millrace/digits/log.sqlite"), time.time_ns() // 10**6 + 365 * 86_400_000
    log.append("digits", [Record(row, timestamp_ms=next_year_ms) for row in flower_rows(5)])
    log.close()
    done(tmp_path, "run", "digits.toml")
    counts = facts(tmp_path)
    assert accounted(counts) == 35 and counts["rejected"] == 5
    steps = [line for line in json_lines(done(tmp_path, "log", "digits.toml")) if line["kind"] == "step"]
    assert max(int(step["said"]["clock_ms"]) for step in steps) < next_year_ms - 10**9


def test_rows_of_the_largest_allowed_numbers_cannot_stop_a_branch_for_good(tmp_path: Path) -> None:
    """Whatever the codec lets through every later stage must take: a step that is journaled is folded at every start."""
    pipeline_in(tmp_path, text=PIPELINE.replace("size = 4", "size = 4\nscale = 1e-3"))
    largest = [encoded(GOOD | {"x": [sign * size, 0, 1, 2]}) for sign in (1, -1) for size in (1e96, 1e97, 1e99, 1e100)]
    sent(tmp_path, [*flower_rows(30), *largest, *flower_rows(30, seed=8)])
    done(tmp_path, "run", "digits.toml")
    assert accounted(facts(tmp_path)) == 68
    sent(tmp_path, flower_rows(40))
    done(tmp_path, "run", "digits.toml")
    assert accounted(facts(tmp_path)) == 108
    done(tmp_path, "verify", "digits.toml")


def test_a_full_disk_stops_with_one_sentence_and_with_room_everything_acknowledged_is_learned(tmp_path: Path) -> None:
    """While sending, while running, and after both."""
    pipeline_in(tmp_path)
    with small_disk(tmp_path / "disk", 2048) as disk:
        home = ["--home", str(disk)]
        sent(tmp_path, flower_rows(100), *home)
        done(tmp_path, "run", "digits.toml", *home)
        fill(disk, leave=250_000)
        (tmp_path / "rows.jsonl").write_bytes(b"\n".join(flower_rows(20_000)))
        message = done(tmp_path, "send", "digits.toml", "rows.jsonl", *home, code=1)
        assert "log.sqlite: the disk" in message and "nothing acknowledged was lost. Free space" in message
        (disk / "more").write_bytes(bytes(room(disk)))
        message = done(tmp_path, "run", "digits.toml", *home, code=1)
        assert "Free space" in message and len(message.splitlines()) <= 3
        (disk / "ballast").unlink()
        (disk / "more").unlink()
        done(tmp_path, "run", "digits.toml", *home)
        counts = facts(tmp_path, *home)
        assert accounted(counts) == counts["learned"] == len(events_of(tmp_path, "digits", "disk")) and counts["lag_rows"] == 0
        done(tmp_path, "verify", "digits.toml", *home)


def test_a_read_only_home_is_one_sentence_with_the_choices(tmp_path: Path) -> None:
    """For every command that opens it."""
    pipeline_in(tmp_path)
    with small_disk(tmp_path / "disk", 2048) as disk:
        home = ["--home", str(disk)]
        sent(tmp_path, flower_rows(50), *home)
        done(tmp_path, "run", "digits.toml", *home)
        make_read_only(disk)
        for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"], ["run", "digits.toml", "--branch", "b"]):
            message = done(tmp_path, *words, *home, code=1)
            assert "ake the folder writable, or name another with --home" in message and str(disk) in message
    (tmp_path / "file").write_text("not a folder")
    assert "--home" in done(tmp_path, "run", "digits.toml", "--home", "file", code=1)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "all"])
def test_a_damaged_checkpoint_part_costs_time_and_nothing_else(damage: str, tmp_path: Path) -> None:
    """A warning names it, recovery goes back to the checkpoint before or to the beginning, and verify exits 1 naming it."""
    pipeline_in(tmp_path)
    for seed in (1, 2):
        sent(tmp_path, flower_rows(110, seed))
        done(tmp_path, "run", "digits.toml")
    marks = [line for line in json_lines(done(tmp_path, "log", "digits.toml")) if line["kind"] == "mark"]
    store = tmp_path / ".millrace/digits/store/main"
    hurt = []
    for mark in marks if damage == "all" else marks[-1:]:
        path = store / json.loads((store / str(mark["said"]["checkpoint"])).read_bytes())["parts"]["learner"]["sha256"]
        if path.name not in hurt:  # marks of one state share it
            hurt.append(path.name)
            raw = path.read_bytes()
            path.write_bytes(raw[:-1] if damage == "truncated" else bytes([raw[0] ^ 1]) + raw[1:])
        if damage == "missing":
            path.unlink()
    message = done(tmp_path, "verify", "digits.toml", code=1)
    assert [name for name in hurt[-3:] if name not in message] == []  # worker.keep is 3: what is not kept may be swept
    newest = marks[-1]["said"]["state_seq"]
    assert f"First bad mark: seq {newest} (version" in message
    sent(tmp_path, flower_rows(50, 3))
    again = millrace("run", "digits.toml", "--output", "json", cwd=tmp_path)
    assert again.returncode == 0 and "going back to the one before" in again.stderr and hurt[-1] in again.stderr
    counts = facts(tmp_path)
    assert accounted(counts) == counts["learned"] == 270 and counts["lag_rows"] == 0


def test_offsets_that_are_gone_stop_the_run_with_the_choices_and_a_new_branch_goes_on(tmp_path: Path) -> None:
    """Retention went past what the branch had still to read."""
    pipeline_in(tmp_path)
    sent(tmp_path, flower_rows(60))
    done(tmp_path, "run", "digits.toml")
    sent(tmp_path, flower_rows(60, 2))
    log = SqliteLog(tmp_path / ".millrace/digits/log.sqlite")
    log.delete_before("digits:0", 90)
    message = done(tmp_path, "run", "digits.toml", code=1)
    assert "digits:0: the state goes on at offset 60, but the log holds 90 to 119" in message
    assert "Restore the log, or begin a branch from what is there with --branch NEW" in message
    assert json_lines(done(tmp_path, "run", "digits.toml", "--branch", "new"))[0]["read"] == 30
    assert accounted(facts(tmp_path, "--branch", "new")) == 30
    log.close()


@pytest.mark.parametrize("left", [0, 3])
def test_a_live_run_whose_position_is_taken_by_retention_stops_and_says_so(left: int, tmp_path: Path) -> None:
    """Even where nothing at all is left, which looks like a log with nothing new."""
    pipeline_in(tmp_path)
    sent(tmp_path, flower_rows(60))
    command = [*MILLRACE, "run", "digits.toml", "--follow", "--set", "worker.step_ms=0"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log = SqliteLog(tmp_path / ".millrace/digits/log.sqlite")
    while not log.tail("digits.scores", 1):
        assert process.poll() is None, process.communicate()
    with frozen(process, log.path):  # so that it cannot read what comes and goes meanwhile
        log.append("digits", [Record(row) for row in flower_rows(20)])
        log.delete_before("digits:0", 80 - left)
    out, err = process.communicate(timeout=TIMEOUT_S)
    log.close()
    assert process.returncode == 1 and not out and "Traceback" not in err
    assert "Topic digits partition 0 no longer has offsets 60 to" in err and "--branch NEW" in err


def test_a_recreated_log_is_not_taken_for_the_one_that_was_read(tmp_path: Path) -> None:
    """Same name, same offsets, other records: exit 1 with the choices."""
    pipeline_in(tmp_path)
    sent(tmp_path, flower_rows(60))
    done(tmp_path, "run", "digits.toml")
    for path in (tmp_path / ".millrace/digits").glob("log.sqlite*"):
        path.unlink()
    sent(tmp_path, flower_rows(80, 2))
    message = done(tmp_path, "run", "digits.toml", code=1)
    assert "Topic digits is not the one branch main has read" in message and "--branch NEW" in message


def test_a_limit_on_bytes_that_was_lowered_since_takes_back_no_record(tmp_path: Path) -> None:
    """It was a decision of the day; the rows that were learned then are folded again as they were."""
    pipeline_in(tmp_path)
    sent(tmp_path, [*flower_rows(60), encoded(GOOD | {"label": "r" * 500})])
    done(tmp_path, "run", "digits.toml")
    assert json_lines(done(tmp_path, "verify", "digits.toml", "--set", "log.max_bytes=200"))[0]["records"] == 61


def test_a_pipeline_file_that_was_changed_is_told_what_the_branch_was_begun_with(tmp_path: Path) -> None:
    """Each key with both values, and the ways out; the branch is untouched and goes on when the file is set back."""
    pipeline_in(tmp_path)
    sent(tmp_path, flower_rows(50))
    done(tmp_path, "run", "digits.toml")
    message = done(tmp_path, "run", "digits.toml", "--set", "learner.gamma=2.5", "--set", "batch.rows=7", code=2)
    assert (
        "learner.gamma = 2.5 (begun with 0.5)" in message
        and "batch.rows = 7 (begun with " in message
        and "--branch NEW" in message
    )
    assert "weight = 'w' (begun with None)" in done(tmp_path, "run", "digits.toml", "--set", "weight=w", code=2)
    done(tmp_path, "run", "digits.toml", "--branch", "other", "--set", "learner.gamma=2.5")
    done(tmp_path, "run", "digits.toml")
