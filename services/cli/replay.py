"""The commands of `millrace replay`: parse, call, print."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from millrace.services.cli.options import UNCHANGED, Call, gathering, on_pipeline, reason_option, while_option, yes_option
from millrace.services.cli.versions import hold_to, settle_words

if TYPE_CHECKING:
    from millrace.services.replay.plan import Origin
    from millrace.streams.journal.exclusions import Exclusion

OFFSET_DIGITS = 18  # at most, of what a log counts in 64 bits
MS_DIGITS = 13  # of milliseconds since 1970, from 2001 to 2286
DATES = {8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}  # without dashes, by their digits


@click.group()
def replay() -> None:
    """Learn again from a version on, without what should not have been learned, and let that take over."""


def _offsets(text: str) -> Exclusion:
    from millrace.services.pipeline.ids import place_of
    from millrace.streams.journal.exclusions import OffsetRange

    if (place := place_of(text)) is not None and place[0].count(":") == 1:  # as the answer to a label has it
        return OffsetRange(place[0], place[1], place[1] + 1)
    tp, _, offsets = text.rpartition(":")
    first, dash, last = offsets.partition("-")
    if not (tp and ":" in tp and dash and _is_offset(first) and _is_offset(last) and int(first) <= int(last)):
        raise click.BadParameter(f"{text!r}: write TOPIC:PARTITION:FIRST-LAST, such as digits:0:600-899")
    return OffsetRange(tp, int(first), int(last) + 1)


def _is_offset(text: str) -> bool:
    return text.isdecimal() and len(text) <= OFFSET_DIGITS


def _time(text: str) -> Exclusion:
    from millrace.streams.journal.exclusions import Time

    first, _, last = text.partition("..")
    try:
        start, stop = (_milliseconds(part) for part in (first, last))
    except (ValueError, OverflowError) as error:  # OverflowError: at an end of the calendar, in another zone
        raise click.BadParameter(f"{text!r}: write FROM..TO, such as 2026-11-21T02:10..2026-11-21T02:30") from error
    if start >= stop:
        raise click.BadParameter(f"{text!r}: ends before it begins")
    return Time(start, stop)


def _milliseconds(text: str) -> int:
    """Since 1970, or a date and time, which are this machine's where they name no zone.

    Raises: BadParameter; ValueError for what is none of these; OverflowError for one that is of no year in another zone.
    """
    if text.isdecimal():
        if len(text) != MS_DIGITS and text != "0":
            readings = "; ".join(f"{kind} it is {reading}" for kind, reading in _readings(text))
            raise click.BadParameter(
                f"{text!r}: a number is milliseconds since 1970, of 13 digits. {readings}. Write the one you mean, "
                "such as 2026-11-21T02:10"
            )
        return int(text)
    moment = datetime.fromisoformat(text)
    passes = [moment.replace(fold=fold).astimezone() for fold in (0, 1)]
    first, second = (one.isoformat() for one in passes)
    if passes[0].timestamp() == passes[1].timestamp():
        return round(passes[0].timestamp() * 1000)
    if passes[0].replace(tzinfo=None) == moment:  # clocks are put back; an offset has no such hour
        raise click.BadParameter(f"{text!r}: this machine's clock shows it twice: {first} and {second}; write the one you mean")
    raise click.BadParameter(f"{text!r}: this machine's clock, put forward, never shows it; write {first} or {second}")


def _readings(text: str) -> Iterator[tuple[str, str]]:
    """What digits alone could mean: milliseconds or seconds since 1970, or a date without dashes."""
    for kind, divisor in (("As milliseconds", 1000), ("as seconds", 1)):
        with suppress(ValueError, OverflowError, OSError):
            yield kind, datetime.fromtimestamp(int(text) / divisor, UTC).astimezone().isoformat(timespec="seconds")
    if len(text) in DATES:
        with suppress(ValueError):
            yield "as a date", datetime.strptime(text, DATES[len(text)]).isoformat()


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


KINDS = {"exclude_header": _header, "exclude_offsets": _offsets, "exclude_time": _time, "exclude_key": _key}


def _excluded(_ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> list[Exclusion]:
    return [KINDS[str(param.name)](text) for text in texts]


def _places(_ctx: click.Context, _param: click.Parameter, text: str | None) -> dict[str, int] | None:
    pairs = [place.rpartition("=") for place in text.split(",")] if text else []
    if invalid := [pair for pair in pairs if ":" not in pair[0] or not _is_offset(pair[2])]:
        raise click.BadParameter(
            f"{''.join(invalid[0])!r}: write TOPIC:PARTITION=OFFSET, such as digits:0=600, commas between them"
        )
    return {tp: int(offset) for tp, _, offset in pairs} or None


def _since(_ctx: click.Context, _param: click.Parameter, text: str | None) -> int | None:
    try:
        return None if text is None else _milliseconds(text)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{text!r}: write a date and time, such as 2026-11-21T02:10") from error


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What a replay is to begin with, and what it is to leave out, as the options of `millrace replay plan` say."""

    version: str | None
    from_start: bool
    from_offsets: dict[str, int] | None  # topic:partition -> offset
    from_time: int | None  # milliseconds since 1970
    backfill: Path | None
    include: tuple[str, ...]  # exclusions, in words
    exclude_header: list[Exclusion]
    exclude_offsets: list[Exclusion]
    exclude_time: list[Exclusion]
    exclude_key: list[Exclusion]

    @property
    def exclude(self) -> list[Exclusion]:
        """All that is left out."""
        return [*self.exclude_header, *self.exclude_offsets, *self.exclude_time, *self.exclude_key]

    @property
    def origin(self) -> Origin:
        """Where it begins. Raises: UsageError where that is not said once."""
        from millrace.services.replay.plan import Origin

        origins = [self.version, self.from_start or None, self.from_offsets, self.from_time]
        if sum(begin is not None for begin in origins) != 1:
            raise click.UsageError("Say where to begin: one of --from VERSION, --from-start, --from-offsets, --from-time.")
        return Origin(self.version, self.from_offsets, self.from_time, self.backfill, self.include)


