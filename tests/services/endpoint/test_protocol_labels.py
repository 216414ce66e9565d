"""What a replica appends is what the worker reads: the row as it was served, the answer, the label as it was told."""

from __future__ import annotations

import numpy as np
import pytest
from pipelines import MIXED, encoded, events, mixed_rows
from served_bundles import mixed_parts

from millrace.learners.errors import BadInputError
from millrace.services.pipeline.bundle import open_parts
from millrace.services.protocol.inference import Predicted
from millrace.services.protocol.labels import checked_labels, label_records, places, prediction_records, read_labels
from millrace.streams.formats.json_rows import Codec
from millrace.streams.labels.served import Prediction, Served, ServedCodec
from millrace.streams.records import Event
from millrace.streams.schema import Label

TOPIC = "flowers.served"
SPECIES = Label("species")


def test_a_served_row_is_read_back_bit_for_bit_with_its_answer() -> None:
    """Missing numbers and categories, arrays, fixed and growing categories."""
    bundle = open_parts(mixed_parts(), MIXED)
    rows, _ = Codec(MIXED, 4096).decode(events([encoded(row) for row in mixed_rows(40)]))
    ids = tuple(f"request/{at}" for at in range(len(rows)))
    answered = Predicted(bundle, rows.columns, ids, bundle.predict(rows.columns), 7000)
    appended = prediction_records(answered, "f" * 64)
    read = [Event(at, 7000, record.key, record.headers, record.value) for at, record in enumerate(appended)]
    served, refused = ServedCodec(MIXED, 1 << 20, TOPIC).decode(read, f"{TOPIC}:0")
    assert isinstance(served, Served) and not refused
    assert [record.key for record in appended] == [identity.encode() for identity in ids]
    for mine, theirs in zip(rows.columns, served.rows.columns, strict=True):
        same = mine.tolist() == theirs.tolist() if mine.dtype == object else np.array_equal(mine, theirs, equal_nan=True)
        assert same
    for record, scores in zip(served.records, answered.answer.scores, strict=True):
        assert isinstance(record, Prediction) and record.scores == tuple(scores.tolist())
        assert (record.branch, record.epoch, record.seq) == ("main", 2, 41) and record.classes == bundle.classes
        assert record.features == "f" * 64


def test_labels_come_one_or_many_and_are_appended_as_they_are() -> None:
    """Keyed by id, so that order per id is the log's."""
    (single,) = read_labels(b'{"id": "a/0", "label": "rose"}')
    many = read_labels(b'{"labels": [{"id": "a/0", "label": "rose"}, {"id": "b", "label": "lily", "revision": 3}]}')
    assert single == many[0] and (many[1].id, many[1].label, many[1].revision) == ("b", "lily", 3)
    (odd,) = read_labels(b'{"id": "labels", "label": "labels"}')
    assert (odd.id, odd.label) == ("labels", "labels")
    (record, _) = label_records(many)
    assert record.key == b"a/0"
    assert record.value == b'{"kind":"label","id":"a/0","label":"rose","revision":0}'
    assert checked_labels(read_labels(b'{"id": "a", "label": false}'), Label("spam", "boolean"), 1)[0].label is False
    assert places(TOPIC, [(0, 4), (1, 9)]) == ["flowers.served-0-4", "flowers.served-1-9"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "cannot be read"),
        (b"[]", "cannot be read"),
        (b'{"id": "a"}', "missing required field `label`"),
        (b'{"id": "a", "label": null}', "label"),
        (b'{"id": "a", "label": 1.5}', r"labels\[0\].label: the label is not of type string"),
        (b'{"id": "", "label": "rose"}', "1 to 512 characters"),
        (b'{"id": "a", "label": "rose", "revision": -1}', "revision"),
        (b'{"id": "a", "label": "rose", "lable": 1}', "lable"),
        (b'{"labels": []}', "at least one"),
        (b'{"labels": [{"id": "a", "label": "rose"}, {"id": "b", "label": 2.5}]}', r"labels\[1\].label"),
        (b'{"labels": ' + b"[" * 100_000, "cannot be read"),
        (b'{"id": "\xff", "label": "rose"}', "cannot be read"),
    ],
)
def test_a_label_that_cannot_be_taken_is_named_and_none_of_its_request_is(body: bytes, says: str) -> None:
    """400, with which of them and why."""
    with pytest.raises(BadInputError, match=says):
        checked_labels(read_labels(body), SPECIES, 9)
