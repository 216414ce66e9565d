"""What the commands share: which pipeline, which branch, why, and how rows are printed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from millrace.services.config.config import NAME_CHARACTERS, home_folder, load_pipeline
from millrace.services.pipeline.instance import BRANCH, Instance

C = TypeVar("C", bound=Callable[..., None])


def remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Keep an option for whoever asks the context, rather than pass it to the command."""
    ctx.meta[str(param.name)] = value


def _opened(ctx: click.Context, _param: click.Parameter, path: Path) -> Instance:
    ctx.meta["path"] = path
    loaded = load_pipeline(path, ctx.meta["set"])
    return Instance(loaded, home_folder(ctx.meta["home"]) / loaded.pipeline.name)


def on_pipeline(command: C) -> C:
    """Give a command its ``instance`` argument, with the options that say which."""
    later: dict[str, Any] = {"callback": remember, "expose_value": False, "is_eager": True}
    home = click.option("--home", metavar="DIR", help="Folder of all state (else $MILLRACE_HOME, else .millrace).", **later)
    flags = click.option("--set", multiple=True, metavar="KEY=VALUE", help="Set a key; wins over the pipeline file.", **later)
    kind = click.Choice(["json", "table"])
    output = click.option("--output", type=kind, default="table", help="JSON lines, or a table (default).", **later)
    path = click.Path(dir_okay=False, path_type=Path)
    pipeline = click.argument("instance", metavar="PIPELINE.toml", type=path, callback=_opened)
    return home(flags(output(pipeline(command))))


def _branch_name(_ctx: click.Context, _param: click.Parameter, name: str) -> str:
    if not name or not set(name) <= NAME_CHARACTERS:  # it names files
        raise click.BadParameter(f"{name!r}: must be letters, digits, - and _")
    return name


branch_help = "Which branch of the pipeline."
branch_option = click.option("--branch", default=BRANCH, show_default=True, callback=_branch_name, help=branch_help)


def _reason(_ctx: click.Context, _param: click.Parameter, why: str) -> str:
    if not why.strip():  # whoever reads the ledger would be told nothing
        raise click.BadParameter("say why in a few words")
    return why


reason_option = click.option("--reason", required=True, callback=_reason, help="Why; kept in the ledger.")
yes_option = click.option("--yes", is_flag=True, help="Do it; without this the plan is shown and nothing changes.")


def show(rows: Iterable[dict[str, Any]]) -> None:
    """Print rows as JSON lines or as a table, as ``--output`` says."""
    if click.get_current_context().meta.get("output") == "json":
        for row in rows:
            click.echo(json.dumps(row, default=str))
    else:
        for line in table(list(rows)):
            click.echo(line)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows under their column names, each column as wide as its widest cell.

    >>> table([{"key": "seed", "value": 0}, {"key": "threads", "value": 1}])
    ['KEY      VALUE', 'seed     0', 'threads  1']
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[name.upper() for name in names], *([_cell(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)
