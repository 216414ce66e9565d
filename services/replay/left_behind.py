"""Alarms whose rows are left behind by what goes on: a rollback of the learner, or a replay that leaves them out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from millrace.services.decisions.alarms import Cause, Standing, close, standing_in
from millrace.services.decisions.descent import Stretch, descent, learned_of, older
from millrace.services.errors import NotCountedError
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import Instance
from millrace.streams.branch.branch import load_part
from millrace.streams.errors import DamageError
from millrace.streams.journal.exclusions import Exclusion, left_out
from millrace.streams.source import Position

READ_ROWS = 4096  # records a read


@dataclass(frozen=True, slots=True)
class Settled:
    """What has become of the alarms that stood when a branch ended, for the one that goes on."""

    closed: tuple[str, ...] = ()  # for the branch that goes on; on the one that ended they stay as they were
    open: tuple[str, ...] = ()


def left_behind(instance: Instance, ends: str, version: str | None, exclude: Sequence[Exclusion] | None = None) -> list[str]:
    """The open alarms of a branch that is to end, which one that began with ``version``, or with nothing, leaves behind.

    One that has learned no row since the onset of an alarm has nothing of what that was raised for. ``exclude``: of a replay,
    which reads what followed again; it must leave out a record from after the onset. Whether that was enough nobody knows yet:
    what goes on is watched anew, by its own detectors. None: of a rollback of the learner, which reads nothing again.
    Raises: MillraceError where a journal is damaged, or a state between versions cannot be rebuilt any more.
    """
    archive, ledger = Archive(instance), instance.ledger()
    stretches = list(descent(archive, ends))
    before = [entry for entry in standing_in(archive, ledger, stretches) if _begun_before(archive, stretches, version, entry)]
    left = before if exclude is None else [entry for entry in before if _named(archive, stretches, version, entry, exclude)]
    return [entry.raised.id for entry in left]


def close_left_behind(instance: Instance, alarms: Sequence[str], goes_on: str, reason: str, cause: Cause) -> Settled:
    """Close what ``left_behind`` found, for the branch that goes on. Raises: DamageError where a journal is damaged."""
    with suppress(NotCountedError):  # somebody closed one meanwhile, which is as well
        close(instance, alarms, reason, cause, goes_on)
    archive = Archive(instance)
    standing = standing_in(archive, instance.ledger(), descent(archive, goes_on))
    still_open = tuple(entry.raised.id for entry in standing if entry.closing is None)
    return Settled(tuple(name for name in alarms if name not in still_open), still_open)


def _begun_before(archive: Archive, stretches: Sequence[Stretch], version: str | None, entry: Standing) -> bool:
    """Whether an alarm is open, and a branch that begins with ``version`` begins before its onset."""
    return entry.closing is None and (version is None or older(archive, stretches, archive.state(version), entry.raised))


def _named(
    archive: Archive, stretches: Sequence[Stretch], version: str | None, entry: Standing, exclude: Sequence[Exclusion]
) -> bool:
    """Whether any of the exclusions names a record that the ended branch read after the onset of an alarm."""
    instance, ended = archive.instance, archive.summary(stretches[0].branch)
    begin = {} if version is None else _position(archive, version)
    store = instance.store()
    for stretch in stretches:
        if stretch.branch == entry.raised.branch:
            for mark in stretch.marks:
                if learned_of(store, mark) <= entry.raised.alarm.onset_rows:
                    begin = load_part(store, mark, "counts")["position"]
    topics = [] if ended.fork is None else list(ended.fork.topics)
    return any(_excluded(instance, topics, begin, ended.position, exclude))


def _position(archive: Archive, version: str) -> Position:
    try:
        position: Position = load_part(archive.instance.store(), archive.state(version), "counts")["position"]
    except DamageError:  # its parts were let go: then all that the log has
        return {}
    return position


def _excluded(
    instance: Instance, topics: list[str], begin: Position, end: Position, exclude: Sequence[Exclusion]
) -> Iterator[bool]:
    """Of each record between two positions, as far as the log has it."""
    source = instance.source(topics)
    for tp, (low, high) in source.bounds().items():
        stop = min(high, end.get(tp, high))
        for first in range(max(low, begin.get(tp, low)), stop, READ_ROWS):
            for event in source.read(tp, first, min(first + READ_ROWS, stop)).events:
                yield left_out(exclude, event, tp)
