"""The stage of a story: its folder, made ready, and the served pipeline in processes of its own."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import click
import msgspec

from millrace.learners.errors import MillraceError
from millrace.services.config.config import load_pipeline
from millrace.services.config.names import BRANCH
from millrace.services.data import datasets
from millrace.services.demo.callers import Late, Where
from millrace.services.pipeline.instance import Instance
from millrace.services.processes import Process, Processes
from millrace.services.serving.ports import free_port
from millrace.services.serving.status import overview, published_place
from millrace.streams.branch.branch import Backends
from millrace.streams.branch.outputs import Output, last_output
from millrace.streams.source import Position

MADE_BY = "# Written by `make run`, which replaces this folder each time. Copy it to keep it.\n"
MOST_ROWS = 6000  # of a longer data set, unless --rows says otherwise
NIGHTS = {"digits"}  # data sets that are learned well enough for a night call
FIRST_ROWS = 64  # of those, sent with their labels in them, so that there is something to answer from
WATCHED = """
[drift]
false_alarm_rows = 20000  # rows expected between two false alarms
per_class = false

[labels]
horizon_ms = 600000  # a prediction waits so long for its label
grace_ms = 60000     # and a label for its prediction
"""
LABEL_AFTER_ROWS = 30  # of the stream, from a row's answer to its label
CALM = 0.8  # of the other rows come before a class that is held back
HONEST = "till-1"  # the producer of the story's own rows


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What is to happen."""

    data: str  # a data set's name
    rows: int  # streamed at most; 0: as many as fit
    seconds: float  # that the stream takes, > 0
    seed: int  # of the rows' order and of the kills
    home: Path  # folder of all state
    log: str = ""  # the table [log] of the pipeline file; empty: files in the folder


@dataclass(frozen=True, slots=True)
class DemoStage:
    """A story's folder, made ready."""

    plan: DemoPlan
    pipeline: Path
    stream: Path  # the rows to send, as JSON lines
    rows: int
    left: int  # rows of the data set that are not sent
    instance: Instance
    backends: Backends  # of the first branch, open, to look at

    @property
    def is_late(self) -> bool:
        """Whether rows are asked about and labelled later; else they are sent with their labels in them."""
        return self.plan.data in NIGHTS

    @property
    def late(self) -> Late:
        """How they are."""
        rows_per_s = self.rows / self.plan.seconds
        return Late(HONEST, "day", rows_per_s, LABEL_AFTER_ROWS / rows_per_s)

    def lines(self) -> list[bytes]:
        """The rows of the stream."""
        return self.stream.read_bytes().splitlines()

    def ends(self) -> Position:
        """The next offset of every partition of the log."""
        return {tp: high for tp, (_, high) in self.backends.source.bounds().items()}


def prepare(plan: DemoPlan) -> DemoStage:
    """An empty folder but for the pipeline file and the rows; the story's own old state is removed.

    Raises: BadInputError where the data set cannot be read; BusyError where another story runs there.
    """
    text = MADE_BY + datasets.pipeline_toml(plan.data, f"story-{plan.data}") + WATCHED * (plan.data in NIGHTS) + plan.log
    values = datasets.values(plan.data, plan.seed)
    if plan.data in NIGHTS:
        values = iter(held_back(list(values), datasets.data_set(plan.data).label.name))
    folder = plan.home / f"story-{plan.data}"
    _clear(folder)
    pipeline, stream = folder / "pipeline.toml", folder / "stream.jsonl"
    pipeline.write_text(text, encoding="utf-8")
    limit = plan.rows or MOST_ROWS
    with stream.open("wb") as file:
        rows = sum(bool(file.write(value + b"\n")) for value in islice(values, limit))
    instance = Instance(load_pipeline(pipeline), folder)
    return DemoStage(plan, pipeline, stream, rows, sum(1 for _ in values), instance, instance.backends(BRANCH))


def held_back(values: list[bytes], label: str) -> list[bytes]:
    """The same rows in the same order, but that the class which joins last comes once the model is sure, and then often.

    >>> held_back([b'{"y":1}', b'{"y":2}', b'{"y":1}', b'{"y":1}', b'{"y":1}', b'{"y":1}'], "y")[-2:]
    [b'{"y":1}', b'{"y":2}']
    """
    labels = [msgspec.json.decode(value)[label] for value in values]
    newest = max(set(labels), key=labels.index)
    late, rest = (
        [at for at, class_name in enumerate(labels) if (class_name == newest) is is_newest] for is_newest in (True, False)
    )
    calm = int(len(rest) * CALM)
    tail = len(rest) - calm
    spread = [(at / tail, row) for at, row in enumerate(rest[calm:])]
    spread += [((at + 0.5) / len(late), row) for at, row in enumerate(late)]
    return [values[row] for row in rest[:calm] + [row for _, row in sorted(spread)]]


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


def named(stage: DemoStage) -> list[str]:
    """How a command is told which pipeline."""
    return [str(stage.pipeline), "--home", str(stage.plan.home)]


def start_server(stage: DemoStage, processes: Processes) -> Process:
    """`millrace up` on free ports; returns when its trainer answers."""
    ports = ["--port", str(free_port()), "--grpc-port", str(free_port())]
    server = processes.start("server", ["up", *named(stage), *ports])
    say(f"server {server.pid} starts Ray, a trainer and two replicas")
    processes.wait_until(lambda: trainer_pid(stage) is not None)
    return server


def where(stage: DemoStage) -> Where:
    """The server's addresses."""
    place = published_place(stage.instance)
    assert place is not None, "a trainer was there, so somebody said where"
    return Where(place.url.removeprefix("http://"), place.grpc, stage.instance.loaded.pipeline.name)


def trainer_pid(stage: DemoStage) -> int | None:
    """The pid of the trainer, or None where it does not answer."""
    place = published_place(stage.instance)
    try:
        return None if place is None else overview(stage.instance, place)["trainer"].get("pid")
    except (OSError, msgspec.DecodeError):
        return None


def newest_output(stage: DemoStage, branch: str = BRANCH) -> Output | None:
    """What the newest step let out, if it is the branch's."""
    return last_output(stage.backends.producer, stage.instance.loaded.pipeline.name, branch)


def progress(stage: DemoStage) -> tuple[Position, int, int]:
    """Moves while rows come into the log or are learned: its ends, and what the newest output counts."""
    output = newest_output(stage)
    return stage.ends(), *((0, 0) if output is None else (output.epoch, output.seq))


def learned(stage: DemoStage, branch: str = BRANCH, unlabelled: int = 0) -> bool:
    """Whether a branch has read everything that the log has, and nothing waits for its batch, its label or its prediction.

    ``unlabelled`` answers at most may wait: those whose labels a replay leaves out, where it begins after they were given.
    """
    output = newest_output(stage, branch)
    if output is None or output.records < sum(stage.ends().values()):
        return False
    awaited = 0 if output.labels is None else min(unlabelled, output.labels["awaited"])
    return output.waiting == awaited


def say(line: str) -> None:
    """Progress, on stderr."""
    click.echo(line, err=True)