exclusion_option: dict[str, Any] = {"multiple": True, "callback": _excluded}
offsets_option: dict[str, Any] = {"callback": _places, "metavar": "TP=OFFSET,..."}
time_option: dict[str, Any] = {"callback": _since, "metavar": "TIME"}
file_option: dict[str, Any] = {"type": click.Path(exists=True, dir_okay=False, path_type=Path), "metavar": "FILE"}


@replay.command(cls=gathering("options", PlanOptions))
@on_pipeline
@click.option(
    "--from", "version", metavar="VERSION", help="Begin at the last good version, or at a state BRANCH.SEQ that answered."
)
@click.option("--from-start", is_flag=True, help="Begin with an empty learner, at the first record that the log has.")
@click.option("--from-offsets", help="Begin with an empty learner, at these offsets.", **offsets_option)
@click.option(
    "--from-time", help="Begin with an empty learner, at the first record that is not older than TIME.", **time_option
)
@click.option("--backfill", help="Learn the rows of a file first (.jsonl, .csv, .parquet).", **file_option)
@click.option("--include", multiple=True, metavar="EXCLUSION", help="Read what the live branch leaves out.")
@click.option("--exclude-header", metavar="NAME=VALUE", help="Leave out records with this header.", **exclusion_option)
@click.option(
    "--exclude-offsets", metavar="TP:FIRST-LAST", help="Leave out these offsets of TOPIC:PARTITION.", **exclusion_option
)
@click.option("--exclude-time", metavar="FROM..TO", help="Leave out timestamps from FROM on, before TO.", **exclusion_option)
@click.option(
    "--exclude-key", metavar="KEY", help="Leave out records with this key; only its hash is kept.", **exclusion_option
)
@reason_option
def plan(call: Call, options: PlanOptions, reason: str) -> None:
    """Say what a replay would do, and keep that under its sha256 for `millrace replay run`.

    \b
    Example: millrace replay plan digits.toml --from VERSION --exclude-header producer=till-7 --reason garbage

    It begins at a version, or with nothing: another learner over the same log, a warm start. What is left out is said by
    --exclude-..., each as often as needed; what the live branch leaves out stays so but for --include, which takes the words
    of `millrace status`.
    """
    from millrace.services.replay import plan as replay_plan
    from millrace.services.replay import run as replaying
    from millrace.services.replay.plan_rows import plan_rows

    name, planned, extent, differs = replay_plan.make_plan(call.instance, options.origin, options.exclude)
    replaying.record_plan(call.instance, name, planned, reason)
    call.show(plan_rows(name, planned, extent, differs))


