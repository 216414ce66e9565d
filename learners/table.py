"""The learners there are: one line an algorithm. Importing this imports no torch, which takes seconds and may be missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from millrace.learners.analytic.aef_ocl import AefOclConfig, aef_ocl
from millrace.learners.analytic.air import AirConfig, air
from millrace.learners.analytic.exact import merge_disjoint
from millrace.learners.analytic.ncm import NcmConfig, ncm
from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.learners.analytic.slda import SldaConfig, slda
from millrace.learners.distribution import how_to_get
from millrace.learners.draft.config import DraftConfig
from millrace.learners.errors import MillraceError
from millrace.learners.linear.servable import LinearServable, to_onnx
from millrace.learners.linear.softmax import Softmax, SoftmaxConfig
from millrace.learners.memory.abilities import remembering
from millrace.learners.memory.config import Remembering
from millrace.learners.memory.servable import MemoryServable
from millrace.learners.protocol import Learner, Scaling, Servable, Value
from millrace.learners.replay.derpp import Derpp, DerppConfig
from millrace.learners.replay.er import Er, ErConfig
from millrace.learners.replay.er_ace import ErAce, ErAceConfig
from millrace.learners.replay.hpcr import Hpcr, HpcrConfig
from millrace.learners.replay.onpro import Onpro, OnproConfig
from millrace.learners.replay.pcr import Pcr, PcrConfig
from millrace.learners.replay.pec import Pec, PecConfig
from millrace.learners.replay.uer import Uer, UerConfig
from millrace.learners.river_adapter import River, RiverConfig, RiverServable, scaling_of


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What is needed to make a learner and what it serves."""

    config: type[Any]  # a frozen dataclass that checks itself
    learner: Callable[[Any, int, int], Learner]  # (config, d, seed) -> an untaught learner
    servable: Callable[[dict[str, Value]], Servable]  # from a servable's arrays() -> one with equal answers
    onnx: Callable[[Any], bytes] | None  # a servable as an ONNX model, x [n, d] -> scores [n, C]; None: there is no such form
    agreement: float = 1e-9  # largest difference of answers between machines, relative to the largest score
    needs: str = ""  # the package beside our own that it runs on; empty: none
    extra: str = ""  # the extra that brings it; empty: it is named as the package
    abilities: tuple[str, ...] = ()  # methods of the learner beside the five of every learner; see ``protocol.py``
    merge: Callable[[Mapping[str, Any]], tuple[Learner, Any]] | None = None  # exact, of workers by name; None: it has none
    scaling: Callable[[Any], Scaling] = lambda _: "none"  # of a config: how features are to be scaled before they are learned
    unbounded: bool = False  # whether scores of classes are no shares of 1, such as distances; a memory corrects their softmax
    distils: bool = False  # whether it learns from completions of a language model, and not from rows
    through_python: bool = False  # whether its numbers pass through Python's own floats, whose sums differ between releases

    def ready(self) -> Algorithm:
        """Itself, with what it runs on imported: that counts among what numerics depend on.

        Raises: MillraceError naming the extra.
        """
        if self.needs:
            _imported(self.needs, self.needs, self.extra)
        return self


def _imported(module: str, package: str, extra: str = "") -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name != package:
            raise
        raise MillraceError(f"This learner runs on {package}, which is not here. {how_to_get(extra or package)}") from missing


def _network(config: type[Any], method: Callable[[Any], Any], unbounded: bool = False) -> Algorithm:
    """An algorithm of the replay family: what it adds to the machinery they share."""

    def learner(config: Any, d: int, seed: int) -> Learner:
        replay_learner: Learner = _imported("millrace.learners.replay.learner", "torch").Replay(method(config), config, d, seed)
        return replay_learner

    serves = (_network_servable, _network_onnx)
    return Algorithm(config, learner, *serves, 1e-4, "torch", abilities=("raise_rate",), unbounded=unbounded)


def _network_servable(arrays: dict[str, Value]) -> Servable:
    servable: Servable = _imported("millrace.learners.replay.servable", "torch").NetworkServable.from_arrays(arrays)
    return servable


def _network_onnx(servable: Any) -> bytes:
    written: bytes = _imported("millrace.learners.replay.onnx", "torch").to_onnx(servable)
    return written


def _draft(config: Any, d: int, seed: int) -> Learner:
    learner: Learner = _imported("millrace.learners.draft.learner", "transformers", "llm").Draft(config, d, seed)
    return learner


def _draft_servable(arrays: dict[str, Value]) -> Servable:
    servable: Servable = _imported("millrace.learners.draft.servable", "transformers", "llm").DraftServable.from_arrays(arrays)
    return servable


def _analytic(config: type[Any], learner: Callable[[Any, int, int], Learner], unbounded: bool = False) -> Algorithm:
    """An algorithm that answers from the sums of normal_equations.py."""
    return Algorithm(
        config,
        learner,
        LinearServable.from_arrays,
        to_onnx,
        abilities=("discount",),
        merge=merge_disjoint,
        scaling=lambda _: "clip",
        unbounded=unbounded,
    )


LEARNERS: dict[str, Algorithm] = {
    "ridge": _analytic(RidgeConfig, Ridge),
    "aef-ocl": _analytic(AefOclConfig, aef_ocl),
    "air": _analytic(AirConfig, air),
    "slda": _analytic(SldaConfig, slda, unbounded=True),
    "ncm": _analytic(NcmConfig, ncm, unbounded=True),
    "softmax": Algorithm(SoftmaxConfig, Softmax, LinearServable.from_arrays, to_onnx, abilities=("raise_rate",)),
    "er": _network(ErConfig, Er),
    "er-ace": _network(ErAceConfig, ErAce),
    "derpp": _network(DerppConfig, Derpp),
    "uer": _network(UerConfig, Uer),
    "pcr": _network(PcrConfig, Pcr),
    "hpcr": _network(HpcrConfig, Hpcr),
    "onpro": _network(OnproConfig, Onpro),
    "pec": _network(PecConfig, Pec, unbounded=True),
    "draft": Algorithm(DraftConfig, _draft, _draft_servable, None, 1e-3, "transformers", "llm", ("raise_rate",), distils=True),
    "river": Algorithm(RiverConfig, River, RiverServable.from_arrays, None, through_python=True, scaling=scaling_of),
}

WITH_MEMORY = "+memory"  # behind the kind of a learner that has an error memory around it


def algorithm_of(kind: str) -> Algorithm:
    """The algorithm of a kind, ``ridge`` or ``ridge+memory``. Raises: KeyError where there is none."""
    base = kind.removesuffix(WITH_MEMORY)
    return LEARNERS[kind] if base == kind else _with_memory(LEARNERS[base])


def _with_memory(base: Algorithm) -> Algorithm:
    """The same learner with an error memory around it. It has no ONNX form, and no exact merge."""

    def learner(config: Remembering, d: int, seed: int) -> Learner:
        return remembering(base.learner(config.base, d, seed), replace(config, unbounded=base.unbounded), d, seed)

    return replace(
        base,
        config=Remembering,
        learner=learner,
        servable=lambda arrays: MemoryServable.from_arrays(arrays, base.servable),
        onnx=None,
        merge=None,
        scaling=lambda config: base.scaling(config.base),
    )
