"""Class priors: what share of the rows that will be asked about each class is taken to have."""

from __future__ import annotations

import numpy as np

from millrace.learners.errors import BadInputError
from millrace.learners.protocol import Floats

AS_SEEN, UNIFORM = "as-seen", "uniform"
Prior = str | dict[str, float]  # "as-seen", "uniform", or class -> share; those not named divide the rest as they were seen


def check_prior(prior: Prior) -> str | None:
    """What is wrong with a prior, or None."""
    if isinstance(prior, str):
        return None if prior in (AS_SEEN, UNIFORM) else f'must be "{AS_SEEN}", "{UNIFORM}" or a table of class = share'
    fits = all(0.0 <= share <= 1.0 for share in prior.values()) and 0.0 < sum(prior.values()) <= 1.0 + 1e-12
    return None if fits else "the shares of a prior must be numbers from 0 to 1 that add up to more than 0 and at most 1"


def refuse_unfit(kind: str, task: str, prior: Prior) -> None:
    """Raises: ValueError where a learner of a kind that names classes by a prior is told another task, or a wrong prior."""
    problem = check_prior(prior)
    if problem is not None:
        raise ValueError(f"prior = {prior!r}: {problem}")
    if task != "classify":
        raise ValueError(f"task: {kind} names classes; use kind ridge for numbers")


def shares(prior: Prior, names: tuple[str, ...], weight: Floats) -> Floats:
    """Share (C,) of each class, adding up to 1; 0 for a class without rows. ``weight`` (C,): n_c, the rows of each class.

    Raises: BadInputError where the prior leaves nothing to the classes that were seen.
    """
    problem = check_prior(prior)
    if problem is not None:
        raise BadInputError(f"prior = {prior!r}: {problem}")
    counted = np.maximum(weight, 0.0)
    if prior == UNIFORM:
        share = (counted > 0.0).astype(np.float64)
    elif isinstance(prior, str):
        share = counted
    else:
        declared = np.array([prior.get(name, np.nan) for name in names])
        undeclared = np.where(np.isnan(declared), counted, 0.0)
        remainder = max(0.0, 1.0 - sum(prior.values()))
        share = np.where(
            np.isnan(declared), undeclared * (remainder / undeclared.sum() if undeclared.sum() > 0.0 else 0.0), declared
        ) * (counted > 0.0)
    if share.size and counted.any() and share.sum() <= 0.0:
        raise BadInputError(f"prior = {prior!r}: leaves no share to any class that was seen: {list(names)}")
    return np.asarray(share / share.sum() if share.sum() > 0.0 else share, dtype=np.float64)
