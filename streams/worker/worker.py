"""The worker: one branch, live. Reads the log, journals what it does about it, learns, and lets effects out after the fence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from millrace.streams.branch.branch import Backends, FoldSpec, begin, in_force, refold, restore
from millrace.streams.branch.log_bounds import check_retention, warn_of_retention
from millrace.streams.branch.outputs import (
    check_end,
    contradictions,
    dead_letter,
    dead_letter_topic,
    last_output,
    output_record,
    scores_topic,
)
from millrace.streams.formats.json_rows import Refused, Rows
from millrace.streams.journal.entries import Act, Host, Mark, StateName, Step
from millrace.streams.journal.journal import Pending, Writer, entries_after, newest_version, summarise
from millrace.streams.labels.served import Served
from millrace.streams.records import Read
from millrace.streams.sharding import WHOLE, shard_of
from millrace.streams.source import Position, Waits
from millrace.streams.worker.clock import Clock
from millrace.streams.worker.config import WorkerConfig
from millrace.streams.worker.rejects import Checked, Rejects, entries_of, rows_of
from millrace.streams.worker.snapshots import Snapshot, Snapshots
from millrace.streams.worker.versions import VersionLog

PAUSE_S = 0.005  # between two looks at a source that had nothing, at first
LONGEST_S = 0.05  # the same, once nothing has come for long: ledgers are looked at so often at least
QUIET_SHARE = 0.1  # in (0, 1), of the time for which nothing came, that passes until the next look; more: cheaper, and later
NEVER = 1 << 62  # a seq that no entry has
LARGE_BYTES = 1 << 19  # of values, at which a step closes too
CHECK_MS = 1000  # between two looks at the journal of an idle branch, at least


@dataclass(frozen=True, slots=True)
class PendingStep:
    """A step on its way into the journal."""

    entry: Step
    sent: Pending


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """Which branch a worker takes, on which host, by which clock; and whether scores and dead letters are let out."""

    branch: str
    host: Host
    clock: Clock = field(default_factory=Clock)
    emits: bool = True  # False: nobody follows the branch, so its journal and its checkpoints are all that leaves


class Worker:
    """Makes one branch go on, from its newest good checkpoint, as the branch's one writer.

    Raises, on being made: ReplacedError, ConfigError, DamageError, OffsetsGoneError.
    """

    def __init__(self, fold_spec: FoldSpec, backends: Backends, config: WorkerConfig, identity: WorkerIdentity) -> None:
        self._fold_spec = fold_spec
        self._backends = backends
        self._config = config
        self._wall = identity.clock
        self._emits = identity.emits
        self._idle_ms = 0  # gone by with nothing to read since the last step
        self._idle_from_ms: int | None = None
        self.rejects = Rejects(config, dead_letter_topic(fold_spec.name))
        self.branch = identity.branch
        self._open(identity.host)

    def _open(self, host: Host) -> None:
        """Newest good checkpoint · append ``open`` · fold the counted entries after it."""
        output = last_output(self._backends.producer, self._fold_spec.name, self.branch)
        summary = summarise(self._backends.journal, self.branch)
        check_end(output, self.branch, summary.end.seq)
        summary.end.refuse_ended()
        fork = summary.fork
        if fork is None:
            if self._fold_spec.drift is not None:
                self._fold_spec.drift.refuse_new()  # a branch that has begun goes on as it was declared
            fork = begin(self._fold_spec, self._backends, self.branch)
            summary = summarise(self._backends.journal, self.branch)
        self._reader = self._fold_spec.reader_of(fork)
        self._begun_with_version = fork.parent is not None
        restored = restore(self._fold_spec, self._backends, summary)
        check_retention(restored.fold, self._backends.source)
        warn_of_retention(self._backends.source, self._backends.store, summary.marks[-self._config.keep :])
        self.fold = restored.fold
        self._version_log = VersionLog(self._backends, fork, host, self._config.keep, self._config.journal_keep_entries)
        self._version_log.marks += summary.marks
        self._marked_records = self.fold.records if restored.mark else 0
        self._unversioned = restored.mark is None or restored.mark.version is None  # whether the state has no version yet
        self._writer = Writer(self._backends.journal, self.branch, summary.end)
        name = StateName(restored.mark.state_seq, restored.mark.state_sha256) if restored.mark else None
        self.epoch = self._writer.open(host, name)
        self._undecided: Step | None = None  # the newest step, where it raised an alarm and nothing followed yet
        self._acted = False  # whether a version is due for what followed
        self._fold_on(restored.state_seq)
        self._decide()
        self._backends.source.seek(self.fold.position)
        self._snapshots = Snapshots(self._backends.store, self.branch)
        self._version_log.resume()

    def _fold_on(self, seq: int) -> None:
        """Fold what was journaled after ``seq``; what a crash kept from leaving leaves now."""
        output = last_output(self._backends.producer, self._fold_spec.name, self.branch)
        emitted = output.seq if output else 0
        entries, acted = entries_after(self._backends.journal, self.branch, seq), NEVER
        for entry in refold(self.fold, entries, self._backends.source, self._reader):
            if isinstance(entry, Act):
                self._undecided, self._unversioned, acted = None, True, entry.seq
            if isinstance(entry, Mark) and entry.version is not None and entry.state_seq >= acted:
                acted = NEVER
            if isinstance(entry, Step):
                self._unversioned = True
                self._undecided = entry if self.fold.drift is not None and self.fold.drift.worse else None
                if entry.seq > emitted:
                    self._emit(entry)
            elif (
                isinstance(entry, Mark) and entry not in self._version_log.marks
            ):  # of an owner that wrote on while this one opened
                self._version_log.marks.append(entry)
        self._acted = acted != NEVER

    @property
    def seq(self) -> int:
        """Of the last entry this worker has written or folded."""
        return self._writer.cursor.seq

    @property
    def taught(self) -> bool:
        """Whether there is something to mark a version of: a row was learned, or the branch goes on from another's version.

        A draft answers before it has learned. A shard may never get a row; what counts for it is whether the merge of all has
        one.
        """
        begun_with = self._begun_with_version or self._fold_spec.schema.llm is not None
        return begun_with or self.fold.counts.learned > 0 or shard_of(self.branch) != WHOLE

    @property
    def newest_version(self) -> str | None:
        """The id of the branch's newest version."""
        return newest_version(self._version_log.marks)

    # Running

    def run(self, is_over: Callable[[Worker], bool]) -> None:
        """Step until ``is_over`` says so, then mark a version.

        Raises: what ``step`` raises. Nothing is lost: the next start goes on from the journal's end.
        """
        checked_ms = self._wall.monotonic_ms()
        self.apply_ledger()  # also where there is nothing to read
        while not is_over(self):
            phases = sum(1 for _ in self.step())
            self.mark_when_due()
            if not phases:
                self._wait(self.pause_s)
                if self._wall.monotonic_ms() - checked_ms >= CHECK_MS:
                    checked_ms = self._wall.monotonic_ms()
                    self._writer.check()  # an idle worker hears of its successor too
            self.apply_ledger()
        self.close()

    @property
    def pause_s(self) -> float:
        """Until the next look at a source that had nothing: a tenth of the time for which nothing came, within bounds."""
        return min(LONGEST_S, max(PAUSE_S, QUIET_SHARE * self._idle_ms / 1000))

    def _wait(self, seconds: float) -> None:
        """So long, or until there may be something to read."""
        source = self._backends.source
        if isinstance(source, Waits):
            source.wait(seconds)
        else:
            self._wall.sleep(seconds)

    def apply_ledger(self) -> None:
        """Journal and apply what operators have decided for this branch: exclusions that end. Between two steps."""
        lifted = set() if self._backends.retention is None else self._backends.retention.included(self.branch)
        for place in sorted(lifted - set(self.fold.included.get(self.branch, ()))):
            self.fold.act(self._writer.include(place))
            self._unversioned = True

    def _passed_by(self) -> Position:
        """Where, by partition, the records end that operators have let this branch go past even where it refuses them."""
        return {} if self._backends.retention is None else self._backends.retention.passed_by(self.branch)

    def caught_up(self) -> bool:
        """Whether every record of the log was read, and no row waits for its batch."""
        ends = {tp: high for tp, (_, high) in self._backends.source.bounds().items()}
        return ends == self._backends.source.position and not self.fold.batches.waiting

    def step(self) -> Iterator[str]:
        """One step, phase by phase (docs/design/journal.md, rule 5); without work it ends before the first.

        1. read
        2. check, reject, confirm the dead letters
        3. append the ``step``
        4. predict, score and learn, in segments that end where a training batch fills
        5. wait for the acknowledgement, which says that the branch is still ours
        6. let the scores out
        7. journal and apply what an alarm of the step leads to
        """
        reads = self._read()
        if not reads and not self._batch_due():
            return
        yield "read"
        checked = self._check(reads)
        yield "checked"
        pending = self._append(checked)
        yield "appended"
        self.fold.step(pending.entry, checked.rows)
        self._unversioned = True
        yield "learned"
        self._writer.confirm(pending.sent)
        yield "acknowledged"
        self._emit(pending.entry)
        yield "emitted"
        if self.fold.drift is not None and self.fold.drift.worse:
            self._undecided = pending.entry
            self._decide()
            yield "acted"
        self.rejects.refuse_too_many(checked.rows_read, checked.refused, self._passed_by())

    def _read(self) -> list[Read]:
        """What is there, for at most ``step_ms`` after the first of it, or until it is large."""
        reads = self._backends.source.next_batch(self._config.step_rows)
        self._pass_time(bool(reads))
        closes_ms = self._wall.monotonic_ms() + self._config.step_ms
        rows_left = self._config.step_rows - _records(reads)
        while (
            reads and rows_left > 0 and sum(read.size for read in reads) < LARGE_BYTES and self._wall.monotonic_ms() < closes_ms
        ):
            self._wall.sleep(PAUSE_S)  # more is gathered: to be woken by each record would only make the reads smaller
            reads += self._backends.source.next_batch(rows_left)
            rows_left = self._config.step_rows - _records(reads)
        return reads

    def _pass_time(self, busy: bool) -> None:
        """Wall time counts for the journal's clock only between two looks at a source that had nothing."""
        now_ms = self._wall.monotonic_ms()
        if not busy and self._idle_from_ms is not None:
            self._idle_ms += now_ms - self._idle_from_ms
        self._idle_from_ms = None if busy else now_ms

    def _batch_due(self) -> bool:
        return self.fold.due(self.fold.clock_ms + self._idle_ms)

    def _check(self, reads: list[Read]) -> Checked:
        """Decode; what cannot be read is in the dead-letter topic before the step is journaled."""
        rows = list[Rows | Served]()
        refused = []
        horizon_ms = self._wall.now_ms() + self._config.max_ahead_ms
        for read in reads:
            ahead = [event for event in read.events if event.timestamp_ms > horizon_ms]
            timely = [event for event in read.events if event.timestamp_ms <= horizon_ms] if ahead else read.events
            decoded, refused_rows = in_force(self._reader, self.fold).decode(timely, read.tp)
            refused_rows += [Refused(event, "ahead-of-time", f"its timestamp is past {horizon_ms} ms") for event in ahead]
            rows.append(decoded)
            refused += [(read.tp, refusal) for refusal in sorted(refused_rows, key=lambda refusal: refusal.event.offset)]
        if refused:
            self._dead_letter(refused)
            self.rejects.note(refused)
        return Checked(reads, rows, refused)

    def _dead_letter(self, refused: list[tuple[str, Refused]]) -> None:
        if self._emits:
            self._backends.producer.append(
                dead_letter_topic(self._fold_spec.name), [dead_letter(tp, refusal) for tp, refusal in refused]
            )

    def _append(self, checked: Checked) -> PendingStep:
        newest_ms = [int(rows.t.max()) for rows in checked.rows if len(rows)]
        entry = Step(
            branch=self.branch,
            seq=self._writer.next_seq,
            epoch=self.epoch,
            reads=[(read.tp, read.start, read.stop, len(read.events), read.crc32c) for read in checked.reads],
            clock_ms=max([self.fold.clock_ms + self._idle_ms, *newest_ms]),
            rejected=entries_of(checked.refused),
            refused_with=rows_of(checked.refused) - len(checked.refused) or msgspec.UNSET,
        )
        self._idle_ms = 0
        return PendingStep(entry, self._writer.send(entry))

    def _emit(self, step: Step) -> None:
        if conflicts := contradictions(self.fold):
            self._dead_letter(conflicts)
            self.rejects.note(conflicts)
        self._backends.producer.flush()  # the step before this one: what is not delivered is an error
        if self._emits:
            self._backends.producer.post(scores_topic(self._fold_spec.name, self.branch), [output_record(step, self.fold)])

    def _decide(self) -> None:
        """Journal what the newest step's alarms lead to, and do it. After a crash between the two steps it is made up for."""
        step, drift = self._undecided, self.fold.drift
        if step is None or drift is None:
            return
        window_rows = 0 if self.fold.window is None else self.fold.window.held
        act = Act(
            branch=self.branch,
            seq=self._writer.next_seq,
            epoch=self.epoch,
            op=drift.config.act,
            args=drift.follow_up(self.fold.counts.learned, window_rows),
            cause="detector",
            evidence=f"{self.branch}.{step.seq}",
        )
        self._writer.append(act)
        self.fold.act(act)
        self._undecided, self._acted, self._unversioned = None, True, True

    # Marks

    def mark_when_due(self, wait: bool = False) -> None:
        """Mark a snapshot that has been stored (or ``wait`` for one on its way), and begin the next where it is due.

        A checkpoint that falls due while another is on its way waits for its turn; a version makes learning wait.
        """
        version = self._acted or (self._due(self._config.version_rows) and self.taught)
        self._mark(self._snapshots.finished(wait or version))
        if (version or self._due(self._config.checkpoint_rows)) and not self._snapshots.busy:
            self._begin_snapshot(version)

    def _due(self, every: int) -> bool:
        return bool(every) and self.fold.records // every > self._marked_records // every

    def _begin_snapshot(self, version: bool) -> None:
        cut = None
        if version:
            rows, version_due = self._config.version_rows, self._due(self._config.version_rows)
            reason = f"worker.version_rows = {rows}" if version_due else "run ended"
            cut = self._version_log.cut(self._writer.cursor, self.fold, reason)
        self._marked_records = self.fold.records
        self._unversioned &= not version
        self._acted &= not version
        self._snapshots.begin(self.seq, self.fold.parts(), cut)

    def _mark(self, snapshot: Snapshot | None) -> None:
        """Append a ``mark`` for a stored snapshot; from then on it counts."""
        if snapshot is None:
            return
        self._backends.producer.flush()  # recovery goes on from this mark, so what came before it must have left
        asked_s = self._wall.now_ms() / 1000
        mark = Mark(
            branch=self.branch,
            seq=self._writer.next_seq,
            epoch=self.epoch,
            state_seq=snapshot.manifest.state_seq,
            state_sha256=snapshot.manifest.state_sha256,
            checkpoint=snapshot.checkpoint,
            version=snapshot.version,
        )
        self._writer.append(mark)
        if self._backends.marked is not None:
            self._backends.marked(self.fold.position)
        self._version_log.marked(mark, snapshot.manifest.segment, asked_s)

    def mark_beginning(self) -> str:
        """The branch's newest version; where it has none, its present state becomes the first."""
        if self.newest_version is None:
            self._begin_snapshot(version=True)
            self._mark(self._snapshots.finished(wait=True))
        return str(self.newest_version)

    def close(self) -> None:
        """Mark the present state as a version, unless the newest mark already does.

        Raises: ReplacedError where the branch has another writer by now.
        """
        self._writer.check()
        self._mark(self._snapshots.finished(wait=True))
        if self._unversioned and (self.taught or self.fold.records > self._marked_records):
            self._begin_snapshot(version=self.taught)
            self._mark(self._snapshots.finished(wait=True))
        self._backends.producer.flush()
        self._snapshots.close()

    def end(self, cause: str, successor: str) -> None:
        """Close and end the branch: nothing counts between its last version and its end. Raises: ReplacedError."""
        self.close()
        self._writer.end(cause, successor)


def _records(reads: Sequence[Read]) -> int:
    return sum(len(read.events) for read in reads)
