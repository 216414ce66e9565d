"""Streaming LDA, exact: class means and one covariance within classes, from the ridge's sums.

Hayes and Kanan, "Lifelong Machine Learning with Deep Streaming Linear Discriminant Analysis", CVPR-W 2020, arXiv 1909.01520.

| symbol | name | shape |
|---|---|---|
| n_c, mu_c | ``targets``, ``cross`` / ``targets`` of the sums | (C,), (C, d_phi) |
| S | scatter within classes, G - sum_c n_c mu_c mu_c^T | (d_phi, d_phi) |
| Sigma | S / (N - C) | (d_phi, d_phi) |
| Lambda | ((1 - shrink) Sigma + shrink I)^-1 | (d_phi, d_phi) |

score_c = x . Lambda mu_c - mu_c . Lambda mu_c / 2 + log prior_c, up to a number that is the same for every class.

Differs from the paper: S is exact. (The running form of the public copies weighs a row by the count of all rows in place of
its class's, and measures a class's first row from 0.) New are the classes' prior and ``standardise``, which shrinks towards
the features' own variances and not towards 1. Features that never varied have weight 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from millrace.learners.analytic.linalg import blas
from millrace.learners.analytic.normal_equations import Solution, Sums, System, centre_of, system_of
from millrace.learners.analytic.priors import UNIFORM, Prior, refuse_unfit, shares
from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.learners.analytic.solver import Solver, Statistics
from millrace.learners.protocol import Floats

NEVER = -1e9  # score of a class without rows or share: below any other, and still a number that JSON can say


@dataclass(frozen=True, slots=True)
class SldaConfig:
    """Streaming linear discriminant analysis; the keys of a ridge mean the same (ridge.py).

    Raises: ValueError naming key, value and what is allowed.
    """

    task: str = "classify"  # "classify", as numbers have no classes
    prior: Prior = UNIFORM  # of classes: "uniform" as in the paper, "as-seen", or class = share in [0, 1]
    shrink: float = 1e-4  # in (0, 1], share of the identity in the covariance; more is nearer to the class means alone
    standardise: bool = True
    solve_rows: int = 1024
    decay: float = 1.0
    expand: int = 0

    def __post_init__(self) -> None:
        refuse_unfit("slda", self.task, self.prior)
        if not 0.0 < self.shrink <= 1.0:
            raise ValueError(f"shrink = {self.shrink!r}: must be a number above 0 and up to 1")
        self.ridge()

    def ridge(self) -> RidgeConfig:
        """The part that is a ridge's."""
        return RidgeConfig(
            self.task, standardise=self.standardise, solve_rows=self.solve_rows, decay=self.decay, expand=self.expand
        )


def slda(config: SldaConfig, d: int, seed: int) -> Ridge:
    """An untaught SLDA over ``d`` features; ``seed`` draws the projection, if there is one."""
    return Ridge(config.ridge(), d, seed, Solver("slda", config, answer))


def answer(config: SldaConfig, statistics: Statistics) -> Solution:
    """W = Lambda mu and b, both seen from the mean of all rows, where less is lost to rounding."""
    sums = statistics.sums
    if sums.weight <= 0.0:
        return Solution(
            np.zeros((len(sums.features), len(statistics.names)), order="F"), np.full(len(statistics.names), 0.0), 0.0, 1.0
        )
    around = system_of(sums, config.shrink, True, config.standardise)
    mu = class_means(sums) - around.mean  # (C, d_phi)
    mu[sums.targets <= 0.0] = 0.0
    solution = System(
        scatter_within(sums, mu, around.mean, config.shrink), around.scale, np.zeros_like(around.mean), config.shrink
    ).solved()
    w = solution.weights
    share = shares(config.prior if statistics.prior is None else statistics.prior, statistics.names, sums.targets)
    log_prior = np.log(share, out=np.full(len(share), NEVER), where=share > 0.0)
    b = log_prior - around.mean @ w - 0.5 * np.einsum("cd,dc->c", mu, w)
    return replace(solution, intercept=b, centre=centre_of(sums))


def class_means(sums: Sums) -> Floats:
    """mu (C, d_phi) as seen from the centre; 0 for a class without rows."""
    n = sums.targets[:, None]
    cross = sums.cross[: len(n)]
    return np.divide(cross, n, out=np.zeros_like(cross), where=n > 0.0)


def scatter_within(sums: Sums, mu: Floats, mean: Floats, shrink: float) -> Sums:
    """(1 - shrink) Sigma as the second moment, and the centred class means ``mu`` as what is to be solved for."""
    scatter = sums.gram.copy(order="F")
    blas().dsyr(-sums.weight, mean, a=scatter, lower=1, overwrite_a=1)
    rows = np.asfortranarray((mu * np.sqrt(np.maximum(sums.targets, 0.0))[:, None]).T)  # (d_phi, C)
    blas().dsyrk(-1.0, rows, beta=1.0, c=scatter, lower=1, overwrite_c=1)
    freedom = sums.weight - np.count_nonzero(sums.targets > 0.0)
    scatter *= (1.0 - shrink) / freedom if freedom > 0.0 else 0.0
    outputs = len(mu)
    return Sums(scatter, mu, np.zeros(len(mean)), np.zeros(outputs), np.zeros(outputs), 1.0)
