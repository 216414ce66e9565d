"""`make run`: a model learns a real stream while it answers, is killed twice by kill -9, resumes, and proves what it knows.

    python -m millrace.services.story [--data NAME]

What is shown is real: a sender and a served pipeline in processes of their own, the shipped commands, callers over HTTP and
gRPC, SIGKILL to the trainer's pid, and a report that is read from the log.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np

from millrace.learners.errors import MillraceError, NotProvedError
from millrace.services import datasets, plots
from millrace.services.asker import Asked, Where, asking
from millrace.services.asking import found, overview
from millrace.services.config import home_folder, load_pipeline
from millrace.services.errors import FAILED, exit_code
from millrace.services.evidence import account, gather
from millrace.services.instance import BRANCH, Instance
from millrace.services.processes import COMMAND, Processes, finish, kill
from millrace.services.report import Killed, Told, text
from millrace.streams.outputs import Output
from millrace.streams.records import tp_name
from millrace.streams.sqlite_log import SqliteLog

MADE_BY = "# Written by `make run`, which replaces this folder each time. Copy it to keep it.\n"
MOST_ROWS = 6000  # of a longer data set, unless --rows says otherwise
KILL_AT = ((0.28, 0.45), (0.6, 0.8))  # shares of the stream between which each kill is drawn
LATEST_S = 0.05  # from a row's arrival to a kill: long enough to hit any point of the step that reads it
LAST_WORD_S = 1.0  # for callers, after everything was learned
PATIENCE_S = 60.0  # for the server, beyond the time that the stream takes
SMALLEST_WINDOW = 100  # rows of the windowed scores
WIDEST = 110  # characters of the terminal plot


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to happen."""

    data: str  # a data set's name
    rows: int  # streamed at most; 0: as many as fit
    seconds: float  # that the stream takes, > 0
    seed: int  # of the rows' order and of the kills
    home: Path  # folder of all state


@dataclass(frozen=True, slots=True)
class Stage:
    """A story's folder, made ready."""

    plan: Plan
    pipeline: Path
    stream: Path  # the rows to send, as JSON lines
    rows: int
    left: int  # rows of the data set that are not sent
    instance: Instance
    log: SqliteLog  # open, to look at


def prepare(plan: Plan) -> Stage:
    """An empty folder but for the pipeline file and the rows; the story's own old state is removed.

    Raises: BadInputError where the data set cannot be read; BusyError where another story runs there.
    """
    text = MADE_BY + datasets.pipeline_toml(plan.data, f"story-{plan.data}")
    values = datasets.values(plan.data, plan.seed)
    folder = plan.home / f"story-{plan.data}"
    _clear(folder)
    pipeline, stream = folder / "pipeline.toml", folder / "stream.jsonl"
    pipeline.write_text(text, encoding="utf-8")
    most = plan.rows or MOST_ROWS
    with stream.open("wb") as file:
        rows = sum(bool(file.write(value + b"\n")) for value in islice(values, most))
    instance = Instance(load_pipeline(pipeline), folder)
    return Stage(plan, pipeline, stream, rows, sum(1 for _ in values), instance, instance.log())


def _clear(folder: Path) -> None:
    """Remove what an earlier story left, and nothing that is not a story's."""
    pipeline = folder / "pipeline.toml"
    if folder.exists() and any(folder.iterdir()):
        if not pipeline.exists() or not pipeline.read_text(encoding="utf-8").startswith(MADE_BY):
            raise MillraceError(
                f"{folder} was not made by `make run`, so it is left alone. Move it away, or name another --home."
            )
        with Instance(load_pipeline(pipeline), folder).hold(BRANCH, take_over=False):
            say(f"the state of the last story in {folder} is removed")
            shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True, slots=True)
class Played:
    """What was done, and what callers heard meanwhile."""

    kills: list[Killed]
    asked: Asked


def play(stage: Stage) -> Played:
    """Serve the pipeline, stream the rows, ask all the time, kill the trainer at two moments, and come to the end.

    Raises: MillraceError where a process ends by itself, or where there is no progress.
    """
    kills = []
    held_out = datasets.held_out(stage.plan.data, stage.plan.seed)
    with Processes(stage.instance.folder, PATIENCE_S + stage.plan.seconds) as processes:
        ports = ["--port", str(_free_port()), "--grpc-port", str(_free_port())]
        server = processes.start("server", ["up", *_named(stage), *ports])
        say(f"server {server.pid} starts Ray, a trainer and two replicas")
        processes.wait_until(lambda: _trainer(stage) is not None)
        where = _where(stage)
        with asking(where, held_out, stage.instance.loaded.pipeline.schema) as asked:
            rate = str(stage.rows / stage.plan.seconds)
            sender = processes.start("sender", ["send", *_named(stage), str(stage.stream), "--rows-per-second", rate])
            say(f"sender {sender.pid} sends {stage.rows:,} rows in {stage.plan.seconds:g} s")
            say(f"callers ask http://{where.http} and grpc {where.grpc} meanwhile")
            for epoch, moment in enumerate(moments(stage), start=1):
                processes.wait_until(partial(arrived, stage, moment.row, epoch))
                kills.append(_killed(stage, processes, moment))
            processes.wait_until(lambda: sender.poll() == 0 and learned(stage))
            time.sleep(LAST_WORD_S)
        finish(server)
    return Played(kills, asked)


def _killed(stage: Stage, processes: Processes, moment: Moment) -> Killed:
    """The trainer's end, and who follows it."""
    time.sleep(moment.later_s)
    pid = _trainer(stage) or 0
    at_ms = kill(pid)
    say(f"kill -9 of trainer {pid} at row {moment.row:,}")
    processes.wait_until(lambda: _trainer(stage) not in (None, pid))
    return Killed(pid, at_ms, _trainer(stage) or 0)


