"""Another operator decides while a command is under way, at the worst moment; and a command with --while that was killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipelines import here
from poisoned import instance, operation, planned, replay, versions

from millrace.services.decisions import in_force
from millrace.services.decisions.decide import Change, decide
from millrace.services.replay import learner_rollback
from millrace.services.replay import run as replaying
from millrace.streams.journal.ledger import Ledger, Target

pytestmark = pytest.mark.slow


def serving(folder: Path) -> Target:
    """What the ledger says."""
    return instance(folder).ledger().serving["default"]


def other(folder: Path, version: str) -> None:
    """What the other operator does."""
    where = instance(folder)
    decide(where, Change(serving(folder), Target(version=version)), "theirs")


def test_a_decision_between_what_while_was_checked_by_and_the_rollback_is_never_written_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is of the same reading of the ledger that --while is checked against and that the version is chosen by."""
    first, second = versions(folder)
    check = in_force.refuse_other

    def slow(ledger: Ledger, *words: object) -> None:
        check(ledger, *words)
        other(folder, first if serving(folder).version is None else second)

    monkeypatch.setattr(in_force, "refuse_other", slow)
    done = here("rollback", "digits.toml", "--while", "main", "--reason", "mine", "--yes", cwd=folder)
    assert done.exit_code == 1 and f"serve version {first}" in done.stderr, done.stderr
    assert serving(folder) == Target(version=first) and instance(folder).ledger().counted[-1].why == "theirs"
    words = ["rollback", "digits.toml", second, "--while", first, "--reason", "mine", "--yes"]
    other_first = here(*words, cwd=folder)
    assert other_first.exit_code == 1 and instance(folder).ledger().counted[-1].why == "theirs"


def test_a_decision_during_a_rollback_of_the_learner_stands_until_it_was_seen(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The branch is there by then: the same command is refused until --while names what is in force, and then goes on."""
    good, bad = versions(folder)
    begin = learner_rollback.begin_fork

    def slow(*words: object) -> None:
        other(folder, bad)
        begin(*words)

    monkeypatch.setattr(learner_rollback, "begin_fork", slow)
    words = ["rollback", "digits.toml", good, "--learner", "--reason", "mine", "--yes"]
    done = here(*words, cwd=folder)
    monkeypatch.undo()
    for result in (done, here(*words, cwd=folder)):
        assert result.exit_code == 1 and "by " in result.stderr and "(theirs)" in result.stderr, result.stderr
        assert f"--while {bad}" in result.stderr and serving(folder) == Target(version=bad)
    seen = here(*words, "--while", bad, cwd=folder)
    assert seen.exit_code == 0, seen.stderr
    assert serving(folder) == Target(follow="rollback-1") and operation(folder, "rollback-1") == "taken-over"


def test_a_decision_before_the_branch_has_ended_ends_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be given up, and main goes on."""
    good, bad = versions(folder)
    gate = learner_rollback._gate

    def slow(*words: object) -> None:
        gate(*words)
        other(folder, bad)

    monkeypatch.setattr(learner_rollback, "_gate", slow)
    done = here("rollback", "digits.toml", good, "--learner", "--reason", "mine", "--yes", cwd=folder)
    assert done.exit_code == 1 and "Nothing ended." in done.stderr and serving(folder) == Target(version=bad)
    assert here("replay", "abort", "digits.toml", "--reason", "r", "--yes", cwd=folder).exit_code == 0
    assert here("run", "digits.toml", cwd=folder).exit_code == 0


def test_a_take_over_with_while_that_was_killed_after_its_decision_goes_on_with_the_same_words(folder: Path) -> None:
    """What was in force before is what was seen; anything else is still refused."""
    assert replay(folder, "run", planned(folder)).returncode == 0
    decide(instance(folder), replaying.plan_take_over(instance(folder)).change, "and dies")
    words = ["replay", "take-over", "digits.toml", "--reason", "mended", "--yes"]
    wrong = here(*words, "--while", versions(folder)[0], cwd=folder)
    assert wrong.exit_code == 1 and "in force is the newest of replay-1" in wrong.stderr
    done = here(*words, "--while", "main", cwd=folder)
    assert done.exit_code == 0, done.stderr
    assert operation(folder) == "taken-over" and serving(folder) == Target(follow="replay-1")


def test_a_rollback_of_the_learner_with_while_that_was_killed_after_its_decision_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same words."""

    def killed(*_: object) -> None:
        raise SystemExit(137)

    monkeypatch.setattr(learner_rollback, "close_left_behind", killed)
    words = ["rollback", "digits.toml", versions(folder)[0], "--learner", "--while", "main", "--reason", "r", "--yes"]
    assert here(*words, cwd=folder).exit_code == 137
    monkeypatch.undo()
    assert operation(folder, "rollback-1") == "running" and serving(folder) == Target(follow="rollback-1")
    done = here(*words, cwd=folder)
    assert done.exit_code == 0, done.stderr
    assert operation(folder, "rollback-1") == "taken-over"
