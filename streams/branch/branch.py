"""A branch: how it is begun, how its state comes back, and how entries are folded again from the log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec

from millrace.learners.drift.alarms import DriftConfig
from millrace.learners.errors import ConfigError
from millrace.learners.protocol import Learner, Scaling, Value
from millrace.streams.branch.learner_rollback import is_learned, rewound
from millrace.streams.branch.revisions import features_of, learner_maker
from millrace.streams.entity.entities import Entities
from millrace.streams.errors import DamageError
from millrace.streams.features.columns import Features
from millrace.streams.formats.completions import CompletionCodec
from millrace.streams.formats.contents import Contents
from millrace.streams.formats.json_rows import Codec, Rows
from millrace.streams.journal.entries import Act, Entry, Fork, Mark, Step
from millrace.streams.journal.journal import Cursor, Summary, Writer
from millrace.streams.journal.retention import Retention
from millrace.streams.journal.store import Checkpoint, Part, Segment, Store, read_checkpoint, state_sha256
from millrace.streams.labels.join import LabelJoin, LabelRules
from millrace.streams.labels.served import Served, ServedCodec
from millrace.streams.parts import pack, sha256, unpack
from millrace.streams.schema import Schema, leaves
from millrace.streams.sharding import Partitioner, merging_branch
from millrace.streams.source import Position, Producer, Source
from millrace.streams.state.drift import Drift
from millrace.streams.state.exclusion_reader import Decoder, Excluding
from millrace.streams.state.fates import OUTSIDE, fates
from millrace.streams.state.fold import REVISION, Fold, is_truth
from millrace.streams.state.held_out import HeldOut, HeldOutConfig
from millrace.streams.state.microbatch import MicroBatches
from millrace.streams.state.stages import Owner, Stages
from millrace.streams.state.window import Window
from millrace.streams.stream import Stream

log = logging.getLogger("millrace")
Carried = TypeVar("Carried")
RESTORE = "Restore journal and store from one copy."


@dataclass(frozen=True, slots=True)
class Backends:
    """The outside systems of one branch."""

    source: Source
    producer: Producer
    journal: Stream
    store: Store
    retention: Retention | None = None  # None: every version is kept
    marked: Callable[[Position], None] | None = None  # told how far the branch is whenever a mark counts; for lag tools


@dataclass(frozen=True, slots=True)
class FoldSpec:
    """What a fold is made of, the same for every branch of a pipeline."""

    name: str  # of the pipeline; output topics begin with it
    schema: Schema
    codec: Codec | Contents | CompletionCodec  # of events
    learner: str  # kind
    make_learner: Callable[[], Learner]
    batch_rows: int  # rows of a training batch, >= 1
    batch_wait_ms: int  # by the journal's clock
    seed: int
    config: bytes  # JSON of everything beside the fields that changes what is learned
    drift: DriftConfig | None = None  # what is watched; None: nothing
    labels: LabelRules | None = None  # of labels that come late; None: they stand in the rows alone
    held_out: HeldOutConfig | None = None  # of rows that are kept back and asked about; None: all are learned
    served: ServedCodec | None = None  # reads late labels too; there if and only if ``labels`` is
    partitioner: Partitioner | None = None  # of a log that is dealt out to shards; None: one shard, and any will do
    scaling: Scaling = "none"  # what the learner needs of the feature stage

    @property
    def reader(self) -> Codec | Contents | CompletionCodec | ServedCodec:
        """What decodes the log."""
        return self.served or self.codec

    def reader_of(self, fork: Fork) -> Decoder:
        """What decodes the log for a branch: what its fork excludes is left out, and a shard refuses what lies astray."""
        reader: Codec | Contents | CompletionCodec | ServedCodec = self.reader.of_revision(fork.fold_revision)
        if isinstance(reader, ServedCodec) and self.partitioner is not None:
            reader = reader.placed_by(self.partitioner(fork.topics[reader.topic].partitions))
        return Excluding(reader, tuple(fork.exclude)) if fork.exclude else reader

    def fold(self, fork: Fork) -> Fold:
        """The state of a branch that begins with nothing, after the fork and before any step; ``start`` gives any branch's.

        Raises: LearnerError where this release cannot fold such a fork.
        """
        stages = self.stages(self.features(fork.fold_revision), bool(fork.exclude))
        owner = Owner(fork.branch, merging_branch(fork.branch))
        return Fold(self.schema, self.make_as_of(fork), stages, fork.positions, owner)

    def make_as_of(self, fork: Fork) -> Callable[[], Learner]:
        """What makes learners of the revision that a branch was begun under. Raises: LearnerError where this release cannot."""
        return learner_maker(self.make_learner, fork)

    def features(self, fold_revision: int = REVISION) -> Features:
        """A feature stage that has learned nothing, as folding of that revision has it. Raises: LearnerError."""
        return features_of(self.schema, self.scaling, fold_revision)

    def stages(self, features: Features, excludes: bool = False) -> Stages:
        """New ones, that no row has passed; ``excludes``: of a branch that leaves records out."""
        return Stages(
            features,
            MicroBatches(self.batch_rows, self.batch_wait_ms),
            None if self.labels is None else LabelJoin(self.labels, self.schema.label, sha256(self.schema.declared)),
            None if self.drift is None else Drift(self.drift, self.seed),
            Window(self.drift.relearn_rows) if self.drift is not None and self.drift.act == "relearn" else None,
            None if self.held_out is None else HeldOut(self.held_out, self.seed),
            None if self.schema.entity is None else Entities(self.schema, excludes),
        )

    def new_fork(self, branch: str, source: Source) -> Fork:
        """The first entry of a branch that reads everything the log has."""
        return Fork(
            branch=branch,
            seq=1,
            epoch=0,
            positions={tp: low for tp, (low, _) in source.bounds().items()},
            topics=source.topics(),
            learner=self.learner,
            learner_revision=self.make_learner().revision,
            fold_revision=REVISION,
            config_sha256=sha256(self.config),
            features_sha256=sha256(self.schema.declared),
            seed=self.seed,
        )

    def check(self, fork: Fork, backends: Backends) -> None:
        """A branch has one configuration and reads the topics it was begun on.

        Raises: ConfigError, DamageError naming what differs.
        """
        declared = {fork.config_sha256: self.config, fork.features_sha256: self.schema.declared}
        changes = [
            change
            for name, declaration in declared.items()
            for change in changed(backends.store, fork.branch, name, declaration)
        ]
        if changes or fork.seed != self.seed:
            raise ConfigError(
                f"Branch {fork.branch} has one configuration, and the pipeline file says another: {', '.join(changes[:5])}. "
                "Set it back, or begin a branch with --branch NEW."
            )
        for name, topic in backends.source.topics().items():
            topic_read = fork.topics.get(name)
            if topic_read is None or topic_read.id != topic.id or topic_read.partitions > topic.partitions:
                raise DamageError(
                    f"Topic {name} is not the one branch {fork.branch} has read: it was recreated or has lost partitions. "
                    "Restore the log from a copy, or begin a branch on the new topic with --branch NEW."
                )


def begin(fold_spec: FoldSpec, backends: Backends, branch: str) -> Fork:
    """Write the first entry of an empty branch."""
    fork = fold_spec.new_fork(branch, backends.source)
    for declared in (fold_spec.config, fold_spec.schema.declared):
        backends.store.put(branch, declared)
    Writer(backends.journal, branch, Cursor()).append(fork)
    return fork


def changed(store: Store, branch: str, name: str, declaration: bytes) -> list[str]:
    """What differs between the declaration stored as ``name`` and ``declaration``, key by key; nothing where they are equal."""
    if name == sha256(declaration):
        return []
    try:
        before = leaves(msgspec.json.decode(store.get(branch, name)))
    except DamageError as error:
        return [f"what it was cannot be read ({error})"]
    after = leaves(msgspec.json.decode(declaration))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [_difference(key, before, after) for key in keys]


def _difference(key: str, before: Mapping[str, object], after: Mapping[str, object]) -> str:
    """A key that one of them leaves out is there at its default, or in the other's tables alone."""
    at_start = f"begun with {before[key]!r}" if key in before else "begun without it"
    return f"{key} = {after[key]!r} ({at_start})" if key in after else f"{key} left out ({at_start})"


