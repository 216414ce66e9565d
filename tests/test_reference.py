"""The reference pages say what the code does: each is made from it, or compared with it."""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from declarations import Key, Range, keys, stated
from reference_pages import BLOCKS, MADE, TEXTS, command_texts, config_records, learner_like, remedy, renewed

from millrace.learners.drift.detectors import SENSORS
from millrace.learners.errors import ConfigError, MillraceError
from millrace.learners.table import LEARNERS
from millrace.services.config.config import load_pipeline
from millrace.services.errors import FAILED, MEANINGS, MISUSED
from millrace.services.processes import COMMAND

RENEW = "run `make reference` and look at what it changed"
DECLARE = "write `# RANGE, meaning` behind its declaration, then run `make reference`"

IMAGE = {"type": "image", "backbone": "net.onnx", "shape": [2, 2], "features": 1}
GROWING = {"type": "categorical", "categories": "grow", "max": 1}
FIELDS = {  # what a field must also say, for a key or for one of its values
    "max": GROWING,
    "shape": IMAGE,
    "features": IMAGE,
    "categorical": GROWING,
    "category": GROWING,
    "image": IMAGE,
    "unit": {"type": "time"},
    "outside": {"missing": "mean"},
}
COMPLETIONS = 'name = "p"\n[llm]\ntarget = "target"\ndraft = "draft"\ncapture = "none"\n[learner]\n'
BESIDE = {  # what the file must also say, for a table, a key or one of its values
    "regress": ["label.type=number"],
    "log.kind.kafka": ["log.kafka.bootstrap=localhost:9092"],
    "drift.detector": ["drift.false_alarm_rows=1000"],
    "drift.act.raise-rate": ["learner={kind = 'softmax'}"],
    "serving.record": ["labels={}"],
    "learner.river": ["learner.model=linear_model.LogisticRegression"],
    "learner.river.regress": ["learner.model=linear_model.LinearRegression"],
}


@dataclass(frozen=True)
class Place:
    """A key at its place in a pipeline file."""

    table: str  # "" for the top of the file
    kind: str  # of the learner
    key: Key

    def flags(self, value: Any) -> list[str]:
        """What sets it to a value, with what that value needs beside it."""
        name = self.key.name
        if self.table == "entity" or (name == "as" and value):
            past = f"fields=[{{name = 'x'}}, {{of = 'x', as = {toml(value if name == 'as' else 'sum')}, over = 1}}]"
            most = ["entity.max=1"] if name != "max" else []
            labels = ["labels={}", "serving.record=before-reply"] if name == "events" else []
            return [past, "entity.key=k", *most, *labels, *([] if name == "as" else [f"entity.{name}={toml(value)}"])]
        if self.table == "fields":
            field = {"name": "x"} | FIELDS.get(str(value), FIELDS.get(name, {})) | {name: value}
            return [f"fields=[{{{', '.join(f'{key} = {toml(setting)}' for key, setting in field.items())}}}]"]
        path = f"{self.table}.{name}".lstrip(".")
        about = f"learner.{self.kind}" if self.table == "learner" else path
        more = [flag for key in (about, f"{about}.{value}", str(value)) for flag in BESIDE.get(key, [])]
        return [*more, f"{path}={toml(value)}"]

    def __str__(self) -> str:
        return f"{self.table}{f'[{self.kind}]' if self.table == 'learner' else ''}.{self.key.name}"


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    return repr(value) if isinstance(value, float) else json.dumps(value)


def places() -> Iterator[Place]:
    """Every key that a pipeline file may have."""
    for table, record in config_records():
        yield from (Place(table, "draft" if table == "llm" else "ridge", key) for key in keys(record))
    for kind, algorithm in LEARNERS.items():
        yield from (Place("learner", kind, key) for key in keys(algorithm.config, learner_like(algorithm.config)))


PLACES = list(places())


def is_number(key: Key) -> bool:
    """Whether a key takes a number, or a list of them."""
    return key.type in (int, float) or re.search(r"tuple\[(int|float)", str(key.type)) is not None


def whole(key: Key) -> bool:
    """Whether a key's numbers are whole."""
    return key.type is not float


def next_to(key: Key, end: float, towards: float) -> float:
    """The number next to an end of a range."""
    if whole(key):
        return int(end) + (1 if towards > end else -1)
    return math.nextafter(end, towards)


