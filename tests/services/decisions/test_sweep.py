"""What goes of a branch that has ended, when, and what stays because somebody may ask for it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from pipelines import here, millrace
from poisoned import begin, good_rows, instance, planned, replay, send, versions

from millrace.services.decisions.sweep import sweep_ended
from millrace.streams.branch.branch import load_checkpoint
from millrace.streams.errors import DamageError
from millrace.streams.journal.journal import summarise

pytestmark = pytest.mark.slow
LATER_S = 7200.0


def whole(folder: Path, branch: str) -> list[str]:
    """Versions of a branch whose parts are there."""
    marked = []
    for mark in summarise(instance(folder).journal(branch), branch).marks:
        try:
            load_checkpoint(instance(folder).store(), mark)
        except DamageError:
            continue
        marked += [mark.version] if mark.version else []
    return marked


def aged(folder: Path) -> None:
    """Every part was stored two hours ago."""
    for path in (folder / ".millrace").rglob("store/*/*"):
        os.utime(path, (time.time() - LATER_S, time.time() - LATER_S))


def test_an_ended_branch_keeps_what_may_be_asked_for_and_lets_the_rest_go(tmp_path: Path) -> None:
    """Not before an hour, not while an operation is under way; what a plan, an alias or a branch began with stays."""
    folder = begin(tmp_path / "there", with_poison=True)
    for part in (3, 4, 5):
        send(folder, good_rows(part, 40), "till-1")
        assert millrace("run", "digits.toml", cwd=folder).returncode == 0
    first, second, third, fourth, last = versions(folder)
    text = (folder / "digits.toml").read_text() + "\n[versions]\nkeep = 1\n"
    (folder / "digits.toml").write_text(text)
    assert here("promote", "digits.toml", second, "--reason", "r", "--yes", cwd=folder).exit_code == 0
    plan = planned(folder)
    assert here("replay", "plan", "digits.toml", "--from", third, "--reason", "r", cwd=folder).exit_code == 0
    assert replay(folder, "run", plan).returncode == 0
    aged(folder)
    assert sweep_ended(instance(folder), time.time() + LATER_S) == 0, "an operation is under way"
    assert here("replay", "take-over", "digits.toml", "--reason", "r", "--yes", cwd=folder).exit_code == 0
    assert sweep_ended(instance(folder), time.time()) == 0, "it has just ended"
    assert sweep_ended(instance(folder), time.time() + LATER_S) > 0
    assert whole(folder, "main") == [first, second, third, last]
    assert instance(folder).ledger().released == {fourth}
    for branch in ("main", "replay-1"):
        assert millrace("verify", "digits.toml", "--branch", branch, cwd=folder).returncode == 0
    refused = here("replay", "plan", "digits.toml", "--from", fourth, "--reason", "r", cwd=folder)
    assert refused.exit_code == 1 and "has been let go; versions.keep says how many are kept" in refused.stderr
    assert last in refused.stderr
    assert here("serve", "digits.toml", "--follow", "main", "--reason", "undo", "--yes", cwd=folder).exit_code == 0


def test_a_branch_that_was_given_up_keeps_its_newest_alone(tmp_path: Path) -> None:
    """And the live one keeps everything."""
    folder = begin(tmp_path / "there", with_poison=True)
    assert replay(folder, "run", planned(folder)).returncode == 0
    assert here("replay", "abort", "digits.toml", "--reason", "r", "--yes", cwd=folder).exit_code == 0
    before = [whole(folder, branch) for branch in ("main", "replay-1")]
    aged(folder)
    sweep_ended(instance(folder), time.time() + LATER_S)
    assert [whole(folder, branch) for branch in ("main", "replay-1")] == before


def test_a_plan_keeps_its_version_and_of_one_that_was_let_go_it_is_said_which_are_there(tmp_path: Path) -> None:
    """Between plan and run the live writer's retention has passed."""
    folder = begin(tmp_path / "there", with_poison=True)
    plan, (first, last) = planned(folder), versions(folder)
    with (folder / "digits.toml").open("a") as file:
        file.write("\n[versions]\nkeep = 1\n")
    send(folder, good_rows(3, 40), "till-1")
    assert millrace("run", "digits.toml", cwd=folder).returncode == 0
    assert instance(folder).ledger().released == {last}
    done = replay(folder, "plan", "--from", last, "--exclude-header", "producer=till-7", "--reason", "r")
    assert done.returncode == 1 and f"{last} has been let go" in done.stderr
    assert first in done.stderr and versions(folder)[-1] in done.stderr
    done = replay(folder, "run", plan)
    assert done.returncode == 0, done.stderr
    assert first not in instance(folder).ledger().named, "it is not kept for what has begun"
