"""The README: short, with its parts in order; test_pages.py runs what stands in it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HEADINGS = ["The rooms", "Two commands", "A pipeline of your own", "Asking it", "The night call"]
HEADINGS += ["Numbers", "Documents", "Status"]
LINES = 200  # at most: whoever opens the repository reads it to the end
NUMBERS = 10  # lines of its table at most; the others are in docs/benchmarks.md


def test_it_has_its_parts_in_order() -> None:
    """The headings are those of the house style, in that order."""
    assert re.findall(r"^## (.*)$", README, re.MULTILINE) == HEADINGS


def test_it_is_short() -> None:
    """Everything else stands in docs/, and the README links to it."""
    numbers = README[README.index("## Numbers") : README.index("## Documents")]
    assert len(README.splitlines()) <= LINES
    assert 0 < len(re.findall(r"^\| (?!command)", numbers, re.MULTILINE)) <= NUMBERS


def test_the_two_commands_are_targets() -> None:
    """`make run` and `make test` are in the Makefile."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"run", "test"} <= set(targets)
    assert "make run" in README
    assert "make test" in README


def test_every_command_of_its_table_is_a_target() -> None:
    """Whoever doubts a number can make it again."""
    made = set(re.findall(r"^\| `make ([a-z-]+)", README, re.MULTILINE))
    assert len(made) > 4
    assert made <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
