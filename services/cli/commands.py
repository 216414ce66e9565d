"""The command line: parse, call, print. Data goes to stdout, progress and messages to stderr."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from millrace.learners.distribution import release
from millrace.learners.errors import MillraceError
from millrace.services.cli.alarms import alarms
from millrace.services.cli.dead_letters import dead_letters
from millrace.services.cli.group import Commands, Printable
from millrace.services.cli.init_process import stay_as_init
from millrace.services.cli.looking import log, say_if_not_live, status
from millrace.services.cli.options import (
    Call,
    branch_option,
    gathering,
    log_format_option,
    metrics_options,
    on_pipeline,
    reason_of,
    reason_option,
    say_error,
    while_option,
    yes_option,
)
from millrace.services.cli.replay import replay
from millrace.services.cli.versions import VERSION_COMMANDS, confirm, confirm_learner, confirm_rollback
from millrace.services.errors import FAILED, exit_code

if TYPE_CHECKING:
    from millrace.services.serving.events import EventLines
    from millrace.streams.branch.verify import Report


def _data_name(ctx: click.Context, _param: click.Parameter, name: str | None) -> str | None:
    if name == "help":
        from millrace.services.data import datasets

        click.echo(datasets.listing())
        ctx.exit()
    return name


def _headers(_ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]) -> tuple[tuple[str, bytes], ...]:
    pairs = [text.partition("=") for text in texts]
    if invalid := [name for name, equals, _ in pairs if not name or not equals]:
        raise click.BadParameter(f"{invalid[0]!r}: write NAME=VALUE, such as producer=till-7")
    return tuple((name, value.encode()) for name, _, value in pairs)


warm_help = "Let a branch that has not begun learn a file's rows first (.jsonl, .csv, .parquet)."
warm_path = click.Path(exists=True, dir_okay=False, path_type=Path)
warm_option = click.option("--warm-start", type=warm_path, metavar="FILE", help=warm_help)


def warmed(call: Call, branch: str, warm_start: Path | None) -> None:
    """Do what --warm-start says, for a branch of a name that it can have."""
    from millrace.services.replay import backfill
    from millrace.streams.sharding import refuse_name

    refuse_name(branch, call.instance.loaded.pipeline.shards)
    if warm_start is not None:
        backfill.warm_start(call.instance, branch, warm_start)


data_help = "A built-in data set instead of a file; `--data help` lists them."
data_option = click.option("--data", metavar="NAME", callback=_data_name, is_eager=True, help=data_help)
rate_option = click.option(
    "--rows-per-second", default=0.0, type=click.FloatRange(0), metavar="R", help="Rows a second; 0 (default): no limit."
)
header_help = "A header of every record, such as the producer's name; may be given more than once."
header_option = click.option("--header", multiple=True, metavar="NAME=VALUE", callback=_headers, help=header_help)
formats = click.Choice(["json", "arrow"])
format_option = click.option("--format", default="json", type=formats, help="A message a row, or Arrow batches.")
rows_range = click.IntRange(1, 65536)
rows_help = "Rows of an Arrow message; default 1000."
rows_option = click.option("--rows-per-message", default=1000, type=rows_range, metavar="N", help=rows_help)


@dataclass(frozen=True, slots=True)
class SendOptions:
    """How rows are sent, as the options of `millrace send` say."""

    rows_per_second: float  # 0: no limit
    served: bool
    header: tuple[tuple[str, bytes], ...]
    format: str  # json or arrow
    rows_per_message: int  # of an Arrow message

    @property
    def rows_each(self) -> int:
        """Rows of a message."""
        return self.rows_per_message if self.format == "arrow" else 1


tokens_help = "A file of tokens, a line each: scopes (predict, label, or predict,label), the token, and for an LLM its tenant."
tokens_option = click.option("--tokens", type=click.Path(path_type=Path, readable=False), metavar="FILE", help=tokens_help)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How long `millrace run` learns, and what it does before and after, as its options say."""

    follow: bool
    rows: int  # 0: no bound
    take_over: bool
    warm_start: Path | None
    verify: bool
    past_rejects: bool
    reason: str | None  # why, where it goes past rejects

    def __post_init__(self) -> None:
        """Raise UsageError where one of the two stands without the other."""
        if self.past_rejects != bool(self.reason and self.reason.strip()):
            raise click.UsageError("--past-rejects and --reason WHY go together: the ledger keeps why.")


@dataclass(frozen=True, slots=True)
class UpOptions:
    """Where `millrace up` listens, and what it does before, as its options say."""

    host: str
    port: int
    grpc_port: int
    tokens: Path | None
    warm_start: Path | None
    replicas: int | None  # None: as many as are usual
    start_s: int
    drain_s: float
    metrics_port: int
    metrics_host: str
    log_format: EventLines


