"""AIR: ridge regression in which every class counts as much as another, or as a prior says, exactly and without drawing.

Fang et al., "AIR: Analytic Imbalance Rectifier for Continual Learning", arXiv 2408.10349.

| symbol | name | shape |
|---|---|---|
| A_c | second moment of class c, ``Statistics.per_class`` | (d_phi, d_phi), half of it kept |
| C | class sums, the rows of Q: ``Sums.cross`` | (C, d_phi) |
| n_c | weight of class c, ``Sums.targets`` | (C,) |
| pi_c | ``pi``, share_c / n_c, scaled to a mean of 1 over the classes that have one | (C,) |

Differs from the paper: any prior and not only the uniform one; an intercept and scaled features, both of the re-weighted rows.
Memory, and every checkpoint, is C d_phi (d_phi + 1) / 2 doubles (382 MiB for 100 classes of 1,000 features). So what
``most_classes`` would need is refused above ``limit_mib``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from millrace.learners.analytic.class_statistics import ClassGrams
from millrace.learners.analytic.normal_equations import Solution, Sums, solve
from millrace.learners.analytic.priors import Prior, refuse_unfit, shares
from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.learners.analytic.solver import Solver, Statistics
from millrace.learners.errors import ConfigError
from millrace.learners.protocol import Floats

ONE_ROW = 1.0  # the least n_c that pi is reckoned by


@dataclass(frozen=True, slots=True)
class AirConfig:
    """AIR: a ridge that balances classes exactly; the keys of a ridge mean the same (ridge.py).

    Raises: ValueError naming key, value and what is allowed.
    """

    task: str = "classify"  # "classify", since numbers have no classes to balance
    prior: Prior = "uniform"  # of classes: "uniform", "as-seen" (a plain ridge), or class = share in [0, 1]
    most_classes: int = 100  # >= 1, classes at most, by which memory is reckoned; more are refused
    limit_mib: float = 1024.0  # > 0, mebibytes of memory for the second moments of ``most_classes``
    gamma: float = 1.0
    intercept: bool = True
    standardise: bool = True
    solve_rows: int = 1024
    decay: float = 1.0
    expand: int = 0
    # or ``solve_in_background``: solve beside learning, answer ``solve_rows`` later; pays from a thousand features on
    solve_behind: bool = False

    def __post_init__(self) -> None:
        refuse_unfit("air", self.task, self.prior)
        if not (isinstance(self.most_classes, int) and self.most_classes >= 1 and 0.0 < self.limit_mib < np.inf):
            raise ValueError(f"most_classes = {self.most_classes}, limit_mib = {self.limit_mib}: must be from 1 and above 0")
        self.ridge()

    def ridge(self) -> RidgeConfig:
        """The part that is a ridge's."""
        return RidgeConfig(self.task, self.gamma, self.intercept, self.standardise, self.solve_rows, self.decay, self.expand)


def air(config: AirConfig, d: int, seed: int) -> Ridge:
    """An untaught AIR over ``d`` features; ``seed`` draws the projection, if there is one.

    Raises: ConfigError with the bytes, where ``most_classes`` would need more than ``limit_mib``.
    """
    d_phi = config.expand or d
    need = config.most_classes * 4 * d_phi * (d_phi + 1)
    if need > config.limit_mib * 2**20:
        raise ConfigError(
            f"learner.most_classes = {config.most_classes}: second moments of {d_phi} features take {need:,} bytes "
            f"({need / 2**20:.0f} MiB), more than limit_mib = {config.limit_mib:g}; use fewer, or kind aef-ocl"
        )
    statistics = partial(ClassGrams, d_phi, config.most_classes)
    return Ridge(
        config.ridge(), d, seed, Solver("air", config, answer, statistics, deferred_solution if config.solve_behind else None)
    )


def answer(config: AirConfig, statistics: Statistics) -> Solution:
    """W = (sum_c pi_c A_c + gamma I)^-1 C diag(pi), in the ridge's centred and scaled form."""
    return deferred_solution(config, statistics)()


def deferred_solution(config: AirConfig, statistics: Statistics) -> Callable[[], Solution]:
    """The same with the statistics taken as they are now; what is left is to solve.

    The sums are those that would be if every row of class c had weighed pi_c of what it did.
    """
    sums, grams = statistics.sums, statistics.per_class
    assert isinstance(grams, ClassGrams)
    pi = weights(config.prior if statistics.prior is None else statistics.prior, statistics.names, sums.targets)
    packed, cross = grams.weighed(pi), sums.cross[: len(pi)] * pi[:, None]
    targets, squares = sums.targets * pi, sums.squares * pi
    centre, largest = sums.centre.copy(), sums.largest * pi.max(initial=0.0)

    def solution() -> Solution:
        gram, n = grams.whole(packed), float(targets.sum())
        balanced = Sums(gram, cross, cross.sum(axis=0), targets, squares, n, centre, largest=largest)
        return solve(balanced, config.gamma, config.intercept, config.standardise, config.solve_behind)

    return solution


def weights(prior: Prior, names: tuple[str, ...], weight: Floats) -> Floats:
    """pi (C,): share_c / n_c over its mean among the classes that have a share; 0 for those that have none or no rows.

    A class whose rows have faded to less than ONE_ROW counts as having that, or what is left of it would outweigh all others.
    """
    share = shares(prior, names, weight)
    pi = share / np.maximum(weight, ONE_ROW)
    return pi / pi[share > 0.0].mean() if share.any() else pi
