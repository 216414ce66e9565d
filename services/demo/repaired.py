"""What a night has left in log, journal and store: how good answers were, and a model that never saw the poison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from millrace.learners.analytic.exact import seen_from_zero
from millrace.learners.protocol import Array, Batch, Floats, Value
from millrace.services.config.names import BRANCH
from millrace.services.demo.evidence import READ_ROWS, Labelled, labels_told, outputs_of, totals_of, windows
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import Instance
from millrace.services.protocol.labels import PRODUCER_HEADER
from millrace.streams.branch.branch import load_part, refold, start
from millrace.streams.errors import DamageError
from millrace.streams.features.columns import Features
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


def _told(instance: Instance) -> list[Labelled]:
    return labels_told(instance, instance.backends(BRANCH).source)


def labelled_rows(instance: Instance) -> int:
    """How many labels the log has."""
    return len(_told(instance))


def producers_told(instance: Instance) -> list[str]:
    """Who sent each label, in the order in which the log has them; nothing for who did not say."""
    return [_producer(one.event) for one in _told(instance)]


def _producer(event: Event) -> str:
    return dict(decode_headers(event.headers)).get(PRODUCER_HEADER, b"").decode()


def served_curve(instance: Instance, branch: str) -> Curve:
    """Of the answers as they were served and scored by a branch that let its outputs out."""
    outputs, _ = outputs_of(instance, branch)
    at, positions = Position(), []
    for output in outputs:
        at.update({tp: stop for tp, _, stop in output.reads})
        positions.append(dict(at))
    return _curve(instance, positions, totals_of(_task(instance), [(one.scores, one.served_scores) for one in outputs]))


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
    for one in _told(instance):
        places.setdefault(one.tp, []).append(one.event.offset)
    rows = [sum(int(np.searchsorted(places.get(tp, []), stop)) for tp, stop in at.items()) for at in positions]
    grown = np.diff(totals[:, 0], prepend=0.0) > 0
    return Curve(np.array(rows, dtype=np.float64)[grown], windows(totals, WINDOW_ROWS)[:, 2])


def learned_by(instance: Instance, branch: str) -> dict[str, Value]:
    """The record of truth of the learner at a branch's newest mark, its sums seen from 0."""
    return seen_from_zero(load_part(instance.store(), Archive(instance).marks(branch)[-1], "learner"))


def answers(instance: Instance, branch: str, values: Sequence[bytes]) -> list[str]:
    """What the newest state of a branch calls rows.

    Raises: MillraceError where it cannot answer yet, DamageError.
    """
    rows, _ = instance.fold_spec.codec.decode([Event(at, 0, None, b"", value) for at, value in enumerate(values)])
    return list(Archive(instance).bundle(Archive(instance).marks(branch)[-1]).predict(rows.columns).labels)


def learned_without(instance: Instance, producer: str) -> dict[str, Value]:
    """The record of truth of a learner that is fitted at once to every labelled row of the log but those of a producer.

    Its sums are seen from 0, since rows come in another order here.
    Neither journal, nor join, nor exclusions are asked: rows and labels are put together here, by their ids.
    """
    pairs = list(_pairs(instance, producer))
    learner = instance.fold_spec.make_learner()
    y = np.array([label for _, label in pairs], dtype=object)
    learner.learn_many(Batch(np.array([x for x, _ in pairs]), y))
    return seen_from_zero(learner.state_dict().truth)


def _pairs(instance: Instance, producer: str) -> Iterator[tuple[Array, object]]:
    """Features and label of every row, in the order in which labels came."""
    source, features, asked = instance.backends(BRANCH).source, Features(instance.fold_spec.schema), dict[str, Array]()
    for tp, (low, high) in source.bounds().items():
        for begin in range(low, high, READ_ROWS):
            events = [one for one in source.read(tp, begin, min(begin + READ_ROWS, high)).events if _producer(one) != producer]
            piece, _ = instance.fold_spec.reader.decode(events, tp)
            if not isinstance(piece, Served):
                labelled = piece.only(np.flatnonzero(has_label(piece)))
                yield from zip(features.transform(labelled), labelled.y, strict=True)
                continue
            ids = [one.id for one in piece.records if isinstance(one, Prediction)]
            asked |= dict(zip(ids, features.transform(piece.rows), strict=True))
            yield from ((asked[one.id], one.label) for one in piece.records if isinstance(one, LateLabel))
