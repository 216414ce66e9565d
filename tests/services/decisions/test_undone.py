"""What closes an alarm holds for what goes on without its rows, and for nothing else: an undo has the alarm open again."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from alarmed import learned, listed, replayed, rows, target
from pipelines import facts, here, json_lines

pytestmark = pytest.mark.slow


def done(folder: Path, *words: str) -> str:
    """A command that must do what it says; what it printed beside its rows."""
    result = here(*words, "--reason", "r", "--yes", cwd=folder)
    assert result.exit_code == 0, result.stderr
    return result.stderr


def undone(folder: Path, stderr: str) -> str:
    """The undo that a command printed last, given as it stands."""
    words = shlex.split(stderr.splitlines()[-1].removeprefix("undo: millrace "))
    result = here(*words, cwd=folder)
    assert result.exit_code == 0, result.stderr
    return result.stderr


def state(folder: Path, name: str) -> str:
    """Of an alarm."""
    return next(str(line["state"]) for line in listed(folder) if line["alarm"] == name)


def test_after_the_undo_of_a_rollback_of_the_learner_a_rollback_goes_before_the_poison_again(copied: Path) -> None:
    """The undo brings the rows back, so the alarm stands again; undone and done once more, it is closed for that one, too."""
    (line,) = listed(copied)
    good = str(facts(copied)["alias_last-good"])
    for _ in range(2):
        back = done(copied, "rollback", "digits.toml", good, "--learner")
        assert state(copied, line["alarm"]) == "closed" and "alias_last-good" not in facts(copied)
        undone(copied, back)
        assert state(copied, line["alarm"]) == "open"
        assert facts(copied)["alias_last-good"] == good and target(copied) == f"version {good}"


def test_after_the_undo_of_a_take_over_a_rollback_goes_before_the_poison_again(copied: Path) -> None:
    """The endpoint answers from the branch that ended, which has the rows: it is judged by that one's alarms."""
    (line,) = listed(copied)
    good = str(facts(copied)["alias_last-good"])
    replayed(copied, "--from", good, "--exclude-header", "producer=till-7")
    back = done(copied, "replay", "take-over", "digits.toml")
    assert state(copied, line["alarm"]) == "closed" and target(copied).startswith("version replay-1.")
    undone(copied, back)
    assert state(copied, line["alarm"]) == "open" and target(copied) == f"version {good}"
    done(copied, "rollback", "digits.toml", "--while", "main")
    assert facts(copied)["serves_default"] == good
    done(copied, "serve", "digits.toml", "--follow", "replay-1")
    assert state(copied, line["alarm"]) == "closed" and target(copied).startswith("version replay-1.")


def test_a_replay_that_leaves_out_other_records_closes_nothing_and_none_of_its_versions_is_good(copied: Path) -> None:
    """It has learned the wrong rows once more; a rollback goes to before it began."""
    (line,) = listed(copied)
    good = str(facts(copied)["alias_last-good"])
    replayed(copied, "--from", good, "--exclude-offsets", "digits:0:0-9")
    said = done(copied, "replay", "take-over", "digits.toml")
    assert f"Alarm {line['alarm']} stays open" in said and state(copied, line["alarm"]) == "open"
    assert facts(copied)["alias_last-good"] == good and target(copied) == f"version {good}"


def test_what_is_older_than_every_open_alarm_stays_and_going_further_back_needs_a_version(copied: Path) -> None:
    """Nothing is changed, and why is said."""
    (line,) = listed(copied)
    done(copied, "rollback", "digits.toml")
    good = str(facts(copied)["serves_default"])
    again = here("rollback", "digits.toml", "--while", good, "--reason", "r", "--yes", "--output", "json", cwd=copied)
    assert again.exit_code == 0 and json_lines(again.stdout)[0]["to"] == f"version {good}"
    assert f"{good} is served, and has learned no row since the onset" in again.stderr.replace(": it is", " is")
    assert line["alarm"] in again.stderr and "name a VERSION" in again.stderr and "undo" not in again.stderr
    assert facts(copied)["serves_default"] == good
    oldest = json_lines(here("versions", "digits.toml", "--output", "json", cwd=copied).stdout)[0]["version"]
    done(copied, "rollback", "digits.toml", oldest)
    assert facts(copied)["serves_default"] == oldest != good


def test_a_branch_beside_the_live_one_does_not_move_the_alias_of_that(copied: Path) -> None:
    """Neither learning it nor proving it."""
    good = facts(copied)["alias_last-good"]
    learned(copied, rows(30, wrong=False), "till-1", "--branch", "two")
    assert facts(copied)["alias_last-good"] == good
    assert here("verify", "digits.toml", "--branch", "two", cwd=copied).exit_code == 0
    assert facts(copied)["alias_last-good"] == good and facts(copied)["branch"] == "main"
