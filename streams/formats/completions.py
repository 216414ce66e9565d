"""The topic of completions: one packed completion a record, checked before anything learns it. The key is the tenant.

What a completion holds stands in ``learners/draft/completion.py``. A record is refused as a whole, with its reason, where its
bytes are not one, and where its tokens are none of the vocabulary, its log probabilities are not as many as the pipeline says
or not of the likeliest tokens, or a step drafted more than the pipeline does. A completion whose counts and tokens do not align
is one: y has NaN there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from copy import copy

import numpy as np

from millrace.learners.draft.completion import PROBABILITY_SLACK, Completion, unpack
from millrace.learners.errors import BadInputError
from millrace.streams.formats.json_rows import Refused, Rows, refusal
from millrace.streams.formats.meaning import RecordError
from millrace.streams.records import Event
from millrace.streams.schema import Llm


class CompletionCodec:
    """Decodes the completions of one language model."""

    def __init__(self, llm: Llm, max_bytes: int) -> None:
        self._llm = llm
        self._max_bytes = max_bytes

    @property
    def without_limit(self) -> CompletionCodec:
        """This codec for records that were let in when they were first read: what is let in may have changed since."""
        other = copy(self)
        other._max_bytes = sys.maxsize
        return other

    def of_revision(self, _revision: int) -> CompletionCodec:
        """Itself: no branch of an older revision has completions."""
        return self

    def decode(self, events: Sequence[Event], _tp: str = "") -> tuple[Rows, list[Refused]]:
        """The completions that can be read, in order, and the events that cannot; the same for every partition."""
        good, served, refused = list[Event](), list[tuple[float, float]](), list[Refused]()
        for event in events:
            try:
                served.append(self._served(event))
                good.append(event)
            except RecordError as error:
                refused.append(refusal(event, error))
        key, sequences = np.empty((2, len(good)), dtype=object)
        key[:], sequences[:] = [event.key for event in good], [event.value for event in good]
        t = np.array([event.timestamp_ms for event in good], dtype=np.int64)
        y, n = np.array(served, dtype=np.float64).reshape(-1, 2), len(good)
        return Rows((), y, np.ones(n), key, t, np.empty((n, 0)), sequences=sequences), refused

    def _served(self, event: Event) -> tuple[float, float]:
        """Accepted and tested positions of a completion, checked. Raises: RecordError."""
        value, llm = event.value, self._llm
        if value is None:
            raise RecordError("unreadable", "the record has no value")
        if len(value) > self._max_bytes:
            raise RecordError("oversized", f"over {self._max_bytes} bytes, the pipeline's log.max_bytes")
        try:
            completion = unpack(value)
        except BadInputError as error:
            reason, _, detail = str(error).partition(": ")
            raise RecordError(reason, detail) from error
        if completion.header.top != llm.top:
            raise RecordError("wrong-shape", f"{completion.header.top} log probabilities a token, and llm.top is {llm.top}")
        largest = max(int(tokens.max()) for tokens in (completion.prompt, completion.output, completion.ids))
        if 0 < llm.vocabulary <= largest:
            raise RecordError("out-of-range", f"token {largest} is none of a vocabulary of {llm.vocabulary}")
        if llm.vocabulary > 0 and (problem := _unlikely(completion, llm.vocabulary)):
            raise RecordError("out-of-range", problem)
        if completion.drafted.size and int(completion.drafted.max()) > llm.k:
            raise RecordError("out-of-range", f"a step drafted {int(completion.drafted.max())} tokens, and llm.k is {llm.k}")
        return completion.served()


def _unlikely(completion: Completion, vocabulary: int) -> str:
    """Why the captured tokens are not the likeliest: what they leave is more than all others can have. Empty: they are."""
    probabilities = np.exp(completion.log_probabilities.astype(np.float64))
    most = (vocabulary - completion.header.top) * probabilities[:, -1] + PROBABILITY_SLACK
    missing = 1.0 - probabilities.sum(axis=1) - most
    if missing.max() <= 0.0:
        return ""
    return f"the likeliest tokens of position {int(missing.argmax())} leave more to the others than each could have of it"
