"""Served predictions and labels as they lie in the topic ``NAME.served``, keyed by id so that order per id is the log's.

Strict, as the rows of events are. ``row`` is what an event's value would be, without the label.

Source: docs/design/overview.md#served-predictions and docs/design/overview.md#late-labels.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from millrace.learners.errors import BadInputError
from millrace.streams.formats.contents import Contents
from millrace.streams.formats.json_rows import Codec, Refused, Rows, has_label, refusal, unique
from millrace.streams.formats.meaning import RecordError, label_value
from millrace.streams.hashing import hashes64
from millrace.streams.labels.past import PastCheck
from millrace.streams.records import Event, split_tp
from millrace.streams.schema import LARGEST, Schema, Unknown
from millrace.streams.sharding import Placing

REASONS = (  # beside those of the rows' codec
    "wrong-key",  # not the record's id
    "conflicting-label",  # another value for an id and revision that has one; only folding finds it
    "other-partition",  # of a pipeline with several shards: not where its key belongs, so a label may miss its prediction
)

LONGEST_ID = 512  # characters of a row's id

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_ID)]
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
LabelValue = str | bool | int | float
Numbers = tuple[float, ...] | msgspec.UnsetType  # left out where there are none

ENCODER = msgspec.json.Encoder()
UNREADABLE = (RecordError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
PREDICTION_MARKS = 2 * (8 + 3)  # quotation marks of the keys that must be there, and of the texts among their values
LABEL_MARKS = 2 * (3 + 2)  # without those of the label itself


class Prediction(msgspec.Struct, frozen=True, gc=False, tag_field="kind", tag="prediction", forbid_unknown_fields=True):
    """An answer, with the row it was given for.

    >>> record = Prediction("mail 1", encode_row({"links": 9}), "main", 1, 2, ("no", "yes"), (0.25, 0.75))
    >>> bytes(record.row), record.propensity
    (b'{"links":9}', 1.0)
    """

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
    base: Numbers = msgspec.UNSET  # of a pipeline with a memory: scores before their correction
    error: Numbers = msgspec.UNSET  # by which those were held to be wrong, before any clamp
    # of a pipeline with an entity: the fields that its window gave, as they were answered from; null where there was nothing
    past: tuple[float | None, ...] | msgspec.UnsetType = msgspec.UNSET
    observe: bool | msgspec.UnsetType = msgspec.UNSET  # False: the caller asked what if, and this is nobody's history


class LateLabel(msgspec.Struct, frozen=True, gc=False, tag_field="kind", tag="label", forbid_unknown_fields=True):
    """What was right. Its identity is (id, revision); a correction is sent with a higher revision.

    >>> LateLabel("mail 1", True) == LateLabel("mail 1", True, revision=0) != LateLabel("mail 1", False, revision=1)
    True
    """

    id: Id
    label: LabelValue
    revision: Count = 0


class Withheld(msgspec.Struct, frozen=True, gc=False):
    """In place of a label that a branch excludes: all that is known of it is that its row gets no default label."""

    id: str


@dataclass(frozen=True, slots=True)
class Served:
    """Decoded records of the topic, in log order; the rows are those of its predictions."""

    tp: str
    events: list[Event]
    records: Sequence[Prediction | LateLabel | Withheld]  # a label's value is already as the learner's labels are
    ids: NDArray[np.int64]  # (n,) hash64 of the ids
    rows: Rows
    t: NDArray[np.int64]  # (n,) ms
    left_out: int = 0  # predictions of the same read that the branch excludes

    def __len__(self) -> int:
        return len(self.records)

    def part(self, start: int, stop: int) -> Served:
        """Records ``start`` to ``stop``; what was left out belongs to the first part."""
        before, within = (
            sum(isinstance(record, Prediction) for record in records)
            for records in (self.records[:start], self.records[start:stop])
        )
        rows, left_out = self.rows.only(np.arange(before, before + within)), 0 if start else self.left_out
        cut = slice(start, stop)
        return Served(self.tp, self.events[cut], self.records[cut], self.ids[cut], rows, self.t[cut], left_out)


class ServedCodec:
    """Decodes events as ``Codec`` does, and the records of one more topic."""

    def __init__(
        self,
        schema: Schema,
        max_bytes: int,
        topic: str,
        events: Codec | Contents | None = None,
        unknown: Unknown = "reject",
    ) -> None:
        self._rows = Codec(schema, max_bytes, unknown)
        self._events = events or self._rows  # of the topics of events
        self._label = schema.label
        self._past = PastCheck(schema)
        self.topic = topic
        self._place: Placing | None = None
        self._max_bytes = max_bytes
        self._decode: Callable[[bytes], Prediction | LateLabel] = msgspec.json.Decoder(Prediction | LateLabel).decode

    @property
    def without_limit(self) -> ServedCodec:
        """This codec for records that were let in when they were first read: the limit may have been lowered since."""
        codec = copy(self)
        codec._max_bytes, codec._rows, codec._events = sys.maxsize, self._rows.without_limit, self._events.without_limit
        return codec

    def of_revision(self, revision: int) -> ServedCodec:
        """This codec with the meaning that values had for a branch which was begun under an older revision."""
        other = copy(self)
        other._rows, other._events = self._rows.of_revision(revision), self._events.of_revision(revision)
        return other

    def placed_by(self, place: Placing) -> ServedCodec:
        """This codec for a topic that is dealt out to shards, where ``place`` says in which partitions keys belong."""
        codec = copy(self)
        codec._place = place
        return codec

    def decode(self, events: Sequence[Event], tp: str) -> tuple[Rows | Served, list[Refused]]:
        """Columns of the events that can be read, in order, and the events that cannot."""
        topic, partition = split_tp(tp)
        if topic != self.topic:
            return self._events.decode(events, tp)
        refused = list(self._misplaced(events, partition))
        astray = {refused_record.event.offset for refused_record in refused}
        well_placed = [event for event in events if event.offset not in astray]
        try:
            records = self._records(well_placed)
        except UNREADABLE:
            well_placed, unreadable = self._sorted_out(well_placed)
            records, refused = self._records(well_placed), refused + unreadable
        rows, refused_rows = self._rows_of(well_placed, records)
        if refused_rows:
            left_out = {refused_record.event.offset for refused_record in refused_rows}
            kept_places = [at for at, event in enumerate(well_placed) if event.offset not in left_out]
            well_placed, records = [well_placed[at] for at in kept_places], [records[at] for at in kept_places]
        t = np.array([event.timestamp_ms for event in well_placed], dtype=np.int64)
        return Served(tp, well_placed, records, hashes64([record.id for record in records]), rows, t), refused + refused_rows

    def _misplaced(self, events: Sequence[Event], partition: int) -> Iterator[Refused]:
        """Those that lie where no shard would look for what belongs with them."""
        if self._place is None:
            return
        keyless = np.array([event.key is None for event in events], dtype=bool)
        right = self._place([event.key or b"" for event in events])
        for at in np.flatnonzero(keyless | (right != partition)).tolist():
            fault = f"its key belongs in {right[at]}" if not keyless[at] else "it has no key to say where it belongs"
            yield Refused(events[at], "other-partition", f"it lies in partition {partition}, and {fault}; send it by its id")

    def _sorted_out(self, events: Sequence[Event]) -> tuple[list[Event], list[Refused]]:
        readable, refused = [], []
        for event in events:
            try:
                self._records([event])
                readable.append(event)
            except UNREADABLE as error:
                refused.append(refusal(event, error))
        return readable, refused

    def _records(self, events: Sequence[Event]) -> list[Prediction | LateLabel]:
        """All of them, or the first error."""
        values = [event.value for event in events if event.value is not None]
        if len(values) < len(events):
            raise RecordError("unreadable", "the record has no value")
        if values and max(map(len, values)) > self._max_bytes:
            raise RecordError("oversized", f"over {self._max_bytes} bytes, the pipeline's log.max_bytes")
        records = list(map(self._decode, values))
        keys, ids = [event.key for event in events], [record.id.encode() for record in records]
        if keys != ids and any(key not in (None, record_id) for key, record_id in zip(keys, ids, strict=True)):
            raise RecordError("wrong-key", "the record's key is not its id, so nothing keeps the records of an id in order")
        if list(map(ENCODER.encode, records)) != values:  # else they are as we write them ourselves, and hold no key twice
            for value, record in zip(values, records, strict=True):
                _refuse_twice(value, record)
        self._check_answers([record for record in records if isinstance(record, Prediction)])
        texts = {str} == {type(record.label) for record in records if isinstance(record, LateLabel)}
        if texts and self._label.type == "string":
            return records
        return [record if isinstance(record, Prediction) else self._labelled(record) for record in records]

    def _labelled(self, record: LateLabel) -> LateLabel:
        return LateLabel(record.id, label_value(self._label, record.label, self._rows.revision), record.revision)

    def _check_answers(self, records: list[Prediction]) -> None:
        classify = self._label.task == "classify"
        for classes, outputs in {(record.classes, len(record.scores)) for record in records}:
            fits = outputs == len(classes) == len(set(classes)) if classify else outputs == 1 and not classes
            if not fits:
                raise RecordError("wrong-shape", f"{outputs} scores for {len(classes)} classes")
        answered: list[tuple[float, ...]] = [record.scores for record in records]
        for record in records:
            for numbers in (record.base, record.error) if record.base is not record.error else ():
                if isinstance(numbers, msgspec.UnsetType) or len(numbers) != len(record.scores):
                    raise RecordError("wrong-shape", "base and error stand together, each with as many numbers as scores")
                answered.append(numbers)
        scores = np.array([score for numbers in answered for score in numbers], dtype=np.float64)
        if not (np.abs(scores) <= LARGEST).all():
            raise RecordError("not-finite", f"a score is not finite, or beyond {LARGEST:g}")
        self._past.check([(record.features, record.past) for record in records if record.past is not msgspec.UNSET])

    def _rows_of(self, readable: Sequence[Event], records: Sequence[Prediction | LateLabel]) -> tuple[Rows, list[Refused]]:
        """The predictions' rows; a row that brings its own label is refused, since two could then contradict each other."""
        events = [
            Event(event.offset, event.timestamp_ms, event.key, b"", bytes(record.row))
            for event, record in zip(readable, records, strict=True)
            if isinstance(record, Prediction)
        ]
        rows, refused_rows = self._rows.decode(events)
        if not refused_rows and not has_label(rows).any():
            return rows, []
        originals = {event.offset: event for event in readable}
        refused = [
            Refused(originals[refused_record.event.offset], refused_record.reason, refused_record.detail)
            for refused_record in refused_rows
        ]
        left_out = {refused_record.event.offset for refused_record in refused_rows}
        places = [originals[event.offset] for event in events if event.offset not in left_out]
        labelled = has_label(rows)
        detail = f"a served row has no {self._label.name}: its label comes as a record of its own"
        refused += [Refused(places[at], "unknown-field", detail) for at in np.flatnonzero(labelled).tolist()]
        return rows.only(~labelled), refused


