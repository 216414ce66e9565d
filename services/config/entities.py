"""The table [entity]: how fields of its past are written, and what cannot stand beside it yet."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from millrace.learners.errors import ConfigError
from millrace.streams.entity.entities import sources_of
from millrace.streams.schema import ALWAYS, Field

# Of all windows as they are published: two publications of them fit into the 75 MiB that Ray's object store has at least, with
# 11 MiB to spare for what else they hold
MOST_BYTES = 32 << 20


def stand_in(raw: dict[str, Any], path: Path) -> None:
    """Put what a file leaves out into its values: name and missing of fields of the past, and which rows are events.

    Raises: ConfigError where that must be said.
    """
    fields = raw.get("fields")
    for at, field in enumerate(fields if isinstance(fields, list) else ()):
        if isinstance(field, dict):
            _refuse_misspelled(field, f"{path}: fields[{at}]")
            if "of" in field or "as" in field:
                _stand_in_field(field)
    entity = raw.get("entity")
    if isinstance(entity, dict) and entity.get("events") == "both":
        raise ConfigError(
            f'{path}: entity.events = "both": that is not there yet, since what is asked about and comes on the stream later '
            'would count twice. Say "stream" or "requests".'
        )
    if isinstance(entity, dict) and "events" not in entity and "labels" in raw:
        raise ConfigError(
            f'{path}: entity.events is missing: with a table [labels] say which rows are events, "stream" (those of the '
            'log\'s topic) or "requests" (those that are answered).'
        )


def spelled(key: str) -> str:
    """A key as a file has it: ``as`` is a word of Python's, so records have another name for it.

    >>> spelled("fields[0].as_"), spelled("learner.as_")
    ('fields[0].as', 'learner.as_')
    """
    return re.sub(r"^(fields\[\d+\]\.)as_$", r"\1as", key)


def as_written(field: Field) -> dict[str, Any]:
    """A field as a file has it.

    >>> list(as_written(Field("x", of="y", as_="sum", over="2")))[-3:], list(as_written(Field("x")))[-1]
    (['of', 'as', 'over'], 'scaled')
    """
    values: dict[str, Any] = msgspec.to_builtins(field)
    past = {"of": values.pop("of"), "as": values.pop("as_"), "over": values.pop("over")}
    return values | {key: value for key, value in past.items() if value}


def _refuse_misspelled(field: dict[str, Any], location: str) -> None:
    if "as_" in field:
        raise ConfigError(f"{location}.as_ = {field['as_']!r}: there is no such key. Did you mean as?")
    if "of" not in field and "name" not in field and ("as" in field or "over" in field):
        raise ConfigError(f"{location}: as and over say what is made of another field's past; name that field with of.")


def _stand_in_field(field: dict[str, Any]) -> None:
    if "as" in field:
        field["as_"] = field.pop("as")
    if isinstance(field.get("over"), int) and not isinstance(field["over"], bool):
        field["over"] = str(field["over"])
    if isinstance(field.get("of"), str):
        field.setdefault("name", f"{field['of']}_{field.get('as_', '')}_{field.get('over', '')}")
        if field.get("as_") not in ALWAYS:
            field.setdefault("missing", "indicator")


def refuse_beside(pipeline: Any, path: Path) -> None:
    """Raise ConfigError for what entities do not go with yet: this is the one place that says so of a file.

    ``pipeline``: a ``PipelineConfig``, whose file imports this one.
    """
    if pipeline.entity is None:
        return
    events, record = pipeline.entity.events, "off" if pipeline.labels is None else pipeline.serving.record
    partitions = pipeline.log.partitions
    refused = {
        "llm": (pipeline.llm is not None, "a completion is nobody's"),
        "memory": (pipeline.memory is not None, "what an error memory holds near by is not made of windows yet"),
        "shards": (pipeline.shards > 1, "an entity's events may lie in several shards"),
        f"log.partitions = {partitions}": (
            partitions > 1,
            "that is not there yet, since one partition may be read ahead of another, whose events are then older and dropped",
        ),
        "mlflow.uri": (pipeline.mlflow.uri != "", "a version in MLflow would answer without windows"),
        'entity.events = "requests"': (
            events == "requests" and record != "before-reply",
            'requests are surely in the log only with a table [labels] and serving.record = "before-reply"',
        ),
    }
    for key, (is_there, sentence) in refused.items():
        if is_there:
            raise ConfigError(
                f"{path}: {key} does not stand beside [entity]: {sentence}. Change it, or leave one of the two out."
            )
    numbers = len(sources_of(pipeline.schema.past))
    if (size := pipeline.entity.published_bytes(numbers)) > MOST_BYTES:
        raise ConfigError(
            f"{path}: entity.max = {pipeline.entity.max} with window = {pipeline.entity.window} and {numbers} number(s) of an "
            f"event makes windows of {size >> 20} MiB, and at most {MOST_BYTES >> 20} MiB are published. Lower max or window."
        )
