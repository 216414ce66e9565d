"""A fold gets what it is made of when it is made: nobody sets one of its attributes from outside."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from house_rules import ROOMS, Module, modules
from pipelines import PIPELINE, flower_rows, here, pipeline_in

from millrace.streams.state.fold import Fold

SETTERS = {"setattr", "delattr", "monkeypatch.setattr", "monkeypatch.delattr", "object.__setattr__"}


def is_fold(node: ast.expr) -> bool:
    """Whether an expression is called a fold: `fold`, or anything that ends with `.fold`."""
    return (node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")) == "fold"


def set_from_outside(module: Module) -> Iterator[str]:
    """Each place that sets or deletes an attribute of a fold, by a statement or by a call."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load) and is_fold(node.value):
            yield module.at(node, f"sets {ast.unparse(node)}")
        if isinstance(node, ast.Call) and ast.unparse(node.func) in SETTERS and node.args and is_fold(node.args[0]):
            yield module.at(node, f"calls {ast.unparse(node)}")


def test_nobody_sets_an_attribute_of_a_fold_from_outside() -> None:
    """What a fold is made of is an argument of its constructor (`Stages`, `Owner`); pass it there instead."""
    assert [place for module in modules(*ROOMS, "tests") for place in set_from_outside(module)] == []


@pytest.mark.parametrize(
    "source",
    [
        "fold.labels = join",
        "fold.branch, fold.answers_of = 'a', 'a'",
        "worker.fold.branch: str = 'another'",
        "self.fold.clock_ms += 1",
        "whole, self.fold.parts = self.fold.parts, forged",
        "for fold.drift in watched: pass",
        "with opened() as worker.fold.window: pass",
        "del fold.held_out",
        "setattr(run.fold, 'labels', None)",
        "monkeypatch.setattr(worker.fold, 'act', die)",
    ],
)
def test_an_attribute_set_from_outside_is_caught(source: str) -> None:
    """A line made to set one is named with its place."""
    places = list(set_from_outside(Module("streams/a.py", source)))
    assert places and all(place.startswith("streams/a.py:1 ") for place in places)


@pytest.mark.parametrize(
    "source",
    ["self.fold = restored.fold", "fold = spec.fold(fork)", "held = fold.window.held", "fold.load(parts)", "run.folded = 1"],
)
def test_what_only_reads_or_calls_a_fold_is_let_through(source: str) -> None:
    """Holding a fold, asking it and calling it sets nothing."""
    assert list(set_from_outside(Module("streams/a.py", source))) == []


@pytest.fixture
def setters(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Fold]]:
    """The files whose code sets an attribute of any fold, whatever that is called there, each with the folds."""
    noted: dict[str, list[Fold]] = {}

    def note(changed: Fold, name: str, value: object) -> None:
        noted.setdefault(sys._getframe(1).f_code.co_filename, []).append(changed)
        object.__setattr__(changed, name, value)

    monkeypatch.setattr(Fold, "__setattr__", note)
    return noted


def test_only_fold_py_sets_an_attribute_while_a_pipeline_runs(tmp_path: Path, setters: dict[str, list[Fold]]) -> None:
    """Sent, learned, begun again from the checkpoint, folded again; and a line that sets one under another name is seen."""
    rows = tmp_path / "rows.jsonl"
    pipeline_in(tmp_path, text=f"{PIPELINE}step_rows = 50\nversion_rows = 100\n")
    for seed in (1, 2):
        rows.write_bytes(b"".join(row + b"\n" for row in flower_rows(200, seed)))
        for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
            done = here(*words, cwd=tmp_path)
            assert done.exit_code == 0, done.output
    done = here("verify", "digits.toml", cwd=tmp_path)
    assert done.exit_code == 0, done.output
    assert list(setters) == [inspect.getfile(Fold)]
    (folds,) = setters.values()
    assert len({id(changed) for changed in folds}) >= 3  # of two runs and of the verification
    whole = folds[-1]
    whole.clock_ms = 0
    assert list(setters)[1:] == [__file__]