@dataclass(frozen=True, slots=True)
class Restored:
    """A state that was read back, and the mark it was read from."""

    fold: Fold
    mark: Mark | None  # None: the fork's own start

    @property
    def state_seq(self) -> int:
        """The last entry the state has taken in."""
        return self.mark.state_seq if self.mark else 1


def restore(fold_spec: FoldSpec, backends: Backends, summary: Summary) -> Restored:
    """The state of the newest counted mark whose parts verify, else of the one before, else of the fork.

    Raises: DamageError with the choices where a fork begins at a version and both its own copy and that are unreadable.
    """
    if summary.fork is None:
        raise DamageError("The journal has no fork entry, so nothing says where the branch begins. Restore it from a copy.")
    fold_spec.check(summary.fork, backends)
    fold = fold_spec.fold(summary.fork)
    for mark in reversed(summary.marks):
        if mark.checkpoint is None:
            continue
        try:
            fold.load(load_checkpoint(backends.store, mark))
        except DamageError as error:
            log.warning("The checkpoint of seq %d cannot be used (%s); going back to the one before.", mark.state_seq, error)
            continue
        if mark.state_seq == 1:
            check_start(summary.fork, fold, mark.state_sha256)
        return Restored(fold, mark)
    return Restored(start(fold_spec, backends.store, summary.fork), None)