def _release(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    """Print it and end; an environment of the distribution's old name is told so in a sentence."""
    if wanted:
        try:
            click.echo(f"millrace, version {release()}")
        except MillraceError as error:
            say_error(str(error))
            ctx.exit(exit_code(error))
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_release, help="Show the version and exit."
)
@click.pass_context
def main(ctx: click.Context) -> None:
    """Models that learn from a stream while they serve it, and that you can roll back."""
    if ctx.invoked_subcommand == "up" and os.getpid() == 1:
        stay_as_init()
    os.umask(os.umask(0o077) | 0o077)  # what is made here is its owner's alone
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(Printable("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[lines])


@main.command(cls=gathering("options", RunOptions))
@on_pipeline
@branch_option
@click.option("--follow", is_flag=True, help="Wait for more at the log's end, until SIGINT or SIGTERM.")
@click.option("--rows", default=0, type=click.IntRange(0), metavar="N", help="Stop after reading at least N records.")
@click.option("--take-over", is_flag=True, help="Take the branch from a live process, which then stops.")
@warm_option
@click.option("--verify", is_flag=True, help="Let another process fold the new version again before this one ends.")
@click.option("--past-rejects", is_flag=True, help="Go past all records that are in the log by now, however many are refused.")
@click.option("--reason", metavar="WHY", callback=reason_of, help="Why it goes past them; kept in the ledger.")
def run(call: Call, branch: str, options: RunOptions) -> None:
    """Learn from the log, to its end or as told, then mark a version.

    What was read is learned, passed (it has no label, is held out or excluded) or rejected (kept as a dead letter); with late
    labels some of it waits. Exit status 1 where all that was read was rejected.

    Example: millrace run digits.toml
    """
    from millrace.services.serving import companion
    from millrace.services.training import past_rejects
    from millrace.services.training import run as running
    from millrace.services.training import shards as sharded

    warmed(call, branch, options.warm_start)
    if options.reason is not None:
        past_rejects.let_past(call.instance, branch, options.reason)
    result = sharded.learn(call.instance, branch, running.Bounds(options.follow, options.rows), options.take_over)
    call.show([asdict(result)])
    if result.read and result.rejected == result.read:
        sys.exit(FAILED)
    if options.verify and result.version is not None:
        companion.finish([*call.instance.words("verify"), "--version", result.version])


@main.command(cls=gathering("options", UpOptions))
@on_pipeline
@branch_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535), help="Port of HTTP.")
@click.option("--grpc-port", default=8001, show_default=True, type=click.IntRange(1, 65535), help="Port of gRPC.")
@tokens_option
@warm_option
@click.option(
    "--start-s",
    default=300,
    show_default=True,
    type=click.IntRange(1),
    help="Seconds that each part of Ray may take to start or answer; one that has died is noticed at once.",
)
@click.option(
    "--drain-s",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0.0),
    help="Seconds that answers go on once it is asked to end, while readiness says no.",
)
@metrics_options
@click.option("--replicas", type=click.IntRange(1), help="Processes that answer; default 2, so that one may die; of an LLM 1.")
@log_format_option(hidden=False)
def up(call: Call, branch: str, options: UpOptions) -> None:
    """Learn from the log and answer over HTTP and gRPC, until Ctrl-C. A pipeline with [llm] answers by vLLM's OpenAI API.

    Callers show a token: $MILLRACE_TOKEN, one of --tokens, else one that is made and kept in the pipeline's folder. With the
    latter, and where --host is loopback, callers on this machine need none.

    Example: millrace up digits.toml
    """
    from millrace.services.config.config import taken_endpoint_token
    from millrace.services.decisions import decide as deciding
    from millrace.services.serving import up as serving

    deciding.refuse_part(branch)
    warmed(call, branch, options.warm_start)
    names = [field.name for field in fields(options) if field.name not in ("warm_start", "log_format", "replicas")]
    where = {name: getattr(options, name) for name in names}
    least = 2 if call.instance.loaded.pipeline.llm is None else 1
    if (replicas := options.replicas or least) < least:
        raise click.UsageError(f"--replicas {replicas}: at least {least}, so that one may die.")
    listening = serving.Listening(token=taken_endpoint_token(), replicas=replicas, **where)
    options.log_format.branch = branch
    serving.up(call.instance, branch, listening, options.log_format, _language_model(call))


def _language_model(call: Call) -> Callable[[], type[Any]] | None:
    """What gives the class of its replicas, where a language model answers. Raises: MillraceError without vLLM."""
    if call.instance.loaded.pipeline.llm is None:
        return None
    from millrace.services.llm import kind

    kind.prepare()
    return kind.language_model


