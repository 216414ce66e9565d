"""The command line as a user meets it: help that holds, pipes that parse, exit codes, and two processes on one branch."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pipelines
import pytest
from click.testing import Result
from pipelines import MILLRACE, PIPELINE, TIMEOUT_S, clean_environment, facts, flower_rows, json_lines, millrace, pipeline_in

from millrace.services.cli import main
from millrace.services.data import datasets

WORDS = {
    "run": ["run"],
    "send": ["send"],
    "status": ["status"],
    "log": ["log"],
    "verify": ["verify"],
    "versions": ["versions"],
    "drafts": ["drafts"],
    "promote": ["promote"],
    "export": ["export"],
    "mirror": ["mirror"],
    "config show": ["config", "show"],
    "rollback": ["rollback"],
    "serve": ["serve"],
    "up": ["up"],
    **{f"dead-letters {verb}": ["dead-letters", verb] for verb in ("list", "show", "redrive")},
    **{f"alarms {verb}": ["alarms", verb] for verb in ("list", "show", "close")},
    **{f"replay {verb}": ["replay", verb] for verb in ("plan", "run", "resume", "diff", "take-over", "include", "abort")},
}
# In which the examples make sense; `up` and `mirror` go on until Ctrl-C, `replay resume` goes on with what was killed: all of
# them have tests of their own, and so have `drafts`, which is for a pipeline of completions, and `alarms`, for one with drift.
ORDER = ["config show", "send", "run", "status", "log", "verify", "versions", "promote", "export", "rollback", "serve"]
ORDER += ["replay plan", "replay run", "replay diff", "replay take-over", "replay include", "replay abort"]
ORDER += ["dead-letters list", "dead-letters show", "dead-letters redrive"]
ELSEWHERE = {"up", "mirror", "replay resume", "drafts", "alarms list", "alarms show", "alarms close"}
MORE = {
    "dead-letters show": ["0"],
    "dead-letters redrive": ["--reason", "mended"],
    "send": ["rows.jsonl"],
    "promote": ["newest", "--reason", "best"],
    "export": ["newest", "exported"],
    "rollback": ["--reason", "garbage"],
    "serve": ["--follow", "main", "--reason", "mended"],
    "replay plan": ["--from", "VERSION", "--exclude-offsets", "digits:0:20-39", "--reason", "garbage"],
    "replay run": ["PLAN"],
    "replay take-over": ["--reason", "mended"],
    "replay include": ["digits:0 offsets 20 to 39", "--branch", "replay-1", "--reason", "mended"],
    "replay abort": ["--reason", "mended"],
}


def commands(group: click.Group = main, above: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command there is, by its words."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{above}{name} ")
        else:
            yield above + name, command


def placed(folder: Path, words: list[str]) -> list[str]:
    """The words with the oldest version and the newest plan in the place of VERSION and PLAN."""
    if "VERSION" in words:
        lines = json_lines(millrace("versions", "digits.toml", "--output", "json", cwd=folder).stdout)
        words = [str(lines[0]["version"]) if word == "VERSION" else word for word in words]
    plans = sorted(folder.glob(".millrace/digits/plans/replay/*"), key=lambda path: path.stat().st_mtime)
    return [plans[-1].name if word == "PLAN" else word for word in words]


def here(*words: str | Path) -> Result:
    """A command in this process and this folder; standard output and error apart."""
    return pipelines.here(*words, cwd=Path.cwd())


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test in its own folder, with no pipeline set from outside and the signals put back."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MILLRACE_")]:
        monkeypatch.delenv(name)
    yield
    logging.getLogger("millrace").setLevel(logging.NOTSET)


def test_every_command_is_listed_here() -> None:
    """A new one must be tried as these are."""
    assert {name for name, _ in commands()} == set(WORDS) == {*ORDER, *ELSEWHERE}


@pytest.mark.parametrize("name", WORDS)
def test_every_command_has_help_with_an_example_of_itself(name: str) -> None:
    """Under -h and --help, exit 0, every option with a word of help."""
    done = here(*WORDS[name], "--help")
    assert done.exit_code == 0 and done.stdout == here(*WORDS[name], "-h").stdout and not done.stderr
    assert f"Example: millrace {name} {'llm' if name == 'drafts' else 'digits'}.toml" in done.stdout
    command = dict(commands())[name]
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_the_groups_have_help_and_the_program_its_version() -> None:
    """And no command at all shows what there is."""
    for words in (["--help"], ["config", "--help"], ["--version"]):
        assert here(*words).exit_code == 0
    assert all(name.split()[0] in here("--help").stdout for name in WORDS)
    assert re.search(r"\d+\.\d+\.\d+", here("--version").stdout)


@pytest.mark.slow
def test_every_example_in_the_help_runs(tmp_path: Path) -> None:
    """In this order, in a folder with that pipeline file, each with exit 0 and something on standard output."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn, the extra `demo`")
    (tmp_path / "digits.toml").write_text(datasets.pipeline_toml("digits"), encoding="utf-8")
    (tmp_path / "broken.jsonl").write_text("{\n", encoding="utf-8")  # else there is no dead letter to show
    till = ["--header", "producer=till-7"]  # whose records the example of `replay plan` leaves out
    assert here("send", "digits.toml", "broken.jsonl", *till).exit_code == 0
    helps = {name: here(*WORDS[name], "--help").stdout for name in ORDER}
    for name in ORDER:
        (example,) = re.findall(r"Example: millrace (.*)", helps[name])
        done = millrace(*placed(tmp_path, shlex.split(example)), cwd=tmp_path)
        assert done.returncode == 0 and done.stdout, f"{name}: {done.stderr}"


