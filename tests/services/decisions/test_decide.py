"""Rollback with nothing running: a ledger entry, its undo, and what happens when two operators reach for it at once."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pipelines import MILLRACE, PIPELINE, clean_environment, here, json_lines, millrace, pipeline_in

from millrace.services.config.config import load_pipeline
from millrace.services.decisions.decide import decide, plan
from millrace.services.decisions.rollback import plan_rollback
from millrace.services.errors import NotCountedError
from millrace.services.pipeline.instance import Instance
from millrace.streams.errors import DamageError
from millrace.streams.journal.ledger import Serve, Target, append_decision

HEAVY = {"http", "kafka", "mlflow", "pandas", "pyarrow", "ray", "river", "scipy", "torch"}  # http brings ssl and email


@pytest.fixture
def learned(tmp_path: Path) -> Instance:
    """A pipeline that has learned twice, and so has two versions; nothing runs."""
    pipeline_in(tmp_path, text=PIPELINE)
    for _ in range(2):
        assert here("send", "digits.toml", "rows.jsonl", cwd=tmp_path).exit_code == 0
        assert millrace("run", "digits.toml", cwd=tmp_path).returncode == 0
    return Instance(load_pipeline(tmp_path / "digits.toml"), tmp_path / ".millrace" / "digits")


def versions(folder: Path) -> list[str]:
    """Of branch main, oldest first."""
    lines = json_lines(here("log", "digits.toml", "--output", "json", cwd=folder).stdout)
    return [line["said"]["version"] for line in lines if line["said"].get("version")]


def serving(instance: Instance) -> Target:
    """What the ledger says."""
    return instance.ledger().serving["default"]


@pytest.mark.slow
def test_a_rollback_is_planned_done_undone_and_needs_nothing_that_runs(learned: Instance, tmp_path: Path) -> None:
    """The plan changes nothing; --yes does it and prints the undo last; versions go back one by one."""
    first, second = versions(tmp_path)
    planned = here("rollback", "digits.toml", "--reason", "garbage", cwd=tmp_path)
    assert planned.exit_code == 0 and second in planned.stdout and "Nothing was changed" in planned.stderr
    assert serving(learned) == Target(follow="main")
    for seen, expected in (("main", second), (second, first)):
        done = here("rollback", "digits.toml", "--while", seen, "--reason", "it's garbage", "--yes", cwd=tmp_path)
        assert done.exit_code == 0 and serving(learned) == Target(version=expected)
    assert learned.ledger().counted[-1].why == "it's garbage"
    again = here("rollback", "digits.toml", "--while", first, "--reason", "more", "--yes", cwd=tmp_path)
    assert again.exit_code == 1 and f"no version before version {first}" in again.stderr
    undo = shlex.split(done.stderr.splitlines()[-1].removeprefix("undo: millrace "))
    assert here(*undo, cwd=tmp_path).exit_code == 0 and serving(learned) == Target(version=second)
    assert here("serve", "digits.toml", "--follow", "main", "--reason", "mended", "--yes", cwd=tmp_path).exit_code == 0
    assert here("serve", "digits.toml", "--follow", "main", "--reason", "again", "--yes", cwd=tmp_path).exit_code == 0
    assert serving(learned) == Target(follow="main") and len(learned.ledger().counted) == 5


@pytest.mark.slow
def test_of_two_operators_who_go_back_at_once_the_second_is_refused_with_the_decision_of_the_first(
    learned: Instance, tmp_path: Path
) -> None:
    """Else they would go two steps back. Who has seen it says so; who names a version means that one."""
    first, second = versions(tmp_path)
    words = [*MILLRACE, "rollback", "digits.toml", "--reason", "garbage", "--yes"]
    environment = clean_environment() | {"LOGNAME": "ann"}
    both = [subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = {process.returncode: text for process in both for text in [process.communicate()[1]]}
    assert sorted(errors) == [0, 1] and serving(learned) == Target(version=second), errors
    late = here("rollback", "digits.toml", "--reason", "mine", "--yes", cwd=tmp_path)
    assert late.exit_code == 1 and f"version {second}, since 20" in late.stderr and "by ann (garbage)" in late.stderr
    assert f"--while {second}" in late.stderr and serving(learned) == Target(version=second)
    planned = here("rollback", "digits.toml", "--reason", "mine", cwd=tmp_path)
    assert planned.exit_code == 0 and f"In force: version {second}, since 20" in planned.stderr
    stale = here("rollback", "digits.toml", "--while", "main", "--reason", "mine", "--yes", cwd=tmp_path)
    assert stale.exit_code == 1 and f"--while main: in force is version {second}" in stale.stderr
    named = here("rollback", "digits.toml", second, "--while", "main", "--reason", "mine", "--yes", cwd=tmp_path)
    assert named.exit_code == 1 and serving(learned) == Target(version=second)
    assert here("rollback", "digits.toml", first, "--reason", "mine", "--yes", cwd=tmp_path).exit_code == 0
    assert serving(learned) == Target(version=first)


@pytest.mark.slow
def test_a_decision_of_an_hour_ago_holds_nobody_back(learned: Instance, tmp_path: Path) -> None:
    """Within a minute it is another's; by then it is what everybody sees."""
    first, second = versions(tmp_path)
    hour_ago = time.time_ns() // 1_000_000 - 3_600_000
    before = serving(learned)
    earlier = Serve(who="ann", why="old", when_ms=hour_ago, endpoint="default", before=before, to=Target(version=second))
    append_decision(learned.ledger_stream(), earlier)
    done = here("rollback", "digits.toml", "--reason", "mine", "--yes", cwd=tmp_path)
    assert done.exit_code == 0 and serving(learned) == Target(version=first), done.stderr


@pytest.mark.slow
def test_a_decision_that_came_second_is_reported_as_not_counted(learned: Instance, tmp_path: Path) -> None:
    """Both operators planned from the same truth; one is told."""
    first, second = versions(tmp_path)
    mine, theirs = plan(learned, Target(version=first)), plan(learned, Target(version=second))
    decide(learned, theirs, "theirs")
    with pytest.raises(NotCountedError, match=f"serve version {second}"):
        decide(learned, mine, "mine")
    assert serving(learned) == Target(version=second)


@pytest.mark.slow
def test_what_is_not_there_or_not_whole_is_never_served(learned: Instance, tmp_path: Path) -> None:
    """An unknown version or branch is refused with those there are; a version with a damaged part by its hash."""
    for words in (["main.999"], ["other.3"], ["nonsense"], ["--follow", "other"]):
        done = here("serve", "digits.toml", *words, "--reason", "try", "--yes", cwd=tmp_path)
        assert done.exit_code == 1 and done.stderr.strip() and not done.stdout
    for part in (learned.folder / "store" / "main").iterdir():
        part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(DamageError):
        plan_rollback(learned, None)
    assert serving(learned) == Target(follow="main")


@pytest.mark.slow
def test_deciding_imports_nothing_that_takes_long(learned: Instance, tmp_path: Path) -> None:
    """Most of a rollback is the imports of its command; and what is large may be broken when a rollback is needed."""
    code = (
        "import sys\nfrom millrace.services.cli import main\n"
        "main(['rollback', 'digits.toml', '--reason', 'r', '--yes'], standalone_mode=False)\n"
        f"print({HEAVY} & {{name.split('.')[0] for name in sys.modules}})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "set()", done.stderr
