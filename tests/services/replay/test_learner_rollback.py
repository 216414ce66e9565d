"""The learner goes back while learning goes on: planned, done, killed and gone on with, undone; and what it refuses."""

from __future__ import annotations

import random
import shlex
import time
from pathlib import Path

import pytest
from phases import copies, killed_after
from pipelines import MILLRACE, here, json_lines, millrace
from poisoned import BAD, GOOD, good_rows, instance, lines, newest, operation, planned, replay, send, verified, versions
from shelf import SOON_S, Shelf, soon

from millrace.learners.errors import MillraceError
from millrace.services.decisions.decide import Change, decide
from millrace.services.decisions.sweep import sweep_ended
from millrace.services.errors import BusyError, NotCountedError
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.succession import heir_of
from millrace.services.replay import learner_rollback
from millrace.services.replay.operations import advance, planned_operation, step
from millrace.services.training.run import identity_of_worker
from millrace.services.training.trainer import Trainer
from millrace.streams.branch.branch import load_checkpoint
from millrace.streams.branch.forks import begin_fork
from millrace.streams.journal.journal import summarise
from millrace.streams.journal.ledger import Target
from millrace.streams.parts import pack
from millrace.streams.worker.worker import Worker

pytestmark = pytest.mark.slow
BACK = ["rollback", "digits.toml", "--learner", "--reason", "poison", "--yes"]


def state_of(folder: Path, version: str) -> dict:
    """The parts of a version."""
    branch = version.rpartition(".")[0]
    marks = summarise(instance(folder).journal(branch), branch).marks
    return load_checkpoint(instance(folder).store(), next(mark for mark in marks if mark.version == version))


def same_learner(folder: Path, branch: str, version: str) -> bool:
    """Whether the newest mark of a branch has the learner of a version, bit for bit, and answers with the same weights."""
    _, parts = newest(folder, branch)
    return all(
        pack(parts[name]) == pack(state_of(folder, version)[name]) for name in ("learner", "derived", "features", "serve")
    )


def test_the_learner_goes_back_to_the_version_that_is_served_and_learning_goes_on(folder: Path) -> None:
    """A plan first; then the version's learner on the newest positions, which learns what comes; both branches are proved."""
    good, bad = versions(folder)
    assert here("rollback", "digits.toml", "--reason", "poison", "--yes", cwd=folder).exit_code == 0
    assert here("serve", "digits.toml", good, "--reason", "poison", "--yes", cwd=folder).exit_code == 0
    shown = here(*BACK[:-1], "--output", "json", cwd=folder)
    assert shown.exit_code == 0 and "Nothing was changed" in shown.stderr and instance(folder).branches() == ["main"]
    (reported,) = json_lines(shown.stdout)
    assert (reported["learner"], reported["branch"], reported["ends"], reported["done"]) == (good, "rollback-1", "main", False)
    assert reported["not_relearned"] == BAD + GOOD
    done = here(*BACK, "--while", good, cwd=folder)
    assert done.exit_code == 0, done.stderr
    assert same_learner(folder, "rollback-1", good) and operation(folder, "rollback-1") == "taken-over"
    assert instance(folder).ledger().serving["default"] == Target(follow="rollback-1")
    assert "name it with --branch rollback-1" in millrace("run", "digits.toml", cwd=folder).stderr
    send(folder, good_rows(3), "till-1")
    assert millrace("run", "digits.toml", "--branch", "rollback-1", cwd=folder).returncode == 0
    facts = {line["what"]: line["value"] for line in status(folder, "rollback-1")}
    assert (facts["records"], facts["learner_of"], facts["parent"]) == (3 * GOOD + BAD, good, bad)
    assert facts["learned"] + facts["passed"] + facts["rejected"] + facts["waiting"] == facts["records"]
    verified(folder, "main", "rollback-1")
    undo = shlex.split(done.stderr.splitlines()[-1].removeprefix("undo: millrace "))
    undone = here(*undo, cwd=folder)
    assert undone.exit_code == 0, undone.stderr
    assert same_learner(folder, "rollback-2", bad)
    verified(folder, "rollback-1", "rollback-2")
    assert [record.why for record in instance(folder).ledger().counted if getattr(record, "state", "") == "taken-over"] == [
        "poison",
        "undo",
    ]


def status(folder: Path, branch: str) -> list[dict]:
    """Of a branch."""
    return json_lines(here("status", "digits.toml", "--branch", branch, "--output", "json", cwd=folder).stdout)


def stages(folder: Path, stop: int) -> None:
    """The stages of a rollback up to one of them, as if the process had died there."""
    where = instance(folder)
    rewinding = learner_rollback.plan_learner(where, versions(folder)[0])
    plan = rewinding.plan
    archive = Archive(where)
    mark = archive.mark(plan.version)
    if stop > 0:
        learner_rollback._begun(where, plan, "poison")
    if stop > 1:
        last = learner_rollback._ended(archive, plan, rewinding.change, mark)
    if stop > 2:
        fork = learner_rollback._fork(archive, plan, last, mark)
        begin_fork(where.fold_spec, where.backends(plan.branch), fork, mark.branch)
    if stop > 3:
        decide(where, Change(where.ledger().serving["default"], Target(follow=plan.branch)), "poison")


