"""Drift as an operator meets it: garbage arrives, an alarm says since when, and a plain rollback goes to before it."""

from __future__ import annotations

from pathlib import Path

from alarmed import WATCHED, instance, rows
from pipelines import PIPELINE, facts, here, json_lines, millrace, pipeline_in

from millrace.services.registry.lineage import Genealogy
from millrace.streams.branch.branch import begin
from millrace.streams.journal.entries import Act, Mark
from millrace.streams.journal.journal import Cursor, counted, summarise


def sent(folder: Path, *parts: list[bytes]) -> None:
    """Send and learn, part after part."""
    for part in parts:
        (folder / "part.jsonl").write_bytes(b"\n".join(part))
        for words in (["send", "digits.toml", "part.jsonl"], ["run", "digits.toml"]):
            done = here(*words, cwd=folder)
            assert done.exit_code == 0, done.stderr


def marks(folder: Path) -> list[Mark]:
    """Of its branch, oldest first."""
    return summarise(instance(folder).journal("main"), "main").marks


def versions(folder: Path) -> list[dict]:
    """The lines of `millrace versions`."""
    return json_lines(here("versions", "digits.toml", "--output", "json", cwd=folder).stdout)


def test_poison_raises_an_alarm_and_rollback_goes_to_the_newest_version_from_before_it(tmp_path: Path) -> None:
    """Once that version is verified, and not before; the alias says the same, and the undo goes back."""
    pipeline_in(tmp_path, text=WATCHED)
    sent(tmp_path, rows(800, wrong=False, seed=1), rows(300, wrong=True, seed=2))
    alarm = facts(tmp_path)["alarm"]
    assert "worse since about row 8" in alarm or "worse since about row 7" in alarm, alarm
    unverified = here("rollback", "digits.toml", "--reason", "garbage", cwd=tmp_path)
    assert unverified.exit_code == 1 and " not verified" in unverified.stdout and not facts(tmp_path).get("alias_last-good")
    assert here("verify", "digits.toml", cwd=tmp_path).exit_code == 0
    good = [line for line in versions(tmp_path) if line["aliases"] == "last-good"]
    assert len(good) == 1 and 600 <= good[0]["learned"] <= 808
    planned = here("rollback", "digits.toml", "--reason", "garbage", "--output", "json", cwd=tmp_path)
    assert json_lines(planned.stdout)[0]["to"] == f"version {good[0]['version']}"
    acts = [
        line
        for line in json_lines(here("log", "digits.toml", "--output", "json", cwd=tmp_path).stdout)
        if line["kind"] == "act"
    ]
    assert [act["said"]["op"] for act in acts] == ["version"] and acts[0]["said"]["cause"] == "detector"
    done = here("rollback", "digits.toml", "--reason", "garbage", "--yes", cwd=tmp_path)
    assert done.exit_code == 0 and facts(tmp_path)["serves_default"] == good[0]["version"]


def test_an_alarm_that_leads_to_relearn_says_what_was_done_and_is_proved(tmp_path: Path) -> None:
    """`status` and the tags of the version that follows name the act with its rows; `verify` folds it to the same bytes."""
    pipeline_in(tmp_path, text=WATCHED + 'act = "relearn"\nrelearn_rows = 90\n')
    sent(tmp_path, rows(800, wrong=False, seed=1), rows(300, wrong=True, seed=2))
    (act,) = [entry for entry in counted(instance(tmp_path).journal("main"), "main", Cursor()) if isinstance(entry, Act)]
    assert act.op == "relearn" and 1 <= act.args["rows"] <= 90
    mark = next(mark for mark in marks(tmp_path) if mark.version is not None and mark.state_seq >= act.seq)
    words = f"relearn (rows = {act.args['rows']})"
    assert facts(tmp_path)["act"] == f"{words} at seq {act.seq}, after detector {act.evidence}; version: {mark.version}"
    assert 90 * 6 * 8 < facts(tmp_path)["window_bytes"] < 3 * 90 * 6 * 8 + 20_000
    tags = Genealogy(instance(tmp_path)).tags(mark)
    assert tags["millrace.cause"] == f"detector: {words}, {act.evidence}"
    assert here("verify", "digits.toml", cwd=tmp_path).exit_code == 0