def start(fold_spec: FoldSpec, store: Store, fork: Fork) -> Fold:
    """The state after the fork, before any step: empty, or that of the version it begins at, read from its parent.

    Raises: DamageError with the choices where that cannot be read.
    """
    fold = fold_spec.fold(fork)
    if fork.parent is None:
        return fold
    branch, seq = fork.parent.branch, fork.parent.seq
    try:
        manifest = read_checkpoint(store, branch, str(fork.join_from))
        parts = _checked_parts(store, branch, manifest, manifest.parts)
        if fork.learner_from != fork.join_from:
            parts = rewound(fold.features, fold_spec.make_as_of(fork), _learner_parts(store, fork), parts)
        fold.load(carried(fork, parts))
    except DamageError as error:
        raise DamageError(
            f"Branch {fork.branch} begins at version {branch}.{seq}, and neither its own copy of that state nor the version "
            f"can be read: {error} Or give this branch up and plan a replay from another version."
        ) from error
    if fork.parent.state_sha256 != manifest.state_sha256:
        raise DamageError(f"Checkpoint {fork.join_from} is not of the state that branch {fork.branch} is to begin with.")
    check_start(fork, fold, manifest.state_sha256)
    return fold


def carried(fork: Fork, parts: Mapping[str, Carried]) -> dict[str, Carried]:
    """Those parts of a version that a fork begins with: all but its detectors, unless the fork says whose go on.

    A replay's are fresh ones: they are to judge what it learns now, not what its parent did (docs/design/journal.md, rule 9).
    """
    not_carried = {"detectors"} if fork.parent is not None and fork.detector_from is None else set()
    return {name: part for name, part in parts.items() if name not in not_carried}


def _learner_parts(store: Store, fork: Fork) -> dict[str, dict[str, Value]]:
    """Of the version whose learner the fork has: its manifest lies with the fork, as ``begin_fork`` copied it."""
    manifest = read_checkpoint(store, fork.branch, str(fork.learner_from))
    return _checked_parts(store, fork.branch, manifest, filter(is_learned, manifest.parts))


def _checked_parts(store: Store, branch: str, manifest: Checkpoint, names: Iterable[str]) -> dict[str, dict[str, Value]]:
    """Some parts of a manifest."""
    prefix = f"branch {manifest.branch}, seq {manifest.state_seq}, part "
    return {name: unpack(store.get(branch, manifest.parts[name].sha256), prefix + name) for name in names}


def check_start(fork: Fork, fold: Fold, state_sha256: str) -> None:
    """The state that a fork begins with is its parent's, to the bit; with an older learner, at least it begins in its place.

    Raises: DamageError where it is another.
    """
    if fork.parent is not None and fork.learner_from != fork.join_from:
        state_sha256 = fork.parent.state_sha256
    positions = fork.positions | fold.position  # partitions that the parent has not read are new to the fork
    if fork.parent is None or (state_sha256, positions) != (fork.parent.state_sha256, fork.positions):
        parent_name = "nothing" if fork.parent is None else f"version {fork.parent.branch}.{fork.parent.seq}"
        raise DamageError(
            f"Branch {fork.branch} is to begin with {parent_name}, and begins with another state. Restore its store."
        )


def load_checkpoint(store: Store, mark: Mark) -> dict[str, dict[str, Value]]:
    """The parts of the checkpoint that a mark names.

    Raises: DamageError naming the first part that is missing or not what was stored.
    """
    return {name: _part(store, mark, name, part) for name, part in manifest_of(store, mark).parts.items()}


def load_part(store: Store, mark: Mark, name: str) -> dict[str, Value]:
    """One part of the checkpoint that a mark names.

    Raises: DamageError naming it where it is missing or not what was stored.
    """
    return _part(store, mark, name, manifest_of(store, mark).parts[name])


def fates_of(store: Store, mark: Mark) -> dict[str, int]:
    """Where every record of a mark's state went, as ``Fold.fates`` has it. Raises: as ``load_part``."""
    counts = load_part(store, mark, "counts")["counts"]
    outside = load_part(store, mark, "outside") if "outside" in manifest_of(store, mark).parts else {}
    return fates(counts, {fate: outside[key] for fate, key in OUTSIDE.items() if key in outside})


