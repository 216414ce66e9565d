"""The commands of `millrace replay`: parse, call, print."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from millrace.services.cli.options import on_pipeline, reason_option, remember, show, yes_option
from millrace.services.cli.versions import settle_words
from millrace.services.pipeline.instance import Instance

if TYPE_CHECKING:
    from millrace.services.replay.plan import Origin
    from millrace.streams.journal.exclusions import Exclusion


@click.group()
def replay() -> None:
    """Learn again from a version on, without what should not have been learned, and let that take over."""


def _offsets(text: str) -> Exclusion:
    from millrace.streams.journal.exclusions import OffsetRange

    tp, _, offsets = text.rpartition(":")
    first, dash, last = offsets.partition("-")
    if not (tp and ":" in tp and dash and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise click.BadParameter(f"{text!r}: write TOPIC:PARTITION:FIRST-LAST, such as digits:0:600-899")
    return OffsetRange(tp, int(first), int(last) + 1)


def _time(text: str) -> Exclusion:
    from millrace.streams.journal.exclusions import Time

    first, _, last = text.partition("..")
    try:
        start, stop = (_milliseconds(part) for part in (first, last))
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: write FROM..TO, such as 2026-11-21T02:10..2026-11-21T02:30") from error
    if start >= stop:
        raise click.BadParameter(f"{text!r}: ends before it begins")
    return Time(start, stop)


def _milliseconds(text: str) -> int:
    """Since 1970, or a date and time, which are this machine's where they name no zone."""
    return int(text) if text.isdecimal() else round(datetime.fromisoformat(text).timestamp() * 1000)


def _header(text: str) -> Exclusion:
    from millrace.streams.journal.exclusions import Header

    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{text!r}: write NAME=VALUE, such as producer=till-7")
    return Header(name, value)


def _key(text: str) -> Exclusion:
    from millrace.streams.journal.exclusions import Key
    from millrace.streams.parts import sha256

    return Key(sha256(text.encode()))


UNCHANGED = "Nothing was changed. Give --yes to do it."
KINDS = {"exclude_header": _header, "exclude_offsets": _offsets, "exclude_time": _time, "exclude_key": _key}


def _excluded(ctx: click.Context, param: click.Parameter, said: tuple[str, ...]) -> None:
    ctx.meta.setdefault("exclude", []).extend(KINDS[str(param.name)](text) for text in said)


many: dict[str, Any] = {"multiple": True, "callback": _excluded, "expose_value": False}


def _places(ctx: click.Context, param: click.Parameter, text: str | None) -> None:
    pairs = [one.rpartition("=") for one in text.split(",")] if text else []
    if bad := [one for one in pairs if ":" not in one[0] or not one[2].isdecimal()]:
        raise click.BadParameter(
            f"{''.join(bad[0])!r}: write TOPIC:PARTITION=OFFSET, such as digits:0=600, commas between them"
        )
    remember(ctx, param, {tp: int(offset) for tp, _, offset in pairs} or None)


def _since(ctx: click.Context, param: click.Parameter, text: str | None) -> None:
    try:
        remember(ctx, param, None if text is None else _milliseconds(text))
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: write a date and time, such as 2026-11-21T02:10") from error


def _origin(meta: dict[str, Any]) -> Origin:
    """Where a replay begins, of the options that were given."""
    from millrace.services.replay.plan import Origin

    begins = [meta["from"], meta["from_start"] or None, meta["from_offsets"], meta["from_time"]]
    if sum(one is not None for one in begins) != 1:
        raise click.UsageError("Say where to begin: one of --from VERSION, --from-start, --from-offsets, --from-time.")
    return Origin(meta["from"], meta["from_offsets"], meta["from_time"], meta["backfill"], meta["include"])


once: dict[str, Any] = {"callback": remember, "expose_value": False}
places: dict[str, Any] = once | {"callback": _places, "metavar": "TP=OFFSET,..."}
since: dict[str, Any] = once | {"callback": _since, "metavar": "TIME"}
file: dict[str, Any] = once | {"type": click.Path(exists=True, dir_okay=False, path_type=Path), "metavar": "FILE"}


