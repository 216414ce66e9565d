"""The night call of `make run`: a producer labels wrongly, an alarm says since when, and everything is put right.

Callers ask about digits that the model has never seen, and one labels them later, rightly. Then another asks and labels every 3
as an 8. Serving is rolled back, the log is learned again without that producer, and the new branch takes over. What came out is
compared with a model that is fitted to the honest labels alone. Only the shipped commands are used.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any

import msgspec

from millrace.learners.drift.alarms import Alarm
from millrace.learners.errors import MillraceError
from millrace.learners.protocol import Value
from millrace.services.config.names import BRANCH
from millrace.services.data import datasets
from millrace.services.demo.callers import CallLog, Late, labelling
from millrace.services.demo.repaired import (
    Curve,
    answers,
    labelled_rows,
    learned_by,
    learned_without,
    producers_of_labels,
    replayed_curve,
    served_curve,
)
from millrace.services.demo.stage import HONEST, DemoStage, learned, named, newest_output, say, start_server, where
from millrace.services.errors import NotProvedError
from millrace.services.processes import COMMAND, TIMEOUT_S, Processes, finish
from millrace.streams.branch.difference import difference
from millrace.streams.branch.outputs import outputs_of

POISON_ROWS = 300
PER_SECOND = 100.0  # of those
HONEST_PER_SECOND = 16.0
PRODUCER = "till-7"
CALLED = (3, 8)  # what it is, and what it says
LABEL_AFTER_S = 0.5  # from a row's answer to its label
CALM_ROWS, CALM_LOSS = 100, 0.15  # before anything is poisoned: at least so many rows since the newest alarm, and of them wrong
CALM_OUTPUTS = 256  # among which it is looked for
SETTLED = 12  # answers in a row that name the same, over both protocols and all replicas
AFTERWARDS_ROWS = 24  # that the repaired branch is asked about and labelled afterwards
EQUAL = 1e-8  # relative, of the sums that a ridge is made of


@dataclass(frozen=True, slots=True)
class Span:
    """A command, in seconds since the first wrong label's row was asked about, and when every answer was its."""

    begun_s: float
    done_s: float
    row: int  # labelled rows in the log when it was done

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.done_s - self.begun_s


@dataclass(frozen=True, slots=True)
class Night:
    """What happened."""

    alarm: Alarm
    alarm_s: float
    poison: tuple[int, int]  # the first wrong label and past the last, among the labelled rows of the log
    bad_rows: int  # wrong labels that had been learned when the alarm was raised
    version: str  # that was rolled back to
    rollback: Span
    plan: dict[str, Any]  # what `millrace replay plan` printed
    replayed: dict[str, Any]  # what `millrace replay run` printed
    replay: Span
    take_over: Span
    scores: dict[str, float]  # of the honest caller's answers, by phase
    answers: int
    asked_again: int  # rows of the class that was labelled wrongly, held out by day
    miscalled: tuple[int, int]  # of those, by the poisoned and by the repaired model, as the wrong labels said
    differences: tuple[float, float]  # of the repaired and the poisoned model to one fitted to the honest labels alone
    proved: dict[str, int]  # journal entries, by branch
    served: Curve
    repaired: Curve


def play(stage: DemoStage) -> Night:
    """Serve the pipeline again, poison it, and put it right.

    Raises: MillraceError where something fails or nothing moves on, NotProvedError where the repaired model is another.
    """
    schema, unseen = stage.instance.loaded.pipeline.schema, cycle(datasets.held_out(stage.plan.data, stage.plan.seed))
    with Processes(stage.instance.folder, TIMEOUT_S) as processes:
        server = start_server(stage, processes)
        say(f"{HONEST} asks about digits never seen, {HONEST_PER_SECOND:g} a second, and labels them later")
        with labelling(where(stage), unseen, schema, Late(HONEST, "night", HONEST_PER_SECOND, LABEL_AFTER_S)) as calls:
            call = _Call(stage, processes, calls)
            called = call.answer()
        processes.wait_until(lambda: learned(stage, called.replayed["branch"], POISON_ROWS))
        finish(server)
    if calls.failed:
        raise NotProvedError(f"{len(calls.failed)} requests failed in the night, the first with {calls.failed[0]}.")
    return _concluded(stage, called, calls)


@dataclass(frozen=True, slots=True)
class _Called:
    """What was done, in seconds on the monotonic clock."""

    start_s: float
    alarm: Alarm
    alarm_s: float
    version: str
    rollback: tuple[float, float]
    plan: dict[str, Any]
    replayed: dict[str, Any]
    replay: tuple[float, float]
    take_over: tuple[float, float]
    rows: tuple[int, int, int]  # labelled in the log when each of the three was done
    miscalled: int  # by the model as it was once every wrong label was learned; right ones go on coming


