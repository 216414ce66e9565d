"""The command line: parse, call, print. Data goes to stdout, progress and messages to stderr."""

from __future__ import annotations

import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from millrace.learners.errors import MillraceError
from millrace.services.cli.dead_letters import dead_letters
from millrace.services.cli.options import branch_option, on_pipeline, reason_option, remember, show, yes_option
from millrace.services.cli.replay import replay
from millrace.services.cli.versions import VERSION_COMMANDS, confirm, confirm_learner
from millrace.services.config.config import endpoint_token, settings
from millrace.services.errors import FAILED, exit_code
from millrace.services.pipeline.instance import Instance
from millrace.streams.sharding import refuse_name

if TYPE_CHECKING:
    from millrace.streams.branch.verify import Report


class Commands(click.Group):
    """The one place where an error of ours becomes a sentence on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except MillraceError as error:
            click.echo(f"millrace: {error}", err=True)
            sys.exit(exit_code(error))
        except MemoryError as error:
            click.echo(f"millrace: not enough memory ({error}). Declare fewer columns, or use a larger machine.", err=True)
            sys.exit(FAILED)


def _data_name(ctx: click.Context, _param: click.Parameter, name: str | None) -> str | None:
    if name == "help":
        from millrace.services.data import datasets

        click.echo(datasets.listing())
        ctx.exit()
    return name


def _headers(ctx: click.Context, _param: click.Parameter, said: tuple[str, ...]) -> None:
    pairs = [text.partition("=") for text in said]
    if bad := [name for name, equals, _ in pairs if not name or not equals]:
        raise click.BadParameter(f"{bad[0]!r}: write NAME=VALUE, such as producer=till-7")
    ctx.meta["header"] = tuple((name, value.encode()) for name, _, value in pairs)


warm_help = "Let a branch that has not begun learn a file's rows first (.jsonl, .csv, .parquet)."
warm_path = click.Path(exists=True, dir_okay=False, path_type=Path)
warm_option = click.option(
    "--warm-start", type=warm_path, metavar="FILE", callback=remember, expose_value=False, help=warm_help
)


def warmed(instance: Instance, branch: str) -> None:
    """Do what --warm-start says, for a branch of a name that it can have."""
    from millrace.services.replay import backfill

    refuse_name(branch, instance.loaded.pipeline.shards)
    if (file := click.get_current_context().meta["warm_start"]) is not None:
        backfill.warm_start(instance, branch, file)


data_help = "A built-in data set instead of a file; `--data help` lists them."
header_help = "A header of every record, such as the producer's name; may be given more than once."
header_option = click.option(
    "--header", multiple=True, metavar="NAME=VALUE", callback=_headers, expose_value=False, help=header_help
)
data_option = click.option("--data", metavar="NAME", callback=_data_name, is_eager=True, help=data_help)


tokens_help = "A file of tokens: a line each, scopes (predict, label, or predict,label), a space, the token."
tokens_path = click.Path(path_type=Path)
tokens_option = click.option(
    "--tokens", type=tokens_path, metavar="FILE", callback=remember, expose_value=False, help=tokens_help
)


formats = click.Choice(["json", "arrow"])
format_option = click.option(
    "--format", default="json", type=formats, callback=remember, expose_value=False, help="A message a row, or Arrow batches."
)
rows_option = click.option(
    "--rows-per-message",
    default=1000,
    type=click.IntRange(1, 65536),
    metavar="N",
    callback=remember,
    expose_value=False,
    help="Rows of an Arrow message; default 1000.",
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="millrace")
def main() -> None:
    """Models that learn from a stream while they serve it, and that you can roll back."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)


@main.command()
@on_pipeline
@branch_option
@click.option("--follow", is_flag=True, help="Wait for more at the log's end, until SIGINT or SIGTERM.")
@click.option("--rows", default=0, type=click.IntRange(0), metavar="N", help="Stop after reading at least N records.")
@click.option("--take-over", is_flag=True, help="Take the branch from a live process, which then stops.")
@warm_option
@click.option("--verify", is_flag=True, help="Let another process fold the new version again before this one ends.")
def run(instance: Instance, branch: str, follow: bool, rows: int, take_over: bool, verify: bool) -> None:
    """Learn from the log, to its end or as told, then mark a version.

    Example: millrace run digits.toml
    """
    from millrace.services.serving import companion
    from millrace.services.training import run as running
    from millrace.services.training import shards as sharded

    warmed(instance, branch)
    done = sharded.learn(instance, branch, running.Bounds(follow, rows), take_over)
    show([asdict(done)])
    if verify and done.version is not None:
        companion.finish([*instance.words("verify"), "--version", done.version])


@main.command()
@on_pipeline
@branch_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535), help="Port of HTTP.")
@click.option("--grpc-port", default=8001, show_default=True, type=click.IntRange(1, 65535), help="Port of gRPC.")
@tokens_option
@warm_option
@click.option("--replicas", default=2, show_default=True, type=click.IntRange(2), help="Processes that answer; one may die.")
def up(instance: Instance, branch: str, host: str, port: int, grpc_port: int, replicas: int) -> None:
    """Learn from the log and answer over HTTP and gRPC, until Ctrl-C.

    Callers show a token: $MILLRACE_TOKEN, one of --tokens, else one that is made and kept in the pipeline's folder. With the
    latter, and where --host is loopback, callers on this machine need none.

    Example: millrace up digits.toml
    """
    from millrace.services.decisions import decide as deciding
    from millrace.services.serving import up as serving

    deciding.refuse_part(branch)
    tokens = click.get_current_context().meta["tokens"]
    warmed(instance, branch)
    serving.up(instance, branch, serving.Listening(host, port, grpc_port, replicas, endpoint_token(), tokens))


