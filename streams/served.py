"""Served predictions and labels as they lie in the topic ``NAME.served``, keyed by id so that order per id is the log's.

Strict, as the rows of events are. ``row`` is what an event's value would be, without the label.

Source: shared/specs/serving.md, E 1 to 3.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from millrace.streams.codec import Codec, RecordError, Refused, Rows, has_label, label_value, refusal, unique
from millrace.streams.records import Event, split_tp
from millrace.streams.schema import LARGEST, Schema

REASONS = (  # beside those of the rows' codec
    "wrong-key",  # not the record's id
    "conflicting-label",  # another value for an id and revision that has one; only folding finds it
)

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
LabelValue = str | bool | int | float


class Prediction(msgspec.Struct, frozen=True, gc=False, tag_field="kind", tag="prediction", forbid_unknown_fields=True):
    """An answer, with the row it was given for."""

    id: Id  # the request's, or the client's own
    row: msgspec.Raw  # the fields as in an event's JSON
    branch: str  # with epoch and seq: which state answered
    epoch: Count
    seq: Count
    classes: tuple[str, ...]  # names of the scores; empty for regression
    scores: tuple[float, ...]
    features: str = ""  # sha256 of the feature stage that answered; empty: not said
    variant: str = ""  # of an A/B split
    propensity: Share = 1.0  # with which that variant was chosen


class LateLabel(msgspec.Struct, frozen=True, gc=False, tag_field="kind", tag="label", forbid_unknown_fields=True):
    """What was right. Its identity is (id, revision); a correction is sent with a higher revision."""

    id: Id
    label: LabelValue
    revision: Count = 0


@dataclass(frozen=True, slots=True)
class Served:
    """Decoded records of the topic, in log order; the rows are those of its predictions."""

    tp: str
    events: list[Event]
    records: list[Prediction | LateLabel]  # a label's value is already as the learner's labels are
    ids: NDArray[np.int64]  # (n,) hash64 of the ids
    rows: Rows
    t: NDArray[np.int64]  # (n,) ms

    def __len__(self) -> int:
        return len(self.records)


def hash64(text: str) -> int:
    """The identity of an id or a label in the state, where none stands in clear.

    >>> hash64("request 7/0") == hash64("request 7/0") != hash64("request 7/1")
    True
    """
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


class ServedCodec:
    """Decodes events as ``Codec`` does, and the records of one more topic."""

    def __init__(self, schema: Schema, max_bytes: int, topic: str) -> None:
        self._rows = Codec(schema, max_bytes)
        self._label = schema.label
        self._topic = topic
        self._max_bytes = max_bytes
        self._decode = msgspec.json.Decoder(Prediction | LateLabel).decode

    @property
    def without_limit(self) -> ServedCodec:
        """This codec for records that were let in when they were first read: the limit may have been lowered since."""
        other = copy(self)
        other._max_bytes, other._rows = sys.maxsize, self._rows.without_limit
        return other

    def decode(self, events: Sequence[Event], tp: str) -> tuple[Rows | Served, list[Refused]]:
        """Columns of the events that can be read, in order, and the events that cannot."""
        if split_tp(tp)[0] != self._topic:
            return self._rows.decode(events)
        good: list[tuple[Event, Prediction | LateLabel]] = []
        refused = []
        for event in events:
            try:
                good.append((event, self._record(event)))
            except (RecordError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                refused.append(refusal(event, error))
        rows, bad = self._rows_of(good)
        left_out = {one.event.offset for one in bad}
        kept = [pair for pair in good if pair[0].offset not in left_out]
        ids = np.array([hash64(record.id) for _, record in kept], dtype=np.int64)
        t = np.array([event.timestamp_ms for event, _ in kept], dtype=np.int64)
        served = Served(tp, [event for event, _ in kept], [record for _, record in kept], ids, rows, t)
        return served, refused + bad

    def _record(self, event: Event) -> Prediction | LateLabel:
        value = event.value
        if value is None or len(value) > self._max_bytes:
            reason = "unreadable" if value is None else "oversized"
            raise RecordError(reason, f"no value, or over {self._max_bytes} bytes, the pipeline's log.max_bytes")
        record: Prediction | LateLabel = self._decode(value)
        if event.key not in (None, record.id.encode()):
            raise RecordError("wrong-key", "the record's key is not its id, so nothing keeps the records of an id in order")
        if isinstance(record, LateLabel):
            _refuse_twice(value, 0)
            return LateLabel(record.id, label_value(self._label, record.label), record.revision)
        _refuse_twice(value, bytes(record.row).count(b'"'), len(record.classes))
        self._check_answer(record)
        return record

    def _check_answer(self, record: Prediction) -> None:
        outputs = len(record.classes) if self._label.task == "classify" else 1
        named = len(set(record.classes)) if self._label.task == "classify" else len(record.classes) + 1
        if len(record.scores) != outputs or named != outputs:
            raise RecordError("wrong-shape", f"{len(record.scores)} scores for {len(record.classes)} classes")
        if not all(abs(score) <= LARGEST for score in record.scores):
            raise RecordError("not-finite", f"a score is not finite, or beyond {LARGEST:g}")

    def _rows_of(self, good: Sequence[tuple[Event, Prediction | LateLabel]]) -> tuple[Rows, list[Refused]]:
        """The predictions' rows; a row that brings its own label is refused, since two could then contradict each other."""
        originals = {event.offset: event for event, record in good if isinstance(record, Prediction)}
        events = [
            Event(event.offset, event.timestamp_ms, event.key, b"", bytes(record.row))
            for event, record in good
            if isinstance(record, Prediction)
        ]
        rows, bad = self._rows.decode(events)
        refused = [Refused(originals[one.event.offset], one.reason, one.detail) for one in bad]
        if len(rows) and (labelled := has_label(rows)).any():
            left_out = {one.event.offset for one in bad}
            read = [event.offset for event in events if event.offset not in left_out]
            why = "a served row has no label of its own; send it as a label record"
            refused += [Refused(originals[at], "unknown-field", why) for at, has in zip(read, labelled, strict=True) if has]
            rows = rows.only(~labelled)
        return rows, refused


def _refuse_twice(value: bytes, inside: int, classes: int | None = None) -> None:
    """Refuse a key that stands twice: only a record with an unexpected count of quotation marks is parsed again.

    ``inside`` are the marks of the row, which its own codec looks after.
    """
    words = 8 if classes is None else 2 * (10 + 1 + 4) + 2 * classes  # every key, and every text, that can be there
    if value.count(b'"') - inside != words:
        json.loads(value, object_pairs_hook=unique)


def encode(record: Prediction | LateLabel) -> bytes:
    """The value of a record; its key is ``record.id.encode()``.

    >>> encode(LateLabel("request 7/0", "spam"))
    b'{"kind":"label","id":"request 7/0","label":"spam","revision":0}'
    """
    return msgspec.json.encode(record)


def encode_row(row: dict[str, Any]) -> msgspec.Raw:
    """A row for ``Prediction.row``."""
    return msgspec.Raw(msgspec.json.encode(row))
