"""The late-label join: a prediction waits under its id until its label comes or its horizon ends.

By the journal's clock and record by record, so that no result depends on how records were grouped into reads:

- label identity is (id, revision); the same value again is ignored, another value is a conflict and a dead letter; a higher
  revision than the one that was learned is a correction, a lower one outdated; all are counted
- a label that comes before its prediction waits ``grace_ms``; the highest revision among those that wait is learned, the others
  are outdated
- a prediction whose horizon ends is learned with the default label, or passed if there is none; its label is late from then on
- an id that is served twice counts once: the first prediction stays, the others are passed
- past ``memory_rows`` the oldest of the kind that has more waits no longer: a prediction is passed, a label is unmatched

Labels come at least once, the log holds them at least once, they are learned exactly once within the horizon.

Source: docs/design/journal.md, rules 6 and 7; docs/design/overview.md#late-labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from millrace.learners.protocol import Array, Batch, Floats, Value
from millrace.streams.formats.meaning import RecordError, label_value
from millrace.streams.hashing import hash64
from millrace.streams.labels.identities import NO_LABEL, Identities
from millrace.streams.labels.pending import TrainingRows, Waiting
from millrace.streams.labels.served import LabelValue, LateLabel, Prediction, Served, Withheld
from millrace.streams.schema import Label

NEVER_MS = 1 << 62
SEGMENTS = 8  # of ``memory_rows`` one is held open by the remembered identities


@dataclass(frozen=True, slots=True)
class LabelRules:
    """How long predictions and labels wait for each other, by the journal's clock. Every key changes what is learned."""

    horizon_ms: int = 3_600_000  # in [1, 2^50), milliseconds that a prediction waits for its label
    default: LabelValue | None = None  # the label of a prediction whose horizon ends; without it such a prediction is passed
    grace_ms: int = 60_000  # in [1, 2^50), milliseconds that a label waits for its prediction
    retry_ms: int = 86_400_000  # in [0, 2^50), milliseconds past the horizon in which a repeated id or label is recognised
    memory_rows: int = 100_000  # in [1, 2^50), predictions and labels that may wait; past it the oldest waits no longer

    def __post_init__(self) -> None:
        """Raise ValueError for a setting out of range."""
        for name, low in (("horizon_ms", 1), ("grace_ms", 1), ("retry_ms", 0), ("memory_rows", 1)):
            if not low <= getattr(self, name) < 1 << 50:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least {low}, and less than 2^50")

    def default_of(self, label: Label) -> str | float | None:
        """The default as a learner gets it. Raises: ValueError where it is not of the label's type."""
        try:
            return None if self.default is None else label_value(label, self.default)
        except RecordError as error:
            raise ValueError(f"default = {self.default!r}: {error.detail}") from error


class JoinCounts(msgspec.Struct):
    """What came of served predictions and labels."""

    joined: int = 0  # predictions that met their label
    defaulted: int = 0  # predictions learned with the default label
    unlabelled: int = 0  # predictions whose horizon ended without any
    crowded: int = 0  # predictions and labels that could not wait as long as they should have: ``memory_rows``
    repeated_predictions: int = 0
    refeaturised: int = 0  # answered by another feature stage than this one
    repeated: int = 0  # labels that were there already
    conflicts: int = 0  # another value for the same identity: dead letters
    corrections: int = 0  # higher revisions
    outdated: int = 0  # revisions that were there with, or before, a higher one
    late: int = 0  # labels after the horizon
    unmatched: int = 0  # labels whose grace ended


@dataclass(slots=True)
class Early:
    """Labels that wait for their prediction: the highest revision, and what came under this id."""

    label: str | float
    revision: int
    due_ms: int
    seen: dict[int, int]  # revision -> hash64 of the label


@dataclass(slots=True)
class Taken:
    """What came of records, in order."""

    fresh: list[int] = field(default_factory=list)  # which of the rows are predictions to wait for
    slots: list[int] = field(default_factory=list)  # where those wait
    to_learn: list[tuple[int, str | float, int]] = field(default_factory=list)  # slot, label, and when they met
    let_go: list[int] = field(default_factory=list)  # slots of predictions that wait no more, unlearned
    passed: int = 0
    conflicts: list[int] = field(default_factory=list)  # which of the records


