"""The numbers behind a report: what a finished branch says about itself, in the log, the journal and the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

from millrace.learners.drift.alarms import Alarm
from millrace.learners.protocol import Array
from millrace.learners.table import algorithm_of
from millrace.services.config.names import BRANCH
from millrace.services.errors import NotProvedError
from millrace.services.pipeline.instance import Instance
from millrace.streams.branch.branch import load_checkpoint
from millrace.streams.branch.outputs import Output, scores_topic
from millrace.streams.features.columns import Features
from millrace.streams.formats.json_rows import Rows, has_label
from millrace.streams.journal.entries import Act, Entry, Mark, Open, Step
from millrace.streams.journal.journal import Cursor, counted
from millrace.streams.labels.served import LateLabel, Served
from millrace.streams.records import Event
from millrace.streams.source import Source

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

    row: int  # of the first of them, among those that have a label
    at_ms: int  # since 1970
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Resumed:
    """A worker that took the branch where another had left it."""

    row: int  # that had been learned
    checkpoint_seq: int | None  # the state it began from; None: the very beginning
    after_seq: int  # the last entry of the worker before
    refolded: int  # steps folded again from the log


@dataclass(frozen=True, slots=True)
class ScoredVersion:
    """A marked state, tested on the held-out rows."""

    name: str
    row: int  # learned until then
    score: float | None  # share right, or mean absolute error; None: nothing is held out


@dataclass(frozen=True, slots=True)
class Raised:
    """A change that a detector noticed, and what followed."""

    at_ms: int  # since 1970, by the journal's clock
    alarm: Alarm
    version: str | None  # that was marked after the act that it became; None: it became none


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything a report says about learning. Rows are those that have a label, in the order in which the log has it."""

    task: str  # classify or regress
    sent: int  # records in the log
    rows: int  # of which so many brought a row's label
    ends: dict[str, int]  # by partition
    started_ms: int  # the first record's time since 1970
    outputs: list[Output]  # one a step, in order
    repeats: int  # outputs that a resumed worker let out again
    joined: list[Joined]
    resumed: list[Resumed]
    raised: list[Raised]
    versions: list[ScoredVersion]
    recall: dict[str, float]  # by label, over the whole stream; empty for regression
    held_out: int  # rows

    @property
    def totals(self) -> Array:
        """Rows scored and the totals of ``MEASURES`` after every step (steps, 4)."""
        return totals_of(self.task, [(output.scores, output.served_scores) for output in self.outputs])


def totals_of(task: str, scores: Sequence[tuple[dict[str, Any], dict[str, Any] | None]]) -> Array:
    """Rows scored and the totals of ``MEASURES`` (steps, 4), from the worker's own and those as served."""
    names = ["rows", *(name for name, _ in MEASURES[task])]
    return np.array([[sum(_number(part[name]) for part in parts if part) for name in names] for parts in scores])


