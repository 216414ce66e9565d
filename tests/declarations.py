"""What our records say of their keys, read where they are declared: the comment behind, or above, each field.

A comment is ``RANGE, meaning``. RANGE is ``>= 1``, ``> 0``, ``in (0, 1]`` or words such as ``"a" or "b"``, and may be absent. A
key without a meaning of its own has that of the record it inherits from.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

NUMBER = r"-?\d[\d.e^-]*"
NUMERIC = re.compile(rf"(>=|>) ({NUMBER})|in ([\[(])({NUMBER}), ({NUMBER})([\])])")
WORDS = re.compile(r'"[^"]+"(?:, "[^"]+")*(?: or "[^"]+")?')
INFINITY = float("inf")


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from ``low`` to ``high``; ``ends`` as ``[)`` say whether each end belongs to them."""

    low: float
    high: float
    ends: str

    def __str__(self) -> str:
        if self.high == INFINITY:
            return f"{'>' if self.ends[0] == '(' else '>='} {_short(self.low)}"
        return f"in {self.ends[0]}{_short(self.low)}, {_short(self.high)}{self.ends[1]}"


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a table: what may stand there and what it means."""

    name: str
    type: Any
    default: Any  # MISSING: it must be given
    allowed: Range | tuple[str, ...] | None
    meaning: str


def _short(number: float) -> str:
    if number >= 2**50 and number < 1e99:
        return f"2^{int(number).bit_length() - 1}"
    return f"{number:g}"


def _number(text: str) -> float:
    low, power, high = text.partition("^")
    return float(low) ** float(high) if power else float(text)


def parsed(comment: str) -> tuple[Range | tuple[str, ...] | None, str]:
    """The range that a comment begins with, and its meaning.

    >>> parsed(">= 1, rows of a step"), parsed("in (0, 1], share"), parsed('"a" or "b", which')[0]
    ((Range(low=1.0, high=inf, ends='[]'), 'rows of a step'), (Range(low=0.0, high=1.0, ends='(]'), 'share'), ('a', 'b'))
    """
    if match := NUMERIC.match(comment):
        sign, low, left, first, last, right = match.groups()
        allowed: Any = Range(_number(low), INFINITY, "(]" if sign == ">" else "[]") if sign else None
        allowed = allowed or Range(_number(first), _number(last), left + right)
    elif match := WORDS.match(comment):
        allowed = tuple(re.findall(r'"([^"]+)"', match[0]))
    else:
        return None, comment
    return allowed, comment[match.end() :].lstrip(",;: ")


def comments(source: str) -> dict[int, str]:
    """The comments of a source, by line; the key is the line of code that each is of."""
    told: dict[int, str] = {}
    above = ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        text = token.string.lstrip("# ").rstrip()
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
            above = f"{above} {text}".strip()
        elif token.type == tokenize.COMMENT:
            told[token.start[0]] = text
        elif token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT) and above:
            told[token.start[0]], above = above, ""
    return told


def _own(record: type[Any]) -> dict[str, str]:
    """The comment of each field that a class itself declares; "" where it has none."""
    source = textwrap.dedent(inspect.getsource(record))
    told = comments(source)
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        node.target.id: told.get(node.end_lineno or 0) or told.get(node.lineno, "")
        for node in body.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _allowed(field: Field[Any], kind: Any, stated: Range | tuple[str, ...] | None) -> Range | tuple[str, ...] | None:
    """From the declaration itself where it says so, else from the comment."""
    rule = field.metadata.get("allowed")
    choices = [kind, *get_args(kind)] if get_origin(kind) is not Literal else [kind]
    if rule is not None:
        return rule.choices or Range(float(rule.low), float(rule.high), rule.ends)
    words = next((get_args(choice) for choice in choices if get_origin(choice) is Literal), ())
    return words if get_origin(kind) is Literal else stated


def keys(record: type[Any], like: type[Any] | None = None) -> list[Key]:
    """Every key of a record; one without a meaning has that of the same key of ``like``."""
    hints = get_type_hints(record)
    told = [_own(kind) for kind in record.__mro__ if "__dataclass_fields__" in vars(kind)] + ([_own(like)] if like else [])
    declared = []
    for field in fields(record):
        comments = [parsed(own[field.name]) for own in told if field.name in own]
        ranges = [allowed for allowed, _ in comments if allowed is not None]
        meaning = next((meaning for _, meaning in comments if meaning), "")
        allowed = _allowed(field, hints[field.name], ranges[0] if ranges else None)
        declared.append(Key(field.name.rstrip("_"), hints[field.name], _default(field), allowed, meaning))
    return declared


def stated(record: type[Any]) -> dict[str, Range | tuple[str, ...]]:
    """The ranges that a class's own comments state, whatever its declarations say."""
    return {name: allowed for name, text in _own(record).items() if (allowed := parsed(text)[0]) is not None}


def declared(record: type[Any]) -> set[str]:
    """The keys that a class itself declares."""
    return set(_own(record))


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def constants(module: ModuleType) -> Iterator[tuple[str, float, str]]:
    """Name, value and comment of every number that a module writes down under a name in capitals."""
    source = inspect.getsource(module)
    told = comments(source)
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper():
            value = getattr(module, node.targets[0].id)
            if isinstance(value, (int, float)) and not any(isinstance(part, ast.Name) for part in ast.walk(node.value)):
                yield node.targets[0].id, value, told.get(node.end_lineno or 0, "")