@main.command()
@on_pipeline
@click.argument("file", required=False, type=click.Path(path_type=Path))
@data_option
@click.option(
    "--rows-per-second", default=0.0, type=click.FloatRange(0), metavar="R", help="Rows a second; 0 (default): no limit."
)
@click.option("--served", is_flag=True, help="The rows are served predictions and late labels, for the topic NAME.served.")
@header_option
@format_option
@rows_option
def send(instance: Instance, file: Path | None, data: str | None, rows_per_second: float, served: bool) -> None:
    """Append the rows of a file (.jsonl, .csv, .parquet) or of a data set to the log.

    With --header producer=NAME they say who sent them, so that a replay can leave them out. With --format arrow many rows
    travel in one message, which is several times as fast.

    Example: millrace send digits.toml --data digits
    """
    from millrace.services.data import datasets
    from millrace.services.data import send as sending

    if file is not None and data is None:
        values = sending.values_of(file, instance.loaded.pipeline.schema)
    elif data is not None and file is None:
        values = datasets.values(data)
    else:
        raise click.UsageError("Name a file, or a data set with --data, and not both.")
    meta = click.get_current_context().meta
    rows = meta["rows_per_message"] if meta["format"] == "arrow" else 1
    if meta["format"] == "arrow":
        values, rows_per_second = sending.as_arrow(instance, values, rows_per_second, served, rows)
    sent = sending.send(instance, values, rows_per_second, served, meta["header"], rows)
    show([{"topic": sending.topic_of(instance, served), "sent": sent}])


@main.command()
@on_pipeline
@click.argument("version", required=False)
@click.option("--learner", is_flag=True, help="Let learning go on from VERSION too: another branch takes the live one's place.")
@reason_option
@yes_option
def rollback(instance: Instance, version: str | None, learner: bool, reason: str, yes: bool) -> None:
    """Serve VERSION, else the version before what is served. Learning goes on.

    With --learner it goes on from VERSION, else from the version that is served or the one before; rows between are not learned
    again, and late labels that are still to come are joined. Killed, the same command goes on.

    Example: millrace rollback digits.toml --reason "garbage since 02:10"
    """
    from millrace.services.decisions import decide as deciding

    if learner:
        confirm_learner(instance, version, reason, yes)
    else:
        confirm(instance, deciding.plan_rollback(instance, version), reason, yes)


@main.command()
@on_pipeline
@click.argument("version", required=False)
@click.option("--follow", metavar="BRANCH", help="Serve the newest state of a branch instead of a version.")
@reason_option
@yes_option
def serve(instance: Instance, version: str | None, follow: str | None, reason: str, yes: bool) -> None:
    """Let the endpoint answer from a VERSION, or from the newest state of a branch.

    Example: millrace serve digits.toml --follow main --reason "mended"
    """
    from millrace.services.decisions import decide as deciding

    confirm(instance, deciding.plan(instance, deciding.target(version, follow)), reason, yes)


@main.command()
@on_pipeline
@branch_option
def status(instance: Instance, branch: str) -> None:
    """Where a branch is, how far behind, where every record went, what it scores, what trainer and replicas do.

    Example: millrace status digits.toml
    """
    from millrace.services.decisions import status as looking
    from millrace.services.registry import mirror
    from millrace.services.serving import status as endpoint_status

    facts = looking.status(instance, branch) | mirror.describe(instance) | endpoint_status.served(instance)
    show([{"what": name, "value": value} for name, value in facts.items()])


@main.command()
@on_pipeline
@branch_option
@click.option("--ledger", is_flag=True, help="Print the pipeline's decisions instead of a branch's journal.")
def log(instance: Instance, branch: str, ledger: bool) -> None:
    """The journal of a branch, entry by entry, or the ledger.

    Example: millrace log digits.toml --output json
    """
    from millrace.services.decisions import status as looking

    show(looking.ledger_lines(instance) if ledger else looking.journal_lines(instance, branch))


@main.command()
@on_pipeline
@branch_option
@click.option("--version", metavar="VERSION", help="Verify this version alone, from the nearest state that is kept.")
@click.option("--watch", is_flag=True, help="Verify versions as they are made, newest first, until SIGINT or SIGTERM.")
@click.option("--parent", default=0, hidden=True, help="Go on for as long as this process lives.")
def verify(instance: Instance, branch: str, version: str | None, watch: bool, parent: int) -> None:
    """Fold the branch again from the log and compare every mark; exit 1 and name what does not hold.

    Example: millrace verify digits.toml
    """
    from millrace.services.decisions import versions
    from millrace.services.proof import certify as certifying

    if watch:
        certifying.watch(instance, parent)
        return
    if version is None:
        reports = certifying.prove_branch(instance, branch)
    else:
        reports = [certifying.prove_version(instance, versions.resolved(instance, version))]
    show([_proved(report) for report in reports])


def _proved(report: Report) -> dict[str, Any]:
    """A report without findings, as a row."""
    proved = [mark.version or f"seq {mark.state_seq}" for mark in report.proved]
    return asdict(report) | {"proved": proved, "unproved": len(report.unproved), "findings": 0}


main.add_command(replay)
main.add_command(dead_letters)


@main.group()
def config() -> None:
    """What a pipeline's configuration is and where each value came from."""


@config.command(name="show")
@on_pipeline
def config_show(instance: Instance) -> None:
    """Every key, its value, and whether the file, the environment, a flag or the default set it.

    Example: millrace config show digits.toml
    """
    show([{"key": key, "value": value, "from": origin} for key, value, origin in settings(instance.loaded)])


for command in VERSION_COMMANDS:
    main.add_command(command)

if __name__ == "__main__":
    main()
