"""The pages of docs/reference, and the table of rooms, that are made from the code; `make reference` writes them.

What is made stands between two marks in a page, and everything outside them is written by hand.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import MISSING, is_dataclass
from itertools import takewhile
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click
import msgspec
from declarations import Key, Range, constants, declared, keys
from house_rooms import ARROWS, shown
from python_names import public_names

from millrace.learners.errors import MillraceError
from millrace.learners.replay.config import NetworkConfig
from millrace.learners.table import LEARNERS, Algorithm
from millrace.services.cli import main as millrace
from millrace.services.config.config import PipelineConfig
from millrace.services.endpoint.endpoint import Endpoint
from millrace.services.endpoint.grpc import GrpcApp
from millrace.services.endpoint.http import HttpApp
from millrace.services.endpoint.pool import Pool
from millrace.services.endpoint.recording import Recorder
from millrace.services.errors import MEANINGS
from millrace.services.metrics.definitions import METRICS
from millrace.services.protocol.access import Access
from millrace.services.protocol.labels import read_labels
from millrace.services.protocol.tensors import Question
from millrace.streams.formats.images import UnreadableImageError
from millrace.streams.labels.served import LateLabel

PAGES = Path(__file__).resolve().parents[1] / "docs" / "reference"
FILES = [*sorted(PAGES.glob("*.md")), PAGES.parent / "design" / "walk.md"]
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in FILES}
MADE = re.compile(r"(<!-- made from ([a-z ]+) by `make reference`: begin -->\n)(.*?)(<!-- made from \2: end -->\n)", re.DOTALL)
NAMES = {int: "whole number", float: "number", bool: "true or false", str: "text", type(None): "nothing"}
LIMITED = (HttpApp, GrpcApp, Endpoint, Pool, Question, read_labels, Access, Recorder)  # all numbers of their modules are limits
ALSO = {LateLabel: "LONGEST_ID", UnreadableImageError: "MOST_PIXELS"}  # of their modules, these are
UNITS = {"_S": "s", "_BYTES": "bytes", "_ROWS": "rows"}  # by how a constant's name ends
MANY = {int: "list of whole numbers", float: "list of numbers", str: "list of texts"}


def sentences(thing: Any) -> str:
    """The words of a docstring, before what it raises, as one paragraph."""
    told = inspect.getdoc(thing) or ""
    return " ".join(told.partition("Raises:")[0].split())


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def type_name(kind: Any) -> str:
    """A type as somebody who writes TOML says it."""
    if get_origin(kind) is Literal:
        return "text"
    if get_origin(kind) in (UnionType, Union):
        names = dict.fromkeys(type_name(member) for member in get_args(kind) if member is not type(None))
        return " or ".join(names)
    if get_origin(kind) is tuple:
        return MANY.get(get_args(kind)[0], "list of tables")
    if get_origin(kind) is dict or is_dataclass(kind):
        return "table"
    return NAMES[kind]


def allowed_words(allowed: Range | tuple[str, ...] | None) -> str:
    """A range, or the words to choose from."""
    if isinstance(allowed, Range):
        return f"`{allowed}`"
    return ", ".join(f'`"{word}"`' for word in allowed or ())


def default_words(key: Key) -> str:
    """A default as TOML writes it."""
    if key.default is MISSING:
        return "must be given"
    if key.default is None or is_dataclass(key.default):
        return ""
    return f"`{msgspec.json.encode(key.default).decode().replace(',', ', ')}`"


def rows_of(listed: Iterable[Key]) -> str:
    """The table of some keys."""
    rows = [
        (f"`{key.name}`", type_name(key.type), allowed_words(key.allowed), default_words(key), _sentence(key.meaning))
        for key in listed
    ]
    return table(("key", "type", "range", "default", "meaning"), rows)


def _sentence(text: str) -> str:
    """A meaning with a capital and a full stop, its code in single backticks."""
    text = text.replace("``", "`")
    return text[:1].upper() + text[1:] + "." if text else ""


def record_of(kind: Any) -> Any:
    """The record that a key's table is, or None."""
    return next((member for member in [kind, *get_args(kind)] if is_dataclass(member)), None)


