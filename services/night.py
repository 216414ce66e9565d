"""The night call of `make run`: a producer sends wrong labels, an alarm says since when, and everything is put right.

Serving is rolled back, the log is learned again without that producer, the new branch takes over, and what came out is compared
with the model as it was before the producer began. Only the shipped commands are used.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from millrace.learners.detectors import Alarm
from millrace.learners.errors import MillraceError, NotProvedError
from millrace.services import datasets
from millrace.services.callers import Asked, asking
from millrace.services.follower import Archive
from millrace.services.instance import BRANCH
from millrace.services.processes import COMMAND, Processes, finish
from millrace.services.stage import PATIENCE_S, Stage, named, newest_output, say, start_server, where
from millrace.streams.branch import load_part

POISON_ROWS = 300
PER_SECOND = 100.0
PRODUCER = "till-7"
SETTLED = 12  # answers in a row that name the same, over both protocols and all replicas
EQUAL = 1e-8  # relative, of the sums that a ridge is made of


@dataclass(frozen=True, slots=True)
class Night:
    """What happened, in seconds since the first wrong label was sent."""

    alarm: Alarm
    rows_before: int  # learned before the first of them
    alarm_s: float
    rollback_s: float  # begun
    rolled_back_s: float  # every answer
    version: str
    replayed: dict[str, Any]  # what `millrace replay run` printed
    replayed_s: float
    taken_over_s: float  # every answer
    scores: dict[str, float]  # of the answers on the held-out rows, by moment
    difference: float  # of the repaired model to the one before, relative
    failed: list[str]


def play(stage: Stage) -> Night:
    """Serve the pipeline again, poison it, and put it right.

    Raises: MillraceError where something fails or nothing moves on, NotProvedError where the repaired model is another.
    """
    before = Archive(stage.instance).marks(BRANCH)[-1]
    schema, held_out = stage.instance.loaded.pipeline.schema, datasets.held_out(stage.plan.data, stage.plan.seed)
    with Processes(stage.instance.folder, PATIENCE_S) as processes:
        server = start_server(stage, processes)
        with asking(where(stage), held_out, schema) as asked:
            _settled(processes, asked, f"{BRANCH}.")
            good = _score(asked)
            rows_before, start_s = stage.rows, time.monotonic()
            say(f"producer {PRODUCER} sends {POISON_ROWS} rows with wrong labels")
            words = ["send", *named(stage), str(_poison(stage)), "--header", f"producer={PRODUCER}"]
            sender = processes.start(PRODUCER, [*words, "--rows-per-second", str(PER_SECOND)])
            processes.wait_until(lambda: _alarm(stage, rows_before) is not None)
            alarm, alarm_s = _alarm(stage, rows_before), time.monotonic() - start_s
            assert alarm is not None
            say(f"alarm after {alarm_s:.1f} s: worse since about row {alarm.onset_rows:,}")
            processes.wait_until(lambda: sender.poll() == 0 and _records(stage) >= stage.rows + POISON_ROWS)
            _settled(processes, asked, f"{BRANCH}.")
            bad, rollback_s = _score(asked), time.monotonic() - start_s
            (change,) = said(stage, "rollback", ["--reason", f"wrong labels of {PRODUCER}", "--yes"])
            version = change["to"].removeprefix("version ")
            rolled_back_s = _settled(processes, asked, version) - start_s
            say(f"every answer is {version}'s {rolled_back_s - rollback_s:.1f} s after the command began")
            safe = _score(asked)
            plan = {line["what"]: line["value"] for line in said(stage, "replay plan", _plan_words(version))}
            (replayed,) = said(stage, "replay run", [plan["plan"]])
            replayed_s = time.monotonic() - start_s
            say(f"branch {replayed['branch']}: {plan['records']:,} records again without {plan['excluded']} of them; proved")
            said(stage, "replay take-over", ["--reason", "mended", "--yes"])
            taken_over_s = _settled(processes, asked, f"{replayed['branch']}.") - start_s
            scores = {"before": good, "poisoned": bad, "rolled back": safe, "repaired": _score(asked)}
        finish(server)
    difference = _difference(stage, str(before.version), replayed["version"])
    if difference > EQUAL:
        raise NotProvedError(f"The repaired model differs from the one before the poison by {difference:.1e} of its sums.")
    return Night(
        alarm,
        rows_before,
        alarm_s,
        rollback_s,
        rolled_back_s,
        version,
        replayed,
        replayed_s,
        taken_over_s,
        scores,
        difference,
        asked.failed,
    )


def said(stage: Stage, command: str, words: Sequence[str]) -> list[dict[str, Any]]:
    """What a command prints as JSON lines. Raises: MillraceError with its own words."""
    call = [*COMMAND, *command.split(), *named(stage), *words, "--output", "json"]
    ran = subprocess.run(call, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    if ran.returncode:
        raise MillraceError(f"millrace {command} failed with exit code {ran.returncode}. {ran.stderr.strip()}")
    return [json.loads(line) for line in ran.stdout.splitlines()]


def _plan_words(version: str) -> list[str]:
    return ["--from", version, "--exclude-header", f"producer={PRODUCER}", "--reason", "wrong labels"]


def _poison(stage: Stage) -> Any:
    """A file of rows that were sent already, each with another row's label."""
    label = stage.instance.loaded.pipeline.label.name
    rows = [msgspec.json.decode(line) for line in stage.stream.read_bytes().splitlines()[-POISON_ROWS:]]
    classes = sorted({row[label] for row in rows})
    wrong = [row | {label: classes[(classes.index(row[label]) + 1) % len(classes)]} for row in rows]
    path = stage.instance.folder / "poison.jsonl"
    path.write_bytes(b"\n".join(msgspec.json.encode(row) for row in wrong))
    return path


def _alarm(stage: Stage, since: int) -> Alarm | None:
    """The newest alarm, if a row after ``since`` raised it."""
    output = newest_output(stage)
    alarm = None if output is None else output.newest_alarm
    return alarm if alarm is not None and alarm.rows >= since else None


def _records(stage: Stage) -> int:
    output = newest_output(stage)
    return 0 if output is None else output.records


def _settled(processes: Processes, asked: Asked, name: str) -> float:
    """Wait until every answer names a state that begins so; when the last other one came, on the monotonic clock."""
    processes.wait_until(lambda: _all_of(asked, name))
    others = [one.at_s for one in asked.replies if not one.state.startswith(name)]
    return max(others, default=asked.replies[0].at_s)


def _all_of(asked: Asked, name: str) -> bool:
    newest = asked.replies[-SETTLED:]
    return len(newest) == SETTLED and all(one.state.startswith(name) for one in newest)


def _score(asked: Asked) -> float:
    """The mean of the newest answers."""
    return float(np.mean([one.score for one in asked.replies[-SETTLED:]]))


def _difference(stage: Stage, before: str, repaired: str) -> float:
    """The largest relative difference between what two versions have learned, over all their numbers."""
    archive, store = Archive(stage.instance), stage.instance.store()
    one, other = (load_part(store, archive.mark(version), "learner") for version in (before, repaired))
    far = [0.0]
    for name, value in one.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            largest = float(np.abs(value).max(initial=0.0)) or 1.0
            same = other[name].shape == value.shape
            far.append(float(np.abs(value - other[name]).max(initial=0.0)) / largest if same else float("inf"))
    return max(far)
