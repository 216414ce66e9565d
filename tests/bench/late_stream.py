"""A pipeline whose labels come late, driven as `millrace up` drives it: answer, record, label some rows later, join, learn.

Answers come from a bundle that is made of the worker's state as the trainer publishes it, and opened as a replica opens it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from millrace.learners.protocol import Array, Corrected
from millrace.services.pipeline.bundle import Answer, Bundle, Identity, Parts, open_parts
from millrace.services.pipeline.instance import Instance
from millrace.services.protocol.inference import Predicted
from millrace.services.protocol.labels import label_records, prediction_records
from millrace.services.training.run import identity_of_worker, serve_first
from millrace.streams.labels.served import LabelValue, LateLabel
from millrace.streams.parts import sha256
from millrace.streams.records import Record
from millrace.streams.worker.worker import Worker

AT_ONCE = 16  # rows that are answered by one state


def published(worker: Worker, instance: Instance) -> Bundle:
    """What a replica answers from, of the worker's state."""
    fold, identity = worker.fold, Identity(worker.branch, worker.epoch, worker.seq)
    serve = fold.learner.servable().arrays()
    parts = Parts(identity, 0, instance.loaded.pipeline.kind, fold.features.state(), serve)
    return open_parts(parts, instance.fold_spec.schema)


def answered(bundle: Bundle, columns: Sequence[Array]) -> Answer:
    """Its answer; one without scores before it has any, which an endpoint would not give."""
    if bundle.outputs:
        return bundle.predict(columns)
    nothing = np.zeros((len(columns[0]), 0))
    return Answer(nothing, ("",) * len(nothing), lambda: Corrected(nothing, nothing, nothing))


def driven(
    instance: Instance, columns: Sequence[Array], labels: Sequence[LabelValue], delay: int, at_once: int = AT_ONCE
) -> Iterator[tuple[list[Record], Worker]]:
    """The recorded answers to rows, some at a time, with the worker after it has taken in what was there by then.

    ``columns``: one a field, as the codec gives them. The label of a row comes once so many more rows were answered.
    """
    serve_first(instance, "main")
    worker = Worker(
        instance.fold_spec, instance.backends("main"), instance.loaded.pipeline.worker, identity_of_worker(instance, "main")
    )
    log, topic, labelled = instance.log(), instance.loaded.pipeline.served_topic, 0
    features = sha256(instance.fold_spec.schema.declared)
    for start in range(0, len(labels), at_once):
        stop = min(start + at_once, len(labels))
        bundle, rows = published(worker, instance), [column[start:stop] for column in columns]
        ids = tuple(f"row {at}" for at in range(start, stop))
        predicted = Predicted(bundle, rows, ids, answered(bundle, rows), time.time_ns() // 1_000_000)
        records, due = prediction_records(predicted, features), max(stop - delay, labelled)
        log.append(topic, [*records, *label_records([LateLabel(f"row {at}", labels[at]) for at in range(labelled, due)])])
        labelled = due
        while sum(1 for _ in worker.step()):
            pass
        yield records, worker
