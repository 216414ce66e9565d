"""The branch that merges shards: each entry names the states of all of them, and its state is their exact merge.

A merge adds up what the shards' learners know: all of it is kept, and each row is learned once. What is live is merged as the
shards go on; a version is merged from marks of the shards, so that verifying those and merging again proves it.

Source: docs/design/journal.md, rules 12 and 15.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from millrace.learners.protocol import Learner, State, Value
from millrace.streams.branch.branch import Backends, FoldSpec, begin, load_part, save_checkpoint
from millrace.streams.errors import DamageError
from millrace.streams.features.joined import joined_tables, of_rows
from millrace.streams.journal.entries import Host, Mark, Merge
from millrace.streams.journal.journal import Cursor, Writer, counted, newest_version, summarise
from millrace.streams.journal.store import Store, kept_marks, sweep
from millrace.streams.parts import pack, sha256, unpack
from millrace.streams.stream import Stream

MERGED = ("counts", "derived", "features", "learner")  # parts of a shard's state that a merge looks at

NEWEST = 2  # marks whose checkpoints are kept whatever the policy says

MergeLearners = Callable[[Mapping[str, Any]], tuple[Learner, Any]]  # in the order of the names


@dataclass(frozen=True, slots=True)
class MergeInput:
    """A state of one shard, as a merge needs it."""

    branch: str
    seq: int
    learner: State
    features: dict[str, Value]
    counts: dict[str, Value]  # position, clock_ms, counts, as in a checkpoint

    @property
    def learner_sha256(self) -> str:
        """Of the part that is merged."""
        return sha256(pack(self.learner.truth))


@dataclass(frozen=True, slots=True)
class Merged:
    """The state of the merging branch after one entry."""

    entry: Merge
    learner: Learner
    features: dict[str, Value]
    counts: dict[str, Value]

    def parts(self) -> dict[str, dict[str, Value]]:
        """As a checkpoint has them."""
        state = self.learner.state_dict()
        return {
            "counts": self.counts,
            "derived": state.derived,
            "features": self.features,
            "learner": state.truth,
            "serve": self.learner.servable().arrays(),
        }


def piece_bytes(piece: MergeInput) -> bytes:
    """What ``open_piece`` reads."""
    tables = {"truth": piece.learner.truth, "derived": piece.learner.derived, "features": piece.features}
    flat = {f"{table}.{name}": value for table, state in tables.items() for name, value in state.items()}
    return pack({"branch": piece.branch, "seq": piece.seq, "counts": piece.counts} | flat)


def open_piece(blob: bytes) -> MergeInput:
    """The piece in ``blob``. Raises: DamageError where its bytes are not one."""
    state = unpack(blob, "a shard's published state")
    tables: dict[str, dict[str, Value]] = {"truth": {}, "derived": {}, "features": {}}
    for name, value in state.items():
        table, dot, key = name.partition(".")
        if dot:
            tables[table][key] = value
    learner = State(tables["truth"], tables["derived"])
    return MergeInput(state["branch"], state["seq"], learner, tables["features"], state["counts"])


def piece_of(store: Store, mark: Mark) -> MergeInput:
    """What a mark of a shard brings. Raises: DamageError where its parts are not whole."""
    parts = {name: load_part(store, mark, name) for name in MERGED}
    return MergeInput(
        mark.branch, mark.state_seq, State(parts["learner"], parts["derived"]), parts["features"], parts["counts"]
    )


def named(pieces: Sequence[MergeInput]) -> list[tuple[str, int, str]]:
    """What a merge entry says of its pieces."""
    return [(piece.branch, piece.seq, piece.learner_sha256) for piece in pieces]


def merged_counts(pieces: Sequence[MergeInput]) -> dict[str, Value]:
    """Positions together, counts added up, and the clock of the shard that is furthest."""
    counts = Counter[str]()
    for piece in pieces:
        counts.update(piece.counts["counts"])
    return {
        "position": {tp: at for piece in pieces for tp, at in piece.counts["position"].items()},
        "clock_ms": max(piece.counts["clock_ms"] for piece in pieces),
        "counts": dict(counts),
    }


def merge_pieces(fold_spec: FoldSpec, merge: MergeLearners, entry: Merge, pieces: Sequence[MergeInput]) -> Merged:
    """The state that a merge entry names, from the states that it is of.

    Raises: DamageError where a piece is not the one that the entry names; LearnerError where they do not add up.
    """
    if named(pieces) != entry.of:
        raise DamageError(f"Merge {entry.branch}.{entry.seq} is of other states than these of its shards. Restore their store.")
    return _merged(fold_spec, merge, entry, pieces)


def _merged(fold_spec: FoldSpec, merge: MergeLearners, entry: Merge, pieces: Sequence[MergeInput]) -> Merged:
    """The state of an entry that was made from these pieces."""
    untaught = fold_spec.features().state()
    if any(pack(untaught | of_rows(piece.features)) != pack(piece.features) for piece in pieces):
        raise DamageError(f"Merge {entry.branch}.{entry.seq}: the shards' feature tables differ. Restore their store.")
    learners = {}
    for at, piece in enumerate(pieces):
        learner = fold_spec.make_learner()
        learner.load_state_dict(piece.learner)
        learners[f"{at:04d}"] = learner
    features = joined_tables([piece.features for piece in pieces])
    return Merged(entry, merge(learners)[0], features, merged_counts(pieces))


class Merging:
    """The one writer of the merging branch.

    Raises, on being made: ReplacedError, ConfigError, DamageError.
    """

    def __init__(self, fold_spec: FoldSpec, backends: Backends, branch: str, merge: MergeLearners, host: Host) -> None:
        self.branch = branch
        self._fold_spec = fold_spec
        self._backends = backends
        self._merge = merge
        summary = summarise(backends.journal, branch)
        if summary.fork is None:
            begin(fold_spec, backends, branch)
            summary = summarise(backends.journal, branch)
        assert summary.fork is not None
        fold_spec.check(summary.fork, backends)
        self.marks = summary.marks
        self._writer = Writer(backends.journal, branch, summary.end)
        self.epoch = self._writer.open(host, None)
        last = newest_version(self.marks)
        self._marked = [] if last is None else merge_of(backends.journal, branch, last).of  # what the newest version merges

    @property
    def seq(self) -> int:
        """Of the newest entry."""
        return self._writer.cursor.seq

    def merge(self, pieces: Sequence[MergeInput]) -> Merged:
        """Merge, journal it, and wait until it counts; on return it may be let out.

        Raises: ReplacedError where the branch has another writer; what ``merge_pieces`` raises.
        """
        entry = Merge(branch=self.branch, seq=self._writer.next_seq, epoch=self.epoch, of=named(pieces))
        merged = _merged(self._fold_spec, self._merge, entry, pieces)
        self._writer.append(entry)
        return merged

    def mark(self, merged: Merged) -> str:
        """Store a merge and mark it as a version, and let go of what is no longer kept; its id.

        Raises: ReplacedError, StorageError.
        """
        asked_s = time.time()
        parts, version = merged.parts(), f"{self.branch}.{merged.entry.seq}"
        checkpoint, manifest = save_checkpoint(self._backends.store, self.branch, merged.entry.seq, parts)
        mark = Mark(
            branch=self.branch,
            seq=self._writer.next_seq,
            epoch=self.epoch,
            state_seq=merged.entry.seq,
            state_sha256=manifest.state_sha256,
            checkpoint=checkpoint,
            version=version,
        )
        self._writer.append(mark)
        self.marks.append(mark)
        self._marked = merged.entry.of
        retention, declared = (
            self._backends.retention,
            {sha256(self._fold_spec.config), sha256(self._fold_spec.schema.declared)},
        )
        released = set[str]() if retention is None else retention.release(self.marks)
        sweep(self._backends.store, self.branch, kept_marks(self.marks, NEWEST, released), asked_s, declared)
        return version

    def version_of(self, marks: Sequence[Mark]) -> str | None:
        """A version that merges these versions of the shards; the newest one where it is that already, or no row was learned.

        Raises: DamageError where a part of them is not whole; what ``merge`` and ``mark`` raise.
        """
        pieces = [piece_of(self._backends.store, mark) for mark in marks]
        last, learned = newest_version(self.marks), merged_counts(pieces)["counts"].get("learned", 0) if pieces else 0
        if not learned or (last is not None and self._marked == named(pieces)):
            return last
        return self.mark(self.merge(pieces))


def merge_of(journal: Stream, branch: str, version: str) -> Merge:
    """The entry that a merged version is the state of. Raises: DamageError where the journal has none."""
    seq = int(version.rpartition(".")[2])
    for entry in counted(journal, branch, Cursor()):
        if isinstance(entry, Merge) and entry.seq == seq:
            return entry
    raise DamageError(f"Version {version}: the journal of branch {branch} has no such merge. Restore it from a copy.")
