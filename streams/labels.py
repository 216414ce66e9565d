"""The late-label join: a prediction waits under its id until its label comes or its horizon ends.

By the journal's clock and record by record, so that no result depends on how records were grouped into reads:

- label identity is (id, revision); the same value again is ignored, another value is a conflict and a dead letter, a higher
  revision a correction; all are counted
- a label that comes before its prediction waits ``grace_ms``; the highest revision among those that wait is learned
- a prediction whose horizon ends is learned with the default label, or passed if there is none; its label is late from then on
- an id that is served twice counts once: the first prediction stays, the others are passed

Labels come at least once, the log holds them at least once, they are learned exactly once within the horizon.

Source: journal.md, rules 6 and 7; shared/specs/serving.md, E.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from millrace.learners.protocol import Array, Batch, Floats, Value
from millrace.streams.codec import RecordError, label_value
from millrace.streams.identities import NO_LABEL, Identities
from millrace.streams.schema import Label
from millrace.streams.served import LabelValue, LateLabel, Served, hash64

SEGMENTS = 8  # of ``memory_rows`` one is held open by the remembered identities


@dataclass(frozen=True, slots=True)
class LabelRules:
    """How long whom is waited for, by the journal's clock. All of it changes what is learned."""

    horizon_ms: int = 3_600_000  # a prediction waits so long for its label, >= 1
    default: LabelValue | None = None  # what a prediction is learned with whose horizon ends; without it: passed
    grace_ms: int = 60_000  # a label waits so long for its prediction, >= 1
    retry_ms: int = 86_400_000  # past the horizon, in which the same label or id may come again, >= 0
    memory_rows: int = 100_000  # predictions and labels that wait, >= 1; past it the oldest is passed before its time

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
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
    outdated: int = 0  # lower revisions than one that was there
    late: int = 0  # labels after the horizon
    unmatched: int = 0  # labels whose grace ended


@dataclass(slots=True)
class Pending:
    """A prediction that waits; its features are filled in before anybody asks for them."""

    classes: tuple[str, ...]  # of the answer
    scores: tuple[float, ...]
    key: bytes | None
    t: int
    weight: float
    due_ms: int
    x: Floats | None = None  # (d,), as the feature stage saw the row when it was read


@dataclass(slots=True)
class Early:
    """Labels that wait for their prediction: the highest revision, and what came under this id."""

    label: str | float
    revision: int
    due_ms: int
    seen: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Lesson:
    """A prediction and what it is learned with."""

    pending: Pending
    label: str | float
    clock_ms: int


@dataclass(slots=True)
class Taken:
    """What came of records, in order."""

    lessons: list[Lesson] = field(default_factory=list)
    fresh: list[tuple[int, Pending]] = field(default_factory=list)  # which of the rows are predictions to wait for
    passed: int = 0
    conflicts: list[int] = field(default_factory=list)  # which of the records


