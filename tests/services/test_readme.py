"""The README: its pipeline file loads, its commands run, and its tree is the tree."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from millrace.services.config.config import load_pipeline
from millrace.services.processes import COMMAND

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HEADINGS = ["The rooms", "Two commands", "What you see", "A pipeline of your own", "Answers while it learns", "The tree"]
HEADINGS += ["Numbers", "Reliability", "Status"]


def blocks(kind) -> list[str]:
    """The fenced blocks of a kind, in order."""
    return re.findall(rf"^```{kind}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with the README's pipeline file, and `millrace` as the command that is tested here."""
    (tmp_path / "digits.toml").write_text(blocks("toml")[0], encoding="utf-8")
    script = tmp_path / "bin" / "millrace"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    script.chmod(0o755)
    return tmp_path


def test_it_has_its_parts_in_order() -> None:
    """The headings are those of the house style, in that order."""
    assert re.findall(r"^## (.*)$", README, re.MULTILINE) == HEADINGS


def test_the_pipeline_file_loads(folder) -> None:
    """The example is a pipeline as it stands."""
    assert load_pipeline(folder / "digits.toml").pipeline.name == "digits"


@pytest.mark.slow
def test_the_commands_run(folder) -> None:
    """Every command of the shell block exits 0 in a folder that holds the example alone."""
    pytest.importorskip("sklearn", reason="scikit-learn, which brings the digits, is not installed")
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    script = "\n".join(blocks("sh"))
    assert script.count("millrace ") >= 6
    command = ["bash", "-euo", "pipefail", "-c", script]
    env = os.environ | {"PATH": path}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"records +1442", done.stdout)


def test_the_tree_names_every_file_of_the_rooms() -> None:
    """One line a file: none is missing, none is gone."""
    tree = next(block for block in blocks("text") if "learners/" in block and ".py" in block)
    room, named = "", set()
    for line in tree.splitlines():
        if heading := re.match(r"(\w+)/", line):
            room = heading[1]
        elif file := re.match(r"  (\w+\.py) ", line):
            named.add(f"{room}/{file[1]}")
    there = {
        file.relative_to(ROOT).as_posix() for room in ("learners", "streams", "services") for file in (ROOT / room).glob("*.py")
    }
    assert named == {name for name in there if not name.endswith(("__init__.py", "_pb2.py"))}


def test_the_two_commands_are_targets() -> None:
    """`make run` and `make test` are in the Makefile."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"run", "test"} <= set(targets)
    assert "make run" in README
    assert "make test" in README


@pytest.mark.slow
def test_the_late_label_example_runs(tmp_path) -> None:
    """The prediction meets its label once, the repetition is counted, and the answer is scored as it was served."""
    (tmp_path / "spam.toml").write_text(blocks("toml")[1], encoding="utf-8")
    command = [sys.executable, "-c", blocks("python")[-1]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    status = subprocess.run(
        [*COMMAND, "status", "spam.toml"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    ).stdout
    facts = ("learned +1", "labels +2", "labels_joined +1", "labels_repeated +1", "scored_as_served +1", "served_accuracy +1")
    for fact in facts:
        assert re.search(rf"^{fact}$", status, re.MULTILINE), status