@pytest.mark.slow
def test_standard_output_is_json_lines_and_nothing_else_and_progress_goes_to_standard_error(tmp_path: Path) -> None:
    """For every command, with a record that cannot be read among the good ones, so that there is something to say."""
    pipeline_in(tmp_path)
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([*flower_rows(60), b'{"x": "no"}']))
    printed = {}
    for name in ORDER:
        words = [*WORDS[name], "digits.toml", *placed(tmp_path, MORE.get(name, [])), "--output", "json"]
        done = millrace(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        printed[name] = json_lines(done.stdout)
        assert printed[name] and all(isinstance(line, dict) for line in printed[name])
        assert "\x1b" not in done.stdout + done.stderr
        assert (name in ("run", "verify", "replay run")) >= ("records" in done.stderr)
    assert printed["send"] == [{"topic": "digits", "sent": 61}]
    assert (printed["run"][0]["read"], printed["run"][0]["branch"]) == (61, "main")
    assert [line["kind"] for line in printed["log"]][:2] == ["fork", "open"] and printed["log"][-1]["said"]["version"]
    assert printed["verify"][0]["proved"] == [printed["run"][0]["version"]]
    ledger = json_lines(millrace("log", "digits.toml", "--ledger", "--output", "json", cwd=tmp_path).stdout)
    assert [line["kind"] for line in ledger][:2] == ["serve", "certificate"]
    assert [line["state"] for line in ledger if line["kind"] == "operation"] == ["planned", "running", "done"]


def test_a_table_has_a_heading_and_a_line_for_each_row(tmp_path: Path) -> None:
    """The default output, for eyes."""
    pipeline_in(tmp_path)
    lines = here("config", "show", "digits.toml").stdout.splitlines()
    rows = json_lines(here("config", "show", "digits.toml", "--output", "json").stdout)
    assert lines[0].split() == ["KEY", "VALUE", "FROM"] and len(lines) == len(rows) + 1
    assert any(line.split() == ["learner.gamma", "0.5", "digits.toml"] for line in lines)


MISUSED = [
    ["run"],
    ["run", "nowhere.toml"],
    ["run", "."],
    ["run", "digits.toml", "--rows", "many"],
    ["run", "digits.toml", "--rows", "-5"],
    ["run", "digits.toml", "--branch", "../../elsewhere"],
    ["run", "digits.toml", "--branch", ""],
    ["run", "digits.toml", "--set", "learner.gama=2"],
    ["run", "digits.toml", "--set", "seed"],
    ["run", "digits.toml", "--set", "log.partitions=0"],
    ["run", "digits.toml", "--nonsense"],
    ["send", "digits.toml"],
    ["send", "digits.toml", "nowhere.jsonl"],
    ["send", "digits.toml", "digits.toml"],
    ["send", "digits.toml", "rows.jsonl", "--data", "digits"],
    ["send", "digits.toml", "--data", "nonsense"],
    ["send", "digits.toml", "rows.jsonl", "--rows-per-second", "-1"],
    ["send", "digits.toml", "latin.csv"],
    ["send", "digits.toml", "broken.csv"],
    ["send", "digits.toml", "wide.csv"],
    ["send", "digits.toml", "twice.csv"],
    ["status", "digits.toml", "--output", "xml"],
    ["log"],
    ["verify", "digits.toml", "more"],
    ["rollback", "digits.toml"],
    ["rollback", "digits.toml", "--reason", " "],
    ["promote", "digits.toml", "main.3"],
    ["export", "digits.toml", "main.3", "digits.toml"],
    ["mirror", "digits.toml", "--once"],
    ["promote", "digits.toml", "main.3", "--alias", "v7", "--reason", "reserved"],
    ["promote", "digits.toml", "main.3", "--alias", "a/b", "--reason", "no name"],
    ["serve", "digits.toml", "--reason", "neither"],
    ["serve", "digits.toml", "main.3", "--follow", "main", "--reason", "both"],
    ["up", "digits.toml", "--tokens", "nowhere"],
    ["up", "digits.toml", "--port", "8001"],
    ["up", "digits.toml", "--grpc-port", "0"],
    ["up", "digits.toml", "--host", "nowhere"],
    ["up", "digits.toml", "--port", "0"],
    ["dead-letters"],
    ["dead-letters", "show", "digits.toml", "first"],
    ["dead-letters", "redrive", "digits.toml", "--yes"],
    ["replay"],
    ["replay", "plan", "digits.toml", "--reason", "no version"],
    ["replay", "plan", "digits.toml", "--from", "main.3", "--from-start", "--reason", "both"],
    ["replay", "plan", "digits.toml", "--from-offsets", "digits=5", "--reason", "r"],
    ["replay", "plan", "digits.toml", "--from-offsets", "digits:0=x", "--reason", "r"],
    ["replay", "plan", "digits.toml", "--from-offsets", "digits:0=\u00b2", "--reason", "r"],
    ["replay", "plan", "digits.toml", "--from-time", "yesterday", "--reason", "r"],
    ["replay", "plan", "digits.toml", "--from-start", "--backfill", "nowhere.jsonl", "--reason", "r"],
    ["run", "digits.toml", "--warm-start", "nowhere.jsonl"],
    *(
        ["replay", "plan", "digits.toml", "--from", "main.3", "--reason", "r", f"--exclude-{kind}", text]
        for kind, texts in {
            "header": ["till-7", "=till-7"],
            "offsets": ["digits:0", "digits:0:9-3", "0:3-9", "digits:0:a-b", "digits:0:0-\u00b2"],
            "time": ["yesterday..today", "2026-11-21T03:00..2026-11-21T02:00", "5"],
        }.items()
        for text in texts
    ),
    ["replay", "run", "digits.toml"],
    ["replay", "include", "digits.toml"],
    ["replay", "run", "digits.toml", "abcdef"],
    ["send", "digits.toml", "rows.jsonl", "--header", "till-7"],
    ["config"],
    ["config", "show"],
    ["nonsense"],
]


@pytest.mark.parametrize("words", MISUSED, ids=" ".join)
def test_a_misused_command_exits_2_says_why_on_standard_error_and_leaves_nothing(words: list[str], tmp_path: Path) -> None:
    """Nothing on standard output, no traceback, no state folder of a pipeline that was not meant."""
    pipeline_in(tmp_path, rows=3)
    (tmp_path / "latin.csv").write_bytes("x,label\n1,m\u00fcll\n".encode("latin-1"))
    (tmp_path / "broken.csv").write_text('x,label\n1,"open\n')
    (tmp_path / "wide.csv").write_text("x,label\n1,a,3,4\n")
    (tmp_path / "twice.csv").write_text("x,label,x\n1,a,3\n")
    done = here(*words)
    assert done.exit_code == 2 and not done.stdout and done.stderr.strip() and "Traceback" not in done.stderr
    assert not [path for path in tmp_path.rglob("*.sqlite") if path.name != "log.sqlite"]


@pytest.mark.parametrize("name", ["status", "log", "verify"])
def test_looking_at_a_branch_that_is_not_there_exits_1_and_makes_none(name: str, tmp_path: Path) -> None:
    """It names the branches there are."""
    pipeline_in(tmp_path)
    done = here(name, "digits.toml")
    assert done.exit_code == 1 and "has no branch main. There are: none yet; begin with `millrace run`" in done.stderr
    assert not done.stdout and not (tmp_path / ".millrace").exists()


def test_the_same_pipeline_with_another_number_of_partitions_is_refused(tmp_path: Path) -> None:
    """A topic's partitions are fixed when it is made."""
    pipeline_in(tmp_path, rows=3)
    assert here("send", "digits.toml", "rows.jsonl").exit_code == 0
    done = here("send", "digits.toml", "rows.jsonl", "--set", "log.partitions=2")
    assert done.exit_code == 2 and "has 1 partitions, not 2" in done.stderr


def test_csv_cells_become_what_the_schema_takes_them_for(tmp_path: Path) -> None:
    """JSON numbers stay numbers, empty cells and NaN are null, columns declared as text stay text, and nothing is guessed."""
    from millrace.services.data.send import values_of
    from millrace.streams.schema import Field, Label, Schema

    path = tmp_path / "rows.csv"
    path.write_text('a,b,town,label\n1,2.5,007,1\n-3,1e3,,true\n007,nan,1_000,x "y"\n', encoding="utf-8")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # the mark that a spreadsheet writes
    schema = Schema((Field("a"), Field("b"), Field("town", type="categorical", categories="hash", max=4)), Label("label"))
    assert [json.loads(value) for value in values_of(path, schema)] == [
        {"a": 1, "b": 2.5, "town": "007", "label": "1"},
        {"a": -3, "b": 1000.0, "town": None, "label": "true"},
        {"a": "007", "b": None, "town": "1_000", "label": 'x "y"'},
    ]


def test_a_send_that_stops_midway_says_how_much_is_in_the_log(tmp_path: Path) -> None:
    """Sending the file again from its beginning would double those rows."""
    pipeline_in(tmp_path)
    good = "x,label\n" + "1,a\n" * 2500
    (tmp_path / "half.csv").write_text(good + "1,a,too many\n")
    done = millrace("send", "digits.toml", "half.csv", cwd=tmp_path)
    assert done.returncode == 2
    assert "The first 2000 records are in the log" in done.stderr
    lines = ["x,label", *["1,a"] * 2500, "1,a,too many"]
    (tmp_path / "one.toml").write_text(
        'name = "one"\nfields = [{ name = "x" }]\nlabel = { name = "label" }\nlearner = { kind = "ridge" }\n'
    )
    (tmp_path / "half.csv").write_text("\n".join(lines))
    arrow = here("send", "one.toml", "half.csv", "--format", "arrow", "--rows-per-message", "2")
    assert "The first 1000 records, which hold its first 2000 rows, are in the log" in arrow.stderr
    assert "Nothing was sent" in here("send", "digits.toml", "nowhere.csv").stderr


def begun(tmp_path: Path, *more: str) -> subprocess.Popen[str]:
    """A live `run --follow` that has the branch and has caught up."""
    if not (tmp_path / "digits.toml").exists():
        pipeline_in(tmp_path, rows=60)
        assert millrace("send", "digits.toml", "rows.jsonl", cwd=tmp_path).returncode == 0
    command = [*MILLRACE, "run", "digits.toml", "--follow", "--output", "json", *more]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until(process, lambda: facts(tmp_path).get("lag_rows") == 0)
    return process


def until(process: subprocess.Popen[str], true) -> None:
    """Wait until something is true, while the process lives."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s, "it never came true"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_cleanly_with_a_version(number: signal.Signals, tmp_path: Path) -> None:
    """The step is finished, the state is marked, exit 0; the next run has nothing to learn."""
    process = begun(tmp_path)
    process.send_signal(number)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    (done,) = json_lines(out)
    assert done["read"] == 60 and done["version"] == f"main.{facts(tmp_path)['seq'] - 1}" and "Traceback" not in err
    again = json_lines(millrace("run", "digits.toml", "--output", "json", cwd=tmp_path).stdout)
    assert (again[0]["read"], again[0]["version"], again[0]["epoch"]) == (0, done["version"], 2)


@pytest.mark.slow
def test_a_second_run_is_refused_while_the_first_lives_and_names_it(tmp_path: Path) -> None:
    """Exit 1, the process id, the lock's path and the way to take over; the first is not disturbed."""
    process = begun(tmp_path)
    second = millrace("run", "digits.toml", cwd=tmp_path)
    assert second.returncode == 1 and not second.stdout
    assert f"Branch main is being written by process {process.pid} since 20" in second.stderr
    assert "main.lock" in second.stderr and "--take-over" in second.stderr and "Traceback" not in second.stderr
    assert millrace("run", "digits.toml", "--branch", "other", cwd=tmp_path).returncode == 0
    process.terminate()
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    assert millrace("run", "digits.toml", cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_a_run_that_takes_over_makes_the_first_stop_with_the_message(tmp_path: Path) -> None:
    """The first lets nothing more out; every record is learned once; the log proves it."""
    first = begun(tmp_path)
    second = begun(tmp_path, "--take-over")
    until(second, lambda: facts(tmp_path).get("epoch") == 2)
    out, err = first.communicate(timeout=TIMEOUT_S)  # it had nothing to do, and heard of it all the same
    assert millrace("send", "digits.toml", "rows.jsonl", cwd=tmp_path).returncode == 0
    assert first.returncode == 1 and not out and "Traceback" not in err
    assert "Another writer has taken it" in err and "Nothing that does not count was let out" in err
    until(second, lambda: facts(tmp_path).get("records") == 120)
    third = millrace("run", "digits.toml", cwd=tmp_path)
    assert third.returncode == 1 and f"being written by process {second.pid} " in third.stderr, "the second holds it now"
    second.terminate()
    out, err = second.communicate(timeout=TIMEOUT_S)
    assert second.returncode == 0 and json_lines(out)[0]["epoch"] == 2, err
    status = facts(tmp_path)
    assert (status["learned"], status["waiting"], status["lag_rows"]) == (120, 0, 0)
    assert millrace("verify", "digits.toml", cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_a_run_takes_over_from_an_owner_that_goes_on_writing(tmp_path: Path) -> None:
    """It opens after whatever the owner wrote last, however often that is."""
    pipeline_in(tmp_path, rows=4000, text=PIPELINE + "step_rows = 1\n")
    assert millrace("send", "digits.toml", "rows.jsonl", cwd=tmp_path).returncode == 0
    command = [*MILLRACE, "run", "digits.toml", "--follow"]
    first = subprocess.Popen(command, cwd=tmp_path, env=clean_environment(), stderr=subprocess.PIPE, text=True)
    until(first, lambda: (facts(tmp_path).get("records") or 0) > 0)
    second = millrace("run", "digits.toml", "--take-over", cwd=tmp_path)
    _, err = first.communicate(timeout=TIMEOUT_S)
    assert (first.returncode, second.returncode) == (1, 0), second.stderr
    assert "Another writer has taken it" in err
    assert (facts(tmp_path)["epoch"], facts(tmp_path)["learned"]) == (2, 4000)
    assert millrace("verify", "digits.toml", cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_a_bounded_run_stops_after_its_rows_and_the_next_goes_on(tmp_path: Path) -> None:
    """At the end of the step in which they were reached."""
    pipeline_in(tmp_path, rows=90, text=PIPELINE + "step_rows = 10\n")
    assert millrace("send", "digits.toml", "rows.jsonl", cwd=tmp_path).returncode == 0
    runs = [
        json_lines(millrace("run", "digits.toml", *more, "--output", "json", cwd=tmp_path).stdout)[0]
        for more in (["--rows", "25"], [])
    ]
    assert [run["read"] for run in runs] == [30, 60] and facts(tmp_path)["records"] == 90
