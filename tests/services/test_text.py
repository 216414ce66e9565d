"""Text from data and from people is text: it forges no row, commands no terminal, and ends nothing in a traceback."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from pipelines import MILLRACE, PIPELINE, clean_environment, encoded, here, json_lines, pipeline_in

from millrace.learners.errors import BadInputError
from millrace.services.cli import main
from millrace.services.cli.group import Commands, Printable
from millrace.services.cli.options import MOST_NAME, WIDEST, table
from millrace.services.errors import NotProvedError
from millrace.services.printable import MOST_WRITTEN, printable
from millrace.services.serving.events import event_of, line

HOSTILE = "x 0\nrejected  0\r\x1b[31mred\u202etxt\x9b1m\u2028next"
REASON = "done\nmain.99 \x1b]0;title\x07"
FOREIGN = "caf\udce9"  # as Python keeps a byte that is not UTF-8


def commands(group: click.Group = main, *above: str) -> Iterator[list[str]]:
    """The words of every command there is."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *above, name)
        else:
            yield [*above, name]


def unprintable(text: str) -> set[str]:
    """What of a command's output does not print, but for the ends of lines."""
    return {letter for letter in text if letter != "\n" and not letter.isprintable()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A pipeline with a class, a header and a reason of that kind, and a class that cp1252 lacks."""
    folder = tmp_path_factory.mktemp("hostile")
    pipeline_in(folder, text=PIPELINE)
    rows = [{"x": [at % 5, 1, 2, 3], "site": "north", "label": (HOSTILE, "\u0151")[at % 2]} for at in range(40)]
    (folder / "hostile.jsonl").write_bytes(b"\n".join([*map(encoded, rows), b'{"x": "\\u001b[2J"}']))
    sent = here("send", "digits.toml", "hostile.jsonl", "--header", f"producer={HOSTILE}", cwd=folder)
    assert sent.exit_code == 0 and here("run", "digits.toml", cwd=folder).exit_code == 0
    assert here("promote", "digits.toml", "newest", "--reason", REASON, "--yes", cwd=folder).exit_code == 0
    return folder


LOOKS = [["status"], ["log"], ["log", "--ledger"], ["versions"], ["dead-letters", "list"], ["dead-letters", "show", "0"]]
LOOKS += [["config", "show"], ["alarms", "list"], ["rollback", "--reason", REASON]]


def looking(words: list[str]) -> list[str]:
    """The words of a command on the pipeline."""
    group = 2 if words[0] in ("dead-letters", "config", "alarms") else 1
    return [*words[:group], "digits.toml", *words[group:]]


@pytest.mark.slow
@pytest.mark.parametrize("words", LOOKS, ids=" ".join)
def test_what_a_command_shows_is_one_row_for_each_fact_and_prints(folder: Path, words: list[str]) -> None:
    """As a table and as JSON; the row of the class has its name, escaped."""
    shown = here(*looking(words), cwd=folder)
    assert shown.exit_code == 0 and unprintable(shown.stdout + shown.stderr) == set()
    rows = json_lines(here(*looking(words), "--output", "json", cwd=folder).stdout)
    if words != ["rollback", "--reason", REASON]:  # its plan has several tables
        assert len(shown.stdout.splitlines()) == len(rows) + bool(rows)
    if words == ["status"]:
        (row,) = [text for text in shown.stdout.splitlines() if text.startswith("recall_x")]
        assert row.startswith("recall_x 0\\nrejected  0\\r\\x1b[31mred\\u202etxt\\x9b1m\\u2028next  ")


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii"])
def test_no_command_ends_in_a_traceback_on_a_terminal_of_another_encoding(folder: Path, encoding: str) -> None:
    """What the terminal lacks is shown by its number; usage errors that repeat such a word are, too."""
    for words in [*map(looking, LOOKS[:5]), ["status", "digits.toml", "--branch", "\u0151"], ["\u0151"]]:
        environment = clean_environment() | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"}
        done = subprocess.run([*MILLRACE, *words], cwd=folder, env=environment, capture_output=True, check=False)
        assert b"Traceback" not in done.stderr and done.returncode in (0, 2), done.stderr
        assert done.returncode == 0 or b"\\u0151" in done.stderr or "\u0151".encode() in done.stderr  # click's, of ASCII


@pytest.mark.parametrize("name", list(commands()), ids=" ".join)
def test_every_command_refuses_arguments_that_are_not_utf8(name: list[str], tmp_path: Path) -> None:
    """Wherever the word stands, in one sentence, before anything is opened; nothing is left behind."""
    for words in (
        [FOREIGN],
        ["digits.toml", FOREIGN],
        ["digits.toml", "--set", f"a={FOREIGN}"],
        ["--home", FOREIGN, "digits.toml"],
    ):
        done = here(*name, *words, cwd=tmp_path)
        assert done.exit_code == 2 and "is not UTF-8" in done.stderr and not done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_is_not_utf8_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """It comes from the environment, so no argument says so."""
    pipeline_in(tmp_path, rows=2)
    environment = {name.encode(): text.encode() for name, text in clean_environment().items()} | {b"MILLRACE_HOME": b"caf\xe9"}
    for words, says in (
        (["send", "digits.toml", "rows.jsonl"], b"is not UTF-8"),
        (["status", "digits.toml"], b"has no branch"),
    ):
        done = subprocess.run([*MILLRACE, *words], cwd=tmp_path, env=environment, capture_output=True, check=False)
        assert done.returncode == 1 and b"Traceback" not in done.stderr and says in done.stderr, done.stderr


def test_a_reason_and_a_name_are_bounded(tmp_path: Path) -> None:
    """A megabyte is refused, with its length, and so is what says nothing; as long as a paragraph is a reason."""
    pipeline_in(tmp_path, rows=2)
    for command in (["rollback"], ["promote", "newest"], ["serve", "newest"], ["replay", "abort"], ["run", "--past-rejects"]):
        words = looking_at(command)
        done = here(*words, "--reason", "z" * 1_000_000, cwd=tmp_path)
        assert done.exit_code == 2 and "it has 1,000,000 characters; say why in at most 1,000" in done.stderr
        assert len(done.stderr) < 1000
        assert here(*words, "--reason", "z" * MOST_WRITTEN, cwd=tmp_path).exit_code != 2 or command == ["replay", "abort"]
    long = here("status", "digits.toml", "--branch", "b" * (MOST_NAME + 1), cwd=tmp_path)
    assert long.exit_code == 2 and "at most 100 are the name of a branch" in long.stderr


def looking_at(words: list[str]) -> list[str]:
    """A command's words with the pipeline after its name."""
    return [*words[:2], "digits.toml", *words[2:]] if words[0] == "replay" else [words[0], "digits.toml", *words[1:]]


def test_one_very_long_cell_makes_no_column_wide() -> None:
    """A reason that an earlier release took stands in its own row, and pads no other."""
    lines = table([{"a": "x", "b": "one"}, {"a": "y" * 100_000, "b": "two"}, {"a": "z" * WIDEST, "b": "three"}])
    assert lines[1] == f"{'x':<{WIDEST}}  one" and len(lines[2]) > 100_000
    assert all(len(lines[at]) < 200 for at in (0, 1, 3))


def test_log_lines_are_escaped_and_a_second_line_is_set_in() -> None:
    """Of a command and of every process of `up`; as JSON they are one line anyway."""
    record = logging.LogRecord("millrace", logging.INFO, "", 0, "class %s", (HOSTILE,), None)
    text = Printable("%(levelname)s %(message)s").format(record)
    assert unprintable(text) == set() and re.fullmatch(r"INFO class x 0\\nrejected  0\\r\\x1b\[31mred[^\n]*", text)
    event = event_of(record, "trainer", "main")
    assert line(event, "text") == text.replace("INFO ", "INFO trainer: ")
    assert "\n" not in line(event, "json") and json.loads(line(event, "json"))["message"] == event.message
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        record.exc_info = sys.exc_info()
    for shown in (Printable("%(levelname)s %(message)s").format(record), line(event_of(record, "up", ""), "text")):
        first, *rest = shown.splitlines()
        assert first == text and rest[0] == "  Traceback (most recent call last):" and all(part[:2] == "  " for part in rest)


def test_an_error_is_one_line_whatever_stands_in_it_and_findings_are_a_line_each() -> None:
    """A value of a record or a file would else be a line of its own, and could say what it liked."""
    for error, expected in (
        (BadInputError(f"no class {HOSTILE!s}."), 1),
        (NotProvedError("\n".join([printable(f"Version {HOSTILE}"), "Version main.3"])), 2),
    ):
        group, raising = Commands(), error

        @group.command()
        def fails(raising: Exception = raising) -> None:
            raise raising

        done = CliRunner().invoke(group, ["fails"])
        assert done.exit_code in (1, 2) and unprintable(done.stderr) == set()
        assert len(done.stderr.splitlines()) == expected and "\\nrejected  0" in done.stderr.splitlines()[0]


@pytest.mark.slow
def test_what_cannot_be_printed_ends_a_command_in_a_sentence(folder: Path) -> None:
    """On a disk that is full, and of the help as well."""
    for words in (["status", "digits.toml"], ["--help"]):
        with Path("/dev/full").open("w", encoding="utf-8") as full:
            done = subprocess.run(
                [*MILLRACE, *words],
                cwd=folder,
                env=clean_environment(),
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert done.returncode == 1 and done.stderr.startswith("millrace: nothing can be printed: No space left on device.")
        assert len(done.stderr.splitlines()) == 1


def test_what_prints_is_left_as_it_is() -> None:
    """Letters of every script, and emoji."""
    for text in ("north", "Zürich \u0151 \u4e2d\u6587 \U0001f600", ""):
        assert printable(text) == text
