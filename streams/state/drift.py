"""Drift of a branch: its detectors, fed in the order in which rows are learned, and what they raised.

Folding only takes alarms down. A live worker decides what follows and journals it as an ``act``: ``streams/worker/worker.py``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from millrace.learners.drift.alarms import Alarm, Detectors, DriftConfig
from millrace.learners.errors import StateDamageError
from millrace.learners.protocol import Array, Floats, Value
from millrace.streams.errors import DamageError

DISCOUNT = 0.1  # the weight that past rows keep when an alarm leads to ``discount``
MOST_KEPT = 512  # alarms that something got worse; of more than that the oldest become one


@dataclass(frozen=True, slots=True)
class RaisedAlarm:
    """An alarm that something got worse, with its id: where it was raised."""

    branch: str
    seq: int  # of the step that raised it; 0: raised by a release that gave no ids
    number: int  # among those of the step, from 1; with seq 0 the row that raised it; 0: all older ones in one, as of the step
    alarm: Alarm

    @property
    def id(self) -> str:
        """Such as ``main.27.1``."""
        return f"{self.branch}.{self.seq}.{self.number}"


def alarm_of(plain: dict[str, Value]) -> Alarm:
    """An alarm as a state has it."""
    return Alarm(**plain | {"new_classes": tuple(plain["new_classes"])})


def raised_alarms(state: dict[str, Value]) -> list[RaisedAlarm]:
    """Those that the part "detectors" of a state has, oldest first; none where an earlier release wrote it."""
    return [RaisedAlarm(branch, seq, number, alarm_of(alarm)) for branch, seq, number, alarm in state.get("alarms", [])]


class Drift:
    """The detectors' state, and the alarms of the newest step."""

    def __init__(self, config: DriftConfig, seed: int) -> None:
        self.config = config
        self.alarms: list[Alarm] = []  # of the newest step
        self.newest: Alarm | None = None  # that something got worse
        self.raised: list[RaisedAlarm] = []  # that something got worse, oldest first, at most ``MOST_KEPT``
        self._step = ("", 0)  # branch and seq of the newest step
        self._detectors = Detectors(config, seed)

    @property
    def worse(self) -> list[Alarm]:
        """Alarms of the newest step that something got worse; improvements are no reason to act."""
        return [alarm for alarm in self.alarms if alarm.direction == "worse"]

    def begin_step(self, branch: str, seq: int) -> None:
        """What was raised before has been said; what is raised from now on is of this step."""
        self.alarms, self._step = [], (branch, seq)

    def feed(self, losses: Floats, labels: Array | None, learned: int) -> None:
        """Losses (n,) in [0, 1] of the rows after ``learned`` others, with their labels (n,), or None for numbers."""
        places = np.arange(learned, learned + len(losses), dtype=np.int64)
        before = len(self.worse)
        self.alarms += self._detectors.update(losses, labels, places)
        for number, alarm in enumerate(self.worse[before:], before + 1):
            self.raised.append(RaisedAlarm(*self._step, number, alarm))
            self.newest = alarm
        while len(self.raised) > MOST_KEPT:
            self.raised[:2] = [self._in_one(*self.raised[:2])]

    def _in_one(self, older: RaisedAlarm, younger: RaisedAlarm) -> RaisedAlarm:
        """Two alarms as one, from the earlier onset on; its id is new, so that nobody has closed it yet."""
        first, last = older.alarm, younger.alarm
        onset = min(first.onset_rows, last.onset_rows)
        both = Alarm(None, max(first.rows, last.rows), onset, "worse", first.before, last.after)
        return RaisedAlarm(*self._step, 0, both)

    def follow_up(self, learned: int, held: int) -> dict[str, int | float]:
        """What folding the act that follows the newest alarm needs: its arguments.

        ``learned`` rows until now; ``held`` are kept to be learned again. At least one is, and none from before the onset.
        """
        config = self.config
        if config.act == "discount":
            return {"keep": DISCOUNT}
        if config.act == "relearn" and self.newest is not None:
            return {"rows": max(1, min(learned - self.newest.onset_rows, held))}
        return {"factor": config.rate_factor, "rows": config.rate_rows} if config.act == "raise-rate" else {}

    def state(self) -> dict[str, Value]:
        """Everything but what the newest step raised."""
        newest = None if self.newest is None else asdict(self.newest)
        raised = [[entry.branch, entry.seq, entry.number, asdict(entry.alarm)] for entry in self.raised]
        return self._detectors.state() | {"newest": newest} | ({"alarms": raised} if raised else {})

    def load(self, state: dict[str, Value]) -> None:
        """Go on where ``state`` was taken. Raises: DamageError, LearnerError."""
        newest = state["newest"]
        self.newest, self.raised = None if newest is None else alarm_of(newest), raised_alarms(state)
        try:
            self._detectors.load({name: value for name, value in state.items() if name not in ("newest", "alarms")})
        except StateDamageError as error:
            raise DamageError(f"The detectors of this state cannot go on. {error}") from error
