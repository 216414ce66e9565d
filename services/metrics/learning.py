"""What log, journal, ledger and store say of the branch that is learned: read from them, so that no process need answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from millrace.learners.protocol import Value
from millrace.services.decisions.status import of_entities, shares
from millrace.services.metrics.definitions import Answer, Sample, Samples
from millrace.services.pipeline.instance import Instance
from millrace.streams.branch.branch import Backends
from millrace.streams.branch.outputs import Output, last_output
from millrace.streams.journal.journal import Summary, empty_summary, extend
from millrace.streams.journal.ledger import Ledger

SIZES = ("awaited", "waiting", "remembered")  # of what waits, among what became of labels


@dataclass(slots=True)
class _Read:
    """A branch as far as it was read; the next time goes on there."""

    backends: Backends
    summary: Summary


@dataclass(slots=True)
class Learning:
    """Reads on whenever it is asked."""

    instance: Instance
    branch: str  # that `up` was told to learn
    _read: dict[str, _Read] = field(default_factory=dict)
    _ledger: Ledger | None = None
    _is_sound: bool = False  # whether all that was to be read the last time was read

    def __call__(self) -> Answer:
        """Of the branch, or of the one in its place, and of its shards. Raises: MillraceError."""
        if not self._is_sound:
            self._read, self._ledger = {}, None  # all is read from the beginning again
        self._is_sound = False
        samples = self._samples()
        self._is_sound = True
        return Answer(samples, is_whole=True)

    def _samples(self) -> Samples:
        self._ledger = self._ledger or Ledger(self.instance.ledger_name)
        self._ledger.follow(self.instance.ledger_stream())
        begun, samples = set(self.instance.branches()), Samples()
        branch = self._in_its_place(begun)
        for name in dict.fromkeys([*self.instance.shards(branch), branch]):
            if name in begun:
                samples += self._of_branch(name, learns=name in self.instance.shards(branch))
        return samples

    def _in_its_place(self, begun: set[str]) -> str:
        """The branch that goes on where the one that was told has ended."""
        branch = self.branch
        while branch in begun and (ended := self._at(branch).summary.end.ended) is not None and ended.successor in begun:
            branch = str(ended.successor)
        return branch

    def _known(self, branch: str) -> _Read:
        if branch not in self._read:
            backends = self.instance.backends(branch)
            self._read[branch] = _Read(backends, empty_summary(backends.journal))
        return self._read[branch]

    def _at(self, branch: str) -> _Read:
        read = self._known(branch)
        extend(read.summary, read.backends.journal, branch)
        return read

    def _of_branch(self, branch: str, learns: bool) -> Samples:
        """``learns``: whether it reads the log; one that merges others does not."""
        producer, pipeline = self._known(branch).backends.producer, self.instance.loaded.pipeline
        output = last_output(producer, pipeline.name, branch) if learns else None  # before the journal, which is ahead of it
        read = self._at(branch)
        samples = Samples(self._of_versions(branch, read.summary))
        samples += [_of("seq", branch, read.summary.end.seq), _of("epoch", branch, read.summary.end.epoch)]
        samples.append(_of("store_bytes", branch, self.instance.store().bytes_of(branch)))
        if not learns:
            return samples
        if pipeline.drift is not None:
            alarm = None if output is None else output.newest_alarm
            samples.append(_of("drift_alarm_row", branch, 0 if alarm is None else alarm.rows))
        return samples + _of_lag(branch, read) + ([] if output is None else of_output(output))

    def _of_versions(self, branch: str, summary: Summary) -> Iterator[Sample]:
        assert self._ledger is not None
        released, certificates = self._ledger.released, self._ledger.certificates
        kept = [mark.version for mark in summary.marks if mark.version is not None and mark.version not in released]
        yield _of("versions", branch, len(kept))
        yield _of("versions_uncertified", branch, sum(version not in certificates for version in kept))
        found = [certificates[version] for version in kept if version in certificates]
        yield _of("versions_differing", branch, sum(not certificate.holds for certificate in found))


def _of_lag(branch: str, read: _Read) -> Samples:
    """Records that are not read, and how old the oldest of them is."""
    source, position = read.backends.source, read.summary.position
    ends = source.bounds()
    unread = {tp: max(low, position.get(tp, 0)) for tp, (low, high) in ends.items() if position.get(tp, 0) < high}
    rows = sum(high - position.get(tp, 0) for tp, (_, high) in ends.items())
    oldest = [
        event.timestamp_ms for tp, at in unread.items() for event in source.read(tp, at, at + 1).events if at < ends[tp][1]
    ]
    age_s = max(0.0, time.time() - min(oldest) / 1000) if oldest else 0.0
    return [_of("lag_rows", branch, rows), _of("lag_seconds", branch, age_s)]


def of_output(output: Output) -> Samples:
    """All that a branch lets out after each step."""
    branch = output.branch
    samples = [_of("records_total", branch, output.records), _of("waiting", branch, output.waiting)]
    samples += [_of("rows_total", branch, count, fate) for fate, count in output.counts.items()]
    samples += [_of("scored_rows_total", branch, output.scores["rows"], "by_worker")]
    samples += _numbers("score", branch, shares(output.scores))
    if output.labels is not None and output.served_scores is not None:
        samples += [_of("scored_rows_total", branch, output.served_scores["rows"], "as_served")]
        samples += _numbers("served_score", branch, shares(output.served_scores))
        samples += [
            _of("labels_waiting" if name in SIZES else "labels_total", branch, count, name)
            for name, count in output.labels.items()
        ]
    samples += _numbers("memory", branch, output.memory) + _numbers("held_out", branch, output.held_out or {})
    samples += [
        _of("entities", branch, count) if what == "entities" else _of(f"{what}_total", branch, count, name)
        for what, name, count in of_entities(output.entities)
    ]
    return [*samples, *_of_noticed(branch, output.noticed)]


def _of_noticed(branch: str, noticed: dict[str, Value]) -> Iterator[Sample]:
    """Whole numbers are counts, by field where they are a field's; texts are for people."""
    for what, value in noticed.items():
        for name, each in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(each, int):
                yield _of("noticed_total", branch, each, what, name)
            elif isinstance(each, float):
                yield _of("noticed", branch, each, what)


def _numbers(name: str, branch: str, values: dict[str, Any]) -> list[Sample]:
    return [_of(name, branch, value, what) for what, value in values.items() if isinstance(value, (int, float))]


def _of(name: str, branch: str, value: float, *labels: str) -> Sample:
    return Sample(f"millrace_{name}", (branch, *labels), value)
