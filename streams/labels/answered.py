"""What rows were answered before they met their label, for learners that must be told: those with an error memory."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from millrace.learners.memory.asked import Asked, as_text
from millrace.learners.protocol import Array, Batch, Corrected, Corrects, Floats, Servable
from millrace.streams.labels.served import Numbers, Prediction


def as_served(predictions: Sequence[Prediction]) -> Array:
    """Of each (n,), as ``Batch.asked`` has it; None where the record does not say."""
    return np.array([_of(prediction) for prediction in predictions], dtype=object)


def _of(record: Prediction) -> str | None:
    if record.base is msgspec.UNSET or record.error is msgspec.UNSET:
        return None
    return as_text(Asked(record.classes, record.base, record.error))


def corrections_of(corrected: Corrected | None, rows: int) -> list[tuple[Numbers, Numbers]]:
    """``base`` and ``error`` of the records of answered rows; unset where no memory corrects them."""
    if corrected is None:
        return [(msgspec.UNSET, msgspec.UNSET)] * rows
    numbers = zip(corrected.answers.tolist(), corrected.errors.tolist(), strict=True)
    return [(tuple(answers), tuple(errors)) for answers, errors in numbers]


def again(servable: Servable, x: Floats) -> tuple[Floats, list[str] | None]:
    """Scores (n, C) of rows x (n, d), n >= 1, and ``Batch.asked``, None of a learner that need not be told.

    One row at a time: BLAS rounds by their number.
    """
    rows = [Batch(row[None]) for row in x]
    if not isinstance(servable, Corrects):
        return np.concatenate([servable.predict_many(row) for row in rows]), None
    answered = [servable.corrected(row) for row in rows]
    numbers = ((tuple(row.answers[0].tolist()), tuple(row.errors[0].tolist())) for row in answered)
    return np.concatenate([row.scores for row in answered]), [as_text(Asked(servable.classes, *pair)) for pair in numbers]
