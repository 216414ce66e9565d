"""Surgical replay from the command line: planned, run, killed, resumed, compared, taken over, given up; and what it refuses."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from frozen import frozen
from phases import copies, killed_after
from pipelines import MILLRACE, TIMEOUT_S, here, json_lines, millrace
from poisoned import (
    BAD,
    GOOD,
    begin,
    good_rows,
    instance,
    lines,
    newest,
    operation,
    planned,
    replay,
    send,
    started,
    versions,
)

from millrace.services.decisions.decide import decide
from millrace.services.errors import NotCountedError
from millrace.services.proof.certify import prove_version
from millrace.services.replay import run as replaying
from millrace.streams.branch.difference import difference
from millrace.streams.journal.journal import summarise
from millrace.streams.journal.ledger import Target
from millrace.streams.parts import pack

pytestmark = pytest.mark.slow
LIMIT = 1e-8
KILLS = 10


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same stream where the poisoner never came."""
    return begin(tmp_path_factory.mktemp("clean") / "there", with_poison=False)


def serving(folder: Path) -> Target:
    """What the ledger says."""
    return instance(folder).ledger().serving["default"]


def test_the_replayed_model_is_the_one_that_never_saw_the_poison_and_takes_over(folder: Path, clean: Path) -> None:
    """G, Q and answers to 1e-8; a certificate of another process; the old branch ends and names the new one; the undo works."""
    plan = planned(folder)
    done = replay(folder, "run", plan[:12], "--output", "json")
    assert done.returncode == 0, done.stderr
    (reported,) = json_lines(done.stdout)
    assert (reported["branch"], reported["records"], reported["learned"]) == ("replay-1", BAD + GOOD, 2 * GOOD)
    assert f"0 of {BAD + GOOD} records" in done.stderr
    _, mended = newest(folder, "replay-1")
    _, never = newest(clean, "main")
    _, poisoned = newest(folder, "main")
    for part in ("learner", "derived"):
        assert difference(mended[part], never[part]) <= LIMIT
        assert difference(poisoned[part], never[part]) > LIMIT
    assert mended["counts"]["counts"] == {"learned": 2 * GOOD, "passed": BAD, "rejected": 0}
    certificate = instance(folder).ledger().certificates[reported["version"]]
    assert (certificate.verdict, certificate.base) == ("equal", f"version {versions(folder)[0]}")
    for nearest in (True, False):
        proved = prove_version(instance(folder), reported["version"], nearest).proved
        assert [mark.version for mark in proved] == [reported["version"]], "by itself, as `millrace up` does it"
    before = {line["what"]: line["value"] for line in json_lines(status(folder, "replay-1"))}
    assert (before["learned"], before["passed"], before["rejected"]) == (2 * GOOD, BAD, 0), "though it lets nothing out"
    compared = {line["what"]: line for line in lines(folder, "replay", "diff")}
    assert compared["prequential_rows"] == {"what": "prequential_rows", "served": BAD + GOOD, "replayed": GOOD}
    assert compared["prequential_accuracy"]["replayed"] > compared["prequential_accuracy"]["served"]
    shown = replay(folder, "take-over", "--reason", "mended")
    assert shown.returncode == 0 and "Nothing was changed" in shown.stderr and serving(folder) == Target(follow="main")
    taken = replay(folder, "take-over", "--reason", "mended", "--yes")
    assert taken.returncode == 0 and serving(folder) == Target(follow="replay-1") and operation(folder) == "taken-over"
    refused = millrace("run", "digits.toml", cwd=folder)
    assert refused.returncode == 1 and "name it with --branch replay-1" in refused.stderr
    send(folder, good_rows(3), "till-1")
    assert millrace("run", "digits.toml", "--branch", "replay-1", cwd=folder).returncode == 0
    for branch in ("main", "replay-1"):
        assert millrace("verify", "digits.toml", "--branch", branch, cwd=folder).returncode == 0
    facts = {line["what"]: line["value"] for line in json_lines(status(folder, "replay-1"))}
    assert facts["excludes"] == "header producer=till-7" and facts["parent"] == versions(folder)[0]
    assert facts["records"] == 3 * GOOD + BAD, "its scores are let out since it is followed"
    undo = taken.stderr.splitlines()[-1].removeprefix("undo: millrace ").split()
    assert here(*undo, cwd=folder).exit_code == 0 and serving(folder) == Target(follow="main")


