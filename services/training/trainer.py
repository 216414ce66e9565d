"""The trainer: the one worker of a branch in a Ray actor, which lets its newest weights out to ``Current``.

The worker's thread starts with the actor, so it goes on by itself after a restart. It offers its state between two steps, when
everything is acknowledged: once what answers has changed and the last state has arrived, as often as ``Pace`` lets it. Another
thread packs and publishes the newest offer, and beats.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from millrace.learners.drift.alarms import Alarm
from millrace.learners.errors import MillraceError
from millrace.services.decisions.rollback import name_last_good
from millrace.services.errors import BusyError
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.bundle import Identity, Parts, bundle_bytes
from millrace.services.pipeline.instance import Instance
from millrace.services.pipeline.succession import heir_of
from millrace.services.training.current import Blob, Publication
from millrace.services.training.pace import Pace
from millrace.services.training.promotion import Promotion
from millrace.services.training.run import identity_of_worker, serve_beginning, serve_first
from millrace.streams.branch.branch import Backends
from millrace.streams.branch.host import use_threads
from millrace.streams.branch.merge import MergeInput, piece_bytes
from millrace.streams.errors import ReplacedError, StorageError, TooManyRejectedError
from millrace.streams.journal.retention import Retention
from millrace.streams.parts import sha256
from millrace.streams.sharding import WHOLE, shard_of
from millrace.streams.state.notices import sentences
from millrace.streams.worker.worker import Worker

log = logging.getLogger("millrace")

LOOK_S = 0.25  # between two looks whether the state has taken in all of the log, which replicas are told
BEAT_S = 1.0  # between two beats, where nothing is told
RETRY_S = 2.0  # after the disk refused, or while another process has the branch

Publish = Callable[[Publication, Blob | None], bool]  # without a blob: a beat; False where the state is not held there


@dataclass(frozen=True, slots=True)
class TrainerStatus:
    """Where a trainer is."""

    running: bool  # False: the worker has ended though nobody stopped it
    epoch: int
    seq: int
    records: int
    said: str  # the last thing that went wrong, or nothing
    pid: int
    branch: str  # the one it was made for, or that one's heir
    rejected: tuple[tuple[str, int], ...] = ()  # why records were refused since its worker began, and how many


@dataclass(frozen=True, slots=True)
class ShardState:
    """What a shard lets out: all that merging it needs."""

    identity: Identity
    as_of_ms: int
    piece: MergeInput


class Trainer:
    """A worker on one branch, and the thread that publishes for it."""

    def __init__(self, instance: Instance, branch: str, publish: Publish) -> None:
        self._instance = instance
        self._branch = branch
        self._publish = publish
        self._is_shard = shard_of(branch) != WHOLE
        self._publishes = instance.loaded.pipeline.llm is None  # a draft is read from its version
        self._promotion = Promotion(instance)
        self._stop = threading.Event()
        self._mail = threading.Condition()
        self._offer: Parts | ShardState | None = None
        self._offered: Identity | None = None  # the newest state that was offered
        self._confirmed_ms: int | None = None  # a later time by which that one had taken in everything
        self._answers: tuple[object, int] = (None, 0)  # what that one answers by
        self._cost_s = 0.0  # of making that offer
        self._on_its_way = False  # whether it has not arrived yet
        self._pace = Pace()
        self._replaced = False  # by another writer of the branch, with no branch to go on with
        self._state = TrainerStatus(True, 0, 0, 0, "", os.getpid(), branch)
        self._warned = set[str]()  # what was said of the features already
        self._alarm: Alarm | None = None  # the newest one after which the last good version was named
        self._version: str | None = None
        self._worker = threading.Thread(target=self._learn, name="worker", daemon=True)
        self._publisher = threading.Thread(target=self._publish_offers, name="publisher", daemon=True)
        self._worker.start()
        self._publisher.start()

    def state(self) -> TrainerStatus:
        """Where it is."""
        running = self._worker.is_alive() and not self._replaced
        return replace(self._state, running=running or self._stop.is_set(), branch=self._branch)

    def stop(self, timeout_s: float) -> TrainerStatus:
        """Let the step finish, mark a version, and end."""
        self._stop.set()
        self._worker.join(timeout_s)
        return self.state()

    def _learn(self) -> None:
        """Run workers until told to stop; the disk and another process's hold are waited for."""
        use_threads(self._instance.loaded.pipeline.threads)
        while not self._stop.is_set():
            try:
                with self._instance.hold(self._branch, take_over=False):
                    self._run_worker()
            except (StorageError, BusyError) as error:
                self._note_failure(error)
                self._stop.wait(RETRY_S)
            except ReplacedError as error:
                self._note_failure(error)
                self._follow_heir()
            except TooManyRejectedError as error:
                self._note_failure(error)
                self._wait_to_be_let_past()
            except MillraceError as error:
                self._note_failure(error)
                return

    def _wait_to_be_let_past(self) -> None:
        """Until an operator lets the branch go past what it refuses: `millrace run --past-rejects`."""
        retention = Retention(self._instance.ledger_stream(), self._instance.loaded.pipeline.versions.keep)
        before = retention.passed_by(self._branch)
        while retention.passed_by(self._branch) == before and not self._stop.wait(RETRY_S):
            pass

    def _follow_heir(self) -> None:
        """Go on with the branch that took this one's place, or with this one where an operator has given that up.

        Where another writer has merely taken it, wait for one of the two.
        """
        self._replaced, since_ms, archive = True, time.time_ns() // 1_000_000, Archive(self._instance)
        while self._replaced and not self._stop.is_set():
            heir = heir_of(archive, self._branch)
            operations = self._instance.ledger().operations.values()
            given_up = any(operation.state == "aborted" and operation.when_ms >= since_ms for operation in operations)
            self._replaced = heir == self._branch and not given_up
            self._branch = heir
            self._stop.wait(RETRY_S if self._replaced else 0.0)

    def _note_failure(self, error: MillraceError) -> None:
        log.error("The trainer of branch %s: %s", self._branch, error)
        self._state = replace(self._state, said=str(error))

    def _run_worker(self) -> None:
        pipeline = self._instance.loaded.pipeline
        serve_first(self._instance, self._branch)
        backends = self._instance.backends(self._branch)
        worker = Worker(self._instance.fold_spec, backends, pipeline.worker, identity_of_worker(self._instance, self._branch))
        serve_beginning(self._instance, worker)
        log.info("%s: epoch %d goes on at seq %d, %d records", worker.branch, worker.epoch, worker.seq, worker.fold.records)
        try:
            worker.run(_Between(self, backends))
        finally:
            self._state = replace(self._state, rejected=_rejected(worker))

    def look(self, worker: Worker, as_of_ms: int) -> None:
        """Say where the worker is, and by when its state had taken in all of the log; and offer what has changed of it."""
        drift, version = worker.fold.drift, worker.newest_version
        if drift is not None and drift.newest != self._alarm and version != self._version and not self._is_shard:
            self._alarm, self._version = drift.newest, version  # the version after the alarm is there
            name_last_good(self._instance, worker.branch)
        self._promotion.look(worker)
        self._warn(worker)
        place = (worker.epoch, worker.seq, worker.fold.records)
        self._state = TrainerStatus(True, *place, "", os.getpid(), worker.branch, _rejected(worker))
        if state_of(worker) != self._offered:
            self.offer(worker, as_of_ms, only_news=False)
            return
        with self._mail:
            self._confirmed_ms = as_of_ms
            self._mail.notify()

    def offer(self, worker: Worker, as_of_ms: int, only_news: bool) -> None:
        """Offer the state as it is now, where the one before has arrived and it may leave: everything in it is acknowledged.

        ``only_news``: not where it answers as the one before.
        """
        if not self._publishes or self._on_its_way or not self._pace.allows:
            return
        began_s, answers = time.monotonic(), answers_of(worker)
        if only_news and answers[0] is self._answers[0] and answers[1] == self._answers[1]:
            return
        offer = self._offer_of(worker, as_of_ms)
        with self._mail:
            self._offer, self._confirmed_ms, self._on_its_way = offer, None, True
            self._offered, self._answers = offer.identity, answers
            self._cost_s = time.monotonic() - began_s
            self._mail.notify()

    def _offer_of(self, worker: Worker, as_of_ms: int) -> Parts | ShardState:
        fold, identity = worker.fold, state_of(worker)
        if self._is_shard:
            return ShardState(identity, as_of_ms, piece_now(worker))
        kind = self._instance.loaded.pipeline.kind
        windows = None if fold.entities is None else fold.entities.answering()
        return Parts(identity, as_of_ms, kind, fold.features.state(), fold.learner.servable().arrays(), windows)

    def _warn(self, worker: Worker) -> None:
        """Say each thing that is wrong with what is learned, once."""
        for name, sentence in sentences(worker.fold.noticed()).items():
            if name not in self._warned:
                self._warned.add(name)
                log.warning("%s: %s.", worker.branch, sentence)

    @property
    def stopped(self) -> bool:
        """Whether it was told to stop."""
        return self._stop.is_set()

    def _publish_offers(self) -> None:
        """What is offered, one after the other; a beat says that the state published last is still the newest."""
        published: Published | None = None
        while True:
            with self._mail:
                self._mail.wait_for(lambda: self._offer is not None or self._confirmed_ms is not None, BEAT_S)
                offer, self._offer = self._offer, None
                confirmed_ms, self._confirmed_ms = self._confirmed_ms, None
            if offer is not None:
                published = self._let_out(offer)
            elif published is not None:
                published = published.confirmed(confirmed_ms)
                published.beat(self._publish)

    def _let_out(self, offer: Parts | ShardState) -> Published:
        """Pack and publish, and count what that took of this process: the answer is waited for beside learning."""
        began_s = time.thread_time()
        published = packed(offer, self._instance)
        self._publish(published.publication, published.blob)
        with self._mail:
            self._pace.spent(self._cost_s + time.thread_time() - began_s, published.blob.nbytes)
            self._on_its_way = False
        return published