def sections(record: type[Any], path: str = "") -> list[tuple[str, type[Any]]]:
    """Every table below a record, in order: its heading in a pipeline file, and its record."""
    tables = []
    for key in keys(record):
        if (below := record_of(key.type)) is not None:
            name = f"{path}{key.name}"
            tables += [(f"[[{name}]]" if get_origin(key.type) is tuple else f"[{name}]", below), *sections(below, f"{name}.")]
    return tables


def config_records() -> list[tuple[str, type[Any]]]:
    """Every table of a pipeline file but the learner's, as the steps to it, and its record."""
    return [("", PipelineConfig), *((name.strip("[]"), record) for name, record in sections(PipelineConfig))]


def config_tables() -> str:
    """Every table of a pipeline file, and every kind of learner."""
    parts = [f"## The top of the file\n\n{sentences(PipelineConfig)}\n\n{rows_of(keys(PipelineConfig))}"]
    parts += [f"## `{name}`\n\n{sentences(record)}\n\n{rows_of(keys(record))}" for name, record in sections(PipelineConfig)]
    parts.append(_learners())
    return "\n".join(parts)


def _learners() -> str:
    kinds = {kind: f"[`{kind}`](#kind--{kind})" for kind in LEARNERS}
    head = f"## `[learner]`\n\n`kind` says which: {', '.join(kinds.values())}. The other keys are those of the kind.\n"
    shared = dict.fromkeys(config for algorithm in LEARNERS.values() for config in reversed(_shared(algorithm.config)))
    own = [f"### {_title(record)}\n\n{rows_of(_declared(record))}" for record in shared]
    return "\n".join([head, *own, *(f"### kind = {kind}\n\n{learner_words(*pair)}" for kind, pair in _pairs())])


def _pairs() -> Iterable[tuple[str, tuple[str, Algorithm]]]:
    return ((kind, (kind, algorithm)) for kind, algorithm in LEARNERS.items())


def _shared(config: type[Any]) -> list[type[Any]]:
    """The records of keys that a learner's own inherits from, nearest first."""
    return [config for config in config.__mro__[1:] if issubclass(config, NetworkConfig)]


def _title(record: type[Any]) -> str:
    return sentences(record).rstrip(".").removeprefix("The ").capitalize()


def learner_like(config: type[Any]) -> type[Any] | None:
    """Whose keys mean the same where a learner's record does not say: a ridge's, where it has one inside."""
    return LEARNERS["ridge"].config if hasattr(config, "ridge") else None


def _declared(record: type[Any]) -> list[Key]:
    own = declared(record)
    return [key for key in keys(record, learner_like(record)) if key.name in own]


def learner_words(kind: str, algorithm: Algorithm) -> str:
    """What a kind is, what it can do, and its own keys."""
    facts = [sentences(algorithm.config).split("; the keys of a ridge")[0].rstrip(".") + "."]
    facts += [f"It needs the [extra](../how-to/extras.md) `{algorithm.extra or algorithm.needs}`."] if algorithm.needs else []
    facts += ["Its shards are merged exactly (`shards`)."] if algorithm.merge is not None else []
    acts = {"discount": "discount", "raise_rate": "raise-rate"}
    facts += [f'After an alarm it can also `drift.act = "{acts[able]}"`.' for able in algorithm.abilities]
    links = [f"[{_title(kind)}](#{_title(kind).lower().replace(' ', '-')})" for kind in reversed(_shared(algorithm.config))]
    facts += [f"It also has: {', '.join(links)}."] if links else []
    own = _declared(algorithm.config)
    return " ".join(facts) + "\n" + (f"\n{rows_of(own)}" if own else "")


def commands(command: click.Command, context: click.Context) -> list[tuple[str, str]]:
    """The words of a command and of every one below it, each with its help."""
    helps = [(context.command_path, command.get_help(context))]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.commands[name]
            helps += commands(below, click.Context(below, parent=context, info_name=name))
    return helps


