"""A stream that is refused does not look like success: counts, a warning, an exit status, and ways past."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from pipelines import PIPELINE, flower_rows, here, json_lines, pipeline_in

from millrace.learners.errors import BadInputError
from millrace.services.api import MillraceError, Pipeline
from millrace.services.training.refused import WAYS_OUT
from millrace.streams.formats.meaning import REASONS

UNKNOWN = [json.dumps(json.loads(line) | {"till": 7}).encode() for line in flower_rows(20)]
FEW = PIPELINE + "stop_share = 1.0\n"
STRICT = PIPELINE + "step_rows = 20\nwindow_rows = 20\n"


def pipeline_of(folder: Path, lines: list[bytes], text: str = PIPELINE) -> Pipeline:
    """A pipeline whose log holds ``lines``."""
    path = pipeline_in(folder, text=text)
    (folder / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    assert here("send", "digits.toml", "rows.jsonl", cwd=folder).exit_code == 0
    return Pipeline.load(path, home=folder / ".millrace")


def test_a_run_that_refuses_every_record_fails_and_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All counts stand in what it prints, no version is marked, and the warning names the commonest reason and the way out."""
    pipeline_of(tmp_path, UNKNOWN)
    with caplog.at_level(logging.WARNING, "millrace"):
        done = here("run", "digits.toml", "--output", "json", cwd=tmp_path)
    [row] = json_lines(done.stdout)
    assert (done.exit_code, row["read"], row["learned"], row["passed"], row["rejected"]) == (1, 20, 0, 0, 20)
    assert row["version"] is None
    [warning] = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert "20 of 20 records were refused: unknown-field 20" in warning
    assert "till" in warning and 'unknown = "ignore"' in warning and "dead-letters list" in warning
    again = here("run", "digits.toml", "--output", "json", cwd=tmp_path)
    assert again.exit_code == 0 and json_lines(again.stdout)[0]["read"] == 0  # nothing was read, so nothing was refused


def test_a_run_counts_what_it_learned_passed_and_rejected(tmp_path: Path) -> None:
    """Of ten good rows, five without a label and one unreadable; the run succeeds and marks a version."""
    lines = flower_rows(10)
    unlabelled = [
        json.dumps({key: cell for key, cell in json.loads(line).items() if key != "label"}).encode() for line in lines
    ]
    pipeline = pipeline_of(tmp_path, [*lines, *unlabelled[:5], b"{"])
    done = pipeline.learn()
    assert (done.read, done.learned, done.passed, done.rejected) == (16, 10, 5, 1) and done.version is not None
    assert pipeline.learn().learned == 0  # counts are of the run


def test_a_branch_that_learned_nothing_marks_no_version_and_keeps_its_place(tmp_path: Path) -> None:
    """Rows without labels are read once; with the first learned row there is a version."""
    lines = [
        json.dumps({key: cell for key, cell in json.loads(line).items() if key != "label"}).encode() for line in flower_rows(9)
    ]
    pipeline = pipeline_of(tmp_path, lines, PIPELINE + "version_rows = 3\n")
    assert (first := pipeline.learn()).version is None and first.read == 9
    assert pipeline.versions() == [] and (again := pipeline.learn()).read == 0 and again.version is None
    pipeline.append([json.loads(line) for line in flower_rows(1)])
    assert pipeline.learn().version is not None
    [proof] = pipeline.verify()
    assert len(proof.proved) > 0


def test_rejects_that_stopped_a_worker_are_passed_by_with_a_reason(tmp_path: Path) -> None:
    """Up to the log's end of then, and no further; the ledger keeps who, why and when."""
    good, bad = flower_rows(60), [b"{"] * 60
    pipeline = pipeline_of(tmp_path, [*good[:20], *bad, *good[20:40]], STRICT)
    stopped = here("run", "digits.toml", cwd=tmp_path)
    assert stopped.exit_code == 1 and "--past-rejects" in stopped.stderr
    alone = here("run", "digits.toml", "--past-rejects", cwd=tmp_path)
    assert alone.exit_code == 2 and "--reason" in alone.stderr
    passed = here("run", "digits.toml", "--past-rejects", "--reason", "a test's garbage", "--output", "json", cwd=tmp_path)
    assert passed.exit_code == 0 and json_lines(passed.stdout)[0]["rejected"] > 20
    assert pipeline.status().learned == 40
    entry = json_lines(here("log", "digits.toml", "--ledger", "--output", "json", cwd=tmp_path).stdout)[-1]
    entry = next(line for line in [entry] if line["kind"] == "pastrejects")
    assert entry["why"] == "a test's garbage" and entry["who"] and entry["when_ms"] and entry["until"] == {"digits:0": 100}
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([*bad, *good[40:]]) + b"\n")
    assert here("send", "digits.toml", "rows.jsonl", cwd=tmp_path).exit_code == 0
    with pytest.raises(MillraceError, match="of the last 20 records were refused"):
        pipeline.learn()
    with pytest.raises(BadInputError, match="say why"):
        pipeline.learn(past_rejects=" ")
    assert pipeline.learn(past_rejects="again").learned == 20


def test_every_reason_has_a_way_out() -> None:
    """A record is refused for no reason that the warning has no advice on."""
    assert set(REASONS) <= set(WAYS_OUT)
