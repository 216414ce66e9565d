"""The stage of a story: its folder, made ready, and the served pipeline in processes of its own."""

from __future__ import annotations

import secrets
import shutil
import socket
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import click
import msgspec

from millrace.learners.errors import MillraceError
from millrace.services import datasets
from millrace.services.callers import Where
from millrace.services.config import load_pipeline
from millrace.services.endpoint_status import found, overview
from millrace.services.instance import BRANCH, Instance
from millrace.services.processes import Process, Processes
from millrace.streams.outputs import Output
from millrace.streams.source import Log

MADE_BY = "# Written by `make run`, which replaces this folder each time. Copy it to keep it.\n"
MOST_ROWS = 6000  # of a longer data set, unless --rows says otherwise
PATIENCE_S = 60.0  # for a process to move on, beyond the time that the stream takes
NIGHTS = {"digits"}  # data sets that are learned well enough for a night call
WATCHED = "\n[drift]\nfalse_alarm_rows = 20000  # rows expected between two false alarms\nper_class = false\n"


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
    log: Log  # open, to look at


def prepare(plan: Plan) -> Stage:
    """An empty folder but for the pipeline file and the rows; the story's own old state is removed.

    Raises: BadInputError where the data set cannot be read; BusyError where another story runs there.
    """
    text = MADE_BY + datasets.pipeline_toml(plan.data, f"story-{plan.data}") + WATCHED * (plan.data in NIGHTS)
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


def named(stage: Stage) -> list[str]:
    """How a command is told which pipeline."""
    return [str(stage.pipeline), "--home", str(stage.plan.home)]


def start_server(stage: Stage, processes: Processes) -> Process:
    """`millrace up` on free ports; returns when its trainer answers."""
    ports = ["--port", str(_free_port()), "--grpc-port", str(_free_port())]
    server = processes.start("server", ["up", *named(stage), *ports])
    say(f"server {server.pid} starts Ray, a trainer and two replicas")
    processes.wait_until(lambda: trainer_pid(stage) is not None)
    return server


def where(stage: Stage) -> Where:
    """The server's addresses."""
    place = found(stage.instance)
    assert place is not None, "a trainer was there, so somebody said where"
    return Where(place.url.removeprefix("http://"), place.grpc, stage.instance.loaded.pipeline.name)


def trainer_pid(stage: Stage) -> int | None:
    """The pid of the trainer, or None where it does not answer."""
    place = found(stage.instance)
    try:
        return None if place is None else overview(stage.instance, place)["trainer"].get("pid")
    except (OSError, msgspec.DecodeError):
        return None


def _free_port() -> int:
    """One that nobody listens on, and that the kernel hands to no connection."""
    while True:
        port = 10_000 + secrets.randbelow(10_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def newest_output(stage: Stage) -> Output | None:
    """What the newest step let out."""
    raw = stage.log.last(f"{stage.instance.loaded.pipeline.name}.scores")
    return None if raw is None else msgspec.json.decode(raw, type=Output)


def say(line: str) -> None:
    """Progress, on stderr."""
    click.echo(line, err=True)