def test_a_branch_keeps_to_the_act_it_was_begun_with(tmp_path: Path) -> None:
    """A branch that kept no rows is not gone on with by a pipeline that relearns; a new branch is on offer."""
    pipeline_in(tmp_path, text=WATCHED)
    sent(tmp_path, rows(200, wrong=False, seed=1))
    pipeline_in(tmp_path, text=WATCHED + 'act = "relearn"\n')
    done = here("run", "digits.toml", cwd=tmp_path)
    assert done.exit_code != 0
    assert "drift.act = 'relearn' (begun with 'version'), drift.relearn_rows = 2000 (begun without it)" in done.stderr
    assert "Set it back, or begin a branch with --branch NEW." in done.stderr
    assert here("run", "digits.toml", "--branch", "other", cwd=tmp_path).exit_code == 0


def test_a_replay_may_begin_to_keep_rows_and_not_keep_another_number_of_them(tmp_path: Path) -> None:
    """What the version keeps is in its state; what nobody kept begins empty, and the start is proved to be the version's."""
    pipeline_in(tmp_path, text=WATCHED)
    sent(tmp_path, rows(300, wrong=False, seed=1), rows(200, wrong=False, seed=2))
    pipeline_in(tmp_path, text=WATCHED + 'act = "relearn"\n')
    version = versions(tmp_path)[0]["version"]
    words = ["replay", "plan", "digits.toml", "--from", version, "--reason", "test", "--output", "json"]
    done = here(*words, cwd=tmp_path)
    assert done.exit_code == 0, done.stderr
    plan = next(str(line["value"]) for line in json_lines(done.stdout) if line["what"] == "plan")
    done = millrace("replay", "run", "digits.toml", plan, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert here("verify", "digits.toml", "--branch", "replay-1", cwd=tmp_path).exit_code == 0
    pipeline_in(tmp_path, text=WATCHED + 'act = "relearn"\nrelearn_rows = 7\n')
    newest = [line["version"] for line in versions(tmp_path) if line["version"].startswith("replay-1.")][0]
    words[words.index(version)] = newest
    refused = here(*words, cwd=tmp_path)
    assert refused.exit_code != 0 and "drift.relearn_rows = 7 (begun with 2000)" in refused.stderr, refused.stderr


def test_a_quiet_stream_has_no_alarm_and_rollback_goes_one_version_back(tmp_path: Path) -> None:
    """Nothing is named last-good."""
    pipeline_in(tmp_path, text=WATCHED)
    sent(tmp_path, rows(800, wrong=False, seed=1), rows(300, wrong=False, seed=2))
    assert "alarm" not in facts(tmp_path)
    listed = versions(tmp_path)
    assert all(line["aliases"] == "" for line in listed)
    planned = here("rollback", "digits.toml", "--reason", "habit", "--output", "json", cwd=tmp_path)
    assert json_lines(planned.stdout)[0]["to"] == f"version {listed[-1]['version']}"


def test_a_watch_that_cannot_be_meant_is_refused_by_key_and_value(tmp_path: Path) -> None:
    """A detector that is none, a budget beyond reach, an act that this release does not offer."""
    for line, says in (
        ('detector = "adwim"', "adwim"),
        ("false_alarm_rows = 900000000", "900000000"),
        ('act = "raise-rate"', "raise-rate"),
    ):
        key = line.partition(" ")[0]
        text = "\n".join(old for old in WATCHED.splitlines() if not old.startswith(key)) + f"\n{line}\n"
        pipeline_in(tmp_path, text=text)
        done = here("config", "show", "digits.toml", cwd=tmp_path)
        assert done.exit_code == 2 and says in done.stderr and key in done.stderr, done.stderr


BLIND = PIPELINE + '[drift]\ndetector = "hddm-w"\nfalse_alarm_rows = 10000\n'


def test_a_detector_that_misses_most_changes_is_refused_for_a_new_branch_and_named_of_a_begun_one(tmp_path: Path) -> None:
    """A branch that an earlier release has begun goes on; what the budget promises is said of both."""
    pipeline_in(tmp_path, text=BLIND)
    for words in (["run"], ["run", "--branch", "other"]):
        done = here(words[0], "digits.toml", *words[1:], cwd=tmp_path)
        assert done.exit_code == 2 and "misses 100% of the changes" in done.stderr and "(adwin, page-hinkley" in done.stderr
    begun = instance(tmp_path)
    assert all(summarise(begun.journal(branch), branch).fork is None for branch in ("main", "other"))
    begin(begun.fold_spec, begun.backends("main"), "main")
    sent(tmp_path, rows(60, wrong=False, seed=1))
    status = facts(tmp_path)
    assert status["learned"] == 60 and str(status["drift_missed"]).startswith("hddm-w misses 100% of the changes")
    assert "one false alarm in 10,000 rows where losses are independent, more where they are not" in str(status["drift"])