def _where(stage: Stage) -> Where:
    place = found(stage.instance)
    assert place is not None, "a trainer was there, so somebody said where"
    return Where(place.url.removeprefix("http://"), place.grpc, stage.instance.loaded.pipeline.name)


def _trainer(stage: Stage) -> int | None:
    """The pid of the trainer, or None where it does not answer."""
    place = found(stage.instance)
    try:
        return None if place is None else overview(stage.instance, place)["trainer"].get("pid")
    except (OSError, msgspec.DecodeError):
        return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _named(stage: Stage) -> list[str]:
    """How a command is told which pipeline."""
    return [str(stage.pipeline), "--home", str(stage.plan.home)]


@dataclass(frozen=True, slots=True)
class Moment:
    """When a worker is to be killed."""

    row: int  # once the log has it
    later_s: float


def moments(stage: Stage) -> list[Moment]:
    """Of the kills; the same seed gives the same."""
    rng = np.random.default_rng(stage.plan.seed)
    return [Moment(int(stage.rows * rng.uniform(low, high)), rng.uniform(0.0, LATEST_S)) for low, high in KILL_AT]


def arrived(stage: Stage, row: int, epoch: int) -> bool:
    """Whether the log has a row, and the trainer of an epoch has let something out."""
    output = _newest(stage)
    end = stage.log.bounds(tp_name(stage.instance.loaded.pipeline.topic, 0))[1]
    return end > row and output is not None and output.epoch >= epoch


def learned(stage: Stage) -> bool:
    """Whether every row that was sent was read and none waits for its batch."""
    output = _newest(stage)
    return output is not None and output.records >= stage.rows and not output.waiting


def _newest(stage: Stage) -> Output | None:
    raw = stage.log.last(f"{stage.instance.loaded.pipeline.name}.scores")
    return None if raw is None else msgspec.json.decode(raw, type=Output)


def prove(stage: Stage) -> dict[str, Any]:
    """What `millrace verify` says, run in a process of its own.

    Raises: NotProvedError with its words where it does not prove everything.
    """
    say("verify: everything is folded again from the log")
    command = [*COMMAND, "verify", *_named(stage), "--output", "json"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    if ran.returncode:
        raise NotProvedError(f"verify failed with exit code {ran.returncode}. {ran.stderr.strip()}")
    verdict: dict[str, Any] = json.loads(ran.stdout)
    return verdict


def conclude(stage: Stage, played: Played) -> Told:
    """Verify, then read from the log what happened.

    Raises: NotProvedError where something was not proved or does not add up.
    """
    verdict = prove(stage)
    evidence = gather(stage.instance, datasets.held_out(stage.plan.data, stage.plan.seed))
    wrong = account(evidence, stage.rows)
    if len(evidence.resumed) != len(played.kills):
        wrong.append(f"{len(played.kills)} trainers were killed and the journal has {len(evidence.resumed)} that took over.")
    if played.asked.failed:
        wrong.append(f"{len(played.asked.failed)} requests failed, the first with {played.asked.failed[0]}.")
    if verdict["unproved"] or len(verdict["proved"]) < len(evidence.versions):
        wrong.append(f"verify proved {len(verdict['proved'])} marks of {len(evidence.versions)} versions.")
    if wrong:
        raise NotProvedError(" ".join(wrong))
    title = f"millrace learns {stage.plan.data} row by row while it answers, and its trainer is killed twice"
    return Told(title, evidence, played.kills, played.asked, verdict, max(SMALLEST_WINDOW, stage.rows // 20))


def say(line: str) -> None:
    """Progress, on stderr."""
    click.echo(line, err=True)


def tell(stage: Stage, told: Told) -> None:
    """The report on stdout, and the picture."""
    picture = stage.instance.folder / "accuracy.png"
    plots.png(told, picture)
    width = min(shutil.get_terminal_size((WIDEST, 0)).columns, WIDEST)
    about = datasets.data_set(stage.plan.data).about
    rest = f" ({stage.left:,} more were left out; --rows takes more)" if stage.left else ""
    click.echo(f"\n{stage.plan.data}: {about}\n{stage.rows:,} rows were sent{rest}\n")
    click.echo(text(told))
    click.echo(f"\n{plots.terminal(told, width)}\n")
    click.echo(f"PICTURE  {picture}\nLOOK ON  {_millrace()} status {stage.pipeline}")


def _millrace() -> str:
    """The command as one can type it here."""
    beside = Path(sys.executable).with_name("millrace")
    return "millrace" if shutil.which("millrace") or not beside.exists() else os.path.relpath(beside)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--data", default="digits", show_default=True, metavar="NAME", help="A data set; `help` lists them.")
@click.option("--rows", default=0, metavar="N", help=f"Stream at most N rows; 0 (default): at most {MOST_ROWS:,}.")
@click.option("--seconds", default=24.0, show_default=True, metavar="S", help="How long the stream takes.")
@click.option("--seed", default=0, show_default=True, metavar="N", help="Of the rows' order and of the kills.")
@click.option("--home", metavar="DIR", help="Folder of all state (else $MILLRACE_HOME, else .millrace).")
def main(data: str, rows: int, seconds: float, seed: int, home: str | None) -> None:
    """Stream a data set to a served pipeline whose trainer is killed twice, then prove and show what it learned.

    Example: python -m millrace.services.story --data digits
    """
    if data == "help":
        click.echo(datasets.listing())
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(FAILED))
    try:
        stage = prepare(Plan(data, rows, seconds, seed, home_folder(home)))
        tell(stage, conclude(stage, play(stage)))
    except MillraceError as error:
        click.echo(f"millrace: {error}", err=True)
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()