class LabelJoin:
    """Everything that waits, and everything that is remembered."""

    def __init__(self, rules: LabelRules, label: Label, features_sha256: str) -> None:
        self._rules = rules
        self._default = rules.default_of(label)
        self._features = features_sha256
        self.counts = JoinCounts()
        self.settled = 0  # label records that wait no more and are no dead letters
        self._pending: dict[int, Pending] = {}  # oldest first, so the first is the first that is due
        self._early: dict[int, Early] = {}  # the same
        keep_ms = rules.horizon_ms + rules.retry_ms
        self._known = Identities(keep_ms, max(1, rules.memory_rows // SEGMENTS))

    @property
    def waiting(self) -> int:
        """Predictions and labels that wait."""
        return len(self._pending) + len(self._early)

    @property
    def remembered(self) -> Identities:
        """Settled ids."""
        return self._known

    @property
    def due_ms(self) -> int | None:
        """When the next of them is due."""
        dues = [next(iter(self._pending.values())).due_ms] if self._pending else []
        dues += [next(iter(self._early.values())).due_ms] if self._early else []
        return min(dues, default=None)

    def take(self, served: Served, clock_ms: NDArray[np.int64]) -> Taken:
        """Records in log order, each at its clock (n,)."""
        taken = Taken()
        self._known.approach(served.ids)
        row = 0
        for at, (record, one, now_ms) in enumerate(zip(served.records, served.ids.tolist(), clock_ms.tolist(), strict=True)):
            self.advance(now_ms, taken)
            if isinstance(record, LateLabel):
                if not self._label(one, record, now_ms, taken):
                    taken.conflicts.append(at)
                continue
            pending = Pending(
                record.classes,
                record.scores,
                served.events[at].key,
                int(served.t[at]),
                float(served.rows.weight[row]),
                now_ms + self._rules.horizon_ms,
            )
            if self._prediction(one, (row, pending), now_ms, taken):
                self.counts.refeaturised += record.features not in ("", self._features)
            row += 1
        return taken

    def advance(self, now_ms: int, taken: Taken) -> None:
        """Let the clock come to ``now_ms``: horizons and graces end, identities are forgotten."""
        self._known.advance(now_ms)
        while self._pending and (oldest := next(iter(self._pending.items())))[1].due_ms <= now_ms:
            self._expire(*oldest, now_ms, taken)
        while self._early and (first := next(iter(self._early.items())))[1].due_ms <= now_ms:
            self._unmatched(first[0])

    def _expire(self, one: int, pending: Pending, now_ms: int, taken: Taken) -> None:
        del self._pending[one]
        self._known.add(one, (NO_LABEL, 0), now_ms)
        if self._default is None:
            self.counts.unlabelled += 1
            taken.passed += 1
        else:
            self.counts.defaulted += 1
            taken.lessons.append(Lesson(pending, self._default, now_ms))

    def _unmatched(self, one: int) -> None:
        del self._early[one]
        self.counts.unmatched += 1
        self.settled += 1

    def _prediction(self, one: int, fresh: tuple[int, Pending], now_ms: int, taken: Taken) -> bool:
        """Take a prediction; False for one that is there already."""
        if one in self._pending or self._known.get(one):
            self.counts.repeated_predictions += 1
            taken.passed += 1
            return False
        taken.fresh.append(fresh)
        early = self._early.pop(one, None)
        if early is None:
            self._pending[one] = fresh[1]
            self._make_room(now_ms, taken)
            return True
        for known in early.seen:
            self._known.add(one, known, now_ms)
        self._joined(Lesson(fresh[1], early.label, now_ms), taken)
        return True

    def _joined(self, lesson: Lesson, taken: Taken) -> None:
        taken.lessons.append(lesson)
        self.counts.joined += 1
        self.settled += 1

    def _label(self, one: int, record: LateLabel, now_ms: int, taken: Taken) -> bool:
        """Take a label; False for a conflict."""
        identity = (record.revision, hash64(str(record.label)))
        value = record.label if isinstance(record.label, str) else float(record.label)
        if (pending := self._pending.pop(one, None)) is not None:
            self._known.add(one, identity, now_ms)
            self._joined(Lesson(pending, value, now_ms), taken)
            return True
        early = self._early.get(one)
        seen = self._known.get(one) if early is None else early.seen
        if not seen:
            self._early[one] = Early(value, record.revision, now_ms + self._rules.grace_ms, [identity])
            self._make_room(now_ms, taken)
            return True
        if not (fate := _fate(identity, seen)):
            self.counts.conflicts += 1
            return False
        setattr(self.counts, fate, getattr(self.counts, fate) + 1)
        self.settled += 1
        if fate in ("corrections", "outdated"):
            if early is None:
                self._known.add(one, identity, now_ms)
            else:
                early.seen.append(identity)
        if fate == "corrections" and early is not None:
            early.label, early.revision = value, record.revision
        return True

    def _make_room(self, now_ms: int, taken: Taken) -> None:
        """Let the oldest wait no longer; never with the default label, since its own may yet come."""
        if self.waiting <= self._rules.memory_rows:
            return
        self.counts.crowded += 1
        if not self._pending:
            self._unmatched(next(iter(self._early)))
            return
        one = next(iter(self._pending))
        del self._pending[one]
        self._known.add(one, (NO_LABEL, 0), now_ms)
        taken.passed += 1

    def parts(self) -> dict[str, dict[str, Value]]:
        """A copy of the whole state: one part that changes, and a part for each closed segment of identities."""
        early = list(self._early.values())
        state = {
            "pending": list(self._pending),
            **_waiting_rows(list(self._pending.values())),
            "early": [[one, e.revision, e.due_ms, e.label, e.seen] for one, e in zip(self._early, early, strict=True)],
            "counts": msgspec.to_builtins(self.counts),
            "settled": self.settled,
            **{f"known_{name}": value for name, value in self._known.state().items()},
        }
        return {"join": state} | {f"join.{number}": part for number, part in self._known.parts()}

    def load(self, parts: dict[str, dict[str, Value]]) -> None:
        """Become the join that gave ``parts``."""
        state = parts["join"]
        self._pending = dict(zip(state["pending"], _pending_of(state), strict=True))
        self._early = {
            one: Early(label, revision, due_ms, [(a, b) for a, b in seen])
            for one, revision, due_ms, label, seen in state["early"]
        }
        self.counts = msgspec.convert(state["counts"], JoinCounts)
        self.settled = state["settled"]
        known = {name.removeprefix("known_"): value for name, value in state.items() if name.startswith("known_")}
        segments = {int(name.partition(".")[2]): part for name, part in parts.items() if name.startswith("join.")}
        self._known.load(known, segments)


def _fate(identity: tuple[int, int], seen: list[tuple[int, int]]) -> str | None:
    """Which count a label goes to whose id has been seen with these identities; None: it is a conflict."""
    if identity in seen:
        return "repeated"
    revisions = {revision for revision, _ in seen}
    if identity[0] in revisions:
        return None
    if NO_LABEL in revisions:
        return "late"
    return "corrections" if identity[0] > max(revisions) else "outdated"


def _waiting_rows(rows: list[Pending]) -> dict[str, Value]:
    """Columns of what waits; of the record only what is needed to learn and to score."""
    if not rows:
        return {}
    tables = list(dict.fromkeys(row.classes for row in rows))
    return {
        "x": np.stack([_features(row) for row in rows]),
        "weight": np.array([row.weight for row in rows]),
        "t": np.array([row.t for row in rows], dtype=np.int64),
        "due_ms": np.array([row.due_ms for row in rows], dtype=np.int64),
        "key": _objects([row.key for row in rows]),
        "classes": [list(table) for table in tables],
        "table": np.array([tables.index(row.classes) for row in rows], dtype=np.int64),
        "outputs": np.array([len(row.scores) for row in rows], dtype=np.int64),
        "scores": np.array([score for row in rows for score in row.scores], dtype=np.float64),
    }


def _pending_of(state: dict[str, Value]) -> Iterator[Pending]:
    if "x" not in state:
        return
    tables = [tuple(table) for table in state["classes"]]
    pieces = np.split(state["scores"], np.cumsum(state["outputs"])[:-1])
    columns = (state[name].tolist() for name in ("table", "key", "t", "weight", "due_ms"))
    for x, scores, table, key, t, weight, due_ms in zip(state["x"], pieces, *columns, strict=True):
        yield Pending(tables[table], tuple(scores.tolist()), key, t, weight, due_ms, np.array(x))


def lessons_batch(lessons: list[Lesson]) -> tuple[Batch, NDArray[np.int64]]:
    """Lessons as rows to learn, and the clock at each."""
    labels: list[Any] = [lesson.label for lesson in lessons]
    rows = [lesson.pending for lesson in lessons]
    y = _objects(labels) if isinstance(labels[0], str) else np.array(labels, dtype=np.float64)
    batch = Batch(
        np.stack([_features(row) for row in rows]),
        y,
        _objects([row.key for row in rows]),
        np.array([row.t for row in rows], dtype=np.int64),
        np.array([row.weight for row in rows]),
    )
    return batch, np.array([lesson.clock_ms for lesson in lessons], dtype=np.int64)


def _features(row: Pending) -> Floats:
    if row.x is None:
        raise AssertionError("a row is asked for its features before it was given them")
    return row.x


def _objects(cells: list[Any]) -> Array:
    column = np.empty(len(cells), dtype=object)
    column[:] = cells
    return column
