"""`millrace dead-letters`: what could not be read is listed once, shown as it was, and sent once more by one hand only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pipelines import PIPELINE, facts, flower_rows, here, json_lines, pipeline_in

from millrace.services.config.config import load_pipeline
from millrace.services.data import dead_letters
from millrace.services.errors import NotCountedError
from millrace.services.pipeline.instance import Instance
from millrace.streams.records import decode_headers

EAST = json.dumps({"x": [1, 2, 3, 4], "site": "east", "label": "rose"}).encode()
BROKEN = [b"{broken", EAST, b"\xff\xfe"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pipeline that has met three records that it cannot read."""
    pipeline_in(tmp_path, text=PIPELINE)
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([*flower_rows(40), *BROKEN]))
    for words in (["send", "digits.toml", "rows.jsonl", "--header", "producer=till-7"], ["run", "digits.toml"]):
        assert here(*words, cwd=tmp_path).exit_code == 0
    return tmp_path


def instance(folder: Path, *flags: str) -> Instance:
    """The pipeline in a folder."""
    return Instance(load_pipeline(folder / "digits.toml", flags), folder / ".millrace" / "digits")


def lines(folder: Path, *words: str) -> list[dict]:
    """What a command that succeeds prints."""
    done = here("dead-letters", words[0], "digits.toml", *words[1:], "--output", "json", cwd=folder)
    assert done.exit_code == 0, done.stderr
    return json_lines(done.stdout)


def test_each_is_listed_with_its_reason_and_shown_as_it_was(folder: Path) -> None:
    """Bytes that are no text too; of one reason; no more than asked for; one that is not there is refused by number."""
    listed = lines(folder, "list")
    assert [(line["letter"], line["record"]) for line in listed] == [(at, f"digits:0 offset {40 + at}") for at in range(3)]
    assert [line["reason"] for line in listed] == ["unreadable", "unknown-category", "unreadable"]
    assert (
        lines(folder, "list", "--because", "unknown-category") == [listed[1]]
        and lines(folder, "list", "--limit", "1") == listed[:1]
    )
    shown = {line["what"]: line["value"] for line in lines(folder, "show", "1")}
    assert shown["value"] == EAST.decode() and shown["header producer"] == "till-7" and shown["reason"] == "unknown-category"
    assert {line["what"]: line["value"] for line in lines(folder, "show", "2")}["value"] == r"\xff\xfe"
    refused = here("dead-letters", "show", "digits.toml", "9", cwd=folder)
    assert refused.exit_code == 2 and "There is no dead letter 9" in refused.stderr
    dead = instance(folder)
    twice = [letter.event for letter in dead_letters.letters(dead)][0]
    dead.log().append("digits.dead-letters", [dead_letters.Record(twice.value, twice.key, twice.headers)])
    assert lines(folder, "list") == listed, "a letter that lies there twice, after a crash, is listed once"


def test_a_letter_is_sent_once_more_with_its_own_headers_and_by_one_hand(folder: Path) -> None:
    """Planned first; a second time only on request; what can be read now is learned."""
    assert [line["redriven"] for line in lines(folder, "redrive", "1", "--reason", "mended")] == [False]
    stale = dead_letters.chosen(instance(folder), [1], None, again=False)
    assert [line["redriven"] for line in lines(folder, "redrive", "1", "--reason", "mended", "--yes")] == [True]
    with pytest.raises(NotCountedError, match="another hand"):
        dead_letters.redrive(instance(folder), stale, "mine", again=False)
    (event,) = instance(folder).log().fetch("digits:0", 43, None, 10)[0]
    assert event.value == EAST and dict(decode_headers(event.headers)) == {"producer": b"till-7", "millrace.redriven": b"1"}
    assert [line["redriven"] for line in lines(folder, "list")] == [False, True, False]
    assert [line["letter"] for line in lines(folder, "redrive", "--reason", "the rest")] == [0, 2]
    assert [line["letter"] for line in lines(folder, "redrive", "--again", "--reason", "all")] == [0, 1, 2]
    assert instance(folder).ledger().counted[-1].why == "mended"
    assert here("run", "digits.toml", cwd=folder).exit_code == 1  # refused again, and nothing else was read
    counts = facts(folder)
    assert (counts["learned"], counts["rejected"]) == (40, 4)
    again = lines(folder, "list")[-1]
    assert (again["record"], again["letter"]) == ("digits:0 offset 43", 3), "what still cannot be read is a letter of its own"
    mended = instance(folder, "fields=[{name='x', size=4}, {name='site', type='categorical', categories='hash', max=4}]")
    letters = dead_letters.chosen(mended, [3], None, again=False)
    assert letters[0].headers == (("producer", b"till-7"),), "none of ours stays"


def test_a_letter_that_is_named_twice_is_sent_once_and_one_that_was_sent_is_said_to_be(folder: Path) -> None:
    """Else its row would be learned twice; and "0 sent" alone would leave the reader to guess."""
    assert [line["letter"] for line in lines(folder, "redrive", "2", "1", "2", "--reason", "mended", "--yes")] == [2, 1]
    assert len(instance(folder).log().fetch("digits:0", 43, None, 10)[0]) == 2
    done = here("dead-letters", "redrive", "digits.toml", "0", "1", "--reason", "mended", "--yes", cwd=folder)
    assert "Sent already: 1 of those that you named; --again" in done.stderr and "1 sent." in done.stderr
