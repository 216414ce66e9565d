"""What to say of a key or a value that a pipeline file cannot have: where it stands, and what may stand there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import is_dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints


def record_of(kind: Any) -> Any:
    """The record of a table that may be left out; else the kind itself."""
    return next((choice for choice in get_args(kind) if is_dataclass(choice)), kind) if get_origin(kind) is UnionType else kind


def nearest(name: str, names: Iterable[str]) -> str:
    """The valid name that was probably meant, or all of them, as the end of a sentence."""
    names = list(names)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else f" There are: {', '.join(names)}."


ABSENT = object()  # in place of a value that is not there


def _steps(location: str) -> list[str]:
    """``.fields[0].type`` as its steps: fields, 0, type."""
    return [step for step in location.replace("[", ".").replace("]", "").replace("`", "").split(".") if step]


def value_at(raw: Any, location: str) -> Any:
    """What stands at a place such as ``.fields[0].type``, or ABSENT."""
    for step in _steps(location):
        if isinstance(raw, list) and step.isdigit() and int(step) < len(raw):
            raw = raw[int(step)]
        elif isinstance(raw, dict):
            raw = raw.get(step, ABSENT)
        else:
            return ABSENT
    return raw


def options_of(kind: Any, location: str) -> tuple[str, ...]:
    """The words that may stand at a place, where it takes one of several."""
    for step in _steps(location):
        kind = record_of(kind)
        if step.isdigit():
            kind = get_args(kind)[0]
        elif is_dataclass(kind):
            kind = get_type_hints(kind).get(step)
    choices = [kind, *(get_args(kind) if get_origin(kind) is UnionType else ())]
    return next((get_args(choice) for choice in choices if get_origin(choice) is Literal), ())
