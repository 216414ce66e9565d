"""A learner with a memory around it can do just what the learner itself can; ask by the protocols of abilities."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from millrace.learners.memory.config import Remembering
from millrace.learners.memory.learner import ErrorMemory
from millrace.learners.protocol import Discounts, EarlierRevisions, Learner, RaisesRate, Warns


class _Discounts(ErrorMemory):
    base: Any

    def discount(self, keep: float) -> None:
        """As the base does, with the rows that wait for their step learned before; remembered rows count as they did."""
        self.learn_waiting()
        self.base.discount(keep)
        self.changed()


class _RaisesRate(ErrorMemory):
    base: Any

    def raise_rate(self, factor: float, rows: int) -> None:
        """As the base does; the rows that wait are the first of those."""
        self.base.raise_rate(factor, rows)


class _EarlierRevisions(ErrorMemory):
    base: Any

    @property
    def revisions(self) -> tuple[int, ...]:
        """Those that the base can be."""
        return tuple(self.base.revisions)

    def as_of(self, revision: int) -> None:
        """Be the untaught learner of that revision. Raises: LearnerError where this release has none."""
        self.base.as_of(revision)
        self.revision = revision


class _Warns(ErrorMemory):
    base: Any

    def warnings(self) -> dict[int, str]:
        """The base's: a feature that it makes nothing of may still say what is near."""
        return dict(self.base.warnings())


ABILITIES = ((Discounts, _Discounts), (RaisesRate, _RaisesRate), (EarlierRevisions, _EarlierRevisions), (Warns, _Warns))


def remembering(base: Learner, config: Remembering, d: int, seed: int) -> Learner:
    """``base``, untaught, with a memory around it and the abilities that it has."""
    kinds = tuple(kind for ability, kind in ABILITIES if isinstance(base, ability))
    return _kind(kinds)(base, config, d, seed)


@lru_cache
def _kind(kinds: tuple[type[ErrorMemory], ...]) -> type[ErrorMemory]:
    return type("ErrorMemory", kinds, {}) if kinds else ErrorMemory