def gather(instance: Instance, held_out: Sequence[bytes]) -> Evidence:
    """Read what a branch has left.

    Raises: NotProvedError where two outputs of one step differ; DamageError where stored bytes are not as written.
    """
    outputs, repeats = outputs_of(instance, BRANCH)
    backends = instance.backends(BRANCH)
    entries = list(counted(backends.journal, BRANCH, Cursor()))
    labelled = labels_in_log(instance, backends.source)
    ends = {tp: high for tp, (_, high) in backends.source.bounds().items()}
    marks = [entry for entry in entries if isinstance(entry, Mark) and entry.version is not None]
    return Evidence(
        task=instance.loaded.pipeline.label.task,
        sent=sum(ends.values()),
        rows=len(labelled),
        ends=ends,
        started_ms=labelled[0].at_ms if labelled else 0,
        outputs=outputs,
        repeats=repeats,
        joined=_joined(labelled) if instance.loaded.pipeline.label.task == "classify" else [],
        resumed=_resumed(entries, outputs),
        raised=_raised(entries, outputs),
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
    from_zero = np.vstack([np.zeros((1, totals.shape[1])), grown])
    before = np.searchsorted(from_zero[:, 0], grown[:, 0] - rows, side="right") - 1
    gained = grown - from_zero[np.maximum(before, 0)]
    return np.column_stack([grown[:, 0], gained[:, 0], gained[:, 1:] / gained[:, :1]])


def _number(total: Any) -> float:
    """A total; of several outputs their mean."""
    return float(np.mean(total)) if not isinstance(total, list) or total else 0.0


def outputs_of(instance: Instance, branch: str) -> tuple[list[Output], int]:
    """The outputs of a branch, each step once, and how many came again.

    Raises: NotProvedError where two of one step differ.
    """
    by_seq: dict[int, Output] = {}
    repeats = 0
    topic = scores_topic(instance.loaded.pipeline.name, branch)
    for event in _events(instance.source([topic])):
        output = msgspec.json.decode(event.value or b"", type=Output)
        if output.branch != branch:
            continue
        repeats += output.seq in by_seq
        if by_seq.setdefault(output.seq, output) != output:
            raise NotProvedError(f"Step {output.seq} let out two different outputs; the second is at offset {event.offset}.")
    return [by_seq[seq] for seq in sorted(by_seq)], repeats


def _events(source: Source) -> Iterator[Event]:
    """All records of a source's topics, partition by partition."""
    for tp, (start, end) in source.bounds().items():
        for begin in range(start, end, READ_ROWS):
            yield from source.read(tp, begin, min(begin + READ_ROWS, end)).events


@dataclass(frozen=True, slots=True)
class Labelled:
    """A label as it came into the log, with its row or for a prediction."""

    at_ms: int  # since 1970
    label: Any  # as a learner gets it
    tp: str
    offset: int
    event: Event


def labels_in_log(instance: Instance, source: Source) -> list[Labelled]:
    """Every label in the log, in order of time."""
    labelled: list[Labelled] = []
    for tp, (start, end) in source.bounds().items():
        for begin in range(start, end, READ_ROWS):
            events = source.read(tp, begin, min(begin + READ_ROWS, end)).events
            piece, refused = instance.fold_spec.reader.decode(events, tp)
            refused_offsets = {refusal.event.offset for refusal in refused}
            labelled += _labelled(piece, [event for event in events if event.offset not in refused_offsets], tp)
    return sorted(labelled, key=lambda label: label.at_ms)  # stable: of one partition in the order of the log


def _labelled(piece: Rows | Served, events: Sequence[Event], tp: str) -> Iterator[Labelled]:
    if isinstance(piece, Served):
        pairs = zip(piece.records, piece.events, strict=True)
        pairs_labelled = [(record.label, event) for record, event in pairs if isinstance(record, LateLabel)]
    else:
        labelled = has_label(piece).tolist()
        pairs_labelled = [
            (label, event) for label, event, is_labelled in zip(piece.y.tolist(), events, labelled, strict=True) if is_labelled
        ]
    for label, event in pairs_labelled:
        yield Labelled(event.timestamp_ms, label, tp, event.offset, event)


def _joined(labelled: Sequence[Labelled]) -> list[Joined]:
    """When each label came first, those of one append together."""
    first: dict[str, int] = {}
    for row, labelled_row in enumerate(labelled):
        first.setdefault(labelled_row.label, row)
    appends: dict[int, list[str]] = {}
    for label, row in first.items():
        appends.setdefault(labelled[row].at_ms, []).append(label)
    return [Joined(first[labels[0]], at_ms, tuple(labels)) for at_ms, labels in appends.items()]


def _resumed(entries: Sequence[Entry], outputs: Sequence[Output]) -> list[Resumed]:
    """Every ``open`` after the first, and what it had to fold again."""
    resumed = []
    for at, entry in enumerate(entries):
        if isinstance(entry, Open) and entry.after_seq > 1:
            start = entry.restored.seq if entry.restored else 1
            refolded = [e for e in entries[:at] if isinstance(e, Step) and e.seq > start]
            checkpoint = entry.restored.seq if entry.restored else None
            learned = [output.counts["learned"] for output in outputs if output.seq <= entry.after_seq]
            resumed.append(Resumed(learned[-1] if learned else 0, checkpoint, entry.after_seq, len(refolded)))
    return resumed


def _raised(entries: Sequence[Entry], outputs: Sequence[Output]) -> list[Raised]:
    """Every alarm, with the version that the act it became was marked as."""
    acts = {entry.evidence: entry.seq for entry in entries if isinstance(entry, Act) and entry.cause == "detector"}
    marks = [entry for entry in entries if isinstance(entry, Mark) and entry.version is not None]
    raised = []
    for output in outputs:
        act_seq = acts.get(f"{output.branch}.{output.seq}")
        version = None if act_seq is None else next((mark.version for mark in marks if mark.state_seq >= act_seq), None)
        raised += [Raised(output.clock_ms, alarm, version if alarm.direction == "worse" else None) for alarm in output.alarms]
    return raised


def _versions(instance: Instance, marks: Sequence[Mark], held_out: Sequence[bytes]) -> list[ScoredVersion]:
    events = [Event(row, 0, None, b"", value) for row, value in enumerate(held_out)]
    rows, refused = instance.fold_spec.codec.decode(events)
    if refused:
        raise NotProvedError(f"Held-out row {refused[0].event.offset} cannot be read: {refused[0].detail}.")
    return [_version(instance, mark, rows) for mark in marks]


def _version(instance: Instance, mark: Mark, rows: Rows) -> ScoredVersion:
    parts = load_checkpoint(instance.store(), mark)
    learned = parts["counts"]["counts"]
    score = _score(instance, parts, rows) if len(rows) else None
    return ScoredVersion(str(mark.version), int(learned["learned"]) if isinstance(learned, dict) else 0, score)


def _score(instance: Instance, parts: dict[str, dict[str, Any]], rows: Rows) -> float:
    """What a version's servable scores on rows, with the feature tables as they were then."""
    features = Features(instance.fold_spec.schema)
    features.load(parts["features"])
    servable = algorithm_of(instance.fold_spec.learner).servable(parts["serve"])
    scores = servable.predict_many(features.answer(features.encode(rows)))
    if instance.loaded.pipeline.label.task == "regress":
        return float(np.abs(scores[:, 0] - rows.y).mean())
    names = np.array(servable.classes, dtype=object)
    return float((names[scores.argmax(axis=1)] == rows.y).mean()) if len(names) else 0.0


def _recall(instance: Instance, marks: Sequence[Mark]) -> dict[str, float]:
    """By label, from the newest version's running scores."""
    if not marks or instance.loaded.pipeline.label.task != "classify":
        return {}
    parts, hits, rows = load_checkpoint(instance.store(), marks[-1]), Counter[str](), Counter[str]()
    for name in ("scores", "served_scores"):
        scores: dict[str, Any] = parts.get(name, {"labels": [], "label_hits": [], "label_rows": []})
        hits.update(dict(zip(scores["labels"], scores["label_hits"], strict=True)))
        rows.update(dict(zip(scores["labels"], scores["label_rows"], strict=True)))
    return {label: hits[label] / count for label, count in rows.items()}


def account(evidence: Evidence, sent: int) -> list[str]:
    """What does not add up; empty if every record that was sent is accounted for, once."""
    if not evidence.outputs:
        return ["No step let anything out."]
    last = evidence.outputs[-1]
    problems = []
    if evidence.sent != sent:
        problems.append(f"{sent} records were sent and the log has {evidence.sent}.")
    if last.records != evidence.sent or sum(last.counts.values()) + last.waiting != last.records:
        problems.append(
            f"The log has {evidence.sent} records, {last.records} were read: {last.counts}, {last.waiting} waiting."
        )
    if last.counts["rejected"] or last.waiting:
        problems.append(f"{last.counts['rejected']} records were rejected and {last.waiting} still wait.")
    for tp, end in evidence.ends.items():
        ranges = [read for output in evidence.outputs for read in output.reads if read[0] == tp]
        gaps = [(before, after) for before, after in pairwise(ranges) if before[2] != after[1]]
        if gaps or (end and not ranges) or (ranges and (ranges[0][1], ranges[-1][2]) != (0, end)):
            problems.append(f"The steps did not read every offset of {tp} exactly once: {gaps or ranges[:1] + ranges[-1:]}.")
    return problems
