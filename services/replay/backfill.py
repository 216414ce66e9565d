"""Rows of a file that a branch learns before it goes on with the log: a warm start, or a back-fill.

The log is never edited: they are appended to a topic of their own, which the branch's first entry states and which it reads to
its end before any other. So its steps prove them as they prove everything else, and other branches do not see them. Each has
the time of the earliest record that the branch reads next. So they move the clock only as far as the log itself would, and end
no horizon of a prediction that waits.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from hashlib import file_digest
from itertools import islice
from pathlib import Path

import msgspec

from millrace.learners.errors import BadInputError
from millrace.services.data.send import COMMIT_ROWS, values_of
from millrace.services.errors import OutdatedError
from millrace.services.pipeline.instance import Instance
from millrace.streams.branch.forks import begin_fork, reading_first
from millrace.streams.journal.entries import Fork
from millrace.streams.journal.journal import summarise
from millrace.streams.records import Record, tp_name
from millrace.streams.source import Position, Source

READ_ROWS = 1000  # records a read


class Backfill(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows of a file, as they stood when it was planned."""

    path: str
    sha256: str
    rows: int
    timestamp_ms: int  # of each


def topic_of(instance: Instance, branch: str) -> str:
    """Where the rows lie that a branch reads first."""
    return f"{instance.loaded.pipeline.name}.backfill-{branch}"


def backfill_of(instance: Instance, path: Path, position: Position) -> Backfill:
    """What a file has, for a branch that goes on at ``position``. Raises: BadInputError where it cannot be read or is empty."""
    instance.refuse_completions("A back-fill from a file")
    instance.refuse_entities("A back-fill from a file")
    rows = sum(1 for _ in values_of(path, instance.loaded.pipeline.schema))
    if not rows:
        raise BadInputError(f"{path} has no rows to begin with.")
    source = instance.source(instance.loaded.pipeline.topics)
    now_ms = time.time_ns() // 1_000_000
    return Backfill(str(path.resolve()), _sha256(path), rows, min([now_ms, *_next_times(source, position)]))


def _next_times(source: Source, position: Position) -> Iterator[int]:
    """When the record was made that each partition has next."""
    for tp, (low, high) in source.bounds().items():
        start = max(low, position.get(tp, low))
        while start < high:
            stop = min(high, start + READ_ROWS)
            if events := source.read(tp, start, stop).events:
                yield min(event.timestamp_ms for event in events)
                break
            start = stop


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def fill(instance: Instance, branch: str, backfill: Backfill) -> str:
    """Append the rows that the branch's topic still lacks; the topic.

    Raises: OutdatedError where the file is no longer the one that was planned with.
    """
    log, topic, path = instance.log(), topic_of(instance, branch), Path(backfill.path)
    log.create_topic(topic)
    appended_rows = instance.source([topic]).bounds()[tp_name(topic, 0)][1]
    if appended_rows == backfill.rows:
        return topic
    if appended_rows > backfill.rows or not path.exists() or _sha256(path) != backfill.sha256:
        raise OutdatedError(
            f"{path} is not what it was, and {appended_rows} of {backfill.rows} rows are in topic {topic}. Restore it."
        )
    values = values_of(path, instance.loaded.pipeline.schema)
    _refuse_others(instance.source([topic]), islice(values, appended_rows), topic)
    while chunk := list(islice(values, COMMIT_ROWS)):
        log.append(topic, [Record(value, None, b"", backfill.timestamp_ms) for value in chunk])
    return topic


def _refuse_others(source: Source, values: Iterator[bytes], topic: str) -> None:
    """Raises: OutdatedError where the topic begins with other rows than these: another file was on its way there."""
    tp, appended_rows = tp_name(topic, 0), source.bounds()[tp_name(topic, 0)][1]
    for start in range(0, appended_rows, READ_ROWS):
        events = source.read(tp, start, min(start + READ_ROWS, appended_rows)).events
        if [event.value for event in events] != list(islice(values, len(events))):
            raise OutdatedError(f"Topic {topic} has rows of another file. Give that one, or begin with --branch NEW.")


def filled(instance: Instance, fork: Fork, backfill: Backfill) -> Fork:
    """The fork of a branch that reads the file first, once its rows are in the log. Raises: as ``fill``."""
    return reading_first(fork, instance.source([fill(instance, fork.branch, backfill)]))


def warm_start(instance: Instance, branch: str, path: Path) -> None:
    """Let a branch that is yet to begin read a file before the log. Where it has begun with that file, nothing is done.

    Raises: BadInputError where it has begun without; ConfigError where the detector would miss most changes.
    """
    instance.refuse_shards("A warm start")
    if instance.has_branch(branch) and summarise(instance.journal(branch), branch).fork is not None:
        if topic_of(instance, branch) not in instance.first_topics(branch):
            raise BadInputError(
                f"Branch {branch} has begun. To learn {path} and then the log: `millrace replay plan --from-start --backfill`."
            )
        return
    if (drift := instance.loaded.pipeline.drift) is not None:
        drift.refuse_new()
    source = instance.source(instance.loaded.pipeline.topics)
    fork = instance.fold_spec.new_fork(branch, source)
    with instance.hold(branch, take_over=False):
        begin_fork(
            instance.fold_spec, instance.backends(branch), filled(instance, fork, backfill_of(instance, path, fork.positions))
        )
