"""A pipeline that has learned good rows and then wrong ones, with an alarm that stands."""

from __future__ import annotations

import random
from pathlib import Path

from pipelines import PIPELINE, encoded, here, json_lines, millrace, pipeline_in

from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.instance import Instance

WATCHED = PIPELINE + "version_rows = 150\n\n[drift]\nfalse_alarm_rows = 2000\nper_class = false\n"
NAMES = ("rose", "tulip", "daisy")
GOOD, WRONG = 600, 300


def rows(count: int, wrong: bool, seed: int | None = None) -> list[bytes]:
    """Rows whose label follows from x; wrong ones have the next label instead. Without a ``seed``: of their count."""
    chance = random.Random(count if seed is None else seed)
    values = []
    for _ in range(count):
        kind = chance.randrange(3)
        x = [chance.randrange(5) + 12 * (kind == column) for column in range(4)]
        values.append(encoded({"x": x, "site": "north", "label": NAMES[(kind + wrong) % 3]}))
    return values


def learned(folder: Path, part: list[bytes], producer: str, *words: str) -> None:
    """Send, and learn."""
    (folder / "part.jsonl").write_bytes(b"\n".join(part))
    assert here("send", "digits.toml", "part.jsonl", "--header", f"producer={producer}", cwd=folder).exit_code == 0
    done = here("run", "digits.toml", *words, cwd=folder)
    assert done.exit_code == 0, done.stderr


def begin(folder: Path) -> Path:
    """All of it learned and verified."""
    pipeline_in(folder, text=WATCHED)
    good = rows(GOOD, wrong=False)
    learned(folder, good[: GOOD // 2], "till-1")
    learned(folder, good[GOOD // 2 :], "till-1")
    learned(folder, rows(WRONG, wrong=True), "till-7")
    assert here("verify", "digits.toml", cwd=folder).exit_code == 0
    return folder


def instance(folder: Path) -> Instance:
    """The pipeline with its state beside it."""
    return Instance(load_pipeline(folder / "digits.toml"), folder / ".millrace" / "digits")


def listed(folder: Path, *words: str) -> list[dict]:
    """The lines of `millrace alarms list`."""
    done = here("alarms", "list", "digits.toml", "--output", "json", *words, cwd=folder)
    assert done.exit_code == 0, done.stderr
    return json_lines(done.stdout)


def replayed(folder: Path, *words: str) -> None:
    """Planned and run; not taken over."""
    planned = here("replay", "plan", "digits.toml", *words, "--reason", "wrong", "--output", "json", cwd=folder)
    assert planned.exit_code == 0, planned.stderr
    plan = next(str(fact["value"]) for fact in json_lines(planned.stdout) if fact["what"] == "plan")
    done = millrace("replay", "run", "digits.toml", plan, cwd=folder)
    assert done.returncode == 0, done.stderr


def target(folder: Path) -> str:
    """Where a plain rollback would go."""
    done = here("rollback", "digits.toml", "--reason", "look", "--output", "json", cwd=folder)
    assert done.exit_code == 0, done.stderr
    return str(json_lines(done.stdout)[0]["to"])