def command_texts() -> str:
    """The help of every command, as wide as it is in a terminal that is wide enough."""
    width = millrace.context_settings["max_content_width"] - 2  # click's margin
    top = click.Context(millrace, info_name="millrace", terminal_width=width, **millrace.context_settings)
    return "\n".join(f"## {words}\n\n```text\n{text}\n```\n" for words, text in commands(millrace, top))


def remedy(error: type[MillraceError]) -> tuple[str, str]:
    """What an error means, and what to do, as its docstring says."""
    words = " ".join((vars(error).get("__doc__") or "").split()).partition(" >>> ")[0]
    meaning, _, way_out = words.partition(" What to do: ")
    return _sentence(meaning.rstrip(".")), _sentence(way_out.rstrip("."))


def error_table() -> str:
    """Every row of the table of meanings."""
    heads = ("error", "exit code", "HTTP", "gRPC", "what it means", "what to do")
    rows = [
        (f"`{error.__name__}`", str(seen.exit_code), str(seen.http), f"`{seen.grpc}`", *remedy(error))
        for error, seen in MEANINGS.items()
    ]
    return table(heads, rows)


def limits() -> list[tuple[str, float, str]]:
    """Name, value and comment of every number that bounds what the endpoint does."""
    listed = [limit for thing in LIMITED for limit in constants(sys.modules[thing.__module__])]
    return listed + [
        limit for thing, name in ALSO.items() for limit in constants(sys.modules[thing.__module__]) if limit[0] == name
    ]


def limit_table() -> str:
    """Every limit, with its unit."""
    return table(
        ("limit", "of what"), ((f"{value:,.15g} {unit(name)}".strip(), _sentence(told)) for name, value, told in limits())
    )


def metric_table() -> str:
    """Every metric that Prometheus is told."""
    heads = ("metric", "kind", "labels", "source", "what it means", "`status` calls it")
    rows = [
        (
            f"`{metric.name}`",
            metric.kind,
            ", ".join(map("`{}`".format, metric.labels)),
            metric.source,
            metric.meaning,
            metric.shown,
        )
        for metric in METRICS
    ]
    return table(heads, [(*row[:5], f"`{row[5]}`" if row[5] else "") for row in rows])


def unit(name: str) -> str:
    """The unit that a constant's name ends in."""
    return next((word for end, word in UNITS.items() if name.endswith(end)), "")


def room_table() -> str:
    """Which sub-room imports which, as ``tests/house_rooms.py`` allows it."""
    return f"```text\n{shown(ARROWS)}\n```\n"


BLOCKS: dict[str, Callable[[], str]] = {
    "the records of a pipeline file": config_tables,
    "the help of every command": command_texts,
    "the table of meanings": error_table,
    "the limits of the endpoint": limit_table,
    "the metrics": metric_table,
    "the public names": public_names,
    "the table of rooms": room_table,
}


def renewed(page: str) -> str:
    """A page with every block that is made from the code as it is now.

    Raises: ValueError where a page asks for a block that is not made.
    """
    for _, name, _, _ in MADE.findall(page):
        if name not in BLOCKS:
            raise ValueError(f"made from {name}: there is no such block; there are: {', '.join(BLOCKS)}")
    return MADE.sub(lambda block: f"{block[1]}\n{BLOCKS[block[2]]()}\n{block[4]}", page)


def lines_of(page: str, *heads: str) -> list[list[str]]:
    """The cells of the table with these heads, without backticks."""
    head = f"| {' | '.join(heads)} |\n"
    assert TEXTS[page].count(head) == 1
    body = TEXTS[page].partition(head)[2].splitlines()[1:]
    return [
        [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        for line in takewhile(lambda line: line.startswith("|"), body)
    ]


def main() -> None:
    """Write every page anew."""
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        path.write_text(renewed(text), encoding="utf-8")
        sys.stdout.write(f"{path.name}{'' if renewed(text) == text else ' changed'}\n")


if __name__ == "__main__":
    main()
