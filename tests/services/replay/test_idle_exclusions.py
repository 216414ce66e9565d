"""An exclusion that names no record is refused with what there is in its place, and times are shown as people read them."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import pytest
from pipelines import PIPELINE, flower_rows, here, json_lines, pipeline_in

AFTER = 40  # rows that follow the version


@pytest.fixture(scope="module")
def feeds(tmp_path_factory) -> Path:
    """A pipeline with a version; feed-9 has sent rows before it and after it, feed-10 after it, and nobody a key."""
    folder = tmp_path_factory.mktemp("feeds")
    pipeline_in(folder, text=PIPELINE)
    for producer, learns in (("feed-9", True), ("feed-9", False), ("feed-10", False)):
        (folder / "part.jsonl").write_bytes(b"\n".join(flower_rows(AFTER, seed=len(producer))))
        assert here("send", "digits.toml", "part.jsonl", "--header", f"producer={producer}", cwd=folder).exit_code == 0
        if learns:
            assert here("run", "digits.toml", cwd=folder).exit_code == 0
    return folder


def planned(folder: Path, *words: str):
    """What `millrace replay plan` does from the version."""
    return here("replay", "plan", "digits.toml", *words, "--reason", "r", "--output", "json", cwd=folder)


REFUSED = [
    (
        "--exclude-header",
        "producer=feed9",
        r"header producer=feed9, so.*producer=feed-9 \(80 records\)",
    ),
    ("--exclude-header", "from=feed-9", r"header from=feed-9, so it would leave out nothing.*producer=feed-9 \(80 records\)"),
    ("--exclude-offsets", "digits:0:500-700", r"digits:0 has offsets 0 to 119\."),
    ("--exclude-time", "2001-01-01..2001-01-02", r"Asked for: 2001-01-01T00:00:00.*Records are of 20\d\d-"),
    ("--exclude-key", "till", r"Of 0 records with a key none has this one"),
]


@pytest.mark.slow
@pytest.mark.parametrize("origin", [["--from", "newest"], ["--from-start"]], ids=["version", "start"])
@pytest.mark.parametrize(("option", "value", "says"), REFUSED)
def test_an_exclusion_of_nothing_is_refused_with_the_nearest(feeds: Path, origin, option: str, value: str, says: str) -> None:
    """Nothing is planned: there is no plan in the ledger, and exit status 2."""
    before = json_lines(here("log", "digits.toml", "--ledger", "--output", "json", cwd=feeds).stdout)
    done = planned(feeds, *origin, option, value)
    assert done.exit_code == 2 and not done.stdout and "No record of the log is named by" in done.stderr
    assert re.search(says, done.stderr), done.stderr
    assert json_lines(here("log", "digits.toml", "--ledger", "--output", "json", cwd=feeds).stdout) == before


@pytest.mark.slow
def test_an_exclusion_of_what_the_version_has_read_alone_is_a_plan(feeds: Path) -> None:
    """The plan says so itself. Beside one that names records, one that names none is refused all the same."""
    done = planned(feeds, "--from", "newest", "--exclude-offsets", "digits:0:0-9")
    facts = {line["what"]: line["value"] for line in json_lines(done.stdout)}
    assert facts["excluded"] == 0 and facts["not_left_out"].startswith("10 of these records are in main.")
    both = planned(feeds, "--from", "newest", "--exclude-header", "producer=feed-10", "--exclude-header", "producer=feed-11")
    assert both.exit_code == 2 and "producer=feed-11" in both.stderr


@pytest.mark.slow
def test_a_plan_shows_times_with_their_zone(feeds: Path) -> None:
    """What was asked for can be read back, to the millisecond, from ISO 8601."""
    done = planned(feeds, "--from", "newest", "--exclude-time", "2001-01-01T00:00:00.250+05:30..2100-01-01T00:00Z")
    text = str({line["what"]: line["value"] for line in json_lines(done.stdout)}["excludes"])
    first, last = re.fullmatch(r"timestamps \d+ to \d+ ms \((\S+) until (\S+)\)", text).groups()
    assert datetime.fromisoformat(first) == datetime.fromisoformat("2001-01-01T00:00:00.250+05:30")
    assert datetime.fromisoformat(last) == datetime.fromisoformat("2100-01-01T00:00Z")
    assert datetime.fromisoformat(first).utcoffset() is not None
