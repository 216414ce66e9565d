"""The merger: a Ray actor that merges what the trainers of all shards let out, and lets the merge out to ``Current``.

It stands where the one trainer stands in a pipeline of one shard, and answers the same questions. To the shards' trainers it is
what ``Current`` is to that one.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from millrace.learners.errors import MillraceError
from millrace.services.decisions.rollback import name_last_good
from millrace.services.errors import BusyError
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.bundle import Identity, Parts, identity_of
from millrace.services.pipeline.instance import Instance
from millrace.services.training.current import Blob, Publication
from millrace.services.training.pace import Pace
from millrace.services.training.shards import merging, newest_versions
from millrace.services.training.trainer import LOOK_S, RETRY_S, Publish, Published, TrainerStatus, packed
from millrace.streams.branch.merge import Merged, MergeInput, Merging, open_piece, piece_of
from millrace.streams.errors import DamageError, ReplacedError, StorageError

log = logging.getLogger("millrace")

SHARE = 0.25  # in (0, 1), of its time that a merger merges and publishes, at most: the shards learn on the same machine


class Merger:
    """The newest state of every shard, and the thread that merges them."""

    def __init__(self, instance: Instance, branch: str, publish: Publish) -> None:
        self._instance = instance
        self._branch = branch
        self._publish = publish
        self._shards = instance.shards(branch)
        self._archive = Archive(instance)
        self._lock = threading.Lock()
        self._held: dict[str, tuple[Publication, MergeInput]] = {}  # by shard: what it let out last
        self._marked_versions: list[str | None] = []  # of the shards, when the newest version was marked
        self._stop = threading.Event()
        self._arrived = threading.Event()  # something that is not merged yet, or the word to stop
        self._pace = Pace(SHARE)
        self._state = TrainerStatus(True, 0, 0, 0, "", os.getpid(), branch)
        self._thread = threading.Thread(target=self._run, name="merger", daemon=True)
        self._thread.start()

    # What the shards' trainers call

    def publish(self, publication: Publication, blob: Blob) -> bool:
        """Keep a shard's state until the next merge; False where something newer of it is here already."""
        piece = open_piece(bytes(blob))
        with self._lock:
            previous = self._held.get(publication.identity.branch)
            if previous is not None and previous[0].identity.place > publication.identity.place:
                return False
            self._held[publication.identity.branch] = (publication, piece)
        self._arrived.set()
        return True

    def beat(self, publication: Publication) -> bool:
        """The shard's state took in everything by then; False where that state is not here."""
        with self._lock:
            previous = self._held.get(publication.identity.branch)
            if previous is None or previous[0].identity != publication.identity:
                return False
            self._held[publication.identity.branch] = (publication, previous[1])
        return True

    # What is asked of a trainer

    def state(self) -> TrainerStatus:
        """Where it is."""
        return replace(self._state, running=self._thread.is_alive() or self._stop.is_set())

    def stop(self, timeout_s: float) -> TrainerStatus:
        """Mark a version of the newest versions of all shards, and end."""
        self._stop.set()
        self._arrived.set()
        self._thread.join(timeout_s)
        return self.state()

    def _run(self) -> None:
        """Merge until told to stop; the disk and another process's hold are waited for."""
        while not self._stop.is_set():
            try:
                with merging(self._instance, self._branch, take_over=False) as writer:
                    self._merge_on(writer)
            except (StorageError, BusyError, ReplacedError) as error:
                self._note_failure(error)
                self._stop.wait(RETRY_S)
            except MillraceError as error:
                self._note_failure(error)
                return

    def _note_failure(self, error: MillraceError) -> None:
        log.error("The merger of branch %s: %s", self._branch, error)
        self._state = replace(self._state, said=str(error))

    def _merge_on(self, writer: Merging) -> None:
        """Merge once a shard has let something out, as often as ``Pace`` lets it, and mark what the shards have marked."""
        published: Published | None = None
        last, mark_s = list[Identity](), 0.0
        while self._awaits_news():
            inputs = self._all_held()
            if inputs and [publication.identity for publication, _ in inputs] != last:
                published = self._merge(writer, inputs)
                last = [publication.identity for publication, _ in inputs]
            elif inputs and published is not None:
                published = published.confirmed(min(publication.as_of_ms for publication, _ in inputs))
                published.beat(self._publish)
            if time.monotonic() >= mark_s:
                mark_s = time.monotonic() + LOOK_S
                self._mark(writer)
        self._mark(writer)

    def _awaits_news(self) -> bool:
        """Wait for something to merge, or a while for nothing; False where it was told to stop."""
        self._arrived.wait(LOOK_S)
        self._arrived.clear()
        return not self._stop.wait(self._pace.left_s)

    def _merge(self, writer: Merging, inputs: Sequence[tuple[Publication, MergeInput]]) -> Published:
        """Merge and let it out, and count what that took."""
        began_s = time.thread_time()
        published = self._let_out(writer.merge([piece for _, piece in inputs]), inputs)
        self._pace.spent(time.thread_time() - began_s, published.blob.nbytes)
        return published

    def _all_held(self) -> list[tuple[Publication, MergeInput]]:
        """What every shard let out last, in shard order; what has not been heard of since the start is its newest mark."""
        with self._lock:
            by_shard = dict(self._held)
        shard_states = [by_shard.get(shard) or self._marked(shard) for shard in self._shards]
        return [shard_state for shard_state in shard_states if shard_state is not None] if all(shard_states) else []

    def _marked(self, shard: str) -> tuple[Publication, MergeInput] | None:
        """The newest marked state of a shard that is whole; None before there is one."""
        if shard not in self._instance.branches():
            return None
        for mark in reversed(self._archive.marks(shard)):
            try:
                piece = piece_of(self._instance.store(), mark)
            except DamageError as error:
                log.warning("%s; trying the checkpoint before", error)
                continue
            return Publication(identity_of(mark), "", piece.counts["clock_ms"]), piece
        return None

    def _let_out(self, merged: Merged, inputs: Sequence[tuple[Publication, MergeInput]]) -> Published:
        """Publish a merge as a state of the merging branch."""
        entry = merged.entry
        identity = Identity(entry.branch, entry.epoch, entry.seq)
        kind = self._instance.loaded.pipeline.kind
        serve = merged.learner.servable().arrays()
        parts = Parts(identity, min(publication.as_of_ms for publication, _ in inputs), kind, merged.features, serve)
        published = packed(parts, self._instance)
        self._publish(published.publication, published.blob)
        records = sum(sum(piece.counts["counts"].values()) for _, piece in inputs)
        self._state = TrainerStatus(True, entry.epoch, entry.seq, records, "", os.getpid(), self._branch)
        return published

    def _mark(self, writer: Merging) -> None:
        """Mark a version where the shards have marked newer ones."""
        marks = newest_versions(self._archive, self._shards) if self._seen(self._shards) else []
        versions = [mark.version for mark in marks]
        if versions and versions != self._marked_versions:
            version = writer.version_of(marks)
            self._marked_versions = versions
            if self._instance.fold_spec.drift is not None:
                name_last_good(self._instance, self._branch)
            log.info("version %s merges %s", version, ", ".join(map(str, versions)))

    def _seen(self, shards: Sequence[str]) -> bool:
        """Whether all of them have begun."""
        return set(shards) <= set(self._instance.branches())
