"""What a night has left in log, journal and store: how good answers were, and a model that never saw the poison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from millrace.learners.analytic.exact import seen_from_zero
from millrace.learners.protocol import Array, Batch, Floats, Value, join
from millrace.services.config.names import BRANCH
from millrace.services.demo.evidence import READ_ROWS, Labelled, labels_in_log, outputs_of, totals_of, windows
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import Instance
from millrace.services.protocol.labels import PRODUCER_HEADER
from millrace.streams.branch.branch import load_part, refold, start
from millrace.streams.errors import DamageError
from millrace.streams.formats.json_rows import has_label
from millrace.streams.journal.entries import Step
from millrace.streams.journal.journal import entries_after, summarise
from millrace.streams.labels.served import LateLabel, Prediction, Served
from millrace.streams.records import Event, decode_headers
from millrace.streams.source import Position
from millrace.streams.state.fold import Fold

WINDOW_ROWS = 40  # of the curves


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Accuracy over the last ``WINDOW_ROWS`` rows or so."""

    rows: Floats  # (n,) labelled rows that the log had until then
    accuracy: Floats  # (n,) against the labels as they came


def _labels_in_log(instance: Instance) -> list[Labelled]:
    return labels_in_log(instance, instance.backends(BRANCH).source)


def labelled_rows(instance: Instance) -> int:
    """How many labels the log has."""
    return len(_labels_in_log(instance))


def producers_of_labels(instance: Instance) -> list[str]:
    """Who sent each label, in the order in which the log has them; nothing for who did not say."""
    return [_producer(label.event) for label in _labels_in_log(instance)]


def _producer(event: Event) -> str:
    return dict(decode_headers(event.headers)).get(PRODUCER_HEADER, b"").decode()


def served_curve(instance: Instance, branch: str) -> Curve:
    """Of the answers as they were served and scored by a branch that let its outputs out."""
    outputs, _ = outputs_of(instance, branch)
    at, positions = Position(), []
    for output in outputs:
        at.update({tp: stop for tp, _, stop in output.reads})
        positions.append(dict(at))
    return _curve(
        instance, positions, totals_of(_task(instance), [(output.scores, output.served_scores) for output in outputs])
    )


def replayed_curve(instance: Instance, branch: str) -> Curve:
    """Of a fork's own answers, found by folding it again from the version it began at.

    Raises: DamageError, OffsetsGoneError where journal, store or log are not what they were.
    """
    backends, fold_spec = instance.backends(branch), instance.fold_spec
    fork = summarise(backends.journal, branch).fork
    if fork is None:
        raise DamageError(f"Branch {branch} has no first entry. Restore its journal from a copy.")
    fold, positions = start(fold_spec, backends.store, fork), []
    scores = [_scored(fold)]  # of what the version had learned
    for entry in refold(fold, entries_after(backends.journal, branch, 1), backends.source, fold_spec.reader_of(fork)):
        if isinstance(entry, Step):
            positions.append(dict(fold.position))
            scores.append(_scored(fold))
    totals = totals_of(_task(instance), scores)
    return _curve(instance, positions, totals[1:] - totals[0])


def _task(instance: Instance) -> str:
    return instance.loaded.pipeline.label.task


def _scored(fold: Fold) -> tuple[dict[str, Any], dict[str, Any]]:
    return asdict(fold.scores.totals), asdict(fold.served_scores.totals)


def _curve(instance: Instance, positions: list[Position], totals: Array) -> Curve:
    places: dict[str, list[int]] = {}
    for label in _labels_in_log(instance):
        places.setdefault(label.tp, []).append(label.event.offset)
    rows = [sum(int(np.searchsorted(places.get(tp, []), stop)) for tp, stop in at.items()) for at in positions]
    grown = np.diff(totals[:, 0], prepend=0.0) > 0
    return Curve(np.array(rows, dtype=np.float64)[grown], windows(totals, WINDOW_ROWS)[:, 2])


def learned_by(instance: Instance, branch: str) -> dict[str, Value]:
    """The record of truth of the learner at a branch's newest mark, its sums seen from 0 and its classes by name."""
    return _by_name(seen_from_zero(load_part(instance.store(), Archive(instance).marks(branch)[-1], "learner")))


def answers(instance: Instance, branch: str, values: Sequence[bytes], from_seq: int | None = None) -> list[str]:
    """What the newest marked state of a branch calls rows, or the first from a seq on.

    Raises: MillraceError where it cannot answer yet, DamageError.
    """
    rows, _ = instance.fold_spec.codec.decode([Event(at, 0, None, b"", value) for at, value in enumerate(values)])
    marks = Archive(instance).marks(branch)
    mark = marks[-1] if from_seq is None else next((mark for mark in marks if mark.state_seq >= from_seq), marks[-1])
    return list(Archive(instance).bundle(mark).predict(rows.columns).labels)


def learned_without(instance: Instance, producer: str) -> dict[str, Value]:
    """The record of truth of a learner that is fitted at once to every labelled row of the log but those of a producer.

    Its sums are seen from 0 and its classes are by name, since rows come in another order here.
    It goes by the log alone: rows and labels are put together here, by their ids, without journal, join or exclusions.
    """
    rows = join(list(_labelled(instance, producer)))
    learner, features = instance.fold_spec.make_learner(), instance.fold_spec.features()
    learner.learn_many(features.learn(rows))
    return _by_name(seen_from_zero(learner.state_dict().truth))


def _by_name(truth: dict[str, Value]) -> dict[str, Value]:
    """The same sums, with classes in the order of their names: which of two topics shows a class first is nobody's promise."""
    order = np.argsort(np.array(truth["classes"], dtype=str), kind="stable")
    columns = {name: truth[name][order] for name in ("cross", "targets", "squares", "counts")}
    return truth | columns | {"classes": [truth["classes"][at] for at in order]}


def _labelled(instance: Instance, producer: str) -> Iterator[Batch]:
    """Encoded rows with their label, in the order in which labels came."""
    source, features, asked = instance.backends(BRANCH).source, instance.fold_spec.features(), dict[str, Batch]()
    for tp, (low, high) in source.bounds().items():
        for begin in range(low, high, READ_ROWS):
            events = [
                event for event in source.read(tp, begin, min(begin + READ_ROWS, high)).events if _producer(event) != producer
            ]
            piece, _ = instance.fold_spec.reader.decode(events, tp)
            if not isinstance(piece, Served):
                yield features.encode(piece.only(np.flatnonzero(has_label(piece))))
                continue
            ids = [record.id for record in piece.records if isinstance(record, Prediction)]
            rows = features.encode(piece.rows)
            asked |= {row_id: rows.rows(at, at + 1) for at, row_id in enumerate(ids)}
            labels = (record for record in piece.records if isinstance(record, LateLabel))
            yield from (replace(asked[label.id], y=np.array([label.label], dtype=object)) for label in labels)
