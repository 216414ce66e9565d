"""Rows of a file, learned before the log: a warm start, a back-fill, and a branch that begins with nothing at older offsets."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from phases import copies, killed_after
from pipelines import MILLRACE, TIMEOUT_S, clean_environment, here, json_lines, millrace
from poisoned import GOOD, TEXT, good_rows, instance, newest, operation, replay, verified, versions

from millrace.learners.errors import BadInputError
from millrace.services.errors import OutdatedError
from millrace.services.replay import backfill
from millrace.streams.journal.entries import Step
from millrace.streams.journal.journal import Cursor, counted
from millrace.streams.parts import pack
from millrace.streams.records import Record

pytestmark = pytest.mark.slow
NOW_MS = 1_700_000_000_000
STEADY = TEXT
LEARNED = ("learner", "derived", "features", "serve", "batches", "scores")


def place(folder: Path, text: str = STEADY) -> Path:
    """A pipeline with a file beside it."""
    folder.mkdir(parents=True)
    (folder / "digits.toml").write_text(text, encoding="utf-8")
    (folder / "old.jsonl").write_bytes(b"\n".join(good_rows(9, 140)) + b"\n")
    return folder


def append(folder: Path, rows: list[bytes], at_ms: int = NOW_MS) -> None:
    """Rows into the log, a millisecond apart."""
    instance(folder).log().append("digits", [Record(row, None, b"", at_ms + number) for number, row in enumerate(rows)])


def learned(folder: Path, branch: str) -> dict[str, bytes]:
    """What the newest mark of a branch knows, as bytes."""
    _, parts = newest(folder, branch)
    return {name: pack(parts[name]) for name in LEARNED}


def file_then_stream(folder: Path) -> dict[str, bytes]:
    """What a branch knows whose log had the file's rows first."""
    place(folder)
    append(folder, good_rows(9, 140), NOW_MS - 1000)
    append(folder, good_rows(1), NOW_MS)
    assert millrace("run", "digits.toml", cwd=folder).returncode == 0
    return learned(folder, "main")


def plan_of(folder: Path, *words: str) -> dict[str, object]:
    """A plan, line by line."""
    done = here("replay", "plan", "digits.toml", *words, "--reason", "r", "--output", "json", cwd=folder)
    assert done.exit_code == 0, done.stderr
    return {line["what"]: line["value"] for line in json_lines(done.stdout)}


