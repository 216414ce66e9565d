"""Completions on their way into the log: bounded in bytes, packed in a thread of their own. Nobody waits for the log."""

from __future__ import annotations

from dataclasses import astuple
from functools import partial

import msgspec

from millrace.learners.draft.completion import FRAME, MOST_HEADER, Completion, pack
from millrace.services.endpoint.recording import Recorder
from millrace.services.pipeline.instance import Instance
from millrace.streams.records import Record

COUNTS = 16  # bytes that four counts take beyond one each
MEANS = "completions were not recorded so far, so nothing is learned from them"


class CompletionLog:
    """Of one replica."""

    def __init__(self, instance: Instance) -> None:
        pipeline = instance.loaded.pipeline
        self.recorder = Recorder(instance.log, pipeline.topic, pipeline.serving, means=MEANS)
        self.too_large = 0  # completions that the log's limits on a record would refuse
        self._max_bytes = pipeline.log.max_bytes

    def take(self, completion: Completion, tenant: bytes) -> None:
        """Append soon, or count what is dropped."""
        header = header_bytes(completion)
        size = most_bytes(completion, header)
        if header > MOST_HEADER or size > self._max_bytes:
            self.too_large += 1
        else:
            self.recorder.later(1, partial(_record, completion, tenant), size)


def most_bytes(completion: Completion, header: int) -> int:
    """Of its packed form, at most; ``header``: as ``header_bytes`` says."""
    arrays = (completion.ids, completion.log_probabilities, completion.drafted, completion.accepted)
    return FRAME.size + header + 4 * completion.tokens + sum(array.nbytes for array in arrays)


def header_bytes(completion: Completion) -> int:
    """Of its header as it will be packed, at most: four counts are put in then."""
    return len(msgspec.msgpack.encode(astuple(completion.header))) + COUNTS


def _record(completion: Completion, tenant: bytes) -> list[Record]:
    return [Record(pack(completion), tenant)]
