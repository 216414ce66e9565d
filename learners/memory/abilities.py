"""A learner with a memory around it can do just what the learner itself can; ask by the protocols of abilities."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from millrace.learners.memory.config import Remembering
from millrace.learners.memory.learner import OWN, ErrorMemory
from millrace.learners.protocol import Discounts, EarlierRevisions, Learner, RaisesRate, Warns


def _discount(memory: Any, keep: float) -> None:
    """As the base does, once the rows that wait for their step are learned; remembered rows count as they did."""
    memory.learn_waiting()
    memory.base.discount(keep)
    memory.changed()


def _raise_rate(memory: Any, factor: float, rows: int) -> None:
    """As the base does; the rows that wait are the first of those."""
    memory.base.raise_rate(factor, rows)


def _revisions(memory: Any) -> tuple[int, ...]:
    """Those that the base can be."""
    return tuple(OWN + revision for revision in memory.base.revisions)


def _as_of(memory: Any, revision: int) -> None:
    """Be the untaught learner of that revision. Raises: LearnerError where this release has none."""
    memory.base.as_of(revision - OWN)
    memory.revision = revision


def _warnings(memory: Any) -> dict[int, str]:
    """The base's: a feature that it makes nothing of may still say what is near."""
    return dict(memory.base.warnings())


ABILITIES: dict[type[Any], dict[str, Any]] = {  # protocol -> what it asks for
    Discounts: {"discount": _discount},
    RaisesRate: {"raise_rate": _raise_rate},
    EarlierRevisions: {"revisions": property(_revisions), "as_of": _as_of},
    Warns: {"warnings": _warnings},
}


def remembering(base: Learner, config: Remembering, d: int, seed: int) -> Learner:
    """``base``, untaught, with a memory around it and the abilities that it has."""
    return _kind(tuple(ability for ability in ABILITIES if isinstance(base, ability)))(base, config, d, seed)


@lru_cache
def _kind(abilities: tuple[type[Any], ...]) -> type[ErrorMemory]:
    """Error memories with these."""
    methods = {name: method for ability in abilities for name, method in ABILITIES[ability].items()}
    return type("ErrorMemory", (ErrorMemory,), methods)
