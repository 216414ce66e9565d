"""The numbers behind a report: what a finished branch says about itself, in the log, the journal and the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import msgspec
import numpy as np

from millrace.learners.errors import NotProvedError
from millrace.learners.protocol import Array, Batch
from millrace.learners.table import LEARNERS
from millrace.services.instance import BRANCH, Instance
from millrace.streams.branch import load_checkpoint
from millrace.streams.codec import Rows
from millrace.streams.entries import Entry, Mark, Open, Step
from millrace.streams.features import Features
from millrace.streams.journal import Cursor, counted
from millrace.streams.outputs import Output
from millrace.streams.records import Event, tp_name

READ_ROWS = 4096  # of the log at a time

MEASURES = {  # by task: how totals are called, ours first, and what a report calls them
    "classify": (("correct", "millrace"), ("correct_last", "last label"), ("correct_majority", "majority")),
    "regress": (
        ("absolute_error", "millrace"),
        ("absolute_error_last", "last value"),
        ("absolute_error_mean", "mean so far"),
    ),
}


@dataclass(frozen=True, slots=True)
class Joined:
    """Labels that appeared in the log for the first time in one append."""

    row: int  # of the first of them
    at_ms: int  # since 1970
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Resumed:
    """A worker that took the branch where another had left it."""

    row: int  # records that the journal had
    checkpoint_seq: int | None  # the state it began from; None: the very beginning
    after_seq: int  # the last entry of the worker before
    refolded: int  # steps folded again from the log


@dataclass(frozen=True, slots=True)
class Version:
    """A marked state, tested on the held-out rows."""

    name: str
    row: int  # learned until then
    score: float | None  # share right, or mean absolute error; None: nothing is held out


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything a report says about learning."""

    task: str  # classify or regress
    sent: int  # records in the log
    started_ms: int  # the first record's time since 1970
    outputs: list[Output]  # one a step, in order
    repeats: int  # outputs that a resumed worker let out again
    joined: list[Joined]
    resumed: list[Resumed]
    versions: list[Version]
    recall: dict[str, float]  # by label, over the whole stream; empty for regression
    held_out: int  # rows

    @property
    def totals(self) -> Array:
        """Rows scored and the totals of ``MEASURES`` after every step (steps, 4)."""
        names = ["rows", *(name for name, _ in MEASURES[self.task])]
        return np.array([[_number(output.scores[name]) for name in names] for output in self.outputs])


def gather(instance: Instance, held_out: Sequence[bytes]) -> Evidence:
    """Read what a branch has left.

    Raises: NotProvedError where two outputs of one step differ; DamageError where stored bytes are not as written.
    """
    outputs, repeats = _outputs(instance)
    entries = list(counted(instance.journal(BRANCH), BRANCH, Cursor()))
    log, tp = instance.log(), tp_name(instance.loaded.pipeline.topic, 0)
    joined, started_ms = _joined(instance)
    marks = [entry for entry in entries if isinstance(entry, Mark) and entry.version is not None]
    return Evidence(
        task=instance.loaded.pipeline.label.task,
        sent=log.bounds(tp)[1],
        started_ms=started_ms,
        outputs=outputs,
        repeats=repeats,
        joined=joined,
        resumed=_resumed(entries),
        versions=_versions(instance, marks, held_out),
        recall=_recall(instance, marks),
        held_out=len(held_out),
    )


def windows(totals: Array, rows: int) -> Array:
    """Each measure over a sliding window that begins and ends with a step, from ``Evidence.totals`` (steps, 4).

    Gives (steps, 5): rows scored until then, rows in the window (``rows`` or a little more), and the three means.

    >>> windows(np.array([[10.0, 5.0], [20.0, 15.0], [30.0, 20.0]]), 15)
    array([[10.  , 10.  ,  0.5 ],
           [20.  , 20.  ,  0.75],
           [30.  , 20.  ,  0.75]])
    """
    grown = totals[np.diff(totals[:, 0], prepend=0.0) > 0]
    whole = np.vstack([np.zeros((1, totals.shape[1])), grown])
    before = np.searchsorted(whole[:, 0], grown[:, 0] - rows, side="right") - 1
    gained = grown - whole[np.maximum(before, 0)]
    return np.column_stack([grown[:, 0], gained[:, 0], gained[:, 1:] / gained[:, :1]])


def _number(total: Any) -> float:
    """A total; of several outputs their mean."""
    return float(np.mean(total)) if not isinstance(total, list) or total else 0.0


def _outputs(instance: Instance) -> tuple[list[Output], int]:
    """The outputs of the branch, each step once, and how many came again."""
    by_seq: dict[int, Output] = {}
    repeats = 0
    for event in _events(instance, f"{instance.loaded.pipeline.name}.scores"):
        output = msgspec.json.decode(event.value or b"", type=Output)
        if output.branch != BRANCH:
            continue
        repeats += output.seq in by_seq
        if by_seq.setdefault(output.seq, output) != output:
            raise NotProvedError(f"Step {output.seq} let out two different outputs; the second is at offset {event.offset}.")
    return [by_seq[seq] for seq in sorted(by_seq)], repeats


