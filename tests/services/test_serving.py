"""A pipeline served by Ray: it learns while it answers, is rolled back under load, and every part of it may be killed."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from endpoint import CALLERS, Up, load, served, until
from rooms import PIPELINE, flower_rows, json_lines, millrace, pipeline_in

pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("served")]  # one instance serves them all


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One instance for all of these tests: learned 200 rows before, a version every 100."""
    folder = tmp_path_factory.mktemp("served")
    pipeline_in(folder, rows=200, text=PIPELINE + "version_rows = 100\n")
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert millrace(*words, cwd=folder).returncode == 0
    with served(folder) as running:
        yield running


def send(up: Up, rows: int) -> None:
    """Append rows to the log."""
    (up.folder / "more.jsonl").write_bytes(b"\n".join(flower_rows(rows, seed=rows)))
    assert millrace("send", "digits.toml", "more.jsonl", cwd=up.folder).returncode == 0


def versions(up: Up) -> list[str]:
    """Of the branch, oldest first."""
    lines = json_lines(millrace("log", "digits.toml", "--output", "json", cwd=up.folder).stdout)
    return [line["said"]["version"] for line in lines if line["said"].get("version")]


def test_answers_follow_what_is_sent(up: Up) -> None:
    """Rows that were sent are in the answers soon after, and staleness says how soon."""
    before = up.ask()["parameters"]
    send(up, 60)
    sent_s = time.monotonic()
    until(lambda: up.ask()["parameters"]["seq"] > before["seq"], 20)
    print(f"{time.monotonic() - sent_s:.3f} s from the end of `millrace send` to an answer that knows the rows")
    until(lambda: up.ask()["parameters"]["staleness_ms"] < 3000, 20)
    assert up.ask()["parameters"]["branch"] == "main"


def test_a_rollback_under_load_reaches_every_replica_without_a_failed_request(up: Up) -> None:
    """And back: the undo that is printed last is a command that works."""
    old = versions(up)[0]
    with load(up) as callers:
        until(lambda: len(callers.answers) > 50)
        done = millrace("rollback", "digits.toml", old, "--reason", "garbage", "--yes", cwd=up.folder)
        decided_s = time.monotonic()
        assert done.returncode == 0, done.stderr
        until(lambda: {name for _, name in callers.answers[-100:]} == {old})
        settled = len(callers.answers)
        until(lambda: len(callers.answers) > settled + 100)
        assert {name for _, name in callers.answers[settled:]} == {old}, "no replica goes back to what it answered before"
        wrong = [when for when, name in callers.answers if when >= decided_s and name != old]
        print(f"{max(wrong, default=decided_s) - decided_s:.3f} s from the command's end to the last other answer")
        assert "--follow main" in done.stderr.splitlines()[-1]
        assert millrace(*done.stderr.splitlines()[-1].split()[2:], cwd=up.folder).returncode == 0
        until(lambda: old not in {name for _, name in callers.answers[-100:]})
    assert callers.failed == []
    assert callers.cut == 0


@pytest.mark.parametrize("title", [":Current", ":Trainer", ":Predictor"])
def test_kill_9_of_any_part_and_the_answers_go_on(up: Up, title: str) -> None:
    """Ray starts it again, and what is learned afterwards reaches the answers."""
    before = up.pids(title)
    with load(up) as callers:
        until(lambda: len(callers.answers) > 50)
        dead = up.kill(title)
        killed_s = time.monotonic()
        back_s = until(lambda: dead not in up.pids(title) and len(up.pids(title)) == len(before))
        seq = up.ask()["parameters"]["seq"]
        send(up, 40 + len(title))
        fresh_s = until(lambda: up.ask()["parameters"]["seq"] > seq)
        until(lambda: len(callers.since(killed_s)) > 200)
    print(f"{title}: back after {back_s:.1f} s, its lessons in the answers {fresh_s:.1f} s later, {callers.closed} closed")
    assert callers.failed == []
    assert callers.cut <= (CALLERS if title == ":Predictor" else 0)