def _refuse_twice(value: bytes, record: Prediction | LateLabel) -> None:
    """Refuse a key that stands twice; JSON decoders keep the last and say nothing.

    A record with just the quotation marks that its keys and texts need has no such key; any other is parsed again with its
    pairs. The row's own codec looks after what is in the row.
    """
    marks = value.count(b'"')
    if isinstance(record, Prediction):
        needed = PREDICTION_MARKS + 2 * len(record.classes) + bytes(record.row).count(b'"')
        needed += 2 * (record.base is not msgspec.UNSET) + 2 * (record.error is not msgspec.UNSET)
        needed += 2 * (record.past is not msgspec.UNSET) + 2 * (record.observe is not msgspec.UNSET)
        needed += 4 * (record.features != "") + 4 * (record.variant != "") + 2 * (record.propensity != 1.0)
    else:
        needed = LABEL_MARKS + 2 * isinstance(record.label, str) + 2 * (record.revision != 0)
    if marks != needed:
        json.loads(value, object_pairs_hook=unique)


def encode(record: Prediction | LateLabel) -> bytes:
    """The value of a record; its key is ``record.id.encode()``.

    >>> encode(LateLabel("request 7/0", "spam"))
    b'{"kind":"label","id":"request 7/0","label":"spam","revision":0}'
    """
    return ENCODER.encode(record)


def encode_row(row: dict[str, Any]) -> msgspec.Raw:
    """A row for ``Prediction.row``.

    >>> bytes(encode_row({"links": 9}))
    b'{"links":9}'

    Raises: BadInputError for a value that JSON does not have.
    """
    return msgspec.Raw(msgspec.json.encode(row, enc_hook=_of_numpy))


def _of_numpy(cell: Any) -> Any:
    """A number or an array of NumPy as Python has it."""
    if not hasattr(cell, "tolist"):
        raise BadInputError(f"A value of type {type(cell).__name__} has no place in a row; make it a number or a text.")
    return cell.tolist()
