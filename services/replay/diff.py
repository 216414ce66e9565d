"""`millrace replay diff`: the replayed branch beside what is served, on the log's last rows and on what each scored.

Both have learned the probe rows that lie before their own ends. So agreement says more than accuracy on them, and so do the
scores of each row before it was learned (prequential). Rows that the replay excludes are in neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from millrace.learners.errors import MillraceError
from millrace.learners.protocol import Array
from millrace.services.decisions.status import shares
from millrace.services.errors import NotReadyError
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.bundle import Bundle
from millrace.services.pipeline.instance import ENDPOINT, Instance
from millrace.services.replay.plan import load_plan
from millrace.streams.branch.branch import load_part
from millrace.streams.errors import DamageError
from millrace.streams.formats.json_rows import Rows, has_label
from millrace.streams.journal.entries import Mark
from millrace.streams.journal.ledger import describe_target
from millrace.streams.labels.served import LateLabel, Prediction, Served
from millrace.streams.state.exclusion_reader import Excluding

Probe = tuple[tuple[Array, ...], Array]  # columns and labels of some rows


def compare(instance: Instance, rows: int) -> list[dict[str, Any]]:
    """A line for each figure: what is served, and the branch that a replay has made.

    Raises: MillraceError where no replay is under way, or one of the two cannot answer yet.
    """
    instance.refuse_completions("Comparing answers")
    instance.refuse_entities("Comparing answers")
    ledger = instance.ledger()
    operation = ledger.operation
    if operation is None:
        raise MillraceError("No replay is under way, so there is nothing to compare.")
    _, plan = load_plan(instance, operation.plan_sha256)
    archive, target = Archive(instance), ledger.serving.get(ENDPOINT)
    served = archive.version(target.version) if target and target.version else archive.newest(str(target and target.follow))
    replayed = archive.newest(operation.branch)
    if served is None or replayed is None:
        raise MillraceError(f"Of {describe_target(target)} and {operation.branch}, one has no checkpoint to answer from yet.")
    if served.schema != replayed.schema:
        raise MillraceError(
            f"{served.identity.name} was learned with other fields than {replayed.identity.name}, so no row can be put to both."
        )
    reader = Excluding(instance.fold_spec.reader, tuple(plan.exclude))
    probes = list(_probes(instance, reader, rows))
    lines = [("state", served.identity.name, replayed.identity.name), *_answers(served, replayed, probes)]
    start = None if plan.version is None else archive.state(plan.version)
    before = [_scores(instance, mark, start) for mark in (_mark(archive, served), _mark(archive, replayed))]
    names = dict.fromkeys([*before[0], *before[1]])
    lines += [(f"prequential_{name}", before[0].get(name), before[1].get(name)) for name in names]
    return [
        {"what": figure, "served": served_value, "replayed": replayed_value} for figure, served_value, replayed_value in lines
    ]


def _probes(instance: Instance, reader: Excluding, rows: int) -> Iterator[Probe]:
    """Labelled rows among the last records of each partition; served rows are those whose label is among them too."""
    source = instance.backends(str(instance.branches()[0])).source
    for tp, (low, high) in source.bounds().items():
        piece, _ = reader.decode(source.read(tp, max(low, high - rows), high).events, tp)
        labelled_rows = _joined(piece) if isinstance(piece, Served) else (piece, piece.y)
        rows_found, y = labelled_rows
        labelled = has_label(replace(rows_found, y=y))
        if labelled.any():
            yield tuple(column[labelled] for column in rows_found.columns), y[labelled]


def _joined(served: Served) -> tuple[Rows, Array]:
    labels = {record.id: record.label for record in served.records if isinstance(record, LateLabel)}
    ids = [record.id for record in served.records if isinstance(record, Prediction)]
    numbers = served.rows.y.dtype != object
    y = np.array([labels.get(row_id, np.nan if numbers else None) for row_id in ids], dtype=float if numbers else object)
    return served.rows, y


def _answers(served: Bundle, replayed: Bundle, probes: list[Probe]) -> Iterator[tuple[str, Any, Any]]:
    """Accuracy of each on the probe rows, and on how many they disagree; for numbers the mean errors and difference."""
    count = sum(len(y) for _, y in probes)
    yield "probe_rows", count, count
    if not count:
        return
    try:
        answers = [[bundle.predict(columns) for columns, _ in probes] for bundle in (served, replayed)]
    except NotReadyError as error:
        raise MillraceError(f"{error} There is nothing to compare.") from error
    y = np.concatenate([labels for _, labels in probes])
    if served.schema.label.task == "regress":
        served_scores, replayed_scores = (
            np.concatenate([answer.scores[:, 0] for answer in bundle_answers]) for bundle_answers in answers
        )
        yield "mean_absolute_error", float(np.abs(served_scores - y).mean()), float(np.abs(replayed_scores - y).mean())
        yield "mean_difference", None, float(np.abs(served_scores - replayed_scores).mean())
        return
    served_labels, replayed_labels = (
        [label for answer in bundle_answers for label in answer.labels] for bundle_answers in answers
    )
    right = [
        float(np.mean([label == label_of_row for label, label_of_row in zip(predicted, y, strict=True)]))
        for predicted in (served_labels, replayed_labels)
    ]
    yield "accuracy", right[0], right[1]
    yield "answers_that_differ", None, float(np.mean([a != b for a, b in zip(served_labels, replayed_labels, strict=True)]))


def _mark(archive: Archive, bundle: Bundle) -> Mark:
    identity = bundle.identity
    return next(mark for mark in archive.marks(identity.branch) if mark.state_seq == identity.seq)


def _scores(instance: Instance, mark: Mark, start: Mark | None) -> dict[str, Any]:
    """Shares of the rows that were learned since the version, or ever, each answered just before."""
    try:
        end_scores, start_scores = (
            load_part(instance.store(), mark_or_none, "scores") if mark_or_none else {} for mark_or_none in (mark, start)
        )
    except DamageError:
        return {}
    end_scores, start_scores = (part.get("totals", part) for part in (end_scores, start_scores))
    totals = {name: value for name, value in end_scores.items() if name not in ("last", "sum")}
    grown = {name: value if start is None else _minus(value, start_scores[name]) for name, value in totals.items()}
    return {"rows": grown["rows"]} | shares(grown)


def _minus(end_value: Any, start_value: Any) -> Any:
    if end_value is None or start_value is None:
        return None
    if isinstance(end_value, np.ndarray):
        return (end_value - (start_value if start_value.shape == end_value.shape else 0.0)).tolist()
    return end_value - start_value