@replay.command()
@on_pipeline
@click.argument("plan")
def run(call: Call, plan: str) -> None:
    """Make the branch that a PLAN says, up to the log's end; mark a version and let another process prove it.

    Example: millrace replay run digits.toml PLAN
    """
    from millrace.services.replay import run as replaying

    call.show([asdict(replaying.run(call.instance, plan, call.words))])


@replay.command()
@on_pipeline
def resume(call: Call) -> None:
    """Go on with a replay that was stopped or killed.

    Example: millrace replay resume digits.toml
    """
    from millrace.services.replay import run as replaying

    call.show([asdict(replaying.resume(call.instance, call.words))])


@replay.command()
@on_pipeline
@click.option("--rows", default=1000, show_default=True, type=click.IntRange(1), help="Rows at the log's end that both answer.")
def diff(call: Call, rows: int) -> None:
    """Compare the replayed branch with what is served: their answers to the log's last rows, and what each scored.

    Example: millrace replay diff digits.toml
    """
    from millrace.services.replay import diff as replay_diff

    call.show(replay_diff.compare(call.instance, rows))


@replay.command(name="take-over")
@on_pipeline
@while_option
@reason_option
@yes_option
def take_over(call: Call, seen: str | None, reason: str, yes: bool) -> None:
    """Serve the replayed branch and learn on with it; the branch it was made from ends.

    Where another decision was made since the replay was planned, it is refused for a minute after that, unless --while says
    that you have seen it.

    Example: millrace replay take-over digits.toml --reason "mended"
    """
    from millrace.services.replay import run as replaying

    succession = replaying.plan_take_over(call.instance)
    change, ledger = succession.change, succession.ledger
    hold_to(call, ledger, seen, change.before not in (succession.planned_from, change.to), yes, change.to)
    if yes:
        settled = replaying.take_over(call.instance, succession, reason)
        for name in settled.closed:
            call.note(f"Alarm {name} is closed for {change.to.follow}: it began before the onset, and left out records since.")
        for name in settled.open:
            call.note(f"Alarm {name} {_why_open(name, change.to.follow)}.")
    settle_words(call, succession.change, yes, succession.rows)


def _why_open(name: str, branch: str | None) -> str:
    """Of an alarm that stands where a replay takes over."""
    if name.split(".")[0] == branch:
        return f"was raised by {branch} itself: what it has learned again made it worse, too"
    return "stays open: the replay leaves out no record from after its onset, or began after that"


@replay.command()
@on_pipeline
@click.argument("plan", required=False)
@reason_option
@yes_option
def abort(call: Call, plan: str | None, reason: str, yes: bool) -> None:
    """Give up the replay under way, or a PLAN that was never run; its branch ends, and another may be planned.

    Example: millrace replay abort digits.toml --reason "wrong producer"
    """
    from millrace.services.replay import run as replaying

    operation = replaying.plan_abort(call.instance, plan)
    if yes:
        replaying.abort(call.instance, operation, reason)
    call.show([{"branch": operation.branch, "was": operation.state, "aborted": yes}])
    if not yes:
        click.echo(UNCHANGED, err=True)


@replay.command()
@on_pipeline
@click.argument("exclusion")
@click.option("--branch", default=None, help="The branch, if not the live one.")
@reason_option
@yes_option
def include(call: Call, exclusion: str, branch: str | None, reason: str, yes: bool) -> None:
    """Read again what a branch leaves out, from its next step on; EXCLUSION as `millrace status` shows it.

    \b
    Example: millrace replay include digits.toml "header producer=till-7" --branch replay-1 --reason mended
    """
    from millrace.services.replay import include as including

    inclusion = including.plan_include(call.instance, exclusion, branch)
    if yes:
        including.include(call.instance, inclusion, reason)
    call.show([{"branch": inclusion.branch, "includes": inclusion.said, "done": yes}])
    note = "What was left out before stays so; to leave it out again, replay with --exclude-...." if yes else UNCHANGED
    click.echo(note, err=True)
