"""The learners there are: one line an algorithm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from millrace.learners.aef_ocl import AefOclConfig, aef_ocl
from millrace.learners.air import AirConfig, air
from millrace.learners.exact import merge_disjoint
from millrace.learners.linear import LinearServable
from millrace.learners.ncm import NcmConfig, ncm
from millrace.learners.protocol import Learner, Servable, Value
from millrace.learners.ridge import Ridge, RidgeConfig
from millrace.learners.slda import SldaConfig, slda
from millrace.learners.softmax import Softmax, SoftmaxConfig


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What is needed to make a learner and what it serves."""

    config: type[Any]  # a frozen dataclass that checks itself
    learner: Callable[[Any, int, int], Learner]  # (config, d, seed) -> an untaught learner
    servable: Callable[[dict[str, Value]], Servable]  # from a servable's arrays() -> one with equal answers
    abilities: tuple[str, ...] = ()  # methods of the learner beside the five of every learner; see ``protocol.py``
    merge: Callable[[Mapping[str, Any]], tuple[Learner, Any]] | None = None  # exact, of workers by name; None: it has none


LEARNERS: dict[str, Algorithm] = {
    "aef-ocl": Algorithm(AefOclConfig, aef_ocl, LinearServable.from_arrays, ("discount",), merge_disjoint),
    "air": Algorithm(AirConfig, air, LinearServable.from_arrays, ("discount",), merge_disjoint),
    "ncm": Algorithm(NcmConfig, ncm, LinearServable.from_arrays, ("discount",), merge_disjoint),
    "ridge": Algorithm(RidgeConfig, Ridge, LinearServable.from_arrays, ("discount",), merge_disjoint),
    "slda": Algorithm(SldaConfig, slda, LinearServable.from_arrays, ("discount",), merge_disjoint),
    "softmax": Algorithm(SoftmaxConfig, Softmax, LinearServable.from_arrays, ("raise_rate",)),
}
