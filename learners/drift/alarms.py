"""Drift alarms on the prequential loss of a pipeline, and of each class, within one budget of false alarms.

One detector watches every row, and one the rows of each label. A detector alarms on its own rows, and every row belongs to one
label. So the detectors of all classes together take as many rows as the pipeline's, however many classes there are. Each of
the two halves gets half of the budget, and no class gets less because there are others. The budget holds for independent
losses and for no others. Improvements are reported and are no reason to act. Nothing here acts: what an alarm leads to is
decided and journaled by who called.

The onset is the split of a detector's rows that explains their losses best. Of all k with a change to the alarm's side it is
the one with the largest k (n - k) / n (mean after - mean before)^2. (ADWIN itself stops cutting as soon as it can. With errors
from 0.1 to 0.3 at row 2,000, 60 seeds, its cut is 400 rows off in the median, this 4.)

The same rows give the same alarms and the same state, bit for bit, however they are cut.

Source: Hinkley, Inference about the change-point in a sequence of random variables, Biometrika 1970.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any, Literal, get_args

import crc32c
import numpy as np
from numpy.typing import NDArray

from millrace.learners.declaration import declared
from millrace.learners.drift.calibration import missed_share, refuse_blind, threshold_for
from millrace.learners.drift.detectors import SENSORS, Side
from millrace.learners.errors import BadInputError, LearnerError, StateDamageError
from millrace.learners.protocol import Array, Floats, Value

DriftMark = tuple[int, int, float]  # row since the detector was made, its place, sum of the losses before it
FollowUp = Literal["version", "discount", "reset", "relearn", "raise-rate"]  # of an alarm, each followed by a version
ACTS: tuple[FollowUp, ...] = get_args(FollowUp)
OWN_KEYS: dict[str, tuple[str, ...]] = {"relearn": ("relearn_rows",), "raise-rate": ("rate_factor", "rate_rows")}  # of acts
MARK_ROWS = 8  # rows between two places that a trail may keep
MARKS = 8  # kept at each distance, so that the onset is known to an eighth of how long ago it was
NEAR = 0.5  # a class counts as new from this share of the window before the onset, which is an estimate


@dataclass(frozen=True, slots=True)
class DriftConfig:
    """Which detector watches the loss, how often it may be wrong, and what an alarm leads to.

    Raises: ValueError naming key, value and what is allowed; ConfigError where the detector cannot keep the budget.
    """

    detector: str = "adwin"  # "adwin", "page-hinkley", "kswin", "hddm-a", "hddm-w" or "fhddm", one of river's detectors
    # >= 1, rows expected between false alarms of all detectors together where losses are independent; more is later and surer
    false_alarm_rows: int = 100_000
    per_class: bool = True  # also one detector for each class, for half of the budget; has no effect in a regression
    # >= 1, classes with a detector of their own; those that appear later are watched by the pipeline's alone
    max_classes: int = 100
    # what follows an alarm that the loss rose: a version is marked; before that past rows are discounted, the learner is reset,
    # it is reset and learns the newest rows again, or its steps are raised for a while
    act: FollowUp = "version"
    relearn_rows: int = 2000  # >= 1, with act = "relearn": newest rows kept, some 9 bytes a feature each, in checkpoints too
    rate_factor: float = 5.0  # > 1, with act = "raise-rate": steps are so many times as large; more adapts and wavers more
    rate_rows: int = 1000  # >= 1, with act = "raise-rate": rows for which steps are larger

    def __post_init__(self) -> None:
        """Raise ValueError for a setting out of range, or for a budget that the detector cannot keep."""
        for key, allowed, fits in (
            ("detector", f"one of {', '.join(SENSORS)}", self.detector in SENSORS),
            ("false_alarm_rows", "a whole number from 1", _whole(self.false_alarm_rows)),
            ("max_classes", "a whole number from 1", _whole(self.max_classes)),
            ("act", f"one of {', '.join(ACTS)}", self.act in ACTS),
            ("relearn_rows", "a whole number from 1", _whole(self.relearn_rows)),
            ("rate_factor", "a finite number above 1", 1.0 < self.rate_factor < np.inf),
            ("rate_rows", "a whole number from 1", _whole(self.rate_rows)),
        ):
            if not fits:
                raise ValueError(f"{key} = {getattr(self, key)!r}: must be {allowed}")
        threshold_for(self.detector, self.each_rows, self.false_alarm_rows)

    @property
    def each_rows(self) -> int:
        """Rows of its own that each detector is to have between two false alarms."""
        return self.false_alarm_rows * (2 if self.per_class else 1)

    @property
    def missed(self) -> float:
        """The share of rises of an error rate from 0.1 to 0.3 that the detector misses at this budget."""
        return missed_share(self.detector, self.each_rows, self.false_alarm_rows)

    def refuse_new(self) -> None:
        """A branch is to begin with this. Raises: ConfigError where the detector would miss most changes."""
        refuse_blind(self.detector, self.each_rows, self.false_alarm_rows)

    @property
    def declared(self) -> dict[str, Value]:
        """What changes what is learned, without the keys of other acts: a branch need not remember those."""
        idle = {key for act, keys in OWN_KEYS.items() if act != self.act for key in keys}
        return {key: value for key, value in declared(self).items() if key not in idle}


@dataclass(frozen=True, slots=True)
class Alarm:
    """A change of the mean loss. ``rows`` and ``onset_rows`` are places as the caller counts them."""

    label: str | None  # whose detector it is; None: the pipeline's
    rows: int  # place of the row that raised it
    onset_rows: int  # place at which it seems to have begun: never after ``rows``
    direction: str  # "worse": the loss rose; "better": it fell, which is no reason to act
    before: float  # mean loss in [0, 1] of this detector's rows before the onset, back to its last alarm
    after: float  # and since
    new_classes: tuple[str, ...] = ()  # classes first seen about the onset or since, in order of first appearance

    @property
    def detector(self) -> str:
        """The name for people."""
        return "pipeline" if self.label is None else f"class {self.label}"


class Detectors:
    """All detectors of one branch.

    >>> detectors = Detectors(DriftConfig(false_alarm_rows=2000, per_class=False), seed=0)
    >>> losses = np.concatenate([np.zeros(1000), np.ones(1000)])
    >>> [alarm] = detectors.update(losses, None, np.arange(2000))
    >>> alarm.detector, alarm.direction, alarm.onset_rows <= 1000 <= alarm.rows
    ('pipeline', 'worse', True)
    """

    def __init__(self, config: DriftConfig, seed: int) -> None:
        """Nothing seen yet; ``seed`` >= 0 is for those detectors that draw."""
        self.config = config
        self.threshold, self.figure_rows = threshold_for(config.detector, config.each_rows, config.false_alarm_rows)
        self.rows = 0  # seen
        self._seed = seed
        self._first: dict[str, int] = {}  # label -> place of its first row, at most ``max_classes`` of them
        self._watches: dict[str | None, Watch] = {None: self._watch(0)}

    def update(self, losses: Floats, labels: Array | None, places: NDArray[np.int64]) -> list[Alarm]:
        """Take rows in order; the alarms they raise, in order of rows, the pipeline's before its class's.

        ``losses`` (n,) of predictions made before the rows were learned, clipped to [0, 1]; ``labels`` (n,) str objects, or
        None where y are numbers; ``places`` (n,) never decreasing, where each row stands as the caller counts.
        Raises: BadInputError before any row is taken, where the shapes differ or a loss is not a number.
        """
        if losses.shape != places.shape or losses.ndim != 1 or (labels is not None and labels.shape != losses.shape):
            shapes = (losses.shape, None if labels is None else labels.shape, places.shape)
            raise BadInputError(f"losses, labels and places: expected columns of one length, got {shapes}")
        if np.isnan(losses).any():
            raise BadInputError(f"column losses: row {int(np.isnan(losses).argmax())} is not a number")
        clipped, raised = np.clip(losses, 0.0, 1.0), []
        if labels is not None:
            self._meet(labels, places)
        for name, at in self._shares(labels):
            watch = self._watches[name]
            share, share_places = (clipped, places) if at is None else (clipped[at], places[at])
            for row, alarm in watch.feed(share.tolist(), share_places):
                raised.append((row if at is None else int(at[row]), replace(alarm, label=name)))
        self.rows += len(losses)
        raised.sort(key=lambda pair: pair[0])  # stable, and the pipeline's were found first
        return [replace(alarm, new_classes=self._new(alarm)) for _, alarm in raised]

    def state(self) -> dict[str, Value]:
        """Everything, as one array of bytes with its checksum and plain values."""
        blobs = [watch.sensor.state() for watch in self._watches.values()]
        state: dict[str, Value] = {
            "format": 1,
            "detector": self.config.detector,
            "threshold": self.threshold,
            "figure_rows": self.figure_rows,
            "seed": self._seed,
            "rows": self.rows,
            "first": [[name, place] for name, place in self._first.items()],
            "watches": [[name, *watch.plain()] for name, watch in self._watches.items()],
            "lengths": [len(blob) for blob in blobs],
            "bytes": np.frombuffer(b"".join(blobs), dtype=np.uint8).copy(),
        }
        return state | {"crc32c": _checksum(state)}

    def load(self, state: dict[str, Value]) -> None:
        """Go on where ``state`` was taken, with the threshold that was calibrated then.

        Raises: StateDamageError where a bit differs; LearnerError where it is of another kind of detector or another seed.
        """
        _check(state)
        own_identity, state_identity = (self.config.detector, self._seed), (state["detector"], state["seed"])
        if own_identity != state_identity:
            raise LearnerError(
                f"This state is of detector and seed {state_identity}, these are {own_identity}; restore it into ones like it."
            )
        self.threshold, self.figure_rows = state["threshold"], state["figure_rows"]
        self.rows = state["rows"]
        self._first = dict(state["first"])
        blob, ends = state["bytes"].tobytes(), np.cumsum(state["lengths"]).tolist()
        self._watches = {}
        for at, ((name, *plain), end) in enumerate(zip(state["watches"], ends, strict=True)):
            self._watches[name] = self._watch(at)
            self._watches[name].load(plain, blob[end - state["lengths"][at] : end])

    def _watch(self, at: int) -> Watch:
        return Watch(self.config.detector, self.threshold, self._seed + at)

    def _meet(self, labels: Array, places: NDArray[np.int64]) -> None:
        """Remember where labels were first seen, and begin to watch them, until there are too many."""
        names: list[str] = labels.tolist()
        for name in sorted(set(names) - self._first.keys(), key=names.index)[: self.config.max_classes - len(self._first)]:
            self._first[name] = int(places[names.index(name)])
            if self.config.per_class:
                self._watches[name] = self._watch(len(self._watches))

    def _shares(self, labels: Array | None) -> Iterator[tuple[str | None, NDArray[np.int64] | None]]:
        """Which rows each detector takes; None: all."""
        yield None, None
        if labels is None or not self.config.per_class:
            return
        rows: dict[str, list[int]] = {}
        for at, name in enumerate(labels.tolist()):
            rows.setdefault(name, []).append(at)
        for name, row_numbers in rows.items():
            if name in self._watches:
                yield name, np.array(row_numbers, dtype=np.int64)

    def _new(self, alarm: Alarm) -> tuple[str, ...]:
        near_from = alarm.onset_rows - NEAR * (alarm.rows - alarm.onset_rows)
        return tuple(name for name, place in self._first.items() if near_from <= place <= alarm.rows)


class Watch:
    """One detector, with the places of its rows."""

    def __init__(self, kind: str, threshold: float, seed: int) -> None:
        """Nothing seen yet."""
        self._fresh = partial(SENSORS[kind], threshold, seed)
        self.sensor = self._fresh()
        self.rows = 0  # since the sensor was made
        self._total = 0.0  # sum of their losses
        self._trail = Trail()

    def feed(self, losses: list[float], places: NDArray[np.int64]) -> Iterator[tuple[int, Alarm]]:
        """Take losses in order; the row and the alarm of each that raised one, after which the detector is a fresh one."""
        start = 0
        while start < len(losses):
            stop, alarmed = self._run(losses, start)
            totals = list(accumulate(losses[start:stop], initial=self._total))
            self._trail.add(self.rows, places[start:stop], totals)
            self.rows, self._total = self.rows + stop - start, totals[-1]
            if alarmed:
                yield stop - 1, self._alarm(self.sensor.side(self.rows, self._total), int(places[stop - 1]))
                self.sensor, self.rows, self._total, self._trail = self._fresh(), 0, 0.0, Trail()
            start = stop

    def plain(self) -> list[Value]:
        """The state beside the sensor's."""
        return [self.rows, self._total, [[list(mark) for mark in level] for level in self._trail.levels]]

    def load(self, plain: list[Value], state: bytes) -> None:
        """Go on where both were taken. Raises: StateDamageError."""
        self.rows, self._total, levels = plain
        self._trail.levels = [[(row, place, lost) for row, place, lost in level] for level in levels]
        self.sensor.load(state, self.rows)

    def _run(self, losses: list[float], start: int) -> tuple[int, bool]:
        """Losses up to and with the first that alarms; where that ended, and whether it did."""
        update = self.sensor.update
        for at in range(start, len(losses)):
            if update(losses[at]):
                return at + 1, True
        return len(losses), False

    def _alarm(self, side: Side, place: int) -> Alarm:
        onset, before, after = self._trail.split(self.rows, self._total, side)
        return Alarm(None, place, onset, "worse" if side.worse else "better", before, after)


