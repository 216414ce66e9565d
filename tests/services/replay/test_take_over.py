"""A replay takes over a pipeline that is being served: no request fails, and the trainer goes on with the new branch."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from pipelines import facts, here, millrace
from poisoned import BAD, GOOD, begin, good_rows, instance, planned, replay, send, versions
from served_pipeline import load, served, until

pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("take-over")]


def test_a_replay_takes_over_under_load_and_learning_goes_on_with_it(tmp_path: Path) -> None:
    """Rollback at once, replay beside what is live, take-over; what is sent afterwards is in the answers; `up` starts there."""
    folder = begin(tmp_path / "there", with_poison=True)
    with served(folder) as up:
        plan = planned(folder)
        with load(up) as callers:
            until(lambda: len(callers.answers) > 50)
            assert replay(folder, "run", plan).returncode == 0
            assert {name.partition(".")[0] for _, name in callers.answers} == {"main"}
            done = replay(folder, "take-over", "--reason", "mended", "--yes")
            taken_s = time.monotonic()
            assert done.returncode == 0, done.stderr
            until(lambda: up.all_serve("the newest of replay-1"))
            told_s = time.monotonic()
            send(folder, good_rows(3), "till-1")
            learned_s = until(lambda: facts(folder, "--branch", "replay-1").get("records") == 3 * GOOD + BAD)
            seq = int(str(facts(folder, "--branch", "replay-1")["seq"]))
            until(lambda: up.answered()["parameters"]["seq"] >= seq - 1)
            until(lambda: len(callers.since(told_s)) > 100)
            assert {name.partition(".")[0] for name in callers.since(told_s)} == {"replay-1"}, "no replica goes back"
        assert callers.failed == [] and callers.cut == 0
        print(f"served by every replica after {told_s - taken_s:.2f} s, lessons {learned_s:.2f} s after they were sent")
        trainer = str({line.split("  ")[0]: line for line in here("status", "digits.toml", cwd=folder).stdout.splitlines()})
        assert "branch replay-1, epoch" in trainer
    left = facts(folder, "--branch", "replay-1")
    assert left["learned"] == 3 * GOOD and left["lag_rows"] == 0
    with served(folder) as up:
        send(folder, good_rows(4), "till-1")
        until(lambda: facts(folder, "--branch", "replay-1").get("records") == 4 * GOOD + BAD)
        assert up.answered()["parameters"]["branch"] == "replay-1"
    for branch in ("main", "replay-1"):
        proof = millrace("verify", "digits.toml", "--branch", branch, cwd=folder)
        assert proof.returncode == 0, proof.stderr
    assert versions(folder) and instance(folder).ledger().operation is None


def test_the_learner_goes_back_under_load_and_the_trainer_goes_on_with_it(tmp_path: Path) -> None:
    """No request fails; what was learned is the version's, then what is sent afterwards; `up` starts there again."""
    folder = begin(tmp_path / "there", with_poison=True)
    good = versions(folder)[0]
    with served(folder) as up:
        with load(up) as callers:
            until(lambda: len(callers.answers) > 50)
            done = millrace("rollback", "digits.toml", good, "--learner", "--reason", "poison", "--yes", cwd=folder)
            assert done.returncode == 0, done.stderr
            until(lambda: up.all_serve("the newest of rollback-1"))
            send(folder, good_rows(3), "till-1")
            until(lambda: facts(folder, "--branch", "rollback-1").get("records") == 3 * GOOD + BAD)
            seq = int(str(facts(folder, "--branch", "rollback-1")["seq"]))
            until(lambda: (answer := up.answered()["parameters"])["branch"] == "rollback-1" and answer["seq"] >= seq - 1)
        assert callers.failed == [] and callers.cut == 0
    left = facts(folder, "--branch", "rollback-1")
    assert left["learner_of"] == good and left["lag_rows"] == 0
    for branch in ("main", "rollback-1"):
        proof = millrace("verify", "digits.toml", "--branch", branch, cwd=folder)
        assert proof.returncode == 0, proof.stderr