@dataclass(frozen=True, slots=True)
class Published:
    """What was let out last."""

    publication: Publication
    blob: Blob

    def confirmed(self, as_of_ms: int | None) -> Published:
        """The same state, known to have taken in everything by then; None: nothing more is known."""
        return self if as_of_ms is None else replace(self, publication=replace(self.publication, as_of_ms=as_of_ms))

    def beat(self, publish: Publish) -> None:
        """Beat where ``Current`` has the state, else give it the bytes."""
        if not publish(self.publication, None):
            publish(self.publication, self.blob)


def packed(offer: Parts | ShardState, instance: Instance) -> Published:
    """The offer as bytes."""
    blob = piece_bytes(offer.piece) if isinstance(offer, ShardState) else bundle_bytes(offer, instance.loaded.pipeline.schema)
    return Published(Publication(offer.identity, sha256(blob), offer.as_of_ms), np.frombuffer(blob, np.uint8))


def _rejected(worker: Worker) -> tuple[tuple[str, int], ...]:
    return tuple(worker.rejects.by_reason.items())


def state_of(worker: Worker) -> Identity:
    """The name of the state that a worker is at."""
    return Identity(worker.branch, worker.epoch, worker.seq)


def answers_of(worker: Worker) -> tuple[object, int]:
    """What its state answers by: another object, or another number, once that has changed."""
    entities = worker.fold.entities
    return worker.fold.learner.servable(), 0 if entities is None else entities.moved