class Trail:
    """Places of past rows and what was lost before them, fewer the longer ago: bounded by the logarithm of the rows."""

    def __init__(self) -> None:
        """No row yet."""
        self.levels: list[list[DriftMark]] = []  # 0: row 0; level k: the last marks whose row is an odd multiple of 4 * 2^k

    def add(self, rows: int, places: NDArray[np.int64], totals: list[float]) -> None:
        """Rows ``rows``, ``rows`` + 1, ... stand at ``places``, and losses before them add up to ``totals``."""
        for row in range(-(-rows // MARK_ROWS) * MARK_ROWS, rows + len(places), MARK_ROWS):
            level = (row & -row).bit_length() - MARK_ROWS.bit_length() + 1 if row else 0
            while len(self.levels) <= level:
                self.levels.append([])
            self.levels[level].append((row, int(places[row - rows]), totals[row - rows]))
            if len(self.levels[level]) > MARKS:
                del self.levels[level][0]

    def split(self, rows: int, total: float, side: Side) -> tuple[int, float, float]:
        """Place of the onset and the mean losses before and after, for ``rows`` losses that add up to ``total``."""
        marks = sorted(mark for level in self.levels for mark in level)
        cuts = [(row, place, lost / row, (total - lost) / (rows - row)) for row, place, lost in marks if row]
        fits = [cut for cut in cuts if cut[0] >= side.earliest - MARK_ROWS and (cut[3] > cut[2]) == side.worse]
        if not fits:  # too few rows for a mark between
            return marks[0][1], total / rows, total / rows
        _, place, before, after = max(fits, key=lambda cut: cut[0] * (rows - cut[0]) * (cut[3] - cut[2]) ** 2)
        return place, before, after


def _whole(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 1


def _checksum(state: dict[str, Value]) -> int:
    """Of all that a state says but its checksum."""
    plain = {name: value for name, value in state.items() if name not in ("bytes", "crc32c")}
    return crc32c.crc32c(state["bytes"].tobytes(), crc32c.crc32c(json.dumps(plain, sort_keys=True).encode()))


def _check(state: dict[str, Value]) -> None:
    """Raises: StateDamageError where the state is not what was stored."""
    try:
        right_format, stored, computed = state["format"] == 1, state["crc32c"], _checksum(state)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StateDamageError(f"This is not the state of drift detectors ({error}). Restore it from a copy.") from error
    if stored != computed:
        raise StateDamageError(
            f"The state of the drift detectors has crc32c {computed}, stored was {stored}. Restore it from a copy."
        )
    if not right_format:
        raise StateDamageError(f"The drift detectors have format {state['format']}, this release reads 1. Use its own.")