def ends(key: Key, allowed: Range) -> tuple[list[float], list[float]]:
    """Numbers that a range takes at its ends, and those next to them that it does not."""
    taken, refused = [], []
    for end, closed, inner, outer in (
        (allowed.low, allowed.ends[0] == "[", math.inf, -math.inf),
        (allowed.high, allowed.ends[1] == "]", -math.inf, math.inf),
    ):
        if math.isinf(end):
            continue
        at = int(end) if whole(key) else end
        taken.append(at if closed else next_to(key, end, inner))
        refused.append(next_to(key, end, outer) if closed else at)
    return taken, refused + ([] if whole(key) else [math.inf, -math.inf, math.nan])


def shaped(key: Key, number: float) -> Any:
    """A number, or a list with it where the key is a list."""
    if key.type in (int, float, float | None):
        return number
    fill = int(key.allowed.low) if isinstance(key.allowed, Range) else 1
    return [number] + [fill] * ({"shape": 2, "image": 3}.get(key.name, 1) - 1)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a small pipeline of a kind of learner with flags; what is wrong with it, or ""."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # else digests of these folders fill the user's own
    Path("net.onnx").write_bytes(b"a network")
    Path("p.toml").write_text('name = "p"\n[[fields]]\nname = "x"\n[label]\nname = "y"\n[learner]\n', encoding="utf-8")

    for folder in ("target", "draft"):
        Path(folder).mkdir()
        Path(folder, "config.json").write_text('{"vocab_size": 4096}', encoding="utf-8")
        Path(folder, "model.safetensors").write_bytes(b"weights")

    def loaded(kind: str, flags: list[str]) -> str:
        if LEARNERS[kind].distils:
            Path("p.toml").write_text(COMPLETIONS, encoding="utf-8")
        try:
            load_pipeline(Path("p.toml"), [f"learner.kind={kind}", *flags])
        except ConfigError as error:
            return str(error)
        return ""

    return loaded


def test_what_is_loaded_here_is_remembered_here(load, tmp_path: Path) -> None:
    """Digests of these folders lie in the test's own cache, and never in the user's."""
    assert load("draft", []) == "" and (tmp_path / "cache" / "millrace" / "digests.json").is_file()


@pytest.mark.parametrize("name", TEXTS)
def test_a_page_is_what_is_made_from_the_code(name: str) -> None:
    """Every block between two marks is the one that the code gives now."""
    assert renewed(TEXTS[name]) == TEXTS[name], f"{name}: {RENEW}"


def test_every_block_stands_in_one_page() -> None:
    """Nothing that is made is left out, and nothing stands twice."""
    assert sorted(name for text in TEXTS.values() for _, name, _, _ in MADE.findall(text)) == sorted(BLOCKS)


def test_a_page_that_says_something_else_is_caught() -> None:
    """A default that was changed by hand, or in the code alone, is not what is made."""
    page = TEXTS["config.md"].replace("| `256` |", "| `257` |")
    assert page != TEXTS["config.md"] and renewed(page) == TEXTS["config.md"]


def test_every_key_has_a_meaning_and_every_number_a_range() -> None:
    """Who adds a key says at its declaration what it means and what it may be."""
    assert [f"{place}: {DECLARE}" for place in PLACES if not place.key.meaning] == []
    assert [f"{place}: {DECLARE}" for place in PLACES if is_number(place.key) and place.key.allowed is None] == []


@dataclass
class Untold:
    """A record as nobody should write one."""

    rows: int = 1
    told: int = 2  # >= 0, what it means
    # >= 1, and what stands
    # in two lines above
    above: int = 3


def test_a_key_without_a_comment_has_no_meaning() -> None:
    """The comment behind a declaration, or above it, is its own and no other's."""
    told = {key.name: (str(key.allowed), key.meaning) for key in keys(Untold)}
    assert told == {
        "rows": ("None", ""),
        "told": (">= 0", "what it means"),
        "above": (">= 1", "and what stands in two lines above"),
    }


def test_a_comment_and_a_declared_range_agree() -> None:
    """Where a declaration says what is allowed, the comment behind it says the same."""
    for algorithm in LEARNERS.values():
        for record in algorithm.config.__mro__[:-1]:
            allowed = {key.name: key.allowed for key in keys(record)}
            comments = stated(record)
            assert comments == {name: allowed[name] for name in comments}, record.__name__