@dataclass(frozen=True, slots=True)
class _Call:
    """The operator."""

    stage: DemoStage
    processes: Processes
    asked: CallLog  # by the honest caller

    def answer(self) -> _Called:
        """From the first wrong label to the repaired model's answers."""
        stage = self.stage
        self._settled(f"{BRANCH}.")
        self.processes.wait_until(partial(_is_calm, stage))
        self._close_alarms_of_the_day()
        start_s = time.monotonic()
        alarm, alarm_s = self._poisoned()
        output = newest_output(stage)
        poisoned_seq = 0 if output is None else output.seq
        self._settled(f"{BRANCH}.", alarm_s)
        begun_s = time.monotonic()
        (change,) = lines_of(stage, "rollback", ["--reason", f"wrong labels of {PRODUCER}", "--yes"])
        version = change["to"].removeprefix("version ")
        rollback = begun_s, self._settled(version)
        rows = [labelled_rows(stage.instance)]
        say(f"every answer is {version}'s {rollback[1] - rollback[0]:.1f} s after the command began")
        miscalled = _miscalled(stage, BRANCH, poisoned_seq)
        begun_s = time.monotonic()
        plan = {line["what"]: line["value"] for line in lines_of(stage, "replay plan", _plan_words(version))}
        (replayed,) = lines_of(stage, "replay run", [plan["plan"]])
        replay = begun_s, time.monotonic()
        rows.append(labelled_rows(stage.instance))
        say(f"branch {replayed['branch']}: {replayed['records']:,} records again without {plan['excluded']} of them; proved")
        begun_s = time.monotonic()
        lines_of(stage, "replay take-over", ["--reason", "mended", "--yes"])
        take_over = begun_s, self._settled(f"{replayed['branch']}.")
        rows.append(labelled_rows(stage.instance))
        say(f"every answer is {replayed['branch']}'s {take_over[1] - take_over[0]:.1f} s after the command began")
        labelled = self.asked.labelled
        self.processes.wait_until(lambda: self.asked.labelled >= labelled + AFTERWARDS_ROWS)
        done = (rows[0], rows[1], rows[2])
        return _Called(start_s, alarm, alarm_s, version, rollback, plan, replayed, replay, take_over, done, miscalled)

    def _close_alarms_of_the_day(self) -> None:
        """By day classes joined, which is no fault: an alarm that stands would hold a rollback back before them."""
        raised = [str(line["alarm"]) for line in lines_of(self.stage, "alarms list", []) if line["state"] == "open"]
        if raised:
            lines_of(self.stage, "alarms close", [*raised, "--reason", "classes joined, no fault", "--yes"])

    def _poisoned(self) -> tuple[Alarm, float]:
        """Let the other producer label, until the model has learned all of it; the alarm, and when it was raised."""
        stage, processes = self.stage, self.processes
        schema, output = stage.instance.loaded.pipeline.schema, newest_output(stage)
        learned_before = 0 if output is None else output.counts["learned"]
        say(f"{PRODUCER} asks about {POISON_ROWS} digits, and labels every {CALLED[0]} as an {CALLED[1]}")
        with labelling(
            where(stage), _poison(stage), schema, Late(PRODUCER, PRODUCER, PER_SECOND, LABEL_AFTER_S)
        ) as poison_calls:
            processes.wait_until(lambda: _alarm(stage, learned_before) is not None)
            alarm, alarm_s = _alarm(stage, learned_before), time.monotonic()
            assert alarm is not None
            say(f"alarm: worse since about row {alarm.onset_rows:,}")
            processes.wait_until(lambda: poison_calls.over)
            ends = sum(stage.ends().values())
            processes.wait_until(lambda: (output := newest_output(stage)) is not None and output.records >= ends)
        self.asked.failed.extend(poison_calls.failed)
        return alarm, alarm_s

    def _settled(self, name: str, from_s: float = 0.0) -> float:
        """Wait until every answer names a state that begins so, and enough came after a moment on the monotonic clock.

        Returns when the last other one came.
        """
        replies = self.asked.replies
        self.processes.wait_until(
            lambda: (
                len(newest := [reply for reply in replies[-SETTLED:] if reply.at_s >= from_s]) == SETTLED
                and all(reply.state.startswith(name) for reply in newest)
            )
        )
        other_moments = [reply.at_s for reply in replies if not reply.state.startswith(name)]
        return max(other_moments, default=replies[0].at_s)