def status(folder: Path, branch: str) -> str:
    """Of a branch, as JSON lines."""
    return here("status", "digits.toml", "--branch", branch, "--output", "json", cwd=folder).stdout


def test_a_replay_that_is_killed_after_any_write_goes_on_with_resume(tmp_path: Path) -> None:
    """Ten times, if it is that slow, after a seeded count of writes; the state is an undisturbed replay's, and is proved."""
    begun, chance = begin(tmp_path / "there", with_poison=True, later=4000), random.Random(7)
    whole = shutil.copytree(begun, tmp_path / "whole")
    assert replay(whole, "run", planned(whole)).returncode == 0
    for folder in copies(begun, tmp_path):
        plan, deaths = planned(folder), 0
        while operation(folder) in ("planned", "running") and deaths < KILLS:
            words = ["run", plan] if operation(folder) == "planned" else ["resume"]
            command = [*MILLRACE, "replay", words[0], "digits.toml", *words[1:]]
            deaths += killed_after(command, folder, chance.randint(1, 25), chance)
        if deaths:
            break
    print(f"killed {deaths} times; {operation(folder)}")
    while operation(folder) != "done":
        done = replay(folder, *(["run", plan] if operation(folder) == "planned" else ["resume"]))
        assert done.returncode == 0, done.stderr
    _, mended = newest(folder, "replay-1")
    _, undisturbed = newest(whole, "replay-1")
    for part in ("learner", "derived", "features", "scores"):
        assert pack(mended[part]) == pack(undisturbed[part]), part
    assert millrace("verify", "digits.toml", "--branch", "replay-1", cwd=folder).returncode == 0


def test_a_signal_stops_a_replay_with_the_way_on(tmp_path: Path) -> None:
    """SIGTERM lets the step finish; what is said names resume."""
    with under_way(tmp_path) as (folder, process):
        process.terminate()
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1 and "`millrace replay resume` goes on" in err and "Traceback" not in err
    assert replay(folder, "resume").returncode == 0 and operation(folder) == "done"


def test_a_proof_that_was_killed_is_said_to_be_and_is_done_again_by_resume(poisoned: Path, tmp_path: Path) -> None:
    """By lack of memory, say: then it has said nothing itself."""
    for folder in copies(poisoned, tmp_path):
        process = started(folder, "run", planned(folder))
        kill_child(process)
        _, err = process.communicate(timeout=TIMEOUT_S)
        if process.returncode:
            break
    assert process.returncode == 1 and "not proved: the process ended with -9; `millrace replay resume` tries again" in err
    assert replay(folder, "resume").returncode == 0 and operation(folder) == "done"


def kill_child(process: subprocess.Popen[str]) -> None:
    """kill -9 of the first process that it starts, unless that has come to its end before it is seen."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None:
        if pids := children.read_text(encoding="utf-8").split():
            with suppress(ProcessLookupError):
                os.kill(int(pids[0]), signal.SIGKILL)
            return
        time.sleep(0.01)


@contextmanager
def under_way(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A replay that has begun its branch, has far to go, and stands still; it goes on as the block ends."""
    begun = begin(tmp_path / "there", with_poison=True, later=6000)
    for folder in copies(begun, tmp_path):
        process = started(folder, "run", planned(folder))
        try:
            while process.poll() is None and not read_by_now(folder):
                time.sleep(0.01)
            state = folder / ".millrace" / "digits"
            with frozen(process, state / "ledger.sqlite", *state.glob("journal/replay-1.sqlite")):
                if read_by_now(folder) < BAD + 6000 and process.poll() is None:
                    yield folder, process
                    return
        except BaseException:  # nobody else would end it
            process.kill()
            raise
        process.communicate(timeout=TIMEOUT_S)  # it had read everything before it was stopped


