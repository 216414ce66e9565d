"""How answers follow from the statistics of a ridge: what a head is given, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from millrace.learners.analytic.class_statistics import ClassStatistics
from millrace.learners.analytic.normal_equations import Solution, Sums, solve
from millrace.learners.analytic.priors import Prior
from millrace.learners.errors import LearnerError
from millrace.learners.linear.answered import Answered
from millrace.learners.linear.servable import LinearServable
from millrace.learners.protocol import Floats


@dataclass(frozen=True, slots=True)
class Statistics:
    """What answers may follow from, and nothing else; nobody writes to it."""

    sums: Sums
    per_class: ClassStatistics | None  # what the head asked to be kept besides
    names: tuple[str, ...]  # (C,) classes
    rows: int  # learned
    projection: Floats | None  # A
    seed: int
    prior: Prior | None = None  # None: the one of the configuration


@dataclass(frozen=True, slots=True)
class Solver:
    """A way to answer from the sums."""

    kind: str  # the learner's word in the table
    config: Any  # what it was told
    answer: Callable[[Any, Statistics], Solution]  # (config, statistics), pure
    per_class: Callable[[], ClassStatistics] | None = None  # makes empty ones, where more than the sums is to be kept
    begin: Callable[[Any, Statistics], Callable[[], Solution]] | None = None  # for background.py; None: learning waits for it


def served(
    names: tuple[str, ...], solution: Solution, projection: Floats | None, answered: Answered | None = None
) -> LinearServable:
    """What answers by a solution: rows as seen from its centre, where it has one. It notes them in ``answered``."""
    weights, centre = solution.weights, solution.centre
    if centre is None:
        return LinearServable(names, weights, solution.intercept, projection, answered=answered)
    intercept, level = solution.intercept - centre @ weights, solution.intercept
    return LinearServable(names, weights, intercept, projection, centre=centre, level=level, answered=answered)


def regression(config: Any, statistics: Statistics) -> Solution:
    """The answers of a ridge."""
    if statistics.prior is not None:
        raise LearnerError("a ridge keeps nothing of each class, so it has the prior it saw; use kind air or aef-ocl")
    return solve(statistics.sums, config.gamma, config.intercept, config.standardise)


def projection(features: int, d: int, seed: int) -> Floats:
    """A (features, d), uniform in +-1 / sqrt(d), the reference code's initialisation. Source: ACIL, Buffer.py."""
    bound = 1.0 / np.sqrt(d)
    return np.random.Generator(np.random.PCG64(seed)).uniform(-bound, bound, (features, d))
