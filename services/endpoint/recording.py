"""What a replica appends to the log: the answers it gave, and the labels that callers bring.

One thread and one queue, so that whatever gathers while a commit runs is the next commit. An answer is appended after it was
given; while the log takes nothing such records wait, bounded. What is over the bound, or what the log will never take, is
dropped and counted. A label's caller waits until the log has it, and hears at once where the log refuses.

Source: docs/design/overview.md#served-predictions and docs/design/overview.md#late-labels.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from millrace.learners.errors import MillraceError
from millrace.services.config.sections import ServingConfig
from millrace.streams.errors import StorageError
from millrace.streams.records import Record
from millrace.streams.source import Producer

log = logging.getLogger("millrace")

COMMIT_ROWS = 1024  # that one commit to the log takes, about
SAY_S = 10.0  # between two warnings that answers are not recorded
RETRY_S = 0.5  # after the log refused, until answers are offered again

Stored = list[tuple[int, int]]  # partition and offset of every record, in order


@dataclass(slots=True)
class Recorded:
    """How many records went where since the replica began."""

    stored: int = 0
    dropped: int = 0
    waiting: int = 0  # answers that are not in the log yet
    waiting_bytes: int = 0  # of those whose size was said


@dataclass(frozen=True, slots=True)
class _Job:
    """Records to append, and who waits for them; answers are waited for by nobody."""

    rows: int
    make: Callable[[], Sequence[Record]]  # called in the recorder's thread
    done: Future[Stored] | None = None
    size: int = 0  # bytes, where somebody said so


_Made = tuple[_Job, Sequence[Record]]  # a job, and its records


@dataclass(slots=True)
class Recorder:
    """Appends to one topic, in a thread of its own. ``open_log`` is called there, and again until it succeeds."""

    open_log: Callable[[], Producer]
    topic: str
    limits: ServingConfig = field(default_factory=ServingConfig)
    records: bool = True  # whether answers are recorded at all
    means: str = "answered rows were not recorded so far, so labels for them join nothing"  # what it is that some are dropped
    counts: Recorded = field(default_factory=Recorded)
    _jobs: deque[_Job] = field(default_factory=deque)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _ending: bool = False
    _said_s: float = float("-inf")  # when it was last said that answers are dropped
    _log: Producer | None = None
    _thread: threading.Thread | None = None

    def later(self, rows: int, make: Callable[[], Sequence[Record]], size: int = 0) -> bool:
        """Append soon; False, and counted, where too much waits already. ``size``: bytes, where rows say too little."""
        if not self.records:
            return False
        with self._changed:
            if self._ending or self._is_full(rows, size):
                self._dropped(rows, self._why_now(rows))
                return False
            self.counts.waiting += rows
            self.counts.waiting_bytes += size
            self._add(_Job(rows, make, size=size))
            return True

    def _is_full(self, rows: int, size: int) -> bool:
        """Whether so much more is over what may wait; where nothing does, whatever comes may."""
        waiting = self.counts
        over = waiting.waiting + rows > self.limits.waiting_rows or waiting.waiting_bytes + size > self.limits.waiting_bytes
        return bool(waiting.waiting) and over

    async def now(self, records: Sequence[Record]) -> Stored:
        """Append, and return when the log has them.

        Raises: StorageError where it does not take them in time; they may be there all the same, and may be sent again.
        """
        job = _Job(len(records), lambda: records, Future())
        assert job.done is not None
        with self._changed:
            if self._ending:
                raise StorageError("This replica is ending; send the request again.")
            self._add(job)
        try:
            async with asyncio.timeout(self.limits.log_s):
                return await asyncio.shield(asyncio.wrap_future(job.done))
        except TimeoutError as error:
            raise StorageError(
                f"The log has not answered for {self.limits.log_s:g} s (serving.log_s); send the request again."
            ) from error

    def close(self, timeout_s: float) -> None:
        """Append what waits, if the log takes it in time; the rest is dropped and counted."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)
        with self._changed:
            self._drop()

    def _why_now(self, rows: int) -> str:
        """Why so many more may not wait."""
        if self._ending:
            return "this replica is ending."
        return (
            f"{self.counts.waiting} rows wait for the log, and {rows} more are over serving.waiting_rows = "
            f"{self.limits.waiting_rows}, or serving.waiting_bytes = {self.limits.waiting_bytes}."
        )

    def _dropped(self, rows: int, why: str) -> None:
        self.counts.dropped += rows
        if time.monotonic() - self._said_s >= SAY_S:
            self._said_s = time.monotonic()
            log.warning("%d %s: %s", self.counts.dropped, self.means, why)

    def _drop(self) -> None:
        self.counts.dropped += self.counts.waiting
        self.counts.waiting = self.counts.waiting_bytes = 0
        self._jobs.clear()

    def _add(self, job: _Job) -> None:
        self._jobs.append(job)
        if self._thread is None:
            self._thread = threading.Thread(target=self._append_all, name="recorder", daemon=True)
            self._thread.start()
        self._changed.notify()

    def _append_all(self) -> None:
        """Commit after commit, until there is nothing more to append and it is over."""
        while jobs := self._next():
            made = self._made(jobs)
            try:
                self._commit(made)
            except StorageError as error:
                self._refused([job for job, _ in made], error)
            except Exception:
                self._commit_apart(made)

    def _made(self, jobs: Sequence[_Job]) -> list[_Made]:
        """The records of each job; one that makes none is lost, and the others go on."""
        made: list[_Made] = []
        for job in jobs:
            try:
                made.append((job, job.make()))
            except Exception as error:
                log.debug("Records that could not be made", exc_info=True)
                self._lost(job, error)
        return made

    def _commit_apart(self, made: Sequence[_Made]) -> None:
        """Job after job, so that only those are lost that the log refuses; of others some may be stored twice."""
        for at, (job, records) in enumerate(made):
            try:
                self._commit([(job, records)])
            except StorageError as error:
                self._refused([job for job, _ in made[at:]], error)
                return
            except Exception as error:
                self._lost(job, error)

    def _next(self) -> list[_Job]:
        """What has gathered, oldest first; empty where it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._ending)
            jobs, rows = list[_Job](), 0
            while self._jobs and rows < COMMIT_ROWS:
                jobs.append(self._jobs.popleft())
                rows += jobs[-1].rows
            return jobs

    def _opened(self) -> Producer:
        """The log. Raises: StorageError where it cannot be opened, whatever is the matter with it."""
        if self._log is None:
            try:
                self._log = self.open_log()
            except MillraceError as error:
                raise StorageError(str(error)) from error
        return self._log

    def _commit(self, made: Sequence[_Made]) -> None:
        stored = self._opened().append(self.topic, [record for _, records in made for record in records])
        at = 0
        for job, records in made:
            if job.done is not None:
                job.done.set_result(stored[at : at + len(records)])
            at += len(records)
        with self._changed:
            self.counts.stored += at
            self._wait_no_longer([job for job, _ in made])

    def _wait_no_longer(self, jobs: Sequence[_Job]) -> None:
        self.counts.waiting -= sum(job.rows for job in jobs if job.done is None)
        self.counts.waiting_bytes -= sum(job.size for job in jobs)

    def _lost(self, job: _Job, error: Exception) -> None:
        """What the log will never take: its caller hears so, else it is counted among what was dropped."""
        with self._changed:
            self._wait_no_longer([job])
            if job.done is not None:
                job.done.set_exception(error)
            else:
                self._dropped(job.rows, str(error) or type(error).__name__)

    def _refused(self, jobs: list[_Job], error: StorageError) -> None:
        """Tell who waits; keep the answers for the next attempt."""
        log.warning("%s What was answered waits; labels are refused until the log is back.", error)
        for job in jobs:
            if job.done is not None:
                job.done.set_exception(StorageError(f"The log takes nothing now: {error} Send the request again later."))
        with self._changed:
            self._jobs.extendleft(reversed([job for job in jobs if job.done is None]))
            self._changed.wait_for(lambda: self._ending or any(job.done for job in self._jobs), RETRY_S)
            if self._ending:
                self._drop()