@replay.command()
@on_pipeline
@click.option("--from", metavar="VERSION", help="Begin at the last good version; `millrace versions` lists them.", **once)
@click.option("--from-start", is_flag=True, help="Begin with an empty learner, at the first record that the log has.", **once)
@click.option("--from-offsets", help="Begin with an empty learner, at these offsets.", **places)
@click.option("--from-time", help="Begin with an empty learner, at the first record that is not older than TIME.", **since)
@click.option("--backfill", help="Learn the rows of a file first (.jsonl, .csv, .parquet).", **file)
@click.option("--include", multiple=True, metavar="EXCLUSION", help="Read what the live branch leaves out.", **once)
@click.option("--exclude-header", metavar="NAME=VALUE", help="Leave out records with this header.", **many)
@click.option("--exclude-offsets", metavar="TP:FIRST-LAST", help="Leave out these offsets of TOPIC:PARTITION.", **many)
@click.option("--exclude-time", metavar="FROM..TO", help="Leave out timestamps from FROM on, before TO.", **many)
@click.option("--exclude-key", metavar="KEY", help="Leave out records with this key; only its hash is kept.", **many)
@reason_option
def plan(instance: Instance, reason: str) -> None:
    """Say what a replay would do, and keep that under its sha256 for `millrace replay run`.

    \b
    Example: millrace replay plan digits.toml --from VERSION --exclude-header from=till-7 --reason garbage

    It begins at a version, or with nothing: another learner over the same log, a warm start. What is left out is said by
    --exclude-..., each as often as needed; what the live branch leaves out stays so but for --include, which takes the words
    of `millrace status`.
    """
    from millrace.services.replay import plan as replay_plan
    from millrace.services.replay import run as replaying

    meta = click.get_current_context().meta
    name, made, extent, differs = replay_plan.make_plan(instance, _origin(meta), meta["exclude"])
    replaying.record_plan(instance, name, made, reason)
    show(replay_plan.plan_rows(name, made, extent, differs))


@replay.command()
@on_pipeline
@click.argument("plan")
def run(instance: Instance, plan: str) -> None:
    """Make the branch that a PLAN says, up to the log's end; mark a version and let another process prove it.

    Example: millrace replay run digits.toml PLAN
    """
    from millrace.services.replay import run as replaying

    show([asdict(replaying.run(instance, plan, again()))])


@replay.command()
@on_pipeline
def resume(instance: Instance) -> None:
    """Go on with a replay that was stopped or killed.

    Example: millrace replay resume digits.toml
    """
    from millrace.services.replay import run as replaying

    show([asdict(replaying.resume(instance, again()))])


@replay.command()
@on_pipeline
@click.option("--rows", default=1000, show_default=True, type=click.IntRange(1), help="Rows at the log's end that both answer.")
def diff(instance: Instance, rows: int) -> None:
    """Compare the replayed branch with what is served: their answers to the log's last rows, and what each scored.

    Example: millrace replay diff digits.toml
    """
    from millrace.services.replay import diff as replay_diff

    show(replay_diff.compare(instance, rows))


@replay.command(name="take-over")
@on_pipeline
@reason_option
@yes_option
def take_over(instance: Instance, reason: str, yes: bool) -> None:
    """Serve the replayed branch and learn on with it; the branch it was made from ends.

    Example: millrace replay take-over digits.toml --reason "mended"
    """
    from millrace.services.replay import run as replaying

    succession = replaying.plan_take_over(instance)
    if yes:
        replaying.take_over(instance, succession, reason)
    settle_words(succession.change, yes, succession.rows)


@replay.command()
@on_pipeline
@click.argument("plan", required=False)
@reason_option
@yes_option
def abort(instance: Instance, plan: str | None, reason: str, yes: bool) -> None:
    """Give up the replay under way, or a PLAN that was never run; its branch ends, and another may be planned.

    Example: millrace replay abort digits.toml --reason "wrong producer"
    """
    from millrace.services.replay import run as replaying

    operation = replaying.plan_abort(instance, plan)
    if yes:
        replaying.abort(instance, operation, reason)
    show([{"branch": operation.branch, "was": operation.state, "aborted": yes}])
    if not yes:
        click.echo(UNCHANGED, err=True)


@replay.command()
@on_pipeline
@click.argument("exclusion")
@click.option("--branch", default=None, help="The branch, if not the live one.")
@reason_option
@yes_option
def include(instance: Instance, exclusion: str, branch: str | None, reason: str, yes: bool) -> None:
    """Read again what a branch leaves out, from its next step on; EXCLUSION as `millrace status` shows it.

    \b
    Example: millrace replay include digits.toml "header from=till-7" --branch replay-1 --reason mended
    """
    from millrace.services.replay import include as including

    inclusion = including.plan_include(instance, exclusion, branch)
    if yes:
        including.include(instance, inclusion, reason)
    show([{"branch": inclusion.branch, "includes": inclusion.said, "done": yes}])
    words = "What was left out before stays so; to leave it out again, replay with --exclude-...." if yes else UNCHANGED
    click.echo(words, err=True)


def again() -> list[str]:
    """The words by which another process finds the same pipeline."""
    meta = click.get_current_context().meta
    home = [] if meta["home"] is None else ["--home", meta["home"]]
    return [str(meta["path"]), *home, *(word for one in meta["set"] for word in ("--set", one))]
