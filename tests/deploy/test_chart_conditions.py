"""Every condition of every template is both true and false in some value file, and what it decides is seen in what is rendered.

Each condition is replaced by true and by false, one at a time; if no value file renders otherwise then, no test would notice.
Those of _checks.tpl end in a refusal and are tested by test_chart_denials.py and the suites of helm-unittest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from charts import CHART, CI, program, run, with_notes

CONDITION = re.compile(r"(\{\{-? *)(if|else if|with) (.*?)( *-?\}\})")
DRAWN = re.compile(r"^  tokens: \S+$", re.MULTILINE)  # the token, another at each rendering
TEMPLATES = [path for path in sorted((CHART / "templates").rglob("*")) if path.is_file() and path.name != "_checks.tpl"]


@dataclass(frozen=True)
class Replaced:
    """One condition of a template in the place of which something fixed stands."""

    template: Path
    start: int
    stop: int
    words: str
    truth: bool
    text: str  # what stands there instead

    def __str__(self) -> str:
        line = self.template.read_text(encoding="utf-8")[: self.start].count("\n") + 1
        return f"{self.template.name}:{line}-{self.truth}"


def replaced() -> Iterator[Replaced]:
    """Both fixed values of every condition. What `with` is about must be something: a text, where there was nothing."""
    for path in TEMPLATES:
        for match in CONDITION.finditer(path.read_text(encoding="utf-8")):
            opening, verb, words, closing = match.groups()
            fixed = {True: "true", False: "false"} if verb != "with" else {True: f'({words}) | default "x"', False: '""'}
            for truth, text in fixed.items():
                yield Replaced(path, *match.span(), f"{verb} {words}", truth, f"{opening}{verb} {text}{closing}")


CASES = list(replaced())


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The chart with its notes among what it renders."""
    return with_notes(tmp_path_factory.mktemp("conditions"))


def outcome(chart: Path, file: Path) -> str:
    """What a chart comes to, or how it fails."""
    done = run(program("helm-4"), "template", "rel", "CHART", "--values", str(file), chart=chart)
    return DRAWN.sub("", done.stdout) if done.returncode == 0 else "refused"


@cache
def expected(chart: Path, file: Path) -> str:
    """Of the chart as it is."""
    return outcome(chart, file)


def unseen(chart: Path, case: Replaced) -> bool:
    """Whether no value file renders otherwise with this condition fixed."""
    for file in CI:
        expected(chart, file)
    name = case.template.relative_to(CHART)
    mutated = chart / ("notes.txt" if case.template.name == "NOTES.txt" else name)
    original = mutated.read_text(encoding="utf-8")
    mutated.write_text(original[: case.start] + case.text + original[case.stop :], encoding="utf-8")
    try:
        return all(outcome(chart, file) == expected(chart, file) for file in CI)
    finally:
        mutated.write_text(original, encoding="utf-8")


def test_there_are_conditions() -> None:
    """The pattern finds them, also those in the middle of a line."""
    assert len(CASES) > 100
    assert {case.template.name for case in CASES} >= {"statefulset.yaml", "_helpers.tpl", "_toml.tpl", "networkpolicy.yaml"}


def test_each_value_file_is_rendered(copy: Path) -> None:
    """With its notes; else everything would differ."""
    for file in CI:
        assert "kind: StatefulSet" in expected(copy, file) and "helm test rel" in expected(copy, file)


@pytest.mark.slow
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_a_condition_that_always_held_would_be_seen(template: Path, copy: Path) -> None:
    """And one that never did."""
    assert [str(case) for case in CASES if case.template == template and unseen(copy, case)] == []
