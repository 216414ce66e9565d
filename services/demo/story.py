"""`make run`: a model learns a real stream while it answers, is killed twice, proves what it knows; then comes the night call.

    python -m millrace.services.demo.story [--data NAME]

What is shown is real: a sender and a served pipeline in processes of their own, the shipped commands, callers over HTTP and
gRPC, SIGKILL to the trainer. The report is read from the log.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from millrace.learners.errors import MillraceError
from millrace.services.config.config import home_folder
from millrace.services.data import datasets
from millrace.services.demo import night_plots, plots
from millrace.services.demo.broker import of_a_story
from millrace.services.demo.callers import CallLog, asking, labelling
from millrace.services.demo.evidence import account, gather
from millrace.services.demo.night import Night
from millrace.services.demo.night import play as play_night
from millrace.services.demo.report import Killed, StoryResults, night_text, text
from millrace.services.demo.stage import (
    FIRST_ROWS,
    HONEST,
    MOST_ROWS,
    NIGHTS,
    DemoPlan,
    DemoStage,
    learned,
    named,
    newest_output,
    prepare,
    progress,
    say,
    start_server,
    trainer_pid,
    where,
)
from millrace.services.errors import FAILED, NotProvedError, exit_code
from millrace.services.processes import COMMAND, TIMEOUT_S, Processes, finish, kill
from millrace.streams.records import tp_name

KILL_AT = ((0.28, 0.45), (0.6, 0.8))  # shares of the stream between which each kill is drawn
LATEST_S = 0.05  # from a row's arrival to a kill: long enough to hit any point of the step that reads it
LAST_WORDS = 4  # answers to callers who go on asking, after everything was learned
KAFKA_HELP = "On a Kafka broker of the story's own, from a folder of its jars; else in files."
SMALLEST_WINDOW = 100  # rows of the windowed scores
WIDEST = 110  # characters of the terminal plot


@dataclass(frozen=True, slots=True)
class Played:
    """What was done, and what callers heard meanwhile."""

    kills: list[Killed]
    asked: CallLog


def play(stage: DemoStage) -> Played:
    """Serve the pipeline, stream the rows, ask all the time, kill the trainer at two moments, and come to the end.

    Raises: MillraceError where a process ends by itself, or where nothing moves on.
    """
    kills = []
    with Processes(stage.instance.folder, TIMEOUT_S + stage.plan.seconds, partial(progress, stage)) as processes:
        server = start_server(stage, processes)
        with (_labelled_late if stage.is_late else _sent)(stage, processes) as (calls, is_over):
            for epoch, moment in enumerate(moments(stage), start=1):
                processes.wait_until(partial(arrived, stage, moment.row, epoch))
                kills.append(_killed(stage, processes, moment))
            processes.wait_until(lambda: is_over() and learned(stage))
            _last_word(processes, calls)
        finish(server)
    return Played(kills, calls)


def _last_word(processes: Processes, calls: CallLog) -> None:
    """Let callers who have not come to their end ask the finished model."""
    answers_before = len(calls.replies)
    processes.wait_until(lambda: calls.over or len(calls.replies) >= answers_before + LAST_WORDS)


Arriving = tuple[CallLog, Callable[[], bool]]  # what callers heard, and whether every row is in the log


@contextmanager
def _sent(stage: DemoStage, processes: Processes) -> Iterator[Arriving]:
    """Every row is sent with its label in it, and callers ask about rows that are held out."""
    at, schema = where(stage), stage.instance.loaded.pipeline.schema
    with asking(at, datasets.held_out(stage.plan.data, stage.plan.seed), schema) as calls:
        rate = str(stage.rows / stage.plan.seconds)
        sender = processes.start("sender", ["send", *named(stage), str(stage.stream), "--rows-per-second", rate])
        say(f"sender {sender.pid} sends {stage.rows:,} rows in {stage.plan.seconds:g} s")
        say(f"callers ask http://{at.http} and grpc {at.grpc} meanwhile")
        yield calls, lambda: sender.poll() == 0


@contextmanager
def _labelled_late(stage: DemoStage, processes: Processes) -> Iterator[Arriving]:
    """A few rows are sent with their labels in them; every other one is asked about as it arrives, and labelled later."""
    lines, first = stage.lines(), stage.instance.folder / "first.jsonl"
    first.write_bytes(b"\n".join(lines[:FIRST_ROWS]))
    sender = processes.start("sender", ["send", *named(stage), str(first), "--header", f"producer={HONEST}"])
    say(f"sender {sender.pid} sends the first {FIRST_ROWS} rows with their labels")
    processes.wait_until(lambda: sender.poll() == 0 and learned(stage))
    at, late = where(stage), stage.late
    say(
        f"{HONEST} asks http://{at.http} and grpc {at.grpc} about {len(lines) - FIRST_ROWS:,} more in {stage.plan.seconds:g} s,"
    )
    say(f"and labels each {late.after_s:.1f} s after its answer")
    with labelling(at, lines[FIRST_ROWS:], stage.instance.loaded.pipeline.schema, late) as calls:
        yield calls, lambda: calls.over


def _killed(stage: DemoStage, processes: Processes, moment: Moment) -> Killed:
    """The trainer's end, and who follows it."""
    time.sleep(moment.later_s)
    processes.wait_until(lambda: trainer_pid(stage) is not None)
    pid = trainer_pid(stage)
    if pid is None:
        raise MillraceError("The trainer went away before it was killed.")
    at_ms = kill(pid)
    say(f"kill -9 of trainer {pid} at row {moment.row:,}")
    processes.wait_until(lambda: trainer_pid(stage) not in (None, pid))
    return Killed(pid, at_ms, trainer_pid(stage))