def _events(instance: Instance, topic: str) -> Iterator[Event]:
    """All records of a topic of one partition."""
    source, tp = instance.source([topic]), tp_name(topic, 0)
    start, end = source.bounds()[tp]
    for begin in range(start, end, READ_ROWS):
        yield from source.read(tp, begin, min(begin + READ_ROWS, end)).events


def _joined(instance: Instance) -> tuple[list[Joined], int]:
    """When each label came first, those of one append together; and the time of the first record."""
    events = list(_events(instance, instance.loaded.pipeline.topic))
    rows, _ = instance.recipe.codec.decode(events)
    if instance.loaded.pipeline.label.task != "classify":
        return [], int(rows.t[0]) if len(rows) else 0
    first: dict[str, int] = {}
    for row, label in enumerate(rows.y.tolist()):
        if label is not None:
            first.setdefault(label, row)
    appends: dict[int, list[str]] = {}
    for label, row in first.items():
        appends.setdefault(int(rows.t[row]), []).append(label)
    joined = [Joined(first[labels[0]], at_ms, tuple(labels)) for at_ms, labels in appends.items()]
    return joined, int(rows.t[0]) if len(rows) else 0


def _resumed(entries: Sequence[Entry]) -> list[Resumed]:
    """Every ``open`` after the first, and what it had to fold again."""
    read = list(accumulate(sum(count for _, _, _, count, _ in e.reads) if isinstance(e, Step) else 0 for e in entries))
    found = []
    for at, entry in enumerate(entries):
        if isinstance(entry, Open) and entry.after_seq > 1:
            start = entry.restored.seq if entry.restored else 1
            refolded = [e for e in entries[:at] if isinstance(e, Step) and e.seq > start]
            checkpoint = entry.restored.seq if entry.restored else None
            found.append(Resumed(read[at], checkpoint, entry.after_seq, len(refolded)))
    return found


def _versions(instance: Instance, marks: Sequence[Mark], held_out: Sequence[bytes]) -> list[Version]:
    events = [Event(row, 0, None, b"", value) for row, value in enumerate(held_out)]
    rows, refused = instance.recipe.codec.decode(events)
    if refused:
        raise NotProvedError(f"Held-out row {refused[0].event.offset} cannot be read: {refused[0].detail}.")
    return [_version(instance, mark, rows) for mark in marks]


def _version(instance: Instance, mark: Mark, rows: Rows) -> Version:
    parts = load_checkpoint(instance.store(), mark)
    learned = parts["counts"]["counts"]
    score = _score(instance, parts, rows) if len(rows) else None
    return Version(str(mark.version), int(learned["learned"]) if isinstance(learned, dict) else 0, score)


def _score(instance: Instance, parts: dict[str, dict[str, Any]], rows: Rows) -> float:
    """What a version's servable scores on rows, with the feature tables as they were then."""
    features = Features(instance.recipe.schema)
    features.load(parts["features"])
    servable = LEARNERS[instance.recipe.learner].servable(parts["serve"])
    scores = servable.predict_many(Batch(features.transform(rows)))
    if instance.loaded.pipeline.label.task == "regress":
        return float(np.abs(scores[:, 0] - rows.y).mean())
    names = np.array(servable.classes, dtype=object)
    return float((names[scores.argmax(axis=1)] == rows.y).mean()) if len(names) else 0.0


def _recall(instance: Instance, marks: Sequence[Mark]) -> dict[str, float]:
    """By label, from the newest version's running scores."""
    if not marks or instance.loaded.pipeline.label.task != "classify":
        return {}
    scores: dict[str, Any] = load_checkpoint(instance.store(), marks[-1])["scores"]
    counts = zip(scores["labels"], scores["label_hits"], scores["label_rows"], strict=True)
    return {label: hits / rows for label, hits, rows in counts}


def account(evidence: Evidence, sent: int) -> list[str]:
    """What does not add up; nothing if every record that was sent is accounted for, once."""
    if not evidence.outputs:
        return ["No step let anything out."]
    last = evidence.outputs[-1]
    wrong = []
    if evidence.sent != sent:
        wrong.append(f"{sent} records were sent and the log has {evidence.sent}.")
    if last.records != evidence.sent or sum(last.counts.values()) + last.waiting != last.records:
        wrong.append(f"The log has {evidence.sent} records, {last.records} were read: {last.counts}, {last.waiting} waiting.")
    if last.counts["rejected"] or last.waiting:
        wrong.append(f"{last.counts['rejected']} records were rejected and {last.waiting} still wait.")
    ranges = [one for output in evidence.outputs for one in output.reads]
    gaps = [(before, after) for before, after in pairwise(ranges) if before[2] != after[1]]
    if gaps or ranges[0][1] != 0 or ranges[-1][2] != evidence.sent:
        wrong.append(f"The steps did not read every offset exactly once: {gaps or (ranges[0], ranges[-1])}.")
    return wrong
