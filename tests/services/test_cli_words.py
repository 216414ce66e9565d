"""Words of a command that could mean something else, or nothing: one clear sentence, whatever the terminal speaks."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from pipelines import MILLRACE, TIMEOUT_S, clean_environment, here, millrace, pipeline_in

from millrace.services.cli.replay import KINDS


def test_words_that_are_not_utf8_are_refused_and_what_a_terminal_lacks_is_replaced(tmp_path: Path) -> None:
    """In one sentence, whatever the terminal speaks; nothing is left behind."""
    pipeline_in(tmp_path, rows=3)
    foreign = "f\udcfcr"  # as Python keeps a byte that is not UTF-8
    for words in (["send", "digits.toml", "rows.jsonl", "--header", foreign], ["status", "digits.toml", "--set", foreign]):
        done = here(*words, cwd=tmp_path)
        assert done.exit_code == 2 and "\\udcfcr' is not UTF-8" in done.stderr, done.stderr
    text = (tmp_path / "digits.toml").read_text().replace('"north"', '"n\u0151rth"')
    (tmp_path / "digits.toml").write_text(text)
    done = millrace("config", "show", "digits.toml", cwd=tmp_path, env={"PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 0 and "n\\u0151rth" in done.stdout and not done.stderr, done.stderr


TIMES = {  # what is refused, and the readings that are named
    "20260329..20260330": r"As milliseconds it is 1970-01-01T06:37:40\+01:00; .* as a date it is 2026-03-29T00:00:00\.",
    "1774746600..1774747800": r"As milliseconds it is 1970-01-21T.*; as seconds it is 2026-03-29T03:10:00\+02:00",
    "202603290210..202603290230": r"As milliseconds it is 1976-.*; as a date it is 2026-03-29T02:10:00\.",
    "20260329021000..20260329023000": r"As milliseconds it is 2612-.*; as a date it is 2026-03-29T02:10:00\.",
    "2026..2027": "As milliseconds it is 1970-",
    "2025-10-26T02:10..2025-10-26T02:30": r"shows it twice: 2025-10-26T02:10:00\+02:00 and 2025-10-26T02:10:00\+01:00",
    "2026-03-29T02:30..2026-03-29T03:10": r"never shows it; write 2026-03-29T01:30:00\+01:00 or 2026-03-29T03:30",
    "2026-03-29T02:00..2026-03-29T03:00": "never shows it",  # an hour long, in a zone that has no such hour
}


@pytest.mark.parametrize(("text", "says"), TIMES.items())
def test_a_time_that_could_mean_another_is_refused(text: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dates without dashes and seconds as milliseconds; an hour that comes twice, or never. Each reading is named."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    excluded_time = KINDS["exclude_time"]
    try:
        with pytest.raises(click.BadParameter, match=says):
            excluded_time(text)
        assert excluded_time("2025-10-26T02:10+02:00..2025-10-26T02:10+01:00").stop_ms - 3_600_000 == 1_761_437_400_000
        assert excluded_time("0..4102444800000").start_ms == 0
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--from", "main.3", "--exclude-time", "0001-01-01T00:00+14:00..2026-01-01"], "write FROM..TO"),
        (["--from", "main.3", "--exclude-time", "2026-01-01..9999-12-31T23:59-14:00"], "write FROM..TO"),
        (["--from-time", "0001-01-01T00:00+14:00"], "write a date and time"),
        (["--from", "main.3", "--exclude-offsets", f"digits:0:0-{'9' * 5000}"], "write TOPIC:PARTITION:FIRST-LAST"),
        (["--from", "main.3", "--exclude-offsets", f"digits:0:{'9' * 5000}-{'9' * 5001}"], "write TOPIC:PARTITION:FIRST-LAST"),
        (["--from-offsets", f"digits:0={'9' * 5000}"], "write TOPIC:PARTITION=OFFSET"),
    ],
)
def test_a_number_or_a_year_beyond_every_log_is_refused_in_a_sentence(words: list[str], says: str, tmp_path: Path) -> None:
    """An end of the calendar in another zone, and more digits than Python reads."""
    pipeline_in(tmp_path, rows=2)
    done = here("replay", "plan", "digits.toml", *words, "--reason", "r", cwd=tmp_path)
    assert done.exit_code == 2 and says in done.stderr and isinstance(done.exception, SystemExit), done.exception


def modes_of_what_is_made(folder: Path, command: list[str]) -> set[int]:
    """The bits for group and others on all folders and files of a pipeline that sends and learns."""
    pipeline_in(folder, rows=20)
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        subprocess.run([*command, *words], cwd=folder, env=clean_environment(), check=True, timeout=TIMEOUT_S)
    made = [folder / ".millrace", *(folder / ".millrace").rglob("*")]
    assert len(made) > 5
    return {path.stat().st_mode & 0o077 for path in made}


def test_what_a_command_makes_is_its_owners_alone(tmp_path: Path) -> None:
    """No bit for group or others, whatever the shell's umask is; a command that leaves the mask alone is caught."""
    (tmp_path / "ours").mkdir()
    (tmp_path / "twin").mkdir()
    assert modes_of_what_is_made(tmp_path / "ours", ["sh", "-c", 'umask 022; exec "$@"', "-", *MILLRACE]) == {0}
    leaves = "import os; os.umask(0o022); os.umask = lambda mask: 0o022; "
    assert modes_of_what_is_made(tmp_path / "twin", [sys.executable, "-c", leaves + MILLRACE[-1]]) & {0o044, 0o055}


def test_an_environment_of_the_old_name_says_so_where_the_version_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence, and no traceback."""
    monkeypatch.setattr("millrace.learners.distribution.NAME", "learning-nope")
    done = here("--version", cwd=Path.cwd())
    assert done.exit_code == 1 and done.stderr.startswith("millrace: This environment has millrace, but not as learning-nope")