@pytest.mark.parametrize("stop", range(5))
def test_a_rollback_that_died_between_two_stages_is_gone_on_with_by_the_same_command(folder: Path, stop: int) -> None:
    """And until the new branch has begun, nobody goes there or makes an empty one in its place."""
    good = versions(folder)[0]
    stages(folder, stop)
    if stop == 2:
        assert heir_of(Archive(instance(folder)), "main") == "main", "a trainer waits"
        early = millrace("run", "digits.toml", "--branch", "rollback-1", cwd=folder)
        assert early.returncode == 1 and "has not begun it" in early.stderr
    if stop in (1, 2, 3, 4):
        assert "rollback-1 of " in here("replay", "resume", "digits.toml", cwd=folder).stderr
        other = here("rollback", "digits.toml", versions(folder)[-1], "--learner", "--reason", "r", "--yes", cwd=folder)
        assert other.exit_code == 1 and f"under way, to {good}" in other.stderr
    if stop in (2, 3):
        refused = here("replay", "abort", "digits.toml", "--reason", "r", "--yes", cwd=folder)
        assert refused.exit_code == 1 and "can only go on now" in refused.stderr
    words = [*BACK[:2], *([good] if stop == 0 else []), *BACK[2:]]
    done = here(*words, cwd=folder)
    assert done.exit_code == 0, done.stderr
    assert operation(folder, "rollback-1") == "taken-over" and same_learner(folder, "rollback-1", good)
    verified(folder, "main", "rollback-1")


def test_a_rollback_can_be_given_up_before_the_branch_has_ended(folder: Path) -> None:
    """A process that is still at it ends nothing, what it had stored is swept, and the branch goes on."""
    stages(folder, 1)
    where, (good, bad) = instance(folder), versions(folder)
    plan = learner_rollback.plan_learner(where, good).plan
    marks = [learner_rollback.Archive(where).mark(version) for version in (bad, good)]
    assert here("replay", "abort", "digits.toml", "--reason", "r", "--yes", cwd=folder).exit_code == 0
    assert operation(folder, "rollback-1") == "aborted"
    with pytest.raises(NotCountedError, match="is aborted since"):
        learner_rollback._gate(Archive(where), plan, *marks)
    assert where.store().bytes_of("rollback-1") > 0
    sweep_ended(where, time.time() + 7200)
    assert where.store().bytes_of("rollback-1") == 0
    assert millrace("run", "digits.toml", cwd=folder).returncode == 0


def test_killed_after_any_write_the_same_command_goes_on(poisoned: Path, tmp_path: Path) -> None:
    """Real kill -9 after a seeded count of its writes; the learner is the version's all the same."""
    good, chance = versions(poisoned)[0], random.Random(5)
    words = [*BACK[:2], good, *BACK[2:]]
    folder, deaths = next((folder, deaths) for folder in copies(poisoned, tmp_path) if (deaths := died(folder, words, chance)))
    states = {name: record.state for name, record in instance(folder).ledger().operations.items()}
    if "taken-over" not in states.values():
        assert here(*words, cwd=folder).exit_code == 0
    print(f"killed {deaths} times; {states}")
    heir = heir_of(Archive(instance(folder)), "main")
    assert heir.startswith("rollback-") and same_learner(folder, heir, good)
    verified(folder, "main", heir)


def died(folder: Path, words: list[str], chance: random.Random) -> int:
    """How often a rollback was killed, given again and again until it came to its end, six times at most."""
    deaths = 0
    for _ in range(6):
        deaths += killed_after([*MILLRACE, *words], folder, 1 + deaths + chance.randint(0, 2), chance)
        if "rollback-1" in instance(folder).ledger().operations and operation(folder, "rollback-1") == "taken-over":
            break
    return deaths


def test_of_two_at_once_the_one_that_was_slower_is_given_up(folder: Path) -> None:
    """No plan of it is left that would keep a version or a name; the other goes on."""
    pipeline = instance(folder)
    winner, version = learner_rollback.plan_learner(pipeline, versions(folder)[0]), versions(folder)[1]
    first = planned_operation(winner.plan.branch, "a", winner.plan.version, "first")
    step(pipeline, first)
    loser = learner_rollback.plan_learner(pipeline, version)
    advance(pipeline, first, "running", "first")
    with pytest.raises(BusyError, match="rollback-1 of .* is running"):
        learner_rollback.roll_back(pipeline, loser, "second")
    ledger = pipeline.ledger()
    assert (operation(folder, "rollback-1"), operation(folder, "rollback-2")) == ("running", "aborted")
    assert "rollback-1 of " in ledger.operations["rollback-2"].why and version not in ledger.named


