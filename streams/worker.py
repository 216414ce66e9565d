"""The worker: one branch, live. Reads the log, journals what it does about it, learns, and lets effects out after the fence."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import msgspec

from millrace.learners.errors import TooManyRejectedError
from millrace.learners.metrics import ClassScores, ValueScores
from millrace.streams.branch import Doors, Recipe, begin, check_retention, entries_after, refold, restore
from millrace.streams.codec import Refused, Rows
from millrace.streams.entries import Host, Mark, Open, StateName, Step
from millrace.streams.journal import Pending, Writer, summarise
from millrace.streams.records import Read, Record, encode_headers, split_tp
from millrace.streams.served import Served
from millrace.streams.snapshots import Snapshot, Snapshots
from millrace.streams.store import sweep

PAUSE_S = 0.005  # between two looks at a source that had nothing
CHECK_PAUSES = 200  # pauses between two looks at the journal of an idle branch: about a second


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """How a worker goes about it. Nothing here changes what is learned, only in which steps and when it is marked."""

    step_rows: int = 4096  # a step closes at so many rows, >= 1
    step_ms: int = 25  # or after so long, whichever comes first; 0 or more
    checkpoint_rows: int = 50_000  # records between two checkpoints, >= 1; more loses more time after a crash
    version_rows: int = 0  # records between two versions; 0: only at the end of a run
    keep: int = 3  # newest checkpoints kept beside those of versions, >= 2
    max_ahead_ms: int = 60_000  # a timestamp further past the wall clock is rejected, >= 0
    stop_share: float = 0.1  # of rejected records that stops the worker, above 0, up to 1
    window_rows: int = 1000  # records over which that share is taken, >= 1

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        least = {"step_rows": 1, "step_ms": 0, "checkpoint_rows": 1, "version_rows": 0, "keep": 2, "max_ahead_ms": 0}
        for name, low in (least | {"window_rows": 1}).items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least {low}")
        if not 0.0 < self.stop_share <= 1.0:
            raise ValueError(f"stop_share = {self.stop_share}: must be above 0 and at most 1")


class Wall:
    """The wall clock. It decides when to look again and what is ahead of its time; it never reaches a learner."""

    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return time.time_ns() // 1_000_000

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class Output(msgspec.Struct, frozen=True):
    """What a step lets out on the topic ``NAME.scores``. Totals are since the branch began; differences give any window."""

    branch: str
    epoch: int
    seq: int
    reads: list[tuple[str, int, int]]  # partition, from, to
    records: int  # read so far
    waiting: int
    counts: dict[str, int]
    clock_ms: int
    scores: dict[str, object]  # of the worker's own answers, each given just before its row was learned
    served_scores: dict[str, object] | None = None  # of the answers as they were served; None: no late labels
    labels: dict[str, int] | None = None  # what came of served predictions and labels


@dataclass(frozen=True, slots=True)
class Checked:
    """Reads, decoded: the rows of each, and what was refused."""

    reads: list[Read]
    rows: list[Rows | Served]
    refused: list[tuple[str, Refused]]  # partition, and what was wrong


@dataclass(frozen=True, slots=True)
class Sent:
    """A step on its way into the journal."""

    entry: Step
    sent: Pending


@dataclass(frozen=True, slots=True)
class Opening:
    """Which branch a worker takes, on which host, by which clock."""

    branch: str
    host: Host
    wall: Wall = field(default_factory=Wall)


class Worker:
    """Makes one branch go on, from its newest good checkpoint, as the branch's one writer.

    Raises, on being made: ReplacedError, ConfigError, DamageError, OffsetsGoneError.
    """

    def __init__(self, recipe: Recipe, doors: Doors, config: WorkerConfig, opening: Opening) -> None:
        self._recipe = recipe
        self._doors = doors
        self._config = config
        self._wall = opening.wall
        self._idle_ms = 0  # gone by with nothing to read since the last step
        self._idle_from_ms: int | None = None
        self._window: deque[tuple[int, int]] = deque()  # records and rejected of the newest steps
        self.branch = opening.branch
        self._open(opening.host)

    def _open(self, host: Host) -> None:
        """Newest good checkpoint · append ``open`` · fold the counted entries after it."""
        summary = summarise(self._doors.journal, self.branch)
        if summary.fork is None:
            begin(self._recipe, self._doors, self.branch)
            summary = summarise(self._doors.journal, self.branch)
        restored = restore(self._recipe, self._doors, summary)
        check_retention(restored.fold, self._doors.source)
        self.fold = restored.fold
        self.epoch = summary.end.epoch + 1
        self._marks = summary.marks
        self._marked_records = self.fold.records if restored.mark else 0
        self._unversioned = restored.mark is None or restored.mark.version is None  # whether the state has no version yet
        self._writer = Writer(self._doors.journal, self.branch, summary.end)
        self._writer.append(
            Open(
                branch=self.branch,
                seq=self._writer.next_seq,
                epoch=self.epoch,
                after_seq=summary.end.seq,
                restored=StateName(restored.mark.state_seq, restored.mark.state_sha256) if restored.mark else None,
                host=host,
                writer=uuid.uuid4().hex,
            )
        )
        self._fold_on(restored.state_seq)
        self._doors.source.seek(self.fold.position)
        self._snapshots = Snapshots(self._doors.store, self.branch)

    def _fold_on(self, seq: int) -> None:
        """Fold what was journaled after ``seq``; what a crash kept from leaving leaves now."""
        emitted = self._last_emitted()
        entries = entries_after(self._doors.journal, self.branch, seq)
        for entry in refold(self.fold, entries, self._doors.source, self._recipe.reader):
            if isinstance(entry, Step):
                self._unversioned = True
                if entry.seq > emitted:
                    self._emit(entry)

    def _last_emitted(self) -> int:
        raw = self._doors.producer.last(self.scores_topic)
        output = None if raw is None else msgspec.json.decode(raw, type=Output)
        return output.seq if output is not None and output.branch == self.branch else 0

    @property
    def scores_topic(self) -> str:
        """Where the outputs of steps go."""
        return f"{self._recipe.name}.scores"

    @property
    def dead_letter_topic(self) -> str:
        """Where records go that cannot be read."""
        return f"{self._recipe.name}.dead-letters"

    @property
    def seq(self) -> int:
        """Of the last entry this worker has written or folded."""
        return self._writer.cursor.seq

    @property
    def newest_version(self) -> str | None:
        """The id of the branch's newest version."""
        return next((mark.version for mark in reversed(self._marks) if mark.version is not None), None)

    # Running

    def run(self, enough: Callable[[Worker], bool]) -> None:
        """Step until ``enough`` says so, then mark a version.

        Raises: what ``step`` raises. Nothing is lost: the next start goes on from the journal's end.
        """
        pauses = 0
        while not enough(self):
            phases = sum(1 for _ in self.step())
            self.mark_when_due()
            if not phases:
                self._wall.sleep(PAUSE_S)
                pauses += 1
                if pauses % CHECK_PAUSES == 0:
                    self._writer.check()  # an idle worker hears of its successor too
        self.close()

    def caught_up(self) -> bool:
        """Whether the log has nothing more and no row waits for its batch."""
        ends = {tp: high for tp, (_, high) in self._doors.source.bounds().items()}
        return ends == self._doors.source.position and not self.fold.batches.waiting

    def step(self) -> Iterator[str]:
        """One step, phase by phase (journal.md rule 5); nothing at all when there is nothing to do.

        1. read
        2. check, reject, confirm the dead letters
        3. append the ``step``
        4. predict, score and learn, in segments that end where a training batch fills
        5. wait for the acknowledgement, which says that the branch is still ours
        6. let the scores out
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
        self._writer.settle(pending.sent)
        yield "acknowledged"
        self._emit(pending.entry)
        yield "emitted"
        self._stop_if_too_many_rejected(checked)

    def _read(self) -> list[Read]:
        """What is there, for at most ``step_ms`` after the first of it."""
        reads = self._doors.source.next_batch(self._config.step_rows)
        self._pass_time(bool(reads))
        closes_ms = self._wall.now_ms() + self._config.step_ms
        left = self._config.step_rows - _records(reads)
        while reads and left > 0 and self._wall.now_ms() < closes_ms:
            self._wall.sleep(PAUSE_S)
            reads += self._doors.source.next_batch(left)
            left = self._config.step_rows - _records(reads)
        return reads

    def _pass_time(self, busy: bool) -> None:
        """Wall time counts for the journal's clock only between two looks at a source that had nothing."""
        now_ms = self._wall.now_ms()
        if not busy and self._idle_from_ms is not None:
            self._idle_ms += max(0, now_ms - self._idle_from_ms)
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
            decoded, bad = self._recipe.reader.decode(timely, read.tp)
            bad += [Refused(event, "ahead-of-time", f"its timestamp is past {horizon_ms} ms") for event in ahead]
            rows.append(decoded)
            refused += [(read.tp, one) for one in sorted(bad, key=lambda one: one.event.offset)]
        if refused:
            self._doors.producer.append(self.dead_letter_topic, [dead_letter(tp, one) for tp, one in refused])
        return Checked(reads, rows, refused)

    def _append(self, checked: Checked) -> Sent:
        newest_ms = [int(rows.t.max()) for rows in checked.rows if len(rows)]
        entry = Step(
            branch=self.branch,
            seq=self._writer.next_seq,
            epoch=self.epoch,
            reads=[(read.tp, read.start, read.stop, len(read.events), read.crc32c) for read in checked.reads],
            clock_ms=max([self.fold.clock_ms + self._idle_ms, *newest_ms]),
            rejected=[(tp, one.event.offset, None, one.reason) for tp, one in checked.refused],
        )
        self._idle_ms = 0
        return Sent(entry, self._writer.send(entry))

    def _emit(self, step: Step) -> None:
        join = self.fold.labels
        output = Output(
            branch=self.branch,
            epoch=step.epoch,
            seq=step.seq,
            reads=[(tp, start, stop) for tp, start, stop, _, _ in step.reads],
            records=self.fold.records,
            waiting=self.fold.waiting,
            counts=msgspec.structs.asdict(self.fold.counts) | ({} if join is None else {"labels": join.settled}),
            clock_ms=self.fold.clock_ms,
            scores=_plain(self.fold.scores.totals),
            served_scores=None if join is None else _plain(self.fold.served_scores.totals),
            labels=None if join is None else msgspec.structs.asdict(join.counts),
        )
        if self.fold.conflicts:  # only folding finds them, so they leave after the fence, and again after a crash
            why = "another label than the one that came first under this id and revision"
            letters = [dead_letter(tp, Refused(event, "conflicting-label", why)) for tp, event in self.fold.conflicts]
            self._doors.producer.append(self.dead_letter_topic, letters)
        self._doors.producer.flush()  # the step before this one: what is not delivered is an error
        self._doors.producer.post(self.scores_topic, [Record(msgspec.json.encode(output), self.branch.encode())])

    def _stop_if_too_many_rejected(self, checked: Checked) -> None:
        self._window.append((_records(checked.reads), len(checked.refused)))
        records = sum(count for count, _ in self._window)
        while records - self._window[0][0] >= self._config.window_rows:
            records -= self._window.popleft()[0]
        rejected = sum(count for _, count in self._window)
        if rejected > self._config.stop_share * max(records, self._config.window_rows):
            reasons = sorted({one.reason for _, one in checked.refused})
            raise TooManyRejectedError(
                f"{rejected} of the last {records} records could not be read ({', '.join(reasons)}). They are kept in topic "
                f"{self.dead_letter_topic}, nothing is lost, and everything else was learned. Mend the producer or the "
                "pipeline's fields, or raise worker.stop_share, and start again."
            )

    # Marks

    def mark_when_due(self, wait: bool = False) -> None:
        """Mark a snapshot that has been stored (or ``wait`` for one on its way), and begin the next where it is due.

        A checkpoint that falls due while another is on its way waits for its turn; a version makes learning wait.
        """
        version = self._due(self._config.version_rows)
        self._mark(self._snapshots.finished(wait or version))
        if (version or self._due(self._config.checkpoint_rows)) and not self._snapshots.busy:
            self._begin_snapshot(version)

    def _due(self, every: int) -> bool:
        return bool(every) and self.fold.records // every > self._marked_records // every

    def _begin_snapshot(self, version: bool) -> None:
        self._marked_records = self.fold.records
        self._unversioned &= not version
        self._snapshots.begin(self.seq, self.fold.parts(), f"{self.branch}.{self.seq}" if version else None)

    def _mark(self, snapshot: Snapshot | None) -> None:
        """Append a ``mark`` for a stored snapshot; from then on it counts."""
        if snapshot is None:
            return
        self._doors.producer.flush()  # recovery goes on from this mark, so what came before it must have left
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
        self._marks.append(mark)
        sweep(self._doors.store, self.branch, self._marks, self._config.keep, asked_s)

    def close(self) -> None:
        """Mark the present state as a version, unless the newest mark already does.

        Raises: ReplacedError where the branch has another writer by now.
        """
        self._writer.check()
        self._mark(self._snapshots.finished(wait=True))
        if self._unversioned:
            self._begin_snapshot(version=True)
            self._mark(self._snapshots.finished(wait=True))
        self._doors.producer.flush()
        self._snapshots.close()


def dead_letter(tp: str, refused: Refused) -> Record:
    """The record as it was, with why and from where in its headers. A redrive is a new event at the end."""
    event = refused.event
    topic, partition = split_tp(tp)
    why = {
        "millrace.reason": refused.reason,
        "millrace.detail": refused.detail,
        "millrace.topic": topic,
        "millrace.partition": str(partition),
        "millrace.offset": str(event.offset),
        "millrace.timestamp_ms": str(event.timestamp_ms),
    }
    headers = event.headers + encode_headers(tuple((name, text.encode()) for name, text in why.items()))
    return Record(event.value, event.key, headers)


def _plain(totals: ClassScores | ValueScores) -> dict[str, object]:
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in asdict(totals).items()}


def _records(reads: Sequence[Read]) -> int:
    return sum(len(read.events) for read in reads)
