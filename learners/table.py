"""The learners there are: one line an algorithm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from millrace.learners.linear import LinearServable
from millrace.learners.protocol import Learner, Servable, Value
from millrace.learners.ridge import Ridge, RidgeConfig
from millrace.learners.river_adapter import River, RiverConfig, RiverServable


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What is needed to make a learner and what it serves."""

    config: type[Any]  # a frozen dataclass that checks itself
    learner: Callable[[Any, int, int], Learner]  # (config, d, seed) -> an untaught learner
    servable: Callable[[dict[str, Value]], Servable]  # from a servable's arrays() -> one with equal answers


LEARNERS: dict[str, Algorithm] = {
    "ridge": Algorithm(RidgeConfig, Ridge, LinearServable.from_arrays),
    "river": Algorithm(RiverConfig, River, RiverServable.from_arrays),
}