@dataclass(frozen=True, slots=True)
class Moment:
    """When a worker is to be killed."""

    row: int  # once the log has it
    later_s: float


def moments(stage: DemoStage) -> list[Moment]:
    """Of the kills; the same seed gives the same."""
    rng = np.random.default_rng(stage.plan.seed)
    return [Moment(int(stage.rows * rng.uniform(low, high)), rng.uniform(0.0, LATEST_S)) for low, high in KILL_AT]


def arrived(stage: DemoStage, row: int, epoch: int) -> bool:
    """Whether the log has a row with its label, and the trainer of an epoch has let something out."""
    output, ends = newest_output(stage), stage.ends()
    served = ends.pop(tp_name(stage.instance.loaded.pipeline.served_topic, 0), 0)  # a record of each answer, one of each label
    return sum(ends.values()) + served // 2 > row and output is not None and output.epoch >= epoch


def prove(stage: DemoStage) -> dict[str, Any]:
    """What `millrace verify` says, run in a process of its own.

    Raises: NotProvedError with its words where it does not prove everything.
    """
    say("verify: everything is folded again from the log")
    command = [*COMMAND, "verify", *named(stage), "--output", "json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise NotProvedError(f"verify failed with exit code {ran.returncode}. {ran.stderr.strip()}")
    verdict: dict[str, Any] = json.loads(ran.stdout)
    return verdict


def conclude(stage: DemoStage, played: Played) -> StoryResults:
    """Verify, then read from the log what happened.

    Raises: NotProvedError where something was not proved or does not add up.
    """
    verdict = prove(stage)
    evidence = gather(stage.instance, datasets.held_out(stage.plan.data, stage.plan.seed))
    problems = account(evidence, stage.rows + played.asked.labelled)
    if len(evidence.resumed) != len(played.kills):
        problems.append(f"{len(played.kills)} trainers were killed and the journal has {len(evidence.resumed)} that took over.")
    if played.asked.failed:
        problems.append(f"{len(played.asked.failed)} requests failed, the first with {played.asked.failed[0]}.")
    if verdict["unproved"] or len(verdict["proved"]) < len(evidence.versions):
        problems.append(f"verify proved {len(verdict['proved'])} marks of {len(evidence.versions)} versions.")
    if problems:
        raise NotProvedError(" ".join(problems))
    title = f"millrace learns {stage.plan.data} row by row while it answers, and its trainer is killed twice"
    return StoryResults(title, evidence, played.kills, played.asked, verdict, max(SMALLEST_WINDOW, stage.rows // 20))


def tell(stage: DemoStage, results: StoryResults) -> None:
    """The report on stdout, and the picture."""
    picture = stage.instance.folder / "accuracy.png"
    plots.png(results, picture)
    about = datasets.data_set(stage.plan.data).about
    rest = f" ({stage.left:,} more were left out; --rows takes more)" if stage.left else ""
    click.echo(f"\n{stage.plan.data}: {about}\n{stage.rows:,} rows were sent{rest}\n")
    click.echo(text(results))
    click.echo(f"\n{plots.terminal(results, _width())}\n")
    click.echo(f"PICTURE  {picture}")


def tell_night(stage: DemoStage, night: Night) -> None:
    """The night call on stdout, and its picture."""
    picture = stage.instance.folder / "night.png"
    night_plots.png(night, picture)
    click.echo(f"\n{night_text(night)}\n\n{night_plots.terminal(night, _width())}\n\nPICTURE  {picture}\n")


def _width() -> int:
    return min(shutil.get_terminal_size((WIDEST, 0)).columns, WIDEST)


def _millrace() -> str:
    """The command as one can type it here."""
    beside = Path(sys.executable).with_name("millrace")
    return "millrace" if shutil.which("millrace") or not beside.exists() else os.path.relpath(beside)


def look_on(stage: DemoStage) -> None:
    """What one can do next, on stdout."""
    home = "" if stage.plan.home == home_folder(None) else f" --home {shlex.quote(str(stage.plan.home))}"
    click.echo(f"LOOK ON  {_millrace()} status {shlex.quote(str(stage.pipeline))}{home}")


@dataclass(frozen=True, slots=True)
class StoryOptions:
    """What is told, as the options say."""

    data: str
    rows: int  # 0: at most MOST_ROWS
    seconds: float
    seed: int
    home: str | None
    kafka: Path | None  # a folder of a broker's jars; None: in files
    night: bool

    def planned(self, log: str) -> DemoPlan:
        """What is to happen, on the log of a table ``[log]``; empty: files in the folder."""
        return DemoPlan(self.data, self.rows, self.seconds, self.seed, home_folder(self.home), log)


class StoryCommand(click.Command):
    """A command that is given its options as one record."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        ctx.params = {"story": StoryOptions(**ctx.params)}
        return super().invoke(ctx)


@click.command(cls=StoryCommand, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--data", default="digits", show_default=True, metavar="NAME", help="A data set; `help` lists them.")
@click.option("--rows", default=0, metavar="N", help=f"Stream at most N rows; 0 (default): at most {MOST_ROWS:,}.")
@click.option("--seconds", default=24.0, show_default=True, metavar="S", help="How long the stream takes.")
@click.option("--seed", default=0, show_default=True, metavar="N", help="Of the rows' order and of the kills.")
@click.option("--home", metavar="DIR", help="Folder of all state (else $MILLRACE_HOME, else .millrace).")
@click.option("--kafka", type=click.Path(path_type=Path), metavar="JARS", help=KAFKA_HELP)
@click.option("--night/--no-night", default=True, show_default=True, help="Whether a night call follows; digits have one.")
def main(story: StoryOptions) -> None:
    """Stream a data set to a served pipeline whose trainer is killed twice, then prove and show what it learned.

    Example: python -m millrace.services.demo.story --data digits
    """
    if story.data == "help":
        click.echo(datasets.listing())
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(FAILED))
    try:
        start_s = time.monotonic()
        with of_a_story(story.kafka, home_folder(story.home)) as log:
            stage = prepare(story.planned(log))
            tell(stage, conclude(stage, play(stage)))
            if story.night and stage.plan.data in NIGHTS and not stage.left:
                say("\nthe night call: the pipeline is served again")
                tell_night(stage, play_night(stage))
            click.echo(f"TOTAL    {time.monotonic() - start_s:.0f} s")
            look_on(stage)
    except MillraceError as error:
        click.echo(f"millrace: {error}", err=True)
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()
