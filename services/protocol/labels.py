"""What a replica's recorder appends: labels as callers send them, answers as they were given. Pure.

A request brings one label, ``{"id": ..., "label": ..., "revision": 0}``, or several as ``{"labels": [...]}``: all are taken or
none.

Whoever asks or labels may say who it is: an HTTP header ``Millrace-Producer``, over gRPC metadata ``millrace-producer``, of 1
to 64 letters, digits, ``-``, ``_`` and ``.``. What is appended for that request then carries the record header ``producer``,
as what `millrace send --header producer=NAME` appends does, so that a replay can leave exactly those records out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache

import msgspec

from millrace.learners.errors import BadInputError
from millrace.learners.protocol import Array
from millrace.services.errors import TooLargeError
from millrace.services.protocol.inference import Predicted
from millrace.services.protocol.unread import why_unread
from millrace.streams.formats.meaning import RecordError, label_value
from millrace.streams.labels.answered import corrections_of
from millrace.streams.labels.served import LONGEST_ID, LateLabel, Prediction, encode
from millrace.streams.records import Record, encode_headers, tp_name
from millrace.streams.schema import Field, Label

PRODUCER = b"millrace-producer"  # the HTTP header and the gRPC metadata by which a caller says who it is
PRODUCER_HEADER = "producer"  # of the records that are appended for it
_PRODUCER_NAME = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class _LabelBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One label as a caller sends it."""

    id: str
    label: str | bool | int | float
    revision: int | None = 0  # null is the same as absent


class _One(_LabelBody, frozen=True, forbid_unknown_fields=True):
    labels: None = None  # of a client that writes out what it leaves empty


class _Several(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    labels: list[_LabelBody]
    id: None = None
    label: None = None
    revision: None = None


_ONE = msgspec.json.Decoder(_One)
_MANY = msgspec.json.Decoder(_Several)
_FIRST_KEY = re.compile(rb'\s*\{\s*"labels"\s*:(?!\s*null)')


@lru_cache(maxsize=256)
def producer_headers(producer: bytes | None) -> bytes:
    """The headers of the records that a caller's request leads to: none where it does not say who it is.

    Raises: BadInputError for a name that cannot be one.
    """
    if producer is None:
        return b""
    if not _PRODUCER_NAME.fullmatch(producer):
        shown_name = producer[:80].decode(errors="replace")
        raise BadInputError(f"Millrace-Producer: {shown_name!r} must be 1 to 64 of the characters A-Z a-z 0-9 . _ -.")
    return encode_headers(((PRODUCER_HEADER, producer),))


def read_labels(body: bytes) -> list[LateLabel]:
    """The labels of a request's body, not checked yet. Raises: BadInputError."""
    try:
        parsed_labels = _MANY.decode(body).labels if _FIRST_KEY.match(body) else _one_or_several(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInputError(
            f"The labels cannot be read: {why_unread(body, error)}. "
            'Send {"id": ..., "label": ..., "revision": 0}, or {"labels": [...]}.'
        ) from error
    return [LateLabel(label.id, label.label, label.revision or 0) for label in parsed_labels]


def _one_or_several(body: bytes) -> Sequence[_LabelBody]:
    """The labels of a body that does not begin with several; they may stand behind members that are null."""
    try:
        return [_ONE.decode(body)]
    except msgspec.ValidationError:
        with suppress(msgspec.ValidationError):
            return _MANY.decode(body).labels
        raise


def checked_labels(labels: list[LateLabel], label: Label, max_labels: int) -> list[LateLabel]:
    """The same, where all of them can be taken. Raises: BadInputError naming the first that cannot, TooLargeError."""
    if len(labels) < 1:
        raise BadInputError("labels: the request has none; send at least one.")
    if len(labels) > max_labels:
        raise TooLargeError(
            f"labels: the request has {len(labels)}; this endpoint takes at most {max_labels} at a time (serving.max_labels). "
            "Send them in several requests."
        )
    for at, late_label in enumerate(labels):
        try:
            label_value(label, late_label.label)
        except RecordError as error:
            raise BadInputError(f"labels[{at}].label: {error.detail}.") from error
        if not 1 <= len(late_label.id) <= LONGEST_ID or not 0 <= late_label.revision < 1 << 62:
            raise BadInputError(f"labels[{at}]: id must have 1 to {LONGEST_ID} characters, and revision be at least 0.")
    return labels


def label_records(labels: Sequence[LateLabel], headers: bytes = b"") -> list[Record]:
    """Labels as the log has them, each with the ``headers`` of who sent it."""
    return [Record(encode(label), label.id.encode(), headers) for label in labels]


def places(topic: str, stored: Sequence[tuple[int, int]]) -> list[str]:
    """Where records lie in the log, as ``topic-partition-offset``.

    >>> places("mail.served", [(0, 17)])
    ['mail.served-0-17']
    """
    return [f"{tp_name(topic, number).replace(':', '-')}-{offset}" for number, offset in stored]


def prediction_records(predicted: Predicted, features: str, headers: bytes = b"") -> list[Record]:
    """Answers as the log has them, each with the row it was given for and the ``headers`` of who asked.

    ``features`` is the sha256 of the feature stage.
    """
    identity, classes = predicted.bundle.identity, predicted.bundle.classes
    fields = predicted.bundle.schema.fields
    columns = [_cells(field, column) for field, column in zip(fields, predicted.columns, strict=True)]
    names = [field.name for field in fields]
    scores, made_of = predicted.answer.scores.tolist(), predicted.answer.made_of
    corrections = corrections_of(None if made_of is None else made_of(), len(predicted.ids))
    past = _past(predicted)
    observe: bool | msgspec.UnsetType = msgspec.UNSET if predicted.observe or predicted.answer.past is None else False
    records = []
    for row_id, cells, row_scores, correction, row_past in zip(
        predicted.ids, zip(*columns, strict=True), scores, corrections, past, strict=True
    ):
        row = msgspec.Raw(msgspec.json.encode(dict(zip(names, cells, strict=True))))
        place = (identity.branch, identity.epoch, identity.seq)
        base, error = correction
        scored = (classes, tuple(row_scores), features)
        prediction = Prediction(row_id, row, *place, *scored, base=base, error=error, past=row_past, observe=observe)
        records.append(Record(encode(prediction), row_id.encode(), headers, predicted.at_ms))
    return records


def _past(predicted: Predicted) -> list[tuple[float | None, ...] | msgspec.UnsetType]:
    """Of each row, what its entity's window gave; unset where rows are nobody's."""
    past = predicted.answer.past
    if past is None:
        return [msgspec.UNSET] * len(predicted.ids)
    return [tuple(None if number != number else number for number in row) for row in past.tolist()]


def _cells(field: Field, column: Array) -> list[object]:
    """A column's values as JSON has them; NaN becomes null."""
    return column.tolist() if not field.is_number or field.size > 1 else column.reshape(-1).tolist()