def lines_of(stage: DemoStage, command: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """What a command prints as JSON lines. Raises: MillraceError with its own words."""
    call = [*COMMAND, *command.split(), *named(stage), *arguments, "--output", "json"]
    ran = subprocess.run(call, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise MillraceError(f"millrace {command} failed with exit code {ran.returncode}. {ran.stderr.strip()}")
    return [json.loads(line) for line in ran.stdout.splitlines()]


def _plan_words(version: str) -> list[str]:
    return ["--from", version, "--exclude-header", f"producer={PRODUCER}", "--reason", "wrong labels"]


def _poison(stage: DemoStage) -> list[bytes]:
    """Rows of one class that were learned already, again and again, with another class as their label."""
    label = stage.instance.loaded.pipeline.label.name
    rows = [row for row in map(msgspec.json.decode, stage.lines()) if row[label] == CALLED[0]]
    return [msgspec.json.encode(row | {label: CALLED[1]}) for row in islice(cycle(rows), POISON_ROWS)]


def _held_out_digits(stage: DemoStage) -> list[bytes]:
    """Rows of the class that is labelled wrongly, which no model has learned by day."""
    label, held_out = stage.instance.loaded.pipeline.label.name, datasets.held_out(stage.plan.data, stage.plan.seed)
    return [value for value in held_out if msgspec.json.decode(value)[label] == CALLED[0]]


def _miscalled(stage: DemoStage, branch: str, from_seq: int | None = None) -> int:
    """How many of them a branch calls what the wrong labels say: its newest marked state, or the first from a seq on."""
    return answers(stage.instance, branch, _held_out_digits(stage), from_seq).count(str(CALLED[1]))


def _is_calm(stage: DemoStage) -> bool:
    """Whether answers have been good since the newest alarm, of either direction.

    A detector begins anew with each alarm. If that is in the midst of the poison, poison is all it knows, and it says nothing.
    On a slow machine answers come late and are bad by day, so it is by night that they get better.
    """
    outputs = outputs_of(stage.backends.producer, stage.instance.loaded.pipeline.name, BRANCH, CALM_OUTPUTS)
    since = next((at for at, output in reversed(list(enumerate(outputs))) if output.alarms), 0)
    totals = [output.served_scores for output in outputs[since:] if output.served_scores is not None]
    rows, correct = (totals[-1][name] - totals[0][name] if totals else 0 for name in ("rows", "correct"))
    return rows >= CALM_ROWS and rows - correct <= CALM_LOSS * rows


def _alarm(stage: DemoStage, learned_before: int) -> Alarm | None:
    """The newest alarm, if a row after ``learned_before`` raised it."""
    output = newest_output(stage)
    alarm = None if output is None else output.newest_alarm
    return alarm if alarm is not None and alarm.rows >= learned_before else None


def _sums(*states: dict[str, Value]) -> list[dict[str, Value]]:
    """The numbers that rows are added up in, without how many they were."""
    return [{name: state[name] for name in ("gram", "cross")} for state in states]


def _concluded(stage: DemoStage, called: _Called, calls: CallLog) -> Night:
    """What came out, compared and proved. Raises: NotProvedError."""
    instance, repaired = stage.instance, str(called.replayed["branch"])
    never_poisoned = learned_without(instance, PRODUCER)
    differences = (
        difference(learned_by(instance, repaired), never_poisoned),
        difference(*_sums(learned_by(instance, BRANCH), never_poisoned)),
    )
    if differences[0] > EQUAL:
        raise NotProvedError(f"The repaired model differs by {differences[0]:.1e} from one that never saw the poison.")
    proved = {branch: int(lines_of(stage, "verify", ["--branch", branch])[0]["entries"]) for branch in (BRANCH, repaired)}
    producers = producers_of_labels(instance)
    poisoned_rows = [row for row, producer in enumerate(producers) if producer == PRODUCER]
    spans = [
        Span(begun_s - called.start_s, done_s - called.start_s, row)
        for (begun_s, done_s), row in zip((called.rollback, called.replay, called.take_over), called.rows, strict=True)
    ]
    return Night(
        alarm=called.alarm,
        alarm_s=called.alarm_s - called.start_s,
        poison=(poisoned_rows[0], poisoned_rows[-1] + 1),
        bad_rows=sum(row <= called.alarm.rows for row in poisoned_rows),
        version=called.version,
        rollback=spans[0],
        plan=called.plan,
        replayed=called.replayed,
        replay=spans[1],
        take_over=spans[2],
        scores={
            "before": calls.mean(0.0, called.start_s),
            "poisoned": calls.mean(called.alarm_s, called.rollback[0]),
            "rolled back": calls.mean(called.rollback[1], called.take_over[0]),
            "repaired": calls.mean(called.take_over[1], float("inf")),
        },
        answers=len(calls.replies),
        asked_again=len(_held_out_digits(stage)),
        miscalled=(called.miscalled, _miscalled(stage, repaired)),
        differences=differences,
        proved=proved,
        served=served_curve(instance, BRANCH),
        repaired=replayed_curve(instance, repaired),
    )
