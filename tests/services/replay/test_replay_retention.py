"""A replay while the branch that it goes on from lets go of the version where it began."""

from __future__ import annotations

import os
import time
from pathlib import Path

import poisoned
from pipelines import here, json_lines

from millrace.services.replay import run as replaying
from millrace.services.replay.run import Progress

TEXT = poisoned.TEXT + "keep = 2\nversion_rows = 60\n[versions]\nkeep = 2\n"


def test_a_replay_is_finished_although_its_parents_version_is_gone(tmp_path: Path, monkeypatch) -> None:
    """What it began with is its own; it is resumed, proved, compared, and takes over."""
    folder = poisoned.begin(tmp_path, True, TEXT)
    with monkeypatch.context() as stopped:
        stopped.setattr(Progress, "__call__", lambda self, worker: vars(self).update(stopped=True) or True)
        begun = here("replay", "run", "digits.toml", planned(folder), cwd=folder)
    assert begun.exit_code == 1 and "Stopped at seq 4" in begun.stderr
    version = let_go(folder)
    done = here("replay", "resume", "digits.toml", "--output", "json", cwd=folder)
    assert done.exit_code == 0, done.stderr
    assert json_lines(done.stdout)[0]["certificate"] == "proved in another process"
    assert version not in [line["version"] for line in poisoned.lines(folder, "versions") if line["parts"] == "whole"]
    assert json_lines(done.stdout)[0]["records"] == records_since(folder, version)
    for words in (["diff"], ["take-over", "--reason", "mended", "--yes"]):
        assert here("replay", words[0], "digits.toml", *words[1:], cwd=folder).exit_code == 0
    assert here("verify", "digits.toml", "--branch", "replay-1", cwd=folder).exit_code == 0


def test_a_plan_that_waits_is_run_although_its_version_is_past_what_is_kept(tmp_path: Path) -> None:
    """The live writer marks on, and lets go of others; the plan's goes once it has begun."""
    folder = poisoned.begin(tmp_path, True, TEXT)
    plan = planned(folder)
    version = learn_on(folder)
    assert version not in (released := poisoned.instance(folder).ledger().released) and released
    done = here("replay", "run", "digits.toml", plan, cwd=folder)
    assert done.exit_code == 0, done.stderr


def planned(folder: Path) -> str:
    """A plan from the oldest version that is kept; an alias names it, and `newest` or an alias may name it there."""
    oldest = next(line["version"] for line in poisoned.lines(folder, "versions") if line["parts"] == "whole")
    assert here("promote", "digits.toml", str(oldest), "--alias", "good", "--reason", "x", "--yes", cwd=folder).exit_code == 0
    words = ["--from", "good", "--exclude-header", "producer=till-7", "--reason", "mislabelled", "--output", "json"]
    done = here("replay", "plan", "digits.toml", *words, cwd=folder)
    assert done.exit_code == 0, done.stderr
    facts = {line["what"]: line["value"] for line in json_lines(done.stdout)}
    assert facts["from"] == oldest
    return str(facts["plan"])


def let_go(folder: Path) -> str:
    """Learn on until the version is no longer kept; which one it is."""
    version = learn_on(folder)
    assert version in poisoned.instance(folder).ledger().released
    return version


def learn_on(folder: Path) -> str:
    """Until only a plan would keep its version, an hour later; which one it is."""
    instance = poisoned.instance(folder)
    _, plan = replaying.load_plan(instance, instance.ledger().operations["replay-1"].plan_sha256)
    for name in ("newest", "none"):  # what an alias has just left is kept too
        assert here("promote", "digits.toml", name, "--alias", "good", "--reason", "x", "--yes", cwd=folder).exit_code == 0
    for part in (6, 7):
        for path in (instance.folder / "store").rglob("*"):
            os.utime(path, (time.time() - 8000,) * 2)
        poisoned.send(folder, poisoned.good_rows(part), "till-1")
        assert here("run", "digits.toml", cwd=folder).exit_code == 0
    return str(plan.version)


def records_since(folder: Path, version: str) -> int:
    """Of the log, after a version."""
    instance = poisoned.instance(folder)
    _, plan = replaying.load_plan(instance, instance.ledger().operations["replay-1"].plan_sha256)
    ends = {tp: high for tp, (_, high) in instance.source(["digits"]).bounds().items()}
    return sum(ends[tp] - at for tp, at in plan.kept.items())