def piece_now(worker: Worker) -> MergeInput:
    """The state of a shard as it is between two steps."""
    parts = {"position": dict(worker.fold.position), "clock_ms": worker.fold.clock_ms}
    counts = parts | {"counts": msgspec.to_builtins(worker.fold.counts)}
    return MergeInput(worker.branch, worker.seq, worker.fold.learner.state_dict(), worker.fold.features.state(), counts)


class _Between:
    """Called by the worker between two steps: offers, and says when it is over."""

    def __init__(self, trainer: Trainer, backends: Backends) -> None:
        self._trainer = trainer
        self._backends = backends
        self._next_s = 0.0
        self._as_of_ms = 0  # when the worker had last read to the log's end

    def __call__(self, worker: Worker) -> bool:
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + LOOK_S
            self._confirm()
            self._trainer.look(worker, self._known_ms(worker))
        else:
            self._trainer.offer(worker, self._known_ms(worker), only_news=True)
        return self._trainer.stopped

    def _confirm(self) -> None:
        """Note the time where the state has taken in all of the log."""
        now_ms = time.time_ns() // 1_000_000
        ends = {tp: high for tp, (_, high) in self._backends.source.bounds().items()}
        if ends == self._backends.source.position:
            self._as_of_ms = now_ms

    def _known_ms(self, worker: Worker) -> int:
        """The last time at which the state had taken in all of the log; before the first, the journal's clock."""
        return self._as_of_ms or min(worker.fold.clock_ms, time.time_ns() // 1_000_000)
