"""A pipeline file for a data set, complete and with a comment beside everything that one may want to change."""

from __future__ import annotations

import json
from dataclasses import asdict

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