@pytest.mark.parametrize("first", [True, False])
def test_a_warm_start_is_the_model_that_learned_the_file_and_then_the_stream(tmp_path: Path, first: bool) -> None:
    """Bit for bit, whether the stream was there or came after; the file's rows lie in a topic of their own; twice is once."""
    expected = file_then_stream(tmp_path / "reference")
    folder = place(tmp_path / "there")
    if first:
        append(folder, good_rows(1))
    done = millrace("run", "digits.toml", "--warm-start", "old.jsonl", cwd=folder)
    assert done.returncode == 0, done.stderr
    if not first:
        append(folder, good_rows(1), time.time_ns() // 1_000_000)
        assert millrace("run", "digits.toml", "--warm-start", "old.jsonl", cwd=folder).returncode == 0
    assert learned(folder, "main") == expected
    entries = counted(instance(folder).journal("main"), "main", Cursor())
    reads = [read[0] for entry in entries if isinstance(entry, Step) for read in entry.reads]
    assert reads == sorted(reads), "digits.backfill-main before digits"
    assert list(dict.fromkeys(reads)) == ["digits.backfill-main:0", "digits:0"]
    verified(folder, "main")


def test_a_branch_that_has_begun_is_not_warmed(tmp_path: Path) -> None:
    """The way on is named."""
    folder = place(tmp_path / "there")
    append(folder, good_rows(1))
    assert millrace("run", "digits.toml", cwd=folder).returncode == 0
    late = here("run", "digits.toml", "--warm-start", "old.jsonl", cwd=folder)
    assert late.exit_code == 2 and "`millrace replay plan --from-start --backfill`" in late.stderr


def test_a_back_fill_takes_over_as_the_model_that_learned_the_file_first(tmp_path: Path) -> None:
    """From the start: file, then all of the log; it is proved, takes over, and learns on; the old branch ends."""
    expected = file_then_stream(tmp_path / "reference")
    folder = place(tmp_path / "there")
    append(folder, good_rows(1))
    assert millrace("run", "digits.toml", cwd=folder).returncode == 0
    facts = plan_of(folder, "--from-start", "--backfill", "old.jsonl")
    assert (facts["records"], facts["from"]) == (GOOD, "nothing, at digits:0 0") and "140 rows of" in str(facts["backfill"])
    done = replay(folder, "run", str(facts["plan"]), "--output", "json")
    assert done.returncode == 0, done.stderr
    (reported,) = json_lines(done.stdout)
    assert reported["records"] == GOOD + 140 and learned(folder, "replay-1") == expected
    shown = here("replay", "diff", "digits.toml", "--output", "json", cwd=folder)
    assert shown.exit_code == 0 and json_lines(shown.stdout)
    assert here("replay", "take-over", "digits.toml", "--reason", "r", "--yes", cwd=folder).exit_code == 0
    assert "name it with --branch replay-1" in millrace("run", "digits.toml", cwd=folder).stderr
    append(folder, good_rows(2), NOW_MS + 5000)
    assert millrace("run", "digits.toml", "--branch", "replay-1", cwd=folder).returncode == 0
    verified(folder, "main", "replay-1")
    facts = plan_of(folder, "--from", [name for name in versions(folder) if name.startswith("replay-1.")][0])
    assert replay(folder, "run", str(facts["plan"])).returncode == 0
    assert learned(folder, "replay-2")["learner"] == learned(folder, "replay-1")["learner"], "the topics go along"
    verified(folder, "replay-2")


def test_a_back_fill_onto_a_version_is_learned_after_it_and_before_what_follows(tmp_path: Path) -> None:
    """Version, file, rest of the log."""
    reference = place(tmp_path / "reference")
    folder = place(tmp_path / "there")
    for where, parts in ((reference, [good_rows(1), good_rows(9, 140), good_rows(2)]), (folder, [good_rows(1), good_rows(2)])):
        for number, part in enumerate(parts):
            append(where, part, NOW_MS + 10_000 * (number if len(parts) == 3 else 2 * number))
            assert millrace("run", "digits.toml", cwd=where).returncode == 0
    facts = plan_of(folder, "--from", versions(folder)[0], "--backfill", "old.jsonl")
    assert replay(folder, "run", str(facts["plan"])).returncode == 0
    assert learned(folder, "replay-1") == learned(reference, "main")


@pytest.mark.parametrize("how", ["start", "offsets", "time"])
def test_a_branch_may_begin_with_nothing_at_older_offsets(tmp_path: Path, how: str) -> None:
    """All of the log, or from an offset or a time on; nobody's learner before."""
    folder, reference = place(tmp_path / "there"), place(tmp_path / "reference")
    for part in (1, 2):
        append(folder, good_rows(part), NOW_MS + 10_000 * part)
        assert millrace("run", "digits.toml", cwd=folder).returncode == 0
        if part == 2 or how == "start":
            append(reference, good_rows(part), NOW_MS + 10_000 * part)
    assert millrace("run", "digits.toml", cwd=reference).returncode == 0
    words = {
        "start": ["--from-start"],
        "offsets": ["--from-offsets", f"digits:0={GOOD}"],
        "time": ["--from-time", str(NOW_MS + 20_000)],
    }[how]
    assert replay(folder, "run", str(plan_of(folder, *words)["plan"])).returncode == 0
    assert learned(folder, "replay-1") == learned(reference, "main")
    assert here("replay", "take-over", "digits.toml", "--reason", "r", "--yes", cwd=folder).exit_code == 0
    verified(folder, "replay-1")
    gone = here("replay", "plan", "digits.toml", "--from-offsets", "digits:0=9999", "--reason", "r", cwd=folder)
    assert gone.exit_code == 2 and "digits:0 has 0 to 399" in gone.stderr


def test_a_take_over_of_a_branch_from_nothing_that_died_half_way_is_done_again(tmp_path: Path) -> None:
    """The endpoint follows it already; the old branch ends all the same."""
    folder = place(tmp_path / "there")
    append(folder, good_rows(1))
    assert millrace("run", "digits.toml", cwd=folder).returncode == 0
    assert replay(folder, "run", str(plan_of(folder, "--from-start")["plan"])).returncode == 0
    assert here("serve", "digits.toml", "--follow", "replay-1", "--reason", "dies", "--yes", cwd=folder).exit_code == 0
    assert here("replay", "take-over", "digits.toml", "--reason", "r", "--yes", cwd=folder).exit_code == 0
    assert "Branch main has ended (replay)" in millrace("run", "digits.toml", cwd=folder).stderr


def test_a_file_that_changed_since_it_was_planned_is_refused_and_half_of_it_is_gone_on_with(tmp_path: Path) -> None:
    """By its hash; rows that are in the topic already are not sent again; other rows there are refused."""
    folder = place(tmp_path / "there")
    append(folder, good_rows(1))
    pipeline = instance(folder)
    planned = backfill.backfill_of(pipeline, folder / "old.jsonl", {})
    assert planned.timestamp_ms == NOW_MS
    log = pipeline.log()
    log.create_topic("digits.backfill-x")
    log.append("digits.backfill-x", [Record(row, None, b"", NOW_MS) for row in good_rows(9, 140)[:50]])
    backfill.fill(pipeline, "x", planned)
    assert log.bounds("digits.backfill-x:0") == (0, 140)
    backfill.fill(pipeline, "x", planned)
    assert log.bounds("digits.backfill-x:0") == (0, 140)
    log.create_topic("digits.backfill-y")
    log.append("digits.backfill-y", [Record(row, None, b"", NOW_MS) for row in good_rows(8, 50)])
    with pytest.raises(OutdatedError, match="rows of another file"):
        backfill.fill(pipeline, "y", planned)
    (folder / "old.jsonl").write_bytes(b"\n".join(good_rows(7, 140)))
    with pytest.raises(OutdatedError, match="is not what it was"):
        backfill.fill(pipeline, "z", planned)
    (folder / "old.jsonl").write_bytes(b"")
    with pytest.raises(BadInputError, match="no rows"):
        backfill.backfill_of(pipeline, folder / "old.jsonl", {})


@pytest.mark.parametrize("warm", [True, False])
def test_killed_after_any_write_a_back_fill_goes_on(tmp_path: Path, warm: bool) -> None:
    """Real kill -9 after a seeded count of writes, of a warm start and of a replay; the state is that of an undisturbed one."""
    chance, branch = random.Random(3), "main" if warm else "replay-1"
    begun = place(tmp_path / "there")
    (begun / "old.jsonl").write_bytes(b"\n".join(good_rows(9, 3000)) + b"\n")
    append(begun, good_rows(1))
    if not warm:
        assert millrace("run", "digits.toml", cwd=begun).returncode == 0
        plan_of(begun, "--from-start", "--backfill", "old.jsonl")
    whole = shutil.copytree(begun, tmp_path / "whole")
    for folder in copies(begun, tmp_path):
        deaths = 0
        while deaths < 3 and killed_after(filling(folder, warm), folder, chance.randint(1, 15), chance):
            deaths += 1
        if deaths:
            break
    for each in (whole, folder):
        if warm or operation(each) != "done":
            done = subprocess.run(filling(each, warm), cwd=each, env=clean_environment(), timeout=TIMEOUT_S, check=False)
            assert done.returncode == 0
        verified(each, branch)
    assert learned(folder, branch) == learned(whole, branch)


def filling(folder: Path, warm: bool) -> list[str]:
    """The command that begins a warm start or a planned replay, or goes on with it."""
    if warm:
        return [*MILLRACE, "run", "digits.toml", "--warm-start", "old.jsonl"]
    planned = instance(folder).ledger().operations["replay-1"]
    words = ["run", "digits.toml", planned.plan_sha256] if planned.state == "planned" else ["resume", "digits.toml"]
    return [*MILLRACE, "replay", *words]
