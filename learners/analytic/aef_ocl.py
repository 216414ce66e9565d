"""AEF-OCL: ridge regression balanced by pseudo-features of the rarer classes, drawn from what is known of each.

Fang et al., "AEF-OCL: Analytic Exemplar-Free Online Continual Learning on Large-scale Imbalanced Dataset", IEEE TVT 2024,
arXiv 2405.17779.

| symbol | name | shape |
|---|---|---|
| n_c, mean_c, std_c | weight, mean and deviation of class c in the space of x | (C,), (C, d), (C, d) |
| eps | noise, N(0, I) | (rows, d) |
| z | mean_c + noise std_c eps, a pseudo-feature | (rows, d) |
| k_c | ``missing``, max_c n_c - n_c | (C,) |

Differs from the paper: drawn at every solve, by (seed, class, learned rows), so the same rows give the same answers; into sums
of their own, so there is nothing to restore and the clean sums stay those of a ridge on real data; at most ``pseudo_rows`` a
class, which then weigh k_c together; towards any prior. A feature that is constant, or a class of one row, deviates by 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from millrace.learners.analytic.class_statistics import ClassMoments
from millrace.learners.analytic.normal_equations import Solution, Sums, solve
from millrace.learners.analytic.priors import Prior, refuse_unfit, shares
from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.learners.analytic.solver import Solver, Statistics
from millrace.learners.linear.servable import expanded
from millrace.learners.protocol import Floats


@dataclass(frozen=True, slots=True)
class AefOclConfig:
    """AEF-OCL: a ridge that balances classes by drawn pseudo-features; the keys of a ridge mean the same (ridge.py).

    Raises: ValueError naming key, value and what is allowed.
    """

    task: str = "classify"  # "classify", since numbers have no classes to balance
    prior: Prior = "uniform"  # of classes: "uniform" (the paper's), "as-seen" (a plain ridge), or class = share in [0, 1]
    noise: float = 1.0  # >= 0, deviations by which pseudo-features scatter; more is more diverse and less typical
    pseudo_rows: int = 1024  # >= 1, pseudo-rows drawn for a class at most; more is nearer to the expectation and slower
    gamma: float = 1.0
    intercept: bool = True
    standardise: bool = True
    # >= 1, learned rows from one solve to the next, which draws anew: half a second for ten classes of 1,000 features
    solve_rows: int = 1024
    decay: float = 1.0
    expand: int = 0
    # or ``solve_in_background``: solve beside learning, answer ``solve_rows`` later; pays from hundreds of features on
    solve_behind: bool = False

    def __post_init__(self) -> None:
        refuse_unfit("aef-ocl", self.task, self.prior)
        if not (isinstance(self.pseudo_rows, int) and self.pseudo_rows >= 1 and 0.0 <= self.noise < np.inf):
            raise ValueError(f"pseudo_rows = {self.pseudo_rows}, noise = {self.noise}: must be from 1 and from 0")
        self.ridge()

    def ridge(self) -> RidgeConfig:
        """The part that is a ridge's."""
        return RidgeConfig(self.task, self.gamma, self.intercept, self.standardise, self.solve_rows, self.decay, self.expand)


def aef_ocl(config: AefOclConfig, d: int, seed: int) -> Ridge:
    """An untaught AEF-OCL over ``d`` features; ``seed`` draws the projection and the pseudo-features."""
    behind = deferred_solution if config.solve_behind else None
    return Ridge(config.ridge(), d, seed, Solver("aef-ocl", config, answer, partial(ClassMoments, d), behind))


def answer(config: AefOclConfig, statistics: Statistics) -> Solution:
    """The ridge solution of the real rows and the pseudo-features together."""
    return solve(balanced(config, statistics), config.gamma, config.intercept, config.standardise, config.solve_behind)


def deferred_solution(config: AefOclConfig, statistics: Statistics) -> Callable[[], Solution]:
    """The same with the statistics copied as they are now; what is left is to draw and to solve."""
    copied = replace(statistics, sums=deepcopy(statistics.sums), per_class=deepcopy(statistics.per_class))
    return partial(answer, config, copied)


def balanced(config: AefOclConfig, statistics: Statistics) -> Sums:
    """Sums of their own: the real rows' and, for each rare class, pseudo-features that make up what it lacks."""
    moments, sums = statistics.per_class, statistics.sums
    assert isinstance(moments, ClassMoments)
    pseudo = deepcopy(sums)
    deviation = moments.deviation()
    prior = config.prior if statistics.prior is None else statistics.prior
    for column, k in enumerate(missing(prior, statistics.names, moments.weight)):
        rows = min(round(k), config.pseudo_rows)
        if rows > 0:
            eps = _generator(statistics, column).standard_normal((rows, moments.mean.shape[1]))
            z = moments.mean[column] + config.noise * deviation[column] * eps  # from the moments' centre
            if statistics.projection is None:
                away = z + (moments.centre - sums.centre)
            else:
                away = expanded(z + moments.centre, statistics.projection) - sums.centre
            if config.solve_behind:
                pseudo.add_apart(away, column, k / rows)
            else:
                y = np.zeros((rows, len(sums.targets)), order="F")
                y[:, column] = 1.0
                pseudo.add(away, y, None if k == rows else np.full(rows, k / rows), 1.0)
    return pseudo


def missing(prior: Prior, names: tuple[str, ...], weight: Floats) -> Floats:
    """k (C,): what each class lacks of its share when no row may be left out; max_c n_c - n_c for a uniform prior."""
    share = shares(prior, names, weight)
    total = np.divide(weight, share, out=np.zeros_like(share), where=share > 0.0).max(initial=0.0)
    lacking: Floats = np.maximum(share * total - weight, 0.0)
    return lacking


def _generator(statistics: Statistics, column: int) -> np.random.Generator:
    """Draws by (seed, class, learned rows), the class by name, so that its column does not matter."""
    name = int.from_bytes(hashlib.sha256(statistics.names[column].encode()).digest()[:8], "big")
    return np.random.Generator(np.random.PCG64([statistics.seed, name, statistics.rows]))
