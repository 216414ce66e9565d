"""What a run says of records that it refused: the commonest reason, the first record of it, and the way out."""

from __future__ import annotations

from collections.abc import Mapping

from millrace.streams.worker.rejects import describe_reasons

WAYS_OUT = {
    "unreadable": "send rows as JSON objects in UTF-8, or as Arrow, Avro or CloudEvents",
    "oversized": "raise log.max_bytes (of Arrow messages: log.max_batch_bytes), or send smaller records",
    "wrong-type": "mend the producer, or declare the field or label by the type that the records have",
    "wrong-shape": "send as many numbers as the field's size says, or declare that size",
    "missing-field": 'mend the producer, or give the field a key missing = "mean", "indicator" or "category"',
    "unknown-field": 'declare the field, or set unknown = "ignore" in the pipeline file',
    "duplicate-field": "mend the producer: one key, one value",
    "not-finite": 'send null in place of NaN and infinity, and give the field a key missing = "mean" or "indicator"',
    "out-of-range": 'mend the producer, widen the field\'s low and high, or say outside = "clip" or "missing"',
    "unknown-category": 'add the category to the field\'s categories, or use categories = "grow" or "hash"',
    "negative-weight": "send weights from 0 on",
    "unreadable-image": "send whole JPEG or PNG files",
    "ahead-of-time": "mend the clock of the producer, or raise worker.max_ahead_ms",
    "unknown-schema": "check log.registry, and write flat Avro records",
    "malformed-envelope": "send CloudEvents with the attributes that the specification asks for",
    "wrong-key": "send served predictions and labels under their id as the record's key",
    "other-partition": "send served predictions and labels by their id, so that the id chooses the partition",
    "conflicting-label": "send a correction with a higher revision",
}  # by reason; a field that is declared otherwise begins a new branch
ELSE = "look at what the letters say"


COMPLETIONS = (
    "write completions as millrace.learners.draft.completion packs them, with as many log probabilities as llm.top says"
)


def warnings_of(
    read: int, rejected: int, by_reason: Mapping[str, int], first: Mapping[str, str], way_out: str | None = None
) -> list[str]:
    """What the user of a run is told of ``rejected`` of ``read`` records; empty where none was. ``way_out``: the same for all.

    >>> [warning] = warnings_of(20, 20, {"unknown-field": 20}, {"unknown-field": "even:0 offset 0: z is no field"})
    >>> warning[:64]
    '20 of 20 records were refused: unknown-field 20. The first of th'
    """
    if not by_reason:
        return []
    commonest = max(by_reason, key=lambda reason: by_reason[reason])
    return [
        f"{rejected} of {read} records were refused: {describe_reasons(by_reason)}. The first of the commonest: "
        f"{first[commonest]}. To mend it: {way_out or WAYS_OUT.get(commonest, ELSE)}. `millrace dead-letters list` has them "
        "all, and `millrace dead-letters redrive` sends them once more."
    ]
