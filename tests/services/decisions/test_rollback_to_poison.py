"""Good labels, flipped ones, good ones again, on real streams with real processes: no plain rollback goes to a flipped row.

The return to good labels raises an alarm of its own, whose onset is behind the poison: a rollback that looked at the newest
alarm alone went to a version that had learned flipped rows.
"""

from __future__ import annotations

import json
from itertools import cycle, islice
from pathlib import Path

import pytest
from pipelines import here, json_lines, millrace

from millrace.services.data import datasets

GOOD, FLIPPED, LATER = 600, 900, 900
WATCH = "[drift]\nfalse_alarm_rows = 10000\nper_class = false\n"
LABELS = {"elec2": "up", "phishing": "target"}


def stream(name: str) -> list[bytes]:
    """The data set's rows in its order, again where it is too short; those in the middle with the other label."""
    rows = list(islice(cycle(datasets.values(name)), GOOD + FLIPPED + LATER))
    label = LABELS[name]
    for at in range(GOOD, GOOD + FLIPPED):
        row = json.loads(rows[at])
        rows[at] = json.dumps(row | {label: 1 - row[label]}).encode()
    return rows


def learned(folder: Path, rows: list[bytes]) -> None:
    """Send, and learn in a process of its own."""
    (folder / "part.jsonl").write_bytes(b"\n".join(rows) + b"\n")
    assert here("send", "p.toml", "part.jsonl", cwd=folder).exit_code == 0
    done = millrace("run", "p.toml", cwd=folder)
    assert done.returncode == 0, done.stderr


def printed(folder: Path, *words: str) -> list[dict]:
    """What a command that only looks prints."""
    done = here(*words, "--output", "json", cwd=folder)
    assert done.exit_code == 0, done.stderr
    return json_lines(done.stdout)


def day(folder: Path, name: str, rows: list[bytes]) -> int:
    """Good rows, learned and verified; alarms of the stream's own drift are looked at and closed. How many there were."""
    text = datasets.pipeline_toml(name).replace("version_rows = 400", "version_rows = 100")
    if "decay" not in text:  # one that forgets learns the flipped labels, so that good ones are a surprise again
        text = text.replace('kind = "ridge"', 'kind = "ridge"\ndecay = 0.998', 1)
    (folder / "p.toml").write_text(text + WATCH, encoding="utf-8")
    learned(folder, rows)
    assert millrace("verify", "p.toml", cwd=folder).returncode == 0
    own = [str(line["alarm"]) for line in printed(folder, "alarms", "list", "p.toml")]
    if own:
        printed(folder, "alarms", "close", "p.toml", *own, "--reason", "the market moves", "--yes")
    return len(own)


def after_newest_alarm_alone(folder: Path) -> str:
    """Where the rule of before went: the newest verified version that is older than the newest alarm."""
    raised = printed(folder, "alarms", "list", "p.toml")
    counts = printed(folder, "versions", "p.toml")
    kept = [line for line in counts if line["learned"] is not None and line["verified"].startswith("equal")]
    good = [line for line in kept if line["learned"] <= raised[-1]["onset_row"]]
    return str(good[-1]["version"])


@pytest.mark.slow
@pytest.mark.parametrize("name", LABELS)
def test_rollback_goes_to_a_version_without_a_flipped_row_before_during_and_after_the_return(name, data_dir, tmp_path) -> None:
    """While flipped rows come, while good ones begin to come again, and long after: what is served has learned good rows alone.

    Every version is verified, flipped ones too: they are what their log says. Each stage is rolled back, and undone.
    """
    rows, begun, raised = stream(name), GOOD, []
    closed = day(tmp_path, name, rows[:GOOD])
    for end in (GOOD + 400, GOOD + FLIPPED, GOOD + FLIPPED + 200, GOOD + FLIPPED + LATER):
        learned(tmp_path, rows[begun:end])
        begun = end
        assert millrace("verify", "p.toml", cwd=tmp_path).returncode == 0
        raised = [line for line in printed(tmp_path, "alarms", "list", "p.toml") if line["state"] == "open"]
        change, *more = printed(tmp_path, "rollback", "p.toml", "--reason", "garbage")
        counts = {line["version"]: line for line in printed(tmp_path, "versions", "p.toml")}
        target = counts[change["to"].removeprefix("version ")]
        assert 0 < target["learned"] <= GOOD and target["verified"].startswith("equal"), (end, change)
        assert target["aliases"] == "last-good"
        assert any((line["learned"] or 0) > GOOD and line["verified"].startswith("equal") for line in counts.values())
        assert [line["alarm"] for line in more if "alarm" in line] == [line["alarm"] for line in raised][-6:]
        taken = [line for line in more if line.get("verdict") == "taken"]
        assert [(line["candidate"], line["rows"]) for line in taken] == [(target["version"], target["learned"])]
        assert any(line.get("verdict", "").startswith("has rows since the onset of") for line in more)
        printed(tmp_path, "rollback", "p.toml", "--while", "main", "--reason", "garbage", "--yes")
        served = {line["what"]: line["value"] for line in printed(tmp_path, "status", "p.toml")}["serves_default"]
        assert served == target["version"]
        printed(tmp_path, "serve", "p.toml", "--follow", "main", "--reason", "undo", "--yes")
    assert len(raised) >= 2, "the flip raises an alarm, and so does the return"
    assert counts[after_newest_alarm_alone(tmp_path)]["learned"] > GOOD, "the newest alone would let flipped rows be served"
    assert closed == len(printed(tmp_path, "alarms", "list", "p.toml")) - len(raised)
