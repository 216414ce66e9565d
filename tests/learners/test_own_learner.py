"""`docs/how-to/add-a-learner.md`, followed: `examples/own_learner.py`, by the page's lines, keeps the contract."""

from __future__ import annotations

import doctest
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
from broken import D
from cases import Promise, asked, classes
from pages import ROOT, Block, blocks
from pipelines import here
from promises import PROMISES

from millrace.learners import table
from millrace.learners.table import LEARNERS, Algorithm

KIND = "passive-aggressive"
PAGE = [block for block in blocks("docs/how-to/add-a-learner.md") if block.why is None]


def copied() -> Path:
    """What the page's first command copies."""
    (block,) = [block for block in PAGE if block.text.startswith("cp ")]
    source, target = block.text.split()[1:]
    assert target == "learners/linear/passive_aggressive.py"
    return ROOT / source


def module() -> ModuleType:
    """The file, imported as it stands."""
    if "own_learner" not in sys.modules:
        spec = importlib.util.spec_from_file_location("own_learner", copied())
        assert spec is not None and spec.loader is not None
        sys.modules["own_learner"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["own_learner"])
    return sys.modules["own_learner"]


def line_of_the_table() -> dict[str, Algorithm]:
    """What the page's line adds to the table, with the names that its import brings."""
    imported, line = (block.text for block in PAGE if block.kind == "python")
    brought = re.fullmatch(r"from millrace\.learners\.linear\.passive_aggressive import (.*)\n", imported)
    assert brought is not None
    names = {name: getattr(module(), name) for name in brought[1].split(", ")}
    made: dict[str, Algorithm] = eval("{" + line + "}", vars(table) | names)
    return made


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_it_keeps_every_promise(promise: Promise) -> None:
    """As its config comes, which is how the contract takes a learner that was just added."""
    algorithm = line_of_the_table()[KIND]
    promise(lambda: algorithm.learner(algorithm.config(), D, 3), classes)


def test_what_it_serves_is_made_again_from_its_arrays() -> None:
    """With equal answers, by the table's line."""
    algorithm = line_of_the_table()[KIND]
    learner = algorithm.learner(algorithm.config(), D, 3)
    learner.learn_many(classes(1))
    served = learner.servable()
    again = algorithm.servable(served.arrays())
    assert again.classes == served.classes and (asked(again) == asked(served)).all()


def test_its_docstring_holds_and_its_settings_are_refused_by_name() -> None:
    """The example in it runs; a size of 0 and a task that it cannot do are ValueErrors that say so."""
    done = doctest.testmod(module(), extraglobs={})
    assert done.attempted >= 4 and not done.failed
    for wrong in ({"aggressiveness": 0.0}, {"task": "regress"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            module().PassiveAggressiveConfig(**wrong)


@pytest.mark.slow
def test_it_learns_the_digits_by_the_pages_last_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the line in the table, the page's pipeline is sent, learned, looked at and proved."""
    pytest.importorskip("sklearn", reason="scikit-learn, which brings the digits, is not installed")
    monkeypatch.setitem(LEARNERS, KIND, line_of_the_table()[KIND])
    last: list[Block] = PAGE[-2:]
    (tmp_path / "quick.toml").write_text(last[0].text, encoding="utf-8")
    printed = ""
    for line in last[1].text.splitlines():
        millrace, *words = shlex.split(line)
        assert millrace == ".venv-test/bin/millrace"
        done = here(*words, cwd=tmp_path)
        assert done.exit_code == 0, done.output
        printed += done.stdout
    accuracy = re.search(r"^accuracy +([\d.]+)$", printed, re.MULTILINE)
    assert accuracy is not None and float(accuracy[1]) > 0.7