def read_by_now(folder: Path) -> int:
    """Records that the replay has read."""
    where = instance(folder)
    if not where.has_branch("replay-1"):
        return 0
    summary = summarise(where.journal("replay-1"), "replay-1")
    return 0 if summary.fork is None else sum(summary.position.values()) - sum(summary.fork.positions.values())


def refused(folder: Path, *words: str) -> str:
    """What is said on standard error by a command that exits 1 and changes no stage."""
    done = here("replay", words[0], "digits.toml", *words[1:], cwd=folder)
    assert done.exit_code == 1 and not done.stdout and "Traceback" not in done.stderr
    return done.stderr


def test_a_plan_holds_while_what_it_was_made_from_does(folder: Path) -> None:
    """Refused where the endpoint's target, the configuration or what the log has is another; new records do not count."""
    plan = planned(folder)
    assert here("rollback", "digits.toml", versions(folder)[0], "--reason", "r", "--yes", cwd=folder).exit_code == 0
    assert "other is what is served (planned: the newest of main; now: version" in refused(folder, "run", plan)
    assert here("serve", "digits.toml", "--follow", "main", "--reason", "r", "--yes", cwd=folder).exit_code == 0
    assert "other is the configuration" in refused(folder, "run", plan, "--set", "batch.rows=30")
    instance(folder).log().delete_before("digits:0", GOOD + 1)
    assert "other is what the log still has" in refused(folder, "run", plan)
    assert operation(folder) == "planned"


def test_new_records_do_not_count(folder: Path) -> None:
    """They are read too."""
    plan = planned(folder)
    send(folder, good_rows(4, 50), "till-1")
    done = replay(folder, "run", plan, "--output", "json")
    assert done.returncode == 0 and json_lines(done.stdout)[0]["records"] == BAD + GOOD + 50


def test_a_recreated_topic_is_refused(folder: Path) -> None:
    """The log is not the one that was planned over."""
    plan = planned(folder)
    for leftover in (folder / ".millrace" / "digits").glob("log.sqlite*"):
        leftover.unlink()
    for part in (1, 2, 3):
        send(folder, good_rows(part), "till-1")
    assert "the topics" in refused(folder, "run", plan)


def test_a_plan_says_what_retention_has_taken_and_from_where_a_replay_is_possible(folder: Path) -> None:
    """From the oldest version it is not."""
    instance(folder).log().delete_before("digits:0", GOOD + 30)
    words = ["--from", versions(folder)[0], "--reason", "r"]
    refusal = refused(folder, "plan", *words)
    assert "Retention has taken 30 records of digits:0" in refusal and f"possible from: {versions(folder)[1]}" in refusal
    proof = here("verify", "digits.toml", "--version", versions(folder)[0], cwd=folder)
    assert proof.exit_code == 1 and "cannot be folded again. Verify versions while it has" in proof.stderr


def test_what_a_plan_offers_instead_is_there(folder: Path) -> None:
    """Not a version that was let go, which it would refuse in its turn."""
    send(folder, good_rows(3), "till-1")
    kept, alias = ["--set", "versions.keep=1"], ["--alias", "first", "--reason", "r", "--yes"]
    assert here("promote", "digits.toml", versions(folder)[0], *alias, cwd=folder).exit_code == 0
    assert millrace("run", "digits.toml", *kept, cwd=folder).returncode == 0
    instance(folder).log().delete_before("digits:0", GOOD + 30)
    first, gone, last = versions(folder)
    refusal = refused(folder, "plan", "--from", first, "--reason", "r")
    assert f"possible from: {last}." in refusal and gone not in refusal


