"""Retention of the embedded log: by the time of appending, and never past what a branch has still to read.

A branch goes on from its newest checkpoint, so what follows that stays. An ended branch holds nothing. On Kafka the brokers
let records go, by their own rules.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from millrace.learners.errors import MillraceError
from millrace.services.pipeline.instance import Instance
from millrace.streams.branch.branch import load_part
from millrace.streams.branch.outputs import dead_letter_topic
from millrace.streams.errors import DamageError
from millrace.streams.journal.entries import Mark
from millrace.streams.journal.journal import Summary, summarise
from millrace.streams.journal.store import Store
from millrace.streams.records import kept_ms, tp_name
from millrace.streams.source import Log, Position

log = logging.getLogger("millrace")


def expire(instance: Instance) -> None:
    """Let go of the records that are older than ``log.retention_hours`` and that no branch needs.

    Where something cannot be read, nothing goes and it is said.
    """
    if not instance.loaded.pipeline.log.retention_hours:
        return
    try:
        _expire(instance)
    except MillraceError as error:
        log.warning("No record was let go: %s", error)


def _expire(instance: Instance) -> None:
    store = instance.log()
    outlived = _outlived(instance, store)
    needed = _needed(instance) if outlived else {}
    for tp, stop in outlived.items():
        store.delete_before(tp, min([stop, *(position[tp] for position in needed.values() if tp in position)]))


def expiry_facts(instance: Instance) -> dict[str, Any]:
    """What ``status`` says of retention: the limit, the oldest record, and the branch that holds records past the limit."""
    hours = instance.loaded.pipeline.log.retention_hours
    if not hours:
        return {}
    store = instance.log()
    if instance.loaded.pipeline.log.kind == "kafka":
        return {"retention": f"{hours:g} hours in topics made here, by the brokers, read or not"}
    facts: dict[str, Any] = {"retention": f"{hours:g} hours after appending"} | _oldest(store, _partitions(instance))
    outlived = _outlived(instance, store)
    needed = _needed(instance) if outlived else {}
    holding = [(tp, *held) for tp, stop in outlived.items() if (held := _holder(needed, tp, stop)) is not None]
    if holding:
        tp, branch, at = holding[0]
        count = sum(outlived[other] - store.bounds(other)[0] for other, _, _ in holding)
        facts["retention_held"] = f"{count:,} older records, by branch {branch}, which goes on at {tp} offset {at}"
    return facts


def _oldest(store: Log, partitions: list[str]) -> dict[str, Any]:
    """The record that was appended first of those that are there."""
    times = {tp: when_ms for tp in partitions if (when_ms := store.appended_ms(tp)) is not None}
    if not times:
        return {}
    tp = min(times, key=times.__getitem__)
    when = datetime.fromtimestamp(times[tp] // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"oldest_record": f"{tp} offset {store.bounds(tp)[0]}, appended {when}"}


def _holder(needed: dict[str, Position], tp: str, stop: int) -> tuple[str, int] | None:
    """The branch that needs the oldest record of a partition before ``stop``, and where it goes on."""
    at = {branch: position[tp] for branch, position in needed.items() if tp in position}
    branch = min(at, key=at.__getitem__, default=None)
    return None if branch is None or at[branch] >= stop else (branch, at[branch])


def _partitions(instance: Instance) -> list[str]:
    """Those whose records go; dead letters among them where they hold what callers wrote."""
    pipeline = instance.loaded.pipeline
    partitions = [tp_name(topic, number) for topic in pipeline.topics for number in range(pipeline.log.partitions)]
    return partitions if pipeline.llm is None else [*partitions, tp_name(dead_letter_topic(pipeline.name), 0)]


def _outlived(instance: Instance, store: Log) -> Position:
    """By partition the offset before which all is older than the limit, where there is something before it."""
    before_ms = time.time_ns() // 1_000_000 - kept_ms(instance.loaded.pipeline.log.retention_hours)
    stops = {tp: store.outlived(tp, before_ms) for tp in _partitions(instance)}
    return {tp: stop for tp, stop in stops.items() if stop > store.bounds(tp)[0]}


def _needed(instance: Instance) -> dict[str, Position]:
    """By branch that has not ended the offset of each partition from which it still reads.

    Raises: DamageError where a journal cannot be read.
    """
    summaries = {branch: summarise(instance.journal(branch), branch) for branch in instance.branches()}
    return {
        branch: _goes_on_at(instance.store(), summary)
        for branch, summary in summaries.items()
        if summary.end.ended is None and instance.shards(branch) == [branch]
    }


def _goes_on_at(store: Store, summary: Summary) -> Position:
    """Of the newest checkpoint that can be read; else where the branch began."""
    begun = {} if summary.fork is None else dict(summary.fork.positions)
    return next(_positions(store, summary.marks), begun)


def _positions(store: Store, marks: list[Mark]) -> Iterator[Position]:
    for mark in reversed(marks):
        if mark.checkpoint is not None:
            try:
                yield load_part(store, mark, "counts")["position"]
            except DamageError:
                continue  # whoever goes on from it says so
