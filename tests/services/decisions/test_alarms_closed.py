"""Alarms by their ids: listed, shown, closed once, left behind by a replay that takes over; and one that is being raised."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from alarmed import GOOD, instance, listed, replayed, target
from pipelines import facts, here, json_lines

from millrace.services.decisions.alarms import close
from millrace.services.errors import NotCountedError
from millrace.streams.journal.entries import Act
from millrace.streams.journal.journal import Writer, summarise


@pytest.mark.slow
def test_an_alarm_is_listed_shown_closed_and_then_no_longer_stands(copied: Path) -> None:
    """Its facts are those of the step that raised it; closing is an entry of the ledger, and the alias goes with it."""
    (line,) = listed(copied)
    assert line["state"] == "open" and line["watches"] == "pipeline" and line["detector"] == "adwin"
    assert GOOD - 50 <= line["onset_row"] <= GOOD < line["noticed_row"] and line["loss_before"] < line["loss_since"]
    branch, seq, number = line["alarm"].split(".")
    steps = json_lines(here("log", "digits.toml", "--output", "json", cwd=copied).stdout)
    (act,) = [entry["said"] for entry in steps if entry["kind"] == "act"]
    assert act["evidence"] == f"{branch}.{seq}" and number == "1"
    shown = here("alarms", "show", "digits.toml", line["alarm"], "--output", "json", cwd=copied)
    assert {fact["what"]: fact["value"] for fact in json_lines(shown.stdout)} == line
    assert facts(copied)["open_alarms"] == line["alarm"] and "alias_last-good" in facts(copied)
    planned = here("alarms", "close", "digits.toml", line["alarm"], "--reason", "sale", cwd=copied)
    assert planned.exit_code == 0 and "Nothing was changed" in planned.stderr and listed(copied) == [line]
    done = here("alarms", "close", "digits.toml", line["alarm"], "--reason", "sale", "--yes", cwd=copied)
    assert done.exit_code == 0, done.stderr
    (closed,) = listed(copied)
    assert closed["state"] == "closed" and closed["why"] == "sale" and closed["closed_by"]
    assert facts(copied)["open_alarms"] == "none" and "alias_last-good" not in facts(copied)
    plan = here("rollback", "digits.toml", "--reason", "habit", "--output", "json", cwd=copied)
    newest = json_lines(here("versions", "digits.toml", "--output", "json", cwd=copied).stdout)[-1]["version"]
    assert json_lines(plan.stdout)[0]["to"] == f"version {newest}" and "no alarm is open" in plan.stderr
    again = here("alarms", "close", "digits.toml", line["alarm"], "--reason", "sale", "--yes", cwd=copied)
    assert again.exit_code == 2 and "was closed by" in again.stderr and "(sale)" in again.stderr
    absent = here("alarms", "close", "digits.toml", "main.1.1", "--reason", "sale", "--yes", cwd=copied)
    assert absent.exit_code == 2 and f"There are: {line['alarm']}." in absent.stderr


@pytest.mark.slow
def test_of_two_hands_that_close_an_alarm_one_is_told(copied: Path) -> None:
    """Both had looked while it was open."""
    (line,) = listed(copied)
    close(instance(copied), [line["alarm"]], "the first")
    with pytest.raises(NotCountedError, match=r"does not count.*the first"):
        close(instance(copied), [line["alarm"]], "the second")
    assert listed(copied)[0]["why"] == "the first"


@pytest.mark.slow
def test_a_rollback_while_an_alarm_is_being_raised_says_so_and_a_version_can_be_named(copied: Path) -> None:
    """An act is in the journal whose alarm no state has yet: nobody knows since which row, so nothing is chosen."""
    journal = instance(copied).journal("main")
    summary = summarise(journal, "main")
    writer, end = Writer(journal, "main", summary.end), summary.end
    writer.append(
        Act(branch="main", seq=end.seq + 1, epoch=end.epoch, op="version", cause="detector", evidence=f"main.{end.seq}")
    )
    done = here("rollback", "digits.toml", "--reason", "now", "--yes", cwd=copied)
    assert done.exit_code == 1 and f"An alarm of main.{end.seq} is being written down just now" in done.stderr
    assert f"main.{end.seq}" in str(facts(copied)["open_alarms"])
    named = here("rollback", "digits.toml", str(summary.marks[0].version), "--reason", "now", "--yes", cwd=copied)
    assert named.exit_code == 0, named.stderr


@pytest.mark.slow
def test_a_replay_that_takes_over_closes_what_it_leaves_behind(copied: Path) -> None:
    """It begins before the onset: the alarm was of rows that the new branch has not learned."""
    (line,) = listed(copied)
    good = facts(copied)["alias_last-good"]
    replayed(copied, "--from", str(good), "--exclude-header", "producer=till-7")
    over = here("replay", "take-over", "digits.toml", "--reason", "mended", "--yes", cwd=copied)
    assert over.exit_code == 0
    assert re.search(r"^Alarm \S+ is closed for replay-1: it began before the onset", over.stderr, re.MULTILINE), over.stderr
    (closed,) = listed(copied)
    assert (closed["alarm"], closed["state"], closed["why"]) == (line["alarm"], "closed", "mended")
    assert closed["closed_by"].endswith(", by a take-over")
    assert target(copied).startswith("version replay-1.")
    looked = here("log", "digits.toml", cwd=copied)
    assert "This was main. Live is replay-1: `--branch replay-1` looks at that." in looked.stderr
    assert not here("log", "digits.toml", "--branch", "main", cwd=copied).stderr
    assert here("dead-letters", "list", "digits.toml", cwd=copied).stderr == "No letters.\n"


@pytest.mark.slow
def test_a_learner_rolled_back_before_the_onset_closes_the_alarm_and_one_after_it_does_not(copied: Path) -> None:
    """Of the rows since the onset the one has learned none, the other all."""
    (line,) = listed(copied)
    good, newest = facts(copied)["alias_last-good"], facts(copied)["version"]
    for version, state in ((newest, "open"), (good, "closed")):
        done = here("rollback", "digits.toml", str(version), "--learner", "--reason", "undo", "--yes", cwd=copied)
        assert done.exit_code == 0, done.stderr
        found = {entry["alarm"]: entry["state"] for entry in listed(copied)}
        assert found[line["alarm"]] == state, json.dumps(found)
        if state == "open":
            assert target(copied) == f"version {good}", "through the branch that it comes from"