@main.command(cls=gathering("options", SendOptions))
@on_pipeline
@click.argument("file", required=False, type=click.Path(path_type=Path))
@data_option
@rate_option
@click.option("--served", is_flag=True, help="The rows are served predictions and late labels, for the topic NAME.served.")
@header_option
@format_option
@rows_option
def send(call: Call, file: Path | None, data: str | None, options: SendOptions) -> None:
    """Append the rows of a file (.jsonl, .csv, .parquet) or of a data set to the log.

    With --header producer=NAME they say who sent them, so that a replay can leave them out. With --format arrow many rows
    travel in one message, which is several times as fast.

    Example: millrace send digits.toml --data digits
    """
    from millrace.services.data import datasets
    from millrace.services.data import send as sending

    if (file is None) == (data is None):
        raise click.UsageError("Name a file, or a data set with --data, and not both.")
    values = sending.values_of(file, call.instance.loaded.pipeline.schema) if file else datasets.values(str(data))
    rate = options.rows_per_second
    if options.format == "arrow":
        values, rate = sending.as_arrow(call.instance, values, rate, options.served, options.rows_each)
    count = sending.send(call.instance, values, rate, options.served, options.header, options.rows_each)
    call.show([{"topic": sending.topic_of(call.instance, options.served), "sent": count}])


@main.command()
@on_pipeline
@click.argument("version", required=False)
@click.option("--learner", is_flag=True, help="Let learning go on from VERSION too: another branch takes the live one's place.")
@while_option
@reason_option
@yes_option
def rollback(call: Call, version: str | None, learner: bool, seen: str | None, reason: str, yes: bool) -> None:
    """Serve VERSION. Without one: after an alarm the newest verified version before the onset of all that are open (`millrace
    alarms list`), else the version before what is served. Learning goes on. The plan says why it takes which.

    With --learner it goes on from VERSION, else from the version that is served or the one before; rows between are not learned
    again, and late labels that are still to come are joined. Killed, the same command goes on.

    Without VERSION it is refused for a minute after another decision, unless --while says that you have seen that one.

    Example: millrace rollback digits.toml --reason "garbage since 02:10"
    """
    (confirm_learner if learner else confirm_rollback)(call, version, seen, reason, yes)


@main.command()
@on_pipeline
@click.argument("version", required=False)
@click.option("--follow", metavar="BRANCH", help="Serve the newest state of a branch instead of a version.")
@reason_option
@yes_option
def serve(call: Call, version: str | None, follow: str | None, reason: str, yes: bool) -> None:
    """Let the endpoint answer from a VERSION, or from the newest state of a branch.

    Example: millrace serve digits.toml --follow main --reason "mended"
    """
    from millrace.services.decisions import decide as deciding

    confirm(call, deciding.plan(call.instance, deciding.target(version, follow)), reason, yes)


@main.command()
@on_pipeline
@branch_option
@click.option("--version", metavar="VERSION", help="Verify this version alone, from the nearest state that is kept.")
@click.option("--watch", is_flag=True, help="Verify versions as they are made, newest first, until SIGINT or SIGTERM.")
@click.option("--parent", default=0, hidden=True, help="Go on for as long as this process lives.")
@log_format_option(hidden=True)
def verify(call: Call, branch: str, version: str | None, watch: bool, parent: int) -> None:
    """Fold the branch again from the log and compare every mark; exit 1 and name what does not hold.

    Example: millrace verify digits.toml
    """
    from millrace.services.decisions import versions
    from millrace.services.proof import certify as certifying

    if watch:
        certifying.watch(call.instance, parent)
        return
    if version is None:
        reports = certifying.prove_branch(call.instance, branch)
    else:
        reports = [certifying.prove_version(call.instance, versions.resolved(call.instance, version))]
    call.show([_proved(report) for report in reports])
    if version is None:
        say_if_not_live(call, branch)


def _proved(report: Report) -> dict[str, Any]:
    """A report without findings, as a row."""
    proved = [mark.version or f"seq {mark.state_seq}" for mark in report.proved]
    return asdict(report) | {"proved": proved, "unproved": len(report.unproved), "findings": 0}


main.add_command(replay)
main.add_command(dead_letters)
main.add_command(alarms)
main.add_command(status)
main.add_command(log)


@main.group()
def config() -> None:
    """What a pipeline's configuration is and where each value came from."""


@config.command(name="show")
@on_pipeline
def config_show(call: Call) -> None:
    """Every key, its value, and whether the file, the environment, a flag or the default set it.

    Example: millrace config show digits.toml
    """
    from millrace.services.config.config import settings

    call.show([{"key": key, "value": value, "from": origin} for key, value, origin in settings(call.instance.loaded)])


for command in VERSION_COMMANDS:
    main.add_command(command)