def test_it_waits_for_a_replay_and_refuses_what_cannot_go_on(folder: Path) -> None:
    """One operation at a time; a version that has read further; another configuration; an unknown version."""
    good = versions(folder)[0]
    assert replay(folder, "run", planned(folder)).returncode == 0
    busy = here(*BACK, cwd=folder)
    assert busy.exit_code == 1 and "replay-1 of " in busy.stderr
    assert here("replay", "take-over", "digits.toml", "--reason", "r", "--yes", cwd=folder).exit_code == 0
    shown = here("rollback", "digits.toml", good, "--learner", "--reason", "r", cwd=folder)
    assert shown.exit_code == 0 and "replay-1" in shown.stdout, "the branch that is live"
    for words, code, why in (
        (["main.99"], 1, "no version main.99"),
        ([good, "--set", "learner.gamma=2"], 2, "learned with another configuration"),
    ):
        done = here("rollback", "digits.toml", *words, "--learner", "--reason", "r", "--yes", cwd=folder)
        assert done.exit_code == code and why in done.stderr
    other, mark = learner_rollback.LearnerPlan("x", good, "", "main"), learner_rollback.Archive(instance(folder)).mark(good)
    with pytest.raises(MillraceError, match="has ended otherwise"):
        learner_rollback._ended(Archive(instance(folder)), other, Change(None, Target(follow="x")), mark)


def test_a_plan_that_was_never_run_can_be_given_up(folder: Path) -> None:
    """By its hash or its branch; then it is not run."""
    plan, other = planned(folder), planned(folder, "--exclude-offsets", "digits:0:200-219")
    for name in (plan[:12], "replay-2"):
        assert here("replay", "abort", "digits.toml", name, "--reason", "r", "--yes", cwd=folder).exit_code == 0
    assert [operation(folder, name) for name in ("replay-1", "replay-2")] == ["aborted", "aborted"]
    for name in (plan, other):
        refused = here("replay", "run", "digits.toml", name, cwd=folder)
        assert refused.exit_code == 1 and "is aborted already" in refused.stderr
    assert here("replay", "abort", "digits.toml", "nothing-1", "--reason", "r", cwd=folder).exit_code == 2
    assert lines(folder, "versions")


def test_a_live_trainer_waits_while_the_branch_changes_hands_and_goes_on_with_the_new_one(folder: Path, monkeypatch) -> None:
    """It makes no empty branch where the new one is to be; the rows that come meanwhile are learned there."""
    where, good = instance(folder), versions(folder)[0]
    trainer = Trainer(where, "main", Shelf(where))
    soon(lambda: trainer.state().epoch > 0)
    stages(folder, 2)
    soon(lambda: "has ended (rollback)" in trainer.state().said or "another writer" in trainer.state().said.lower())
    looks: list[str] = []
    monkeypatch.setattr("millrace.services.training.trainer.heir_of", lambda *asked: looks.append(heir_of(*asked)) or looks[-1])
    soon(lambda: len(looks) >= 2)
    assert set(looks) == {"main"} and trainer.state().branch == "main" and not where.has_branch("rollback-1")
    assert here(*BACK, cwd=folder).exit_code == 0
    send(folder, good_rows(3), "till-1")
    soon(lambda: trainer.state().branch == "rollback-1" and trainer.state().records == 3 * GOOD + BAD)
    trainer.stop(SOON_S)
    _, parts = newest(folder, "rollback-1")
    assert parts["counts"]["counts"]["learned"] == 3 * GOOD + BAD and not same_learner(folder, "rollback-1", good)
    verified(folder, "main", "rollback-1")


def test_a_live_trainer_goes_on_with_its_branch_where_the_rollback_is_given_up(folder: Path) -> None:
    """The branch had been taken from it, and nobody was to go on in its place."""
    where = instance(folder)
    trainer = Trainer(where, "main", Shelf(where))
    soon(lambda: trainer.state().epoch > 0)
    stages(folder, 1)
    taken = Worker(where.fold_spec, where.backends("main"), where.loaded.pipeline.worker, identity_of_worker(where, "main"))
    taken.close()
    soon(lambda: not trainer.state().running)
    assert here("replay", "abort", "digits.toml", "--reason", "r", "--yes", cwd=folder).exit_code == 0
    send(folder, good_rows(3), "till-1")
    soon(lambda: trainer.state().records == 3 * GOOD + BAD and trainer.state().epoch > taken.epoch)
    assert trainer.stop(SOON_S).branch == "main"
    verified(folder, "main")


def test_rollback_goes_to_the_learners_version_while_the_new_branch_has_none(folder: Path) -> None:
    """It is what answers there, so a plain `rollback` finds it at night without being told a name."""
    version = versions(folder)[0]
    assert here("rollback", "digits.toml", version, *BACK[2:], cwd=folder).exit_code == 0
    row, *_ = lines(folder, "rollback", "--reason", "x")
    assert (row["from"], row["to"]) == ("the newest of rollback-1", f"version {version}")
    assert millrace("run", "digits.toml", "--branch", "rollback-1", cwd=folder).returncode == 0
    row, *_ = lines(folder, "rollback", "--reason", "x")
    assert row["to"] == f"version {versions(folder)[-1]}" != f"version {version}"
