"""What a worker lets out into the log: the scores of each step, and the records that it could not read."""

from __future__ import annotations

from dataclasses import asdict

import msgspec

from millrace.learners.drift.alarms import Alarm
from millrace.learners.protocol import Value
from millrace.streams.errors import DamageError
from millrace.streams.formats.json_rows import Refused
from millrace.streams.journal.entries import Step
from millrace.streams.labels.join import LabelJoin
from millrace.streams.records import Record, encode_headers, split_tp
from millrace.streams.sharding import merging_branch
from millrace.streams.source import Producer
from millrace.streams.state.fold import Fold
from millrace.streams.state.notices import Totals


class Output(msgspec.Struct, frozen=True):
    """What a step lets out on the topic ``NAME.scores``. Totals are since the branch began; differences give any window."""

    branch: str
    epoch: int
    seq: int
    reads: list[tuple[str, int, int]]  # partition, from, to
    records: int  # read so far
    waiting: int
    counts: dict[str, int]
    clock_ms: int
    scores: dict[str, Value]  # of the worker's own answers, each given just before its row was learned
    served_scores: dict[str, Value] | None = None  # of the answers as they were served; None: no late labels
    alarms: list[Alarm] = []  # of drift, raised by this step
    newest_alarm: Alarm | None = None  # that something got worse, since the branch began
    held_out: dict[str, Value] | None = None  # of rows that are never learned; None: none is held out
    labels: dict[str, int] | None = None  # what came of served predictions and labels, and what waits
    memory: dict[str, Value] = {}  # of a learner with an error memory: how much it corrects, and errors with it and without
    entities: dict[str, int] = {}  # how many there are, and what became of their events; empty: rows are nobody's
    noticed: dict[str, Value] = {}  # what was learned otherwise than its records say, or not at all; see state/notices.py


OVERTAKEN = 4  # outputs among which the newest is: a writer has one under way at a time


def scores_topic(pipeline: str, branch: str) -> str:
    """Where the outputs of a branch's steps go; each shard has a topic of its own, whose last record is its last output."""
    return f"{pipeline}.scores{branch.removeprefix(merging_branch(branch))}"


def dead_letter_topic(pipeline: str) -> str:
    """Where records go that cannot be read."""
    return f"{pipeline}.dead-letters"


def output_record(step: Step, fold: Fold) -> Record:
    """The output of a step that ``fold`` has just taken in."""
    join = fold.labels
    output = Output(
        branch=step.branch,
        epoch=step.epoch,
        seq=step.seq,
        reads=[(tp, start, stop) for tp, start, stop, _, _ in step.reads],
        records=fold.records,
        waiting=fold.waiting,
        counts=fold.fates | ({} if join is None else {"labels": join.settled}),
        clock_ms=fold.clock_ms,
        scores=plain_totals(fold.scores.totals),
        served_scores=None if join is None else plain_totals(fold.served_scores.totals),
        alarms=[] if fold.drift is None else fold.drift.alarms,
        newest_alarm=None if fold.drift is None else fold.drift.newest,
        held_out=None if fold.held_out is None else fold.held_out.figures(),
        labels=None if join is None else _late(join),
        memory=fold.figures(),
        entities={} if fold.entities is None else fold.entities.figures,
        noticed=fold.noticed(),
    )
    return Record(msgspec.json.encode(output), step.branch.encode())


def _late(join: LabelJoin) -> dict[str, int]:
    """What came of served predictions and labels; how many of each wait; how many identities are remembered."""
    sizes = {"awaited": join.waiting_predictions, "waiting": join.waiting_labels, "remembered": join.remembered.rows}
    return msgspec.structs.asdict(join.counts) | sizes


def plain_totals(totals: Totals) -> dict[str, Value]:
    """Totals as JSON has them."""
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in asdict(totals).items()}


def last_output(producer: Producer, pipeline: str, branch: str) -> Output | None:
    """The newest output, if the last one is this branch's. Raises: DamageError where it is not an output of ours.

    A writer that was frozen may let its last one out after its heir's newer ones, so the newest is looked for among a few.
    """
    outputs = _tail(producer, scores_topic(pipeline, branch), OVERTAKEN)
    if not outputs or outputs[-1].branch != branch:
        return None
    return max((output for output in outputs if output.branch == branch), key=lambda output: output.seq)


def outputs_of(producer: Producer, pipeline: str, branch: str, count: int) -> list[Output]:
    """Those of a branch among the last ``count``, each once, in its order. Raises: DamageError where one is not ours."""
    outputs = _tail(producer, scores_topic(pipeline, branch), count)
    by_seq = {output.seq: output for output in outputs if output.branch == branch}
    return [by_seq[seq] for seq in sorted(by_seq)]


def _tail(producer: Producer, topic: str, count: int) -> list[Output]:
    try:
        return [msgspec.json.decode(raw, type=Output) for raw in producer.tail(topic, count)]
    except msgspec.DecodeError as error:
        raise DamageError(
            f"The last record of topic {topic} is no output of ours ({error}). Use the release that wrote it."
        ) from error


def check_end(output: Output | None, branch: str, seq: int) -> None:
    """An ``output`` that was read before the journal was cannot be newer than it: if it is, the journal has lost its end.

    Raises: DamageError with the choices.
    """
    if output is not None and output.seq > seq:
        raise DamageError(
            f"Branch {branch}: the journal ends at seq {seq}, but scores of seq {output.seq} have been let out, so its end is "
            "gone. Restore the journal from a copy, or begin another branch with --branch NEW."
        )


def dead_letter(tp: str, refused: Refused) -> Record:
    """The record as it was, with why and from where in its headers. A redrive is a new event at the end."""
    event = refused.event
    topic, partition = split_tp(tp)
    reasons = {
        "millrace.reason": refused.reason,
        "millrace.detail": refused.detail,
        "millrace.topic": topic,
        "millrace.partition": str(partition),
        "millrace.offset": str(event.offset),
        "millrace.timestamp_ms": str(event.timestamp_ms),
    } | ({} if refused.row is None else {"millrace.row": str(refused.row)})
    headers = event.headers + encode_headers(tuple((name, text.encode()) for name, text in reasons.items()))
    return Record(event.value, event.key, headers)


def contradictions(fold: Fold) -> list[tuple[str, Refused]]:
    """Labels of the newest step of ``fold`` that contradict the one that came first under their id and revision.

    Only folding the first shows that the second conflicts. So their dead letters are confirmed after the step is journaled;
    those of unreadable records are before (docs/design/journal.md, rule 5). They leave after the acknowledgement, before the
    step's scores. They leave again whenever the step is folded again and its scores had not been seen to leave. So each leaves
    at least once; a dead letter is identified by its topic, partition and offset, by which a reader knows the repetition.
    """
    detail = "another label than the one that came first under this id and revision"
    return [(tp, Refused(event, "conflicting-label", detail)) for tp, event in fold.conflicts]
