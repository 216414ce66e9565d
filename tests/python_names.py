"""What docs/reference/python.md says of the public names, made from the objects."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Annotated, Any, get_args, get_origin

from millrace.services import api

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "python.md"


def public_names() -> str:
    """Every public name with its signature and its first sentence, errors last."""
    things = [(name, getattr(api, name)) for name in api.__all__]
    errors = [pair for pair in things if _is_error(pair[1])]
    others = [pair for pair in things if not _is_error(pair[1])]
    parts = ["\n".join(_lines(name, thing)) for name, thing in others]
    raised = "\n".join(f"- `{name}`: {first_sentence(thing)}" for name, thing in errors)
    return "\n\n".join([*parts, f"### Errors\n\n{raised}\n"])


def first_sentence(thing: Any) -> str:
    """Of its docstring."""
    first = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s+(?=[A-Z`])", first)[0].replace("``", "`")


def members(thing: type[Any]) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class declares itself, in their order."""
    for name, member in vars(thing).items():
        if not name.startswith("_") and isinstance(member, FunctionType | classmethod | property) and name != "of":
            yield name, member


def _is_error(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, Exception)


def _lines(name: str, thing: Any) -> Iterator[str]:
    made = thing is not api.Pipeline  # which is made by its class methods
    yield f"### `{name}{signature(thing) if made else ''}`\n\n{first_sentence(thing)}"
    methods = list(members(thing)) if isinstance(thing, type) else []
    if methods:
        yield ""
    for called, member in methods:
        arguments = "" if isinstance(member, property) else signature(getattr(thing, called))
        yield f"- `{name}.{called}{arguments}`: {first_sentence(member)}"


def signature(thing: Any) -> str:
    """Parameters with types and defaults, and what it returns; private ones are left out."""
    declared = inspect.signature(thing)
    words, keywords = [], False
    for name, parameter in declared.parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and not keywords:
            words, keywords = [*words, "*"], True
        if not name.startswith("_") and name != "self":
            default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
            words.append(f"{name}: {_type(parameter.annotation)}{default}")
    returns = "" if isinstance(thing, type) else f" -> {_type(declared.return_annotation)}"
    return f"({', '.join(words)}){returns}"


def _type(annotation: Any) -> str:
    """As the code writes it, without the bounds of a number."""
    annotation = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