def test_a_plan_counts_what_it_leaves_out_and_keeps_no_key_in_clear(folder: Path) -> None:
    """By offsets, by time, by key; and says how another configuration differs."""
    version, till = versions(folder)[0], "digits:0:200-219"
    ways = (["--exclude-offsets", till], ["--exclude-time", "0..4102444800000"])
    counts = []
    for way in ways:
        words = ["--from", version, *way, "--reason", "r", "--set", "batch.rows=30", "--output", "json"]
        done = here("replay", "plan", "digits.toml", *words, cwd=folder)
        facts = {line["what"]: line["value"] for line in json_lines(done.stdout)}
        counts.append(facts["excluded"])
        assert facts["configuration"] == "batch.rows = 30 (begun with 20)"
        assert facts["records"] == BAD + GOOD and facts["bytes"] > 0 and facts["rows_per_s"] > 0
    assert counts == [20, BAD + GOOD]
    words = ["--from", version, "--exclude-key", "customer 4711", "--reason", "r"]
    assert "none has this one" in here("replay", "plan", "digits.toml", *words, cwd=folder).stderr
    assert not [path for path in folder.rglob("*") if path.is_file() and b"customer 4711" in path.read_bytes()]
    for tp in ("digts:0", "digits:1"):  # a typing error would leave out nothing
        words = ["--from", version, "--exclude-offsets", f"{tp}:0-9", "--reason", "r"]
        done = here("replay", "plan", "digits.toml", *words, cwd=folder)
        assert done.exit_code == 2 and f"The log has no {tp} to leave out" in done.stderr
    for change in ("learner.gamma=2", "seed=8", "fields=[{name='x'}]", "labels.horizon_ms=5"):
        done = here("replay", "plan", "digits.toml", "--from", version, "--reason", "r", "--set", change, cwd=folder)
        assert done.exit_code in (1, 2) and not done.stdout, change


def test_a_plan_says_what_the_version_has_read_of_what_is_to_be_left_out(folder: Path) -> None:
    """By offsets, by header and by time: it stays in what is learned on from there; an earlier version has none of it."""
    first, *_, last = versions(folder)
    spoiled = {
        "--exclude-offsets": "digits:0:200-219",
        "--exclude-header": "producer=till-7",
        "--exclude-time": "0..4102444800000",
    }
    for version, counts in ((last, (20, BAD, 2 * GOOD + BAD)), (first, (0, 0, GOOD))):
        for (way, what), count in zip(spoiled.items(), counts, strict=True):
            words = ["--from", version, way, what, "--reason", "r", "--output", "json"]
            done = here("replay", "plan", "digits.toml", *words, cwd=folder)
            facts = {line["what"]: line["value"] for line in json_lines(done.stdout)}
            said = f"{count} of these records are in {version} already ({count} of digits); plan from an earlier version"
            assert facts.get("not_left_out") == (said if count else None), (version, way)


def test_of_two_operators_the_second_is_refused_with_who_and_when(folder: Path) -> None:
    """One after the other, at once, with the same plan and with another; until the first is given up."""
    first, second = planned(folder), planned(folder, "--exclude-offsets", "digits:0:200-219")
    earlier, other = started(folder, "run", first), started(folder, "run", second)
    errors = [process.communicate(timeout=TIMEOUT_S)[1] for process in (earlier, other)]
    codes = [earlier.returncode, other.returncode]
    assert sorted(codes) == [0, 1], errors
    late = errors[codes.index(1)]
    assert (
        "and a pipeline has one replay at a time" in late
        and f" is {'running' if 'running' in late else 'done'} since 2" in late
    )
    winner, loser = ("replay-1", second) if codes[0] == 0 else ("replay-2", first)
    assert f"{winner} of " in refused(folder, "run", loser)
    assert "is done already" in refused(folder, "run", first if codes[0] == 0 else second)
    assert "Compare it with" in refused(folder, "resume")
    assert here("rollback", "digits.toml", versions(folder)[0], "--reason", "never held up", "--yes", cwd=folder).exit_code == 0
    assert here("serve", "digits.toml", "--follow", "main", "--reason", "nor this", "--yes", cwd=folder).exit_code == 0
    assert here("replay", "abort", "digits.toml", "--reason", "wrong", cwd=folder).exit_code == 0
    assert operation(folder, winner) == "done", "without --yes nothing changes"
    assert here("replay", "abort", "digits.toml", "--reason", "wrong", "--yes", cwd=folder).exit_code == 0
    assert (
        "has ended (aborted). Nothing goes on from it" in millrace("run", "digits.toml", "--branch", winner, cwd=folder).stderr
    )
    assert replay(folder, "run", loser).returncode == 0
    assert "No replay is under way" in refused(begin_nothing(folder), "diff")


