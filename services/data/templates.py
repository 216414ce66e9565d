"""A pipeline file for a data set, complete and with a comment beside everything that one may want to change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import msgspec

from millrace.learners.errors import ConfigError
from millrace.services.config.config import Loaded
from millrace.services.data.files import DataSet
from millrace.streams.schema import Field

TEMPLATE = """\
# {about}.
name = "{called}"
seed = 0  # of everything drawn at random

# What a record holds. A row with another key, type, size or a missing value is not learned: it becomes a dead letter.
{fields}
# What is to be predicted. Integers, strings and booleans are classes, and new ones may come; numbers are regression.
[label]
name = {label}
type = "{type}"

[learner]
kind = "ridge"  # after any stream, exactly the ridge regression of everything seen so far
solve_rows = {solve}  # learned rows from one solve to the next; more is cheaper and staler
{ridge}
[batch]
rows = {batch}  # of a training batch; every row is answered first and learned after
wait_ms = 500  # a part of a batch is learned after so long

[worker]
step_rows = {step}  # rows read at once, at most
checkpoint_rows = {version}  # more is cheaper and folds more again after a crash
version_rows = {version}  # every so often a version that can be verified, served and gone back to
"""

COMMENTS = {
    "expand": "random ReLU features in place of the fields; more is finer and costs its square",
    "gamma": "penalty in rows; more is flatter and safer, less follows the data",
    "decay": "weight kept per learned row; less forgets faster",
    "standardise": "whether every feature counts the same whatever its unit",
}


def pipeline_toml(chosen: DataSet, called: str) -> str:
    """The text of a pipeline file for a data set."""
    return TEMPLATE.format(
        about=chosen.about,
        called=called,
        fields="\n".join(_field(field) for field in chosen.fields),
        label=json.dumps(chosen.label.name),
        type=chosen.label.type,
        ridge=_ridge(chosen),
        **asdict(chosen.pace),
    )


def _field(field: Field) -> str:
    """One [[fields]] table with what differs from a plain number."""
    plain = asdict(Field(field.name))
    lines = ["[[fields]]"]
    for key, value in asdict(field).items():
        if key == "name" or value != plain[key]:
            lines.append(f"{key} = {_toml(value)}{_slots(field) if key == 'categories' else ''}")
    return "\n".join(lines) + "\n"


def _slots(field: Field) -> str:
    """Why a column's categories are not listed."""
    reasons = {"grow": "names take slots as they come; past max they share one", "hash": "a name's slot is its hash"}
    return f"  # {reasons[field.categories]}" if isinstance(field.categories, str) else ""


def _ridge(chosen: DataSet) -> str:
    return "".join(f"{key} = {_toml(value)}  # {COMMENTS[key]}\n" for key, value in chosen.ridge.items())


def _toml(value: str | float | bool | tuple[str, ...]) -> str:
    """JSON and TOML write these alike."""
    return json.dumps(value)


def toml(value: Any) -> str:
    """A value as TOML writes it on one line.

    >>> toml({"a": 1.5, "b": [True, "x"]})
    '{"a" = 1.5, "b" = [true, "x"]}'

    Raises: TypeError for what TOML cannot hold, such as None.
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text(str(key))} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int | float):
        return repr(float(value) if isinstance(value, float) else int(value))
    raise TypeError(f"{type(value).__name__} has no place in a pipeline file")


def _text(value: str) -> str:
    """JSON's escapes are TOML's, but for one character that only TOML refuses."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def flags_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings by their dotted keys as the words of ``--set``.

    >>> flags_of({"learner.gamma": 2.0, "log.topic": "all"})
    ('learner.gamma=2.0', 'log.topic="all"')

    Raises: ConfigError for a value that no pipeline file holds.
    """
    flags = []
    for key, value in settings.items():
        try:
            flags.append(f"{key}={toml(value)}")
        except TypeError as error:
            raise ConfigError(f"settings: {key} = {value!r}: {error}. Give a number, a text, a boolean or a list.") from error
    return tuple(flags)


def loaded_toml(loaded: Loaded) -> str:
    """The text of a pipeline file that says what file, environment and flags said together, and leaves defaults out."""
    tree = _set_settings(msgspec.to_builtins(loaded.pipeline), loaded.origin, "")
    plain = [f"{key} = {toml(value)}" for key, value in tree.items() if not isinstance(value, Mapping)]
    tables = [
        "\n".join([f"\n[{name}]", *(f"{key} = {toml(value)}" for key, value in table.items())])
        for name, table in tree.items()
        if isinstance(table, Mapping)
    ]
    return "\n".join([*plain, *tables, ""])


def _set_settings(tree: Mapping[str, Any], origin: Mapping[str, str], prefix: str) -> dict[str, Any]:
    """The part of a tree of settings that somebody set, by the dotted keys of ``origin``; names as ``schema.leaves`` gives."""
    settings: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            if part := _set_settings(value, origin, f"{name}."):
                settings[key] = part
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            settings[key] = [_set_settings(item, origin, f"{name}[{at}].") for at, item in enumerate(value)]
        elif name in origin:
            settings[key] = value
    return settings