def _part(store: Store, mark: Mark, name: str, part: Part) -> dict[str, Value]:
    return unpack(store.get(mark.branch, part.sha256), f"branch {mark.branch}, seq {mark.state_seq}, part {name}")


def manifest_of(store: Store, mark: Mark) -> Checkpoint:
    """What the checkpoint that a mark names is made of. Raises: DamageError where it is missing, damaged or another state's."""
    if mark.checkpoint is None:
        raise DamageError(f"The mark of seq {mark.state_seq} names no checkpoint. Restore the journal from a copy.")
    manifest = read_checkpoint(store, mark.branch, mark.checkpoint)
    if (manifest.state_sha256, manifest.state_seq) != (mark.state_sha256, mark.state_seq):
        raise DamageError(
            f"Checkpoint {mark.checkpoint} is not of the state that the mark of seq {mark.state_seq} names. {RESTORE}"
        )
    return manifest


def save_checkpoint(
    store: Store, branch: str, seq: int, parts: Mapping[str, Mapping[str, Value]], segment: Segment | None = None
) -> tuple[str, Checkpoint]:
    """Store the parts and their manifest; the checkpoint's name and what is in it. Counts only once a mark names it.

    A version's says, in ``segment``, where the journal entries are that led to it.
    """
    listed = {}
    for name, part in parts.items():
        blob = pack(part)
        listed[name] = Part(store.put(branch, blob, more_follow=True), len(blob), is_truth(name))
    manifest = Checkpoint(1, branch, seq, state_sha256(listed), listed, segment)
    return store.put(branch, msgspec.json.encode(manifest)), manifest


def state_hash(parts: Mapping[str, Mapping[str, Value]]) -> str:
    """The hash of a state from its parts: of those that are its record of truth."""
    blobs = {name: pack(parts[name]) for name in parts if is_truth(name)}
    return state_sha256({name: Part(sha256(blob), len(blob), True) for name, blob in blobs.items()})


def refold(fold: Fold, entries: Iterable[Entry], source: Source, codec: Decoder) -> Iterator[Entry]:
    """Apply entries to ``fold`` from the log, one by one; each is yielded after it was applied.

    Raises: DamageError, OffsetsGoneError where the log is not what the journal says.
    """
    for entry in entries:
        if isinstance(entry, Step):
            fold.step(entry, reread(source, in_force(codec, fold), entry))
        elif isinstance(entry, Act):
            fold.act(entry)
        yield entry


def in_force(reader: Decoder, fold: Fold) -> Decoder:
    """The same reader without the exclusions that acts have ended."""
    included = fold.included.get(fold.branch)
    if not included or not isinstance(reader, Excluding):
        return reader
    still_excluded = tuple(exclusion for number, exclusion in enumerate(reader.exclude) if number not in included)
    return replace(reader, exclude=still_excluded) if still_excluded else reader.reader


def reread(source: Source, codec: Decoder, step: Step) -> list[Rows | Served]:
    """The rows of a step, read from the log again and checked against the step.

    Raises: DamageError naming the range that differs, OffsetsGoneError where retention has taken it.
    """
    rejected = {(tp, offset) for tp, offset, row, _ in step.rejected if row is None}
    bad_rows = {(tp, offset, row) for tp, offset, row, _ in step.rejected if row is not None}
    pieces: list[Rows | Served] = []
    for tp, start, stop, records, crc in step.reads:
        read = source.read(tp, start, stop)
        if (len(read.events), read.crc32c) != (records, crc):
            raise DamageError(
                f"{tp} offsets {start} to {stop - 1} are not what step {step.seq} read ({records} records, crc32c {crc}; now "
                f"{len(read.events)}, {read.crc32c}). Restore the log from a copy."
            )
        readable = [event for event in read.events if (tp, event.offset) not in rejected]
        rows, refused = codec.without_limit.decode(readable, tp)
        for refusal in refused:
            if (refused_row := (tp, refusal.event.offset, refusal.row)) not in bad_rows:
                raise DamageError(
                    f"{tp} offset {refusal.event.offset} was readable when step {step.seq} was written and is not now "
                    f"({refusal.reason}: {refusal.detail}). Use the release that wrote the step."
                )
            bad_rows.discard(refused_row)
        pieces.append(rows)
    for tp, offset, row in sorted(bad_rows):
        raise DamageError(
            f"{tp} offset {offset}: row {row} was rejected when step {step.seq} was written and is not now. "
            "Use the release that wrote the step."
        )
    return pieces