@pytest.mark.parametrize("place", [place for place in PLACES if isinstance(place.key.allowed, Range)], ids=str)
def test_a_number_is_taken_up_to_the_ends_of_its_range_and_no_further(place: Place, load) -> None:
    """What the page says of a range is what loading a pipeline does, at each end, and for what is no finite number."""
    taken, refused = ends(place.key, place.key.allowed)
    assert taken and refused
    for number in taken:
        assert load(place.kind, place.flags(shaped(place.key, number))) == ""
    for number in refused:
        assert place.key.name in load(place.kind, place.flags(shaped(place.key, number))), number


@pytest.mark.parametrize("place", [place for place in PLACES if isinstance(place.key.allowed, tuple)], ids=str)
def test_the_words_of_a_key_are_taken_and_others_are_not(place: Place, load) -> None:
    """Each word of the page loads, and a word that it does not have is refused."""
    for word in place.key.allowed:
        assert load(place.kind, place.flags(word)) == ""
    assert place.key.name in load(place.kind, place.flags("no-such-word"))


PLAIN = [place for place in PLACES if place.table != "fields" and isinstance(place.key.default, (int, float, str))]


@pytest.mark.parametrize("place", PLAIN, ids=str)
def test_a_default_may_be_written_down(place: Place, load) -> None:
    """A key set to the default that the page says loads as if it were not there."""
    assert load(place.kind, place.flags(place.key.default)) == ""


def test_the_detectors_on_the_page_are_those_that_there_are() -> None:
    """They are named in a comment, so a new one could be forgotten there."""
    [place] = [place for place in PLACES if str(place) == "drift.detector"]
    assert place.key.allowed == tuple(SENSORS)


def test_the_environment_on_the_page_is_the_one_that_is_read() -> None:
    """Every variable that the configuration reads has its line, and no other has."""
    source = inspect.getsource(inspect.getmodule(load_pipeline))
    read = set(re.findall(r'"(MILLRACE_[A-Z_]*[A-Z])"', source))
    assert set(re.findall(r"^\| `(MILLRACE_\w+)`", TEXTS["config.md"], re.MULTILINE)) == read


def test_a_command_prints_the_help_that_the_page_shows() -> None:
    """In a terminal that is wide enough, word for word."""
    env = os.environ | {"COLUMNS": "200"}
    shown = dict(re.findall(r"^## (millrace[^\n]*)\n\n```text\n(.*?)\n```$", TEXTS["cli.md"], re.MULTILINE | re.DOTALL))
    assert len(shown) > 20
    for words in ("millrace", "millrace up", "millrace replay plan"):
        done = subprocess.run([*COMMAND, *words.split()[1:], "--help"], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.rstrip() == shown[words]


def test_the_help_on_the_page_is_as_wide_on_every_terminal(monkeypatch) -> None:
    """So that the page is the same wherever it is made."""
    monkeypatch.setenv("COLUMNS", "40")
    narrow = command_texts()
    monkeypatch.setenv("COLUMNS", "200")
    assert command_texts() == narrow


def test_the_exit_codes_on_the_page_are_the_ones_that_there_are() -> None:
    """The table of docs/reference/cli.md has done, failed and misused, in words of its own."""
    assert re.findall(r"^\| (\d+) \|", TEXTS["cli.md"], re.MULTILINE) == ["0", str(FAILED), str(MISUSED)]


def test_every_error_says_what_it_means_and_what_to_do() -> None:
    """In its docstring: a sentence, and a paragraph that begins with "What to do:"."""
    advice = 'write its docstring as a sentence, an empty line and "What to do: ...", then run `make reference`'
    assert [f"{error.__name__}: {advice}" for error in MEANINGS if not all(remedy(error))] == []


def test_every_error_of_ours_is_on_the_page() -> None:
    """Each class has a row of its own, wherever it is declared."""
    missing = {error.__name__ for error in below(MillraceError)} - set(
        re.findall(r"^\| `(\w+)`", TEXTS["errors.md"], re.MULTILINE)
    )
    assert sorted(missing) == [], "give them a row in MEANINGS, then run `make reference`"


def below(error: type[MillraceError]) -> Iterator[type[MillraceError]]:
    """The classes of ours that derive from one."""
    for kind in error.__subclasses__():
        if kind.__module__.startswith("millrace."):
            yield kind
        yield from below(kind)
