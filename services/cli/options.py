"""What the commands share: which pipeline, which branch, why, and how rows are printed.

Only what a command's help needs is imported here: configuration, learners and log come when a pipeline is opened.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from millrace.services.cli.init_process import leave_last_words
from millrace.services.config.names import BRANCH, NAME_CHARACTERS
from millrace.services.printable import MOST_WRITTEN, printable, printable_lines

if TYPE_CHECKING:
    from millrace.services.pipeline.instance import Instance
    from millrace.services.serving.events import EventLines, Form

C = TypeVar("C", bound=Callable[..., None])

WIDEST = 120  # characters of a cell that a column is made wide for
MOST_NAME = 100  # of a branch
UNCHANGED = "Nothing was changed. Give --yes to do it."


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a command: on which pipeline, and how its rows are printed."""

    instance: Instance
    home: str | None  # --home, where it was given
    output: str  # json or table

    @property
    def pipeline(self) -> str:
        """The pipeline's file, as it was given."""
        return str(self.instance.loaded.path)

    @property
    def at_home(self) -> list[str]:
        """The words of ``--home``, where it was given."""
        return [] if self.home is None else ["--home", self.home]

    @property
    def words(self) -> list[str]:
        """The words by which the same pipeline is found again from the same folder."""
        return [
            self.pipeline,
            *self.at_home,
            *(argument for flag in self.instance.loaded.flags for argument in ("--set", flag)),
        ]

    def show(self, rows: Iterable[dict[str, Any]]) -> None:
        """Print rows as JSON lines or as a table, as ``--output`` says."""
        if self.output == "json":
            for row in rows:
                click.echo(json.dumps(row, default=str))
        else:
            for line in table(list(rows)):
                click.echo(line)

    def note(self, text: str) -> None:
        """A line on stderr, beside the rows."""
        click.echo(printable(text), err=True)


def _call(ctx: click.Context, _param: click.Parameter, path: Path) -> Call:
    """The pipeline that is named, opened; the options that say how were read before and are not given on."""
    home, flags, output = (ctx.params.pop(name) for name in ("home", "flags", "output"))
    return Call(_opened(path, home, flags), home, output)


def on_pipeline(command: C) -> C:
    """Give a command its argument ``call``, with the options that say on which pipeline."""
    home_help = "Folder of all state (else $MILLRACE_HOME, else .millrace)."
    home_option = click.option("--home", metavar="DIR", is_eager=True, help=home_help)
    set_help = "Set a key; wins over the pipeline file."
    flags = click.option("--set", "flags", multiple=True, metavar="KEY=VALUE", is_eager=True, help=set_help)
    kind = click.Choice(["json", "table"])
    output = click.option("--output", type=kind, default="table", is_eager=True, help="JSON lines, or a table (default).")
    path = click.Path(dir_okay=False, path_type=Path)
    pipeline = click.argument("call", metavar="PIPELINE.toml", type=path, callback=_call)
    return home_option(flags(output(pipeline(command))))


def gathering(name: str, record: type[Any]) -> type[click.Command]:
    """A class of commands that are given the options named as the fields of ``record`` as one argument, called ``name``."""

    class Gathering(click.Command):
        def invoke(self, ctx: click.Context) -> Any:
            ctx.params[name] = record(**{field.name: ctx.params.pop(field.name) for field in fields(record)})
            return super().invoke(ctx)

    return Gathering


def _opened(path: Path, home: str | None, flags: tuple[str, ...]) -> Instance:
    from millrace.services.config.kernels import pin

    pin(path, flags)  # before the next line loads NumPy
    from millrace.services.config.config import home_folder, load_pipeline
    from millrace.services.pipeline.instance import Instance

    loaded = load_pipeline(path, flags)
    return Instance(loaded, home_folder(home) / loaded.pipeline.name)