def begin_nothing(folder: Path) -> Path:
    """The pipeline with its replay taken over."""
    assert here("replay", "take-over", "digits.toml", "--reason", "mended", "--yes", cwd=folder).exit_code == 0
    return folder


def test_an_abort_stops_a_live_replay_and_is_refused_while_the_endpoint_follows_it(tmp_path: Path) -> None:
    """The process that writes the branch stops by the fence."""
    with under_way(tmp_path) as (folder, process):
        assert here("serve", "digits.toml", "--follow", "replay-1", "--reason", "early", "--yes", cwd=folder).exit_code == 0
        assert "The endpoint follows replay-1" in refused(folder, "abort", "--reason", "wrong", "--yes")
        assert here("serve", "digits.toml", "--follow", "main", "--reason", "back", "--yes", cwd=folder).exit_code == 0
        assert here("replay", "abort", "digits.toml", "--reason", "wrong", "--yes", cwd=folder).exit_code == 0
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1 and "replay-1 of " in err and "is aborted since 2" in err and "(wrong)" in err
    assert operation(folder) == "aborted"
    late = here("serve", "digits.toml", "--follow", "replay-1", "--reason", "late", "--yes", cwd=folder)
    assert late.exit_code == 1 and "has ended (aborted), and nothing goes on from it" in late.stderr


def test_a_take_over_that_died_half_way_is_done_again_and_one_that_came_second_ends_nothing(folder: Path) -> None:
    """The endpoint first, then the end of the old branch, then the ledger's word."""
    assert replay(folder, "run", planned(folder)).returncode == 0
    stale = replaying.plan_take_over(instance(folder))
    version = versions(folder)[0]
    assert here("rollback", "digits.toml", version, "--reason", "meanwhile", "--yes", cwd=folder).exit_code == 0
    with pytest.raises(NotCountedError, match=f"serve version {version}"):
        replaying.take_over(instance(folder), stale, "mine")
    assert millrace("run", "digits.toml", cwd=folder).returncode == 0, "main has not ended"
    succession = replaying.plan_take_over(instance(folder))
    decide(instance(folder), succession.change, "and dies")
    for _ in range(2):
        if operation(folder) == "done":
            assert here("replay", "take-over", "digits.toml", "--reason", "again", "--yes", cwd=folder).exit_code == 0
    assert serving(folder) == Target(follow="replay-1") and operation(folder) == "taken-over"
    assert "Branch main has ended (replay)" in millrace("run", "digits.toml", cwd=folder).stderr


def test_a_second_replay_begins_where_the_first_has_taken_over(folder: Path) -> None:
    """A fork of a fork; and the branch that ends is the one that is live."""
    assert replay(folder, "run", planned(folder)).returncode == 0
    begin_nothing(folder)
    send(folder, good_rows(5), "till-9")
    assert millrace("run", "digits.toml", "--branch", "replay-1", cwd=folder).returncode == 0
    version = next(name for name in versions(folder) if name.startswith("replay-1."))
    words = ["--from", version, "--exclude-header", "producer=till-9", "--reason", "r", "--output", "json"]
    facts = {
        line["what"]: line["value"] for line in json_lines(here("replay", "plan", "digits.toml", *words, cwd=folder).stdout)
    }
    assert (facts["branch"], facts["excluded"]) == ("replay-2", GOOD)
    older = here("replay", "plan", "digits.toml", "--from", versions(folder)[0], *words[2:], cwd=folder)
    plan = {line["what"]: line["value"] for line in json_lines(older.stdout)}
    assert plan["excludes"] == "header producer=till-7; header producer=till-9", "from before it too: what was poison stays out"
    assert replay(folder, "run", facts["plan"]).returncode == 0
    begin_nothing(folder)
    assert "--branch replay-2" in millrace("run", "digits.toml", "--branch", "replay-1", cwd=folder).stderr
    assert serving(folder) == Target(follow="replay-2")
