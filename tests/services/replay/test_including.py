"""`millrace replay include`: a producer that was left out is read again, by a writer that is live and by the next one."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from pipelines import MILLRACE, TIMEOUT_S, clean_environment, here, json_lines, millrace
from poisoned import BAD, GOOD, begin, good_rows, instance, planned, replay, send
from served_pipeline import until

from millrace.streams.journal.entries import Act
from millrace.streams.journal.journal import Cursor, counted, summarise

pytestmark = pytest.mark.slow
TILL_7 = "header producer=till-7"


@pytest.fixture(scope="module")
def mended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose live branch leaves till-7 out, once for all of these tests."""
    folder = begin(tmp_path_factory.mktemp("mended") / "there", with_poison=True)
    assert replay(folder, "run", planned(folder)).returncode == 0
    assert here("replay", "take-over", "digits.toml", "--reason", "r", "--yes", cwd=folder).exit_code == 0
    return folder


@pytest.fixture
def folder(mended: Path, tmp_path: Path) -> Path:
    """A copy of it to do things to."""
    return shutil.copytree(mended, tmp_path / "there")


def facts(folder: Path, branch: str) -> dict[str, object]:
    """What `millrace status` says."""
    done = here("status", "digits.toml", "--branch", branch, "--output", "json", cwd=folder)
    return {line["what"]: line["value"] for line in json_lines(done.stdout)}


def include(folder: Path, *words: str, exclusion: str = TILL_7) -> tuple[int, str]:
    """The exit code, and what is said on standard error."""
    done = here("replay", "include", "digits.toml", exclusion, "--reason", "mended", *words, cwd=folder)
    return done.exit_code, done.stderr


def learn(folder: Path, branch: str) -> None:
    """Read to the log's end."""
    assert millrace("run", "digits.toml", "--branch", branch, cwd=folder).returncode == 0


def test_the_next_writer_reads_again_what_was_left_out(folder: Path) -> None:
    """A plan first; then one act; status says which are in force; twice is refused; forks of it leave nothing out."""
    send(folder, good_rows(3, 40), "till-7")
    learn(folder, "replay-1")
    assert facts(folder, "replay-1")["passed"] == BAD + 40
    code, output = include(folder)
    assert code == 0 and "Nothing was changed" in output and facts(folder, "replay-1")["excludes"] == TILL_7
    code, output = include(folder, exclusion="header producer=till-8")
    assert code == 2 and f"It leaves out: '{TILL_7}'" in output
    assert include(folder, "--yes")[0] == 0
    code, output = include(folder, "--yes")
    assert code == 2 and "It leaves out: nothing" in output
    learn(folder, "replay-1")  # there is nothing to read
    assert facts(folder, "replay-1")["excludes"] == "nothing"
    send(folder, good_rows(4, 40), "till-7")
    learn(folder, "replay-1")
    after = facts(folder, "replay-1")
    assert (after["excludes"], after["included_again"]) == ("nothing", TILL_7)
    assert (after["passed"], after["learned"]) == (BAD + 40, 2 * GOOD + 40)
    assert (
        here("rollback", "digits.toml", "--learner", "--while", "replay-1", "--reason", "r", "--yes", cwd=folder).exit_code == 0
    )
    assert facts(folder, "rollback-1")["excludes"] == "nothing"
    for branch in ("replay-1", "rollback-1"):
        proof = millrace("verify", "digits.toml", "--branch", branch, cwd=folder)
        assert proof.returncode == 0, proof.stderr
    assert include(folder, "--branch", "replay-1")[0] == 1, "it has ended"


def test_a_replay_leaves_out_what_the_branch_before_does_unless_it_is_told_otherwise(folder: Path) -> None:
    """From a version or from nothing; `--include` takes the words of status, and nothing else."""
    version = str(facts(folder, "replay-1")["version"])
    for begins in (["--from", version], ["--from-start"]):
        plan = ["replay", "plan", "digits.toml", *begins, "--reason", "r", "--output", "json"]
        plans = []
        for more in ([], ["--exclude-header", "producer=till-1"], ["--include", TILL_7]):
            done = here(*plan, *more, cwd=folder)
            assert done.exit_code == 0, done.stderr
            plans.append({line["what"]: line["value"] for line in json_lines(done.stdout)}["excludes"])
        assert plans == [TILL_7, f"{TILL_7}; header producer=till-1", "nothing"]
        wrong = here(*plan, "--include", "till-7", cwd=folder)
        assert wrong.exit_code == 2 and f"It leaves out: {TILL_7}" in wrong.stderr


def test_a_live_writer_hears_of_it_within_seconds(folder: Path) -> None:
    """One act, journaled by the process that has the branch; its epoch stays."""
    words = [*MILLRACE, "run", "digits.toml", "--branch", "replay-1", "--follow"]
    process = subprocess.Popen(words, cwd=folder, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        journal = instance(folder).journal("replay-1")
        before = summarise(journal, "replay-1").end.epoch
        until(lambda: summarise(journal, "replay-1").end.epoch > before)
        epoch = summarise(journal, "replay-1").end.epoch
        assert epoch == before + 1 and include(folder, "--yes")[0] == 0
        until(lambda: bool(summarise(journal, "replay-1").included))
        acts = [entry for entry in counted(journal, "replay-1", Cursor()) if isinstance(entry, Act)]
        assert [(act.op, act.epoch) for act in acts] == [("include", epoch)]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0


def test_what_was_included_and_not_yet_heeded_holds_for_the_branch_of_a_rollback(folder: Path) -> None:
    """No writer is live between the decision and the rollback of the learner: the branch in its place leaves nothing out."""
    send(folder, good_rows(3, 40), "till-7")
    learn(folder, "replay-1")
    assert include(folder, "--yes")[0] == 0
    done = here("rollback", "digits.toml", "--learner", "--while", "replay-1", "--reason", "r", "--yes", cwd=folder)
    assert done.exit_code == 0, done.stderr
    assert facts(folder, "rollback-1")["excludes"] == "nothing"
    send(folder, good_rows(4, 40), "till-7")
    learned = facts(folder, "replay-1")["learned"]
    learn(folder, "rollback-1")
    assert facts(folder, "rollback-1")["learned"] == learned + 40
    assert here("verify", "digits.toml", "--branch", "rollback-1", cwd=folder).exit_code == 0


def test_what_a_branch_that_began_with_nothing_leaves_out_is_shown_and_can_be_included(tmp_path: Path) -> None:
    """`include` takes the words of `millrace status`, wherever the branch begins."""
    folder = begin(tmp_path / "there", with_poison=True)
    words = ["--from-start", "--exclude-header", "producer=till-7", "--reason", "r", "--output", "json"]
    done = here("replay", "plan", "digits.toml", *words, cwd=folder)
    assert replay(folder, "run", str(json_lines(done.stdout)[0]["value"])).returncode == 0
    assert facts(folder, "replay-1")["excludes"] == TILL_7
    assert include(folder, "--branch", "replay-1", "--yes", exclusion=str(facts(folder, "replay-1")["excludes"]))[0] == 0
    send(folder, good_rows(3, 40), "till-7")
    learn(folder, "replay-1")
    assert facts(folder, "replay-1")["excludes"] == "nothing"
    assert facts(folder, "replay-1")["included_again"] == TILL_7
