"""Nearest class mean, from the ridge's sums.

Mensink et al., "Distance-Based Image Classification: Generalizing to New Classes at Near-Zero Cost", TPAMI 2013.

| symbol | name | shape |
|---|---|---|
| mu_c | class mean | (C, d_phi) |
| D | 1 / standard deviation of each feature, or 1 | (d_phi,) |

euclid: score_c = D x . D mu_c - |D mu_c|^2 / 2, largest where |D x - D mu_c| is least, both seen from the mean of all rows.
cosine: score_c = D x . D mu_c / |D mu_c|, the cosine times |D x|, which is the same for every class; seen from 0.

Differs from the paper: no learned metric; ``standardise`` makes every feature count the same whatever its unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from millrace.learners.analytic.normal_equations import Solution, centre_of, system_of
from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.learners.analytic.slda import NEVER, class_means
from millrace.learners.analytic.solver import Solver, Statistics
from millrace.learners.errors import LearnerError


@dataclass(frozen=True, slots=True)
class NcmConfig:
    """Nearest class mean; the keys of a ridge mean the same (ridge.py).

    Raises: ValueError naming key, value and what is allowed.
    """

    task: str = "classify"  # "classify", as numbers have no classes
    distance: str = "euclid"  # "euclid" or "cosine", the second where the length of a row says nothing
    standardise: bool = True
    solve_rows: int = 1024
    decay: float = 1.0
    expand: int = 0

    def __post_init__(self) -> None:
        if self.task != "classify" or self.distance not in ("euclid", "cosine"):
            raise ValueError(f'task = {self.task!r}, distance = {self.distance!r}: must be "classify" and "euclid" or "cosine"')
        self.ridge()

    def ridge(self) -> RidgeConfig:
        """The part that is a ridge's."""
        return RidgeConfig(
            self.task, standardise=self.standardise, solve_rows=self.solve_rows, decay=self.decay, expand=self.expand
        )


def ncm(config: NcmConfig, d: int, seed: int) -> Ridge:
    """An untaught NCM over ``d`` features; ``seed`` draws the projection, if there is one."""
    return Ridge(config.ridge(), d, seed, Solver("ncm", config, answer))


def answer(config: NcmConfig, statistics: Statistics) -> Solution:
    """The distances to class means as weights and an intercept.

    Raises: LearnerError where a prior is asked for: distances have none.
    """
    if statistics.prior is not None:
        raise LearnerError("nearest class means have no prior; use kind slda, whose scores have one")
    sums = statistics.sums
    if sums.weight <= 0.0:
        return Solution(
            np.zeros((len(sums.features), len(statistics.names)), order="F"), np.zeros(len(statistics.names)), 0.0, 1.0
        )
    around = system_of(sums, 1.0, True, config.standardise)
    euclid, empty = config.distance == "euclid", sums.targets <= 0.0
    mean = around.mean if euclid else -sums.centre  # where distances, or angles, are seen from; itself seen from the centre
    mu = (class_means(sums) - mean) * around.scale  # (C, d_phi), D mu
    mu[empty] = 0.0
    if not euclid:
        length = np.linalg.norm(mu, axis=1, keepdims=True)
        mu = np.divide(mu, length, out=np.zeros_like(mu), where=length > 0.0)
    w = np.asfortranarray((mu * around.scale).T)
    b = -mean @ w - (0.5 * (mu**2).sum(axis=1) if euclid else 0.0)
    return Solution(w, np.where(empty, NEVER, b), 0.0, 1.0, centre=centre_of(sums))
