"""Drift of a branch: its detectors, fed in the order in which rows are learned, and what they raised.

Folding only takes alarms down. A live worker decides what follows and journals it as an ``act``: ``streams/worker/worker.py``.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from millrace.learners.drift.alarms import Alarm, Detectors, DriftConfig
from millrace.learners.errors import StateDamageError
from millrace.learners.protocol import Array, Floats, Value
from millrace.streams.errors import DamageError

DISCOUNT = 0.1  # the weight that past rows keep when an alarm leads to ``discount``


class Drift:
    """The detectors' state, and the alarms of the newest step."""

    def __init__(self, config: DriftConfig, seed: int) -> None:
        self.config = config
        self.alarms: list[Alarm] = []  # of the newest step
        self.newest: Alarm | None = None  # that something got worse
        self._detectors = Detectors(config, seed)

    @property
    def worse(self) -> list[Alarm]:
        """Alarms of the newest step that something got worse; improvements are no reason to act."""
        return [alarm for alarm in self.alarms if alarm.direction == "worse"]

    def begin_step(self) -> None:
        """What was raised before has been said."""
        self.alarms = []

    def feed(self, losses: Floats, labels: Array | None, learned: int) -> None:
        """Losses (n,) in [0, 1] of the rows after ``learned`` others, with their labels (n,), or None for numbers."""
        places = np.arange(learned, learned + len(losses), dtype=np.int64)
        self.alarms += self._detectors.update(losses, labels, places)
        self.newest = self.worse[-1] if self.worse else self.newest

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
        return self._detectors.state() | {"newest": newest}

    def load(self, state: dict[str, Value]) -> None:
        """Go on where ``state`` was taken. Raises: DamageError, LearnerError."""
        newest = state["newest"]
        self.newest = None if newest is None else Alarm(**newest | {"new_classes": tuple(newest["new_classes"])})
        try:
            self._detectors.load({name: value for name, value in state.items() if name != "newest"})
        except StateDamageError as error:
            raise DamageError(f"The detectors of this state cannot go on. {error}") from error
