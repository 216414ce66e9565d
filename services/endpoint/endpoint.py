"""What both protocols answer about: the model, what it answers from now, and who may ask.

Each request is answered by itself: a ridge takes 7 us of the 500 us that a call costs its replica, so nothing is gained by
letting one wait for others. A caller who has many rows sends them in one request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from millrace.learners.errors import BadInputError
from millrace.services.config.sections import ServingConfig
from millrace.services.endpoint.pool import Pool
from millrace.services.endpoint.recording import Recorder
from millrace.services.endpoint.turns import Turns
from millrace.services.errors import NotOfferedError, NotReadyError
from millrace.services.pipeline.bundle import Bundle, Held
from millrace.services.protocol.access import Access
from millrace.services.protocol.inference import Predicted
from millrace.services.protocol.labels import checked_labels, label_records, places, prediction_records
from millrace.services.protocol.statistics import InferenceStatistics, Traffic
from millrace.streams.labels.served import LONGEST_ID, LateLabel
from millrace.streams.parts import sha256
from millrace.streams.records import Record
from millrace.streams.schema import Schema

TOO_MANY_BYTES = "The request is over {} bytes (serving.max_bytes); send fewer rows at a time."
ASK_OPENAI = "Ask POST /v1/chat/completions, /v1/completions or /v1/responses over HTTP."
INLINE_BYTES = 1 << 16  # of a request that is answered at once; a larger one waits for a thread


@dataclass(frozen=True, slots=True)
class Recording:
    """How answers and labels come into the log."""

    recorder: Recorder
    features: str  # sha256 of the feature stage that the pipeline file declares
    before_reply: bool = False  # an answer is given only once the log has it
    max_bytes: int = 1 << 20  # of a record; the worker would refuse a larger one


async def _nothing() -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One replica's."""

    name: str  # of the model: the pipeline's
    schema: Schema
    held: Callable[[], Held | None]  # what answers now
    access: Access = field(default_factory=Access)
    limits: ServingConfig = field(default_factory=ServingConfig)
    pool: Pool = field(default_factory=Pool)
    turns: Turns = field(init=False)  # as many at once as the limits say
    statistics: InferenceStatistics = field(default_factory=InferenceStatistics)
    traffic: Traffic = field(default_factory=Traffic)
    recording: Recording | None = None  # None: the pipeline takes labels from its rows alone
    overview: Callable[[], Awaitable[dict[str, Any]]] = _nothing  # of the trainer and all replicas
    draining: Callable[[], bool] = bool  # whether whoever looks for somebody to ask is to look elsewhere

    def __post_init__(self) -> None:
        """Turns are those of the limits."""
        object.__setattr__(self, "turns", Turns(self.limits))

    @property
    def inline_bytes(self) -> int:
        """Of a request that is answered on the event loop; none where pictures go through a network."""
        return 0 if any(field.type == "image" for field in self.answering.fields) else INLINE_BYTES

    @property
    def answering(self) -> Schema:
        """The fields of what answers now, which may be older than the pipeline file."""
        bundle = self.held()
        return self.schema if bundle is None else bundle.schema

    def taking(self) -> None:
        """Raises: NotReadyError where it is about to end; answers go on then. The first labels need nothing to answer from."""
        if self.draining():
            raise NotReadyError("This endpoint is about to end; it answers until it has.")

    def ready(self) -> None:
        """Raises: NotReadyError where there is nothing to answer from, or where it is about to end."""
        self.taking()
        refuse_unready(self.held())

    @property
    def newest(self) -> str | None:
        """The version that answers now, or None."""
        bundle = self.held()
        return None if bundle is None else bundle.identity.name

    async def record(self, predicted: Predicted, headers: bytes = b"") -> None:
        """Append what was answered, with ``headers``: soon, or at once where the pipeline wants it before the reply.

        Raises: BadInputError for an id that no label could name, StorageError.
        """
        if self.recording is None:
            return
        for row_id in predicted.ids:
            if not 1 <= len(row_id) <= LONGEST_ID:
                raise BadInputError(f"id: a row's id must have 1 to {LONGEST_ID} characters, so that its label can name it.")
        longest = self.recording.max_bytes // 8
        for column in predicted.columns:
            if column.dtype == object and any(text is not None and len(text) > longest for text in column):
                raise BadInputError(f"A text has over {longest} characters, so its row could not be recorded.")
        known, schema = self.recording.features, predicted.bundle.schema
        features = known if schema == self.schema else features_name(schema)
        make = partial(prediction_records, predicted, features, headers)
        if self.recording.before_reply:
            await self.recording.recorder.now(make())
        else:
            self.recording.recorder.later(len(predicted.ids), make)

    async def label(self, labels: list[LateLabel], headers: bytes = b"") -> Sequence[str]:
        """Append labels, all or none and each with ``headers``, and say where the log has each.

        Raises: BadInputError, NotOfferedError, StorageError where the log does not take them.
        """
        if self.recording is None:
            if self.schema.llm is not None:
                raise NotOfferedError(f"{self.name} is a language model, and a completion is its own label. {ASK_OPENAI}")
            raise NotOfferedError("This pipeline takes labels from its rows; give it a table [labels] for late ones.")
        recorder, records = self.recording.recorder, self._label_records(labels, headers)
        for at, record in enumerate(records):
            if len(record.value or b"") > self.recording.max_bytes:
                raise BadInputError(f"labels[{at}]: is over {self.recording.max_bytes} bytes, which the log does not take.")
        stored = await recorder.now(records)
        return places(recorder.topic, stored)

    def _label_records(self, labels: list[LateLabel], headers: bytes) -> list[Record]:
        """Checked, as the log has them. Raises: BadInputError, TooLargeError."""
        return label_records(checked_labels(labels, self.schema.label, self.limits.max_labels), headers)


def features_name(schema: Schema) -> str:
    """The sha256 of a feature stage, as served records and forks have it."""
    return sha256(schema.declared)


def ready(held: Held | None) -> Bundle:
    """The bundle that can answer rows. Raises: NotReadyError where there is nothing; NotOfferedError for a language model."""
    refuse_unready(held)
    if not isinstance(held, Bundle):
        raise NotOfferedError(f"A language model answers here, and no rows. {ASK_OPENAI}")
    return held


def refuse_unready(held: Held | None) -> None:
    """Raises: NotReadyError where there is nothing to answer from."""
    if held is None or not held.outputs:
        raise NotReadyError("There is nothing to answer from yet: no version is served and no label was learned.")
