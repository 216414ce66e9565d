"""Drift as an operator meets it: garbage arrives, an alarm says since when, and a plain rollback goes to before it."""

from __future__ import annotations

import random
from pathlib import Path

from rooms import PIPELINE, encoded, facts, here, json_lines, pipeline_in

WATCHED = PIPELINE + "version_rows = 150\n\n[drift]\nfalse_alarm_rows = 2000\nper_class = false\n"
NAMES = ("rose", "tulip", "daisy")


def rows(count: int, seed: int, poison: bool) -> list[bytes]:
    """Rows whose label follows from x; poisoned ones have the next label instead."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        kind = chance.randrange(3)
        x = [chance.randrange(5) + 12 * (kind == column) for column in range(4)]
        found.append(encoded({"x": x, "site": "north", "label": NAMES[(kind + poison) % 3]}))
    return found


def sent(folder: Path, *parts: list[bytes]) -> None:
    """Send and learn, part after part."""
    for part in parts:
        (folder / "part.jsonl").write_bytes(b"\n".join(part))
        for words in (["send", "digits.toml", "part.jsonl"], ["run", "digits.toml"]):
            done = here(*words, cwd=folder)
            assert done.exit_code == 0, done.stderr


def versions(folder: Path) -> list[dict]:
    """The lines of `millrace versions`."""
    return json_lines(here("versions", "digits.toml", "--output", "json", cwd=folder).stdout)


def test_poison_raises_an_alarm_and_rollback_goes_to_the_newest_version_from_before_it(tmp_path: Path) -> None:
    """Also once that version is verified; the alias says the same, and the undo goes back."""
    pipeline_in(tmp_path, text=WATCHED)
    sent(tmp_path, rows(800, 1, poison=False), rows(300, 2, poison=True))
    said = facts(tmp_path)["alarm"]
    assert "worse since about row 8" in said or "worse since about row 7" in said, said
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
    assert here("verify", "digits.toml", cwd=tmp_path).exit_code == 0
    done = here("rollback", "digits.toml", "--reason", "garbage", "--yes", cwd=tmp_path)
    assert done.exit_code == 0 and facts(tmp_path)["serves_default"] == good[0]["version"]


def test_a_quiet_stream_has_no_alarm_and_rollback_goes_one_version_back(tmp_path: Path) -> None:
    """Nothing is named last-good."""
    pipeline_in(tmp_path, text=WATCHED)
    sent(tmp_path, rows(800, 1, poison=False), rows(300, 2, poison=False))
    assert "alarm" not in facts(tmp_path)
    found = versions(tmp_path)
    assert all(line["aliases"] == "" for line in found)
    planned = here("rollback", "digits.toml", "--reason", "habit", "--output", "json", cwd=tmp_path)
    assert json_lines(planned.stdout)[0]["to"] == f"version {found[-1]['version']}"


def test_a_watch_that_cannot_be_meant_is_refused_by_key_and_value(tmp_path: Path) -> None:
    """A detector that is none, a budget beyond reach, an act that this release does not offer."""
    for line, says in (
        ('detector = "adwim"', "adwim"),
        ("false_alarm_rows = 900000000", "900000000"),
        ('act = "relearn"', "relearn"),
    ):
        key = line.partition(" ")[0]
        text = "\n".join(old for old in WATCHED.splitlines() if not old.startswith(key)) + f"\n{line}\n"
        pipeline_in(tmp_path, text=text)
        done = here("config", "show", "digits.toml", cwd=tmp_path)
        assert done.exit_code == 2 and says in done.stderr and key in done.stderr, done.stderr