class LabelJoin:
    """Everything that waits, and everything that is remembered."""

    def __init__(self, rules: LabelRules, label: Label, features_sha256: str) -> None:
        self._rules = rules
        self._default = rules.default_of(label)
        self._numbers = label.task == "regress"
        self._features = ("", features_sha256)
        self.counts = JoinCounts()
        self.settled = 0  # label records that wait no more and are no dead letters
        self._rows = Waiting()
        self._pending = self._rows.slots
        self._early: dict[int, Early] = {}  # oldest first, so the first is the first that is due
        self._early_seen = 0  # labels that came under the ids that wait there
        self._withheld: dict[int, None] = {}  # predictions that wait and get no default: a label of theirs is left out
        self._forewarned: dict[int, int] = {}  # ids of such labels that came first -> until when, oldest first
        keep_ms = rules.horizon_ms + rules.retry_ms
        self._known = Identities(keep_ms, max(1, rules.memory_rows // SEGMENTS))
        self._turn_ms = NEVER_MS  # nobody who waits is due before

    @property
    def waiting_predictions(self) -> int:
        """Predictions that wait for their label."""
        return len(self._pending)

    @property
    def waiting_labels(self) -> int:
        """Labels that wait for their prediction."""
        return len(self._early)

    @property
    def waiting(self) -> int:
        """Predictions and labels that wait."""
        return len(self._pending) + len(self._early)

    @property
    def remembered(self) -> Identities:
        """Settled ids."""
        return self._known

    def may_learn(self, ids: NDArray[np.int64], from_ms: int, to_ms: int) -> bool:
        """Whether predictions under these ids, read between two times, could let anything be learned before the last one."""
        due_ms = self.due_ms
        ends = (due_ms is not None and due_ms <= to_ms) or to_ms - from_ms >= self._rules.horizon_ms
        return ends or any(identity in self._early for identity in ids.tolist())

    @property
    def due_ms(self) -> int | None:
        """When the next of them is due."""
        dues = [] if (first := self._rows.first) is None else [first[1]]
        dues += [next(iter(self._early.values())).due_ms] if self._early else []
        return min(dues, default=None)

    def take(self, served: Served, clock_ms: NDArray[np.int64]) -> Taken:
        """Records in log order, each at its clock (n,)."""
        taken, row, remembered = Taken(), 0, self._known
        remembered.approach(served.ids)
        for at, (record, identity, now_ms) in enumerate(
            zip(served.records, served.ids.tolist(), clock_ms.tolist(), strict=True)
        ):
            if now_ms >= self._turn_ms or now_ms >= remembered.turn_ms:
                self.advance(now_ms, taken)
            if isinstance(record, Prediction):
                if identity in self._pending or (remembered.maybe(identity) and remembered.get(identity)):
                    self.counts.repeated_predictions += 1
                    taken.passed += 1
                else:
                    taken.fresh.append(row)
                    self._prediction(identity, record, now_ms, taken)
                row += 1
            elif isinstance(record, Withheld):
                self._withhold(identity, now_ms)
                taken.passed += 1
            elif not self._label(identity, record, now_ms, taken):
                taken.conflicts.append(at)
        return taken

    def fill(self, taken: Taken, fresh: Batch) -> None:
        """The rows of the fresh predictions, as they wait."""
        if taken.fresh:
            self._rows.fill(taken.slots, fresh)

    def answer(self, fresh: list[int], taken: Taken, classes: tuple[str, ...], scores: Floats) -> None:
        """Answers (n, C) in place of the served ones, for the n of ``taken.fresh`` at these places."""
        for at, row in zip(fresh, scores.tolist(), strict=True):
            self._rows.answer(taken.slots[at], (classes, tuple(row)))

    def training_rows(self, taken: Taken) -> TrainingRows | None:
        """What is to be learned; who waits no more is let go."""
        training_rows = None
        if taken.to_learn:
            slots, labels, clock_ms = map(list, zip(*taken.to_learn, strict=True))
            y = np.array(labels, dtype=np.float64) if self._numbers else _objects(labels)
            training_rows = self._rows.training_rows(slots, y, clock_ms)
            self._rows.release(slots)
        self._rows.release(taken.let_go)
        return training_rows

    def advance(self, now_ms: int, taken: Taken) -> None:
        """Let the clock come to ``now_ms``: horizons and graces end, identities are forgotten."""
        self._known.advance(now_ms)
        while (oldest := self._rows.first) is not None and oldest[1] <= now_ms:
            self._expire(oldest[0], now_ms, taken)
        while self._early and (first := next(iter(self._early.items())))[1].due_ms <= now_ms:
            self._unmatched(first[0])
        while self._forewarned and (forewarned := next(iter(self._forewarned.items())))[1] <= now_ms:
            del self._forewarned[forewarned[0]]
        self._turn_ms = NEVER_MS if (due_ms := self.due_ms) is None else due_ms

    def _expire(self, identity: int, now_ms: int, taken: Taken) -> None:
        if self._default is None or identity in self._withheld:
            self.counts.unlabelled += 1
            self._let_go(identity, now_ms, taken)
            return
        self.counts.defaulted += 1
        self._known.add(identity, NO_LABEL, 0, now_ms)
        taken.to_learn.append((self._pending.pop(identity), self._default, now_ms))

    def _let_go(self, identity: int, now_ms: int, taken: Taken) -> None:
        """A prediction is passed; its label is late from now on."""
        taken.let_go.append(self._pending.pop(identity))
        self._withheld.pop(identity, None)
        taken.passed += 1
        self._known.add(identity, NO_LABEL, 0, now_ms)

    def _unmatched(self, identity: int) -> None:
        self._early_seen -= len(self._early.pop(identity).seen)
        self.counts.unmatched += 1
        self.settled += 1

    def _prediction(self, identity: int, record: Prediction, now_ms: int, taken: Taken) -> None:
        """Take a prediction that has not been there."""
        if record.features not in self._features:
            self.counts.refeaturised += 1
        due_ms = now_ms + self._rules.horizon_ms
        taken.slots.append(self._rows.take(identity, (record.classes, record.scores), due_ms))
        if identity in self._early:
            self._join_early(identity, now_ms, taken)
            return
        if self._forewarned.pop(identity, 0) > now_ms:
            self._withheld[identity] = None
        if due_ms < self._turn_ms:
            self._turn_ms = due_ms
        if len(self._pending) + self._early_seen > self._rules.memory_rows:
            self._make_room(now_ms, taken)

    def _join_early(self, identity: int, now_ms: int, taken: Taken) -> None:
        early = self._early.pop(identity)
        self._early_seen -= len(early.seen)
        for revision, label in early.seen.items():
            self._known.add(identity, revision, label, now_ms)
        self._joined(self._pending.pop(identity), early.label, now_ms, taken)

    def _joined(self, slot: int, label: str | float, now_ms: int, taken: Taken) -> None:
        taken.to_learn.append((slot, label, now_ms))
        self.counts.joined += 1
        self.settled += 1

    def _label(self, identity: int, record: LateLabel, now_ms: int, taken: Taken) -> bool:
        """Take a label; False for a conflict."""
        value: str | float = record.label  # as the codec leaves it
        hashed = _label_hash(value)
        slot = self._pending.pop(identity, None)
        if slot is not None:
            self._withheld.pop(identity, None)
            self._known.add(identity, record.revision, hashed, now_ms)
            self._joined(slot, value, now_ms, taken)
            return True
        early = self._early.get(identity)
        revisions = self._known.get(identity) if early is None else early.seen
        if not revisions:
            due_ms = now_ms + self._rules.grace_ms
            self._early[identity] = Early(value, record.revision, due_ms, {record.revision: hashed})
            self._turn_ms = min(self._turn_ms, due_ms)
            self._saw_early(now_ms, taken)
            return True
        fate = _fate(record.revision, hashed, revisions)
        if fate == "conflicts":
            self.counts.conflicts += 1
            return False
        self.settled += 1
        if early is not None and fate != "repeated":
            self._another_early(early, record.revision, value, hashed)
            self._saw_early(now_ms, taken)
            fate = "outdated"
        elif fate in ("corrections", "outdated"):
            self._known.add(identity, record.revision, hashed, now_ms)
        setattr(self.counts, fate, getattr(self.counts, fate) + 1)
        return True

    def _withhold(self, identity: int, now_ms: int) -> None:
        """A label is left out: its prediction waits on for another, and gets no default."""
        if identity in self._pending:
            self._withheld[identity] = None
            return
        self._forewarned.pop(identity, None)
        self._forewarned[identity] = now_ms + self._rules.grace_ms
        if len(self._forewarned) > self._rules.memory_rows:
            del self._forewarned[next(iter(self._forewarned))]
            self.counts.crowded += 1

    def _another_early(self, early: Early, revision: int, value: str | float, hashed: int) -> None:
        early.seen[revision] = hashed
        if revision > early.revision:
            early.label, early.revision = value, revision

    def _saw_early(self, now_ms: int, taken: Taken) -> None:
        self._early_seen += 1
        if len(self._pending) + self._early_seen > self._rules.memory_rows:
            self._make_room(now_ms, taken)

    def _make_room(self, now_ms: int, taken: Taken) -> None:
        """Let the oldest wait no longer; a prediction is passed without the default label, since its own may yet come."""
        self.counts.crowded += 1
        if self._early_seen > len(self._pending):
            self._unmatched(next(iter(self._early)))
        else:
            self._let_go(next(iter(self._pending)), now_ms, taken)

    def parts(self) -> dict[str, dict[str, Value]]:
        """A copy of the whole state: one part that changes, and a part for each closed segment of identities."""
        early = self._early.items()
        state = {
            **self._rows.state(),
            "early": [[identity, e.revision, e.due_ms, e.label, list(map(list, e.seen.items()))] for identity, e in early],
            "counts": msgspec.to_builtins(self.counts),
            "settled": self.settled,
            **{f"known_{name}": value for name, value in self._known.state().items()},
        }
        if self._withheld or self._forewarned:
            state["withheld"] = [list(self._withheld), list(map(list, self._forewarned.items()))]
        return {"join": state} | {f"join.{number}": part for number, part in self._known.parts()}

    def load(self, parts: dict[str, dict[str, Value]]) -> None:
        """Become the join that gave ``parts``."""
        state = parts["join"]
        self._rows = Waiting()
        self._rows.load(state)
        self._pending = self._rows.slots
        self._early = {
            identity: Early(label, revision, due_ms, dict(revisions))
            for identity, revision, due_ms, label, revisions in state["early"]
        }
        self._early_seen = sum(len(early.seen) for early in self._early.values())
        withheld, forewarned = state.get("withheld", ([], []))
        self._withheld, self._forewarned = dict.fromkeys(withheld), dict(forewarned)
        self.counts = msgspec.convert(state["counts"], JoinCounts)
        self.settled = state["settled"]
        remembered = {name.removeprefix("known_"): value for name, value in state.items() if name.startswith("known_")}
        segments = {int(name.partition(".")[2]): part for name, part in parts.items() if name.startswith("join.")}
        self._known.load(remembered, segments)
        self._turn_ms = NEVER_MS if (due_ms := self.due_ms) is None else due_ms


def _fate(revision: int, hashed: int, revisions: dict[int, int]) -> str:
    """Which count a label goes to whose id has been seen with these revisions and labels."""
    if revision in revisions:
        return "repeated" if revisions[revision] == hashed else "conflicts"
    if NO_LABEL in revisions:
        return "late"
    return "corrections" if revision > max(revisions) else "outdated"


@lru_cache(maxsize=4096, typed=True)
def _label_hash(value: str | float) -> int:
    return hash64(str(value))


def _objects(cells: list[str | float]) -> Array:
    column = np.empty(len(cells), dtype=object)
    column[:] = cells
    return column