def branch_name(_ctx: click.Context, _param: click.Parameter, name: str | None) -> str | None:
    """The name of a branch, or none. Raises: BadParameter where it cannot be one."""
    if name is None:
        return None
    if not name or not set(name) <= NAME_CHARACTERS:  # it names files
        from millrace.services.pipeline.ids import branch_in

        instead = f"is a state of branch {branch[:MOST_NAME]}; name that" if (branch := branch_in(name)) else ""
        raise click.BadParameter(f"{name[:MOST_NAME]!r}: {instead or 'must be letters, digits, - and _'}")
    if len(name) > MOST_NAME:
        raise click.BadParameter(f"it has {len(name):,} characters; at most {MOST_NAME} are the name of a branch")
    return name


branch_help = "Which branch of the pipeline."
branch_option = click.option("--branch", default=BRANCH, show_default=True, callback=branch_name, help=branch_help)

live_help = "Which branch, if not the live one."
live_branch_option = click.option("--branch", default=None, callback=branch_name, help=live_help)


def reason_of(_ctx: click.Context, _param: click.Parameter, reason: str | None) -> str | None:
    """Why, or nothing. Raises: BadParameter where it says nothing, or more than anybody reads."""
    if reason is not None and not reason.strip():  # whoever reads the ledger would be told nothing
        raise click.BadParameter("say why in a few words")
    if reason is not None and len(reason) > MOST_WRITTEN:
        raise click.BadParameter(f"it has {len(reason):,} characters; say why in at most {MOST_WRITTEN:,}")
    return reason


reason_option = click.option("--reason", required=True, callback=reason_of, help="Why; kept in the ledger.")
yes_option = click.option("--yes", is_flag=True, help="Do it; without this the plan is shown and nothing changes.")


while_help = "Do it only while this VERSION is in force (of a branch that is followed: its name)."
while_option = click.option("--while", "seen", default=None, metavar="VERSION", help=while_help)


def metrics_options(command: C) -> C:
    """Give a command the options that say where Prometheus scrapes."""
    port_help = "Port of /metrics, for Prometheus, and of /livez; 0 (default): there is neither."
    port = click.option("--metrics-port", default=0, type=click.IntRange(0, 65535), metavar="N", help=port_help)
    host = click.option("--metrics-host", default="127.0.0.1", show_default=True, help="Where that port listens.")
    return port(host(command))


def _event_lines(ctx: click.Context, _param: click.Parameter, form: Form) -> EventLines:
    """From now on all that this process says on stderr are events."""
    from millrace.services.serving.events import EventLines, StrayLines

    lines = EventLines(form, str(ctx.info_name))
    logging.basicConfig(level=logging.INFO, handlers=[lines], force=True)
    if form == "json":
        sys.stdout, sys.stderr = (StrayLines(lines, level, str(ctx.info_name)) for level in ("INFO", "WARNING"))
    return lines


def say_error(sentence: str) -> None:
    """Why a command fails: a line on stderr, or an event where that is all JSON; and a container's last words."""
    from millrace.services.serving.events import EventLines

    sentence = printable_lines(sentence)
    leave_last_words(sentence)
    if any(isinstance(handler, EventLines) and handler.form == "json" for handler in logging.getLogger().handlers):
        logging.getLogger("millrace").error("millrace: %s", sentence)
    else:
        click.echo(f"millrace: {sentence}", err=True)


def log_format_option(hidden: bool) -> Callable[[C], C]:
    """How a command prints events; ``hidden``: where only `millrace up` gives it, to its companions."""
    said = "How events of all its processes stand on stderr: text, or a JSON object a line."
    kind = click.Choice(["text", "json"])
    return click.option(
        "--log-format",
        type=kind,
        default="text",
        show_default=True,
        hidden=hidden,
        expose_value=not hidden,
        callback=_event_lines,
        is_eager=True,
        help=said,
    )


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows under their column names, each column as wide as its widest cell, but for cells that are very long.

    >>> table([{"key": "seed", "value": 0}, {"key": "threads", "value": 1}])
    ['KEY      VALUE', 'seed     0', 'threads  1']
    """
    if not rows:
        return []
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[printable(name.upper()) for name in names], *([_cell(row.get(name, "")) for name in names] for row in rows)]
    widths = [
        max(len(cell) for cell in column if cell is column[0] or len(cell) <= WIDEST) for column in zip(*cells, strict=True)
    ]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return printable(value) if isinstance(value, str) else json.dumps(value, default=str)
