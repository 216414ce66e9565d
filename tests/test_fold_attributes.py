"""A fold gets what it is made of when it is made: nobody sets one of its attributes from outside."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from house_rules import ROOMS, Module, modules

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
    assert [found for module in modules(*ROOMS, "tests") for found in set_from_outside(module)] == []


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
    found = list(set_from_outside(Module("streams/a.py", source)))
    assert found and all(place.startswith("streams/a.py:1 ") for place in found)


@pytest.mark.parametrize(
    "source",
    ["self.fold = restored.fold", "fold = spec.fold(fork)", "held = fold.window.held", "fold.load(parts)", "run.folded = 1"],
)
def test_what_only_reads_or_calls_a_fold_is_let_through(source: str) -> None:
    """Holding a fold, asking it and calling it sets nothing."""
    assert list(set_from_outside(Module("streams/a.py", source))) == []
