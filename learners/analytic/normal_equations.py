"""Weighted ridge regression from running sums: what is added to a row at a time, and the centred solution of it.

All sums are taken from a centre, so phi and y below are differences to it (centre.py).

| symbol | name | shape |
|---|---|---|
| phi | features of a row | (d,) |
| y | targets of a row (one-hot for classes) | (C,) |
| G | sum w phi phi^T | (d, d) |
| Q | sum w y phi^T | (C, d) |
| s, t, n | sum w phi, sum w y, sum w | (d,), (C,), () |
| y2 | sum w y^2 | (C,) |
| A | D (G - s s^T / n) D + gamma I, with D = 1 / standard deviation | (d, d) |
| B | D (Q^T - s t^T / n) | (d, C) |
| W, b | weights D A^-1 B and intercept t / n - W^T s / n, at the centre | (d, C), (C,) |

Source: Zhuang et al., ACIL, arXiv 2205.14922; docs/design/learners.md#normal-equations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, cast

import numpy as np

from millrace.learners.analytic.linalg import blas, lapack
from millrace.learners.errors import LearnerError
from millrace.learners.protocol import Array, Floats

CONSTANT = 1e-10  # a feature whose centred share of its sums of squares is lower has lost ten digits: its weight is 0
ROUNDED = 8.0 * float(np.finfo(np.float64).eps)  # deviation over value at which values differ by their own rounding only
FORGOTTEN = 1e-13  # a sum of squares that taking rows out brought below this share of itself is rounding, and set to 0
GAMMA_FLOOR = 1e-8  # of the mean eigenvalue of A before gamma: keeps cond(A) where float64 still has 8 digits
GAMMA_STEP = 10.0  # gamma grows by this factor where rounding has made A indefinite
RESIDUAL = 1e-8  # relative residual above which the solution is refined once
COLUMNS = 16  # outputs handled at a time where the residual is computed, so that it needs little memory


@dataclass(slots=True)
class Sums:
    """The record of truth: everything the solution needs, and nothing that grows with rows."""

    gram: Floats  # G, (d, d), Fortran order, lower triangle; the other one stays 0
    cross: Floats  # Q, (capacity >= C, d), C order; rows past C are 0
    features: Floats  # s, (d,)
    targets: Floats  # t, (C,)
    squares: Floats  # y2, (C,)
    weight: float = 0.0  # n
    centre: Floats = field(default_factory=lambda: np.zeros(0))  # (d,), what phi is seen from
    centre_targets: Floats = field(default_factory=lambda: np.zeros(0))  # (C,), what y is seen from; 0 for classes
    largest: Floats = field(default_factory=lambda: np.zeros(0))  # (d,), diagonal of G before it was last made smaller

    def __post_init__(self) -> None:
        """Let the centre be 0 where none is given."""
        if len(self.centre) != len(self.features):
            self.centre = np.zeros_like(self.features)
        if len(self.largest) != len(self.features):
            self.largest = np.zeros_like(self.features)
        if len(self.centre_targets) != len(self.targets):
            self.centre_targets = np.zeros_like(self.targets)

    @classmethod
    def empty(cls, d: int) -> Sums:
        """Sums over no rows, of ``d`` features and no outputs."""
        return cls(np.zeros((d, d), order="F"), np.zeros((0, d)), np.zeros(d), np.zeros(0), np.zeros(0))

    @classmethod
    def of(cls, state: dict[str, Any]) -> Sums:
        """The sums that gave ``state``, whose arrays they keep; of a release before there was a centre, it is 0."""
        gram = lapack().dtpttr(len(state["features"]), state["gram"], uplo="L")[0]
        sums = (state[key] for key in ("cross", "features", "targets", "squares", "weight"))
        return cls(gram, *sums, *(state.get(key, np.zeros(0)) for key in ("centre", "centre_targets", "largest")))

    def state(self) -> dict[str, Any]:
        """A copy of all sums, G as its packed lower triangle (d (d + 1) / 2,) in LAPACK's order."""
        return {
            "gram": lapack().dtrttp(self.gram, uplo="L")[0],
            "cross": self.cross[: len(self.targets)].copy(),
            "features": self.features.copy(),
            "targets": self.targets.copy(),
            "squares": self.squares.copy(),
            "weight": self.weight,
        }

    def centre_state(self) -> dict[str, Any]:
        """A copy of where they are seen from, and of what rounding is reckoned by."""
        centre = {"centre": self.centre.copy(), "centre_targets": self.centre_targets.copy()}
        return centre | {"largest": self.largest.copy()}

    def grow(self, outputs: int) -> None:
        """Make room for ``outputs`` in all; a new output starts at 0, which is exact for a class not seen before."""
        new = np.zeros(outputs - len(self.targets))
        if not len(new):
            return
        if outputs > len(self.cross):
            cross = np.zeros((max(outputs, len(self.cross) * 3 // 2), self.cross.shape[1]))
            cross[: len(self.cross)] = self.cross
            self.cross = cross
        self.targets = np.concatenate([self.targets, new])
        self.squares = np.concatenate([self.squares, new])
        self.centre_targets = np.concatenate([self.centre_targets, new])

    def add(self, phi: Floats, y: Floats, weight: Floats | None, keep: float, one_hot: bool = False) -> None:
        """Multiply what is there by ``keep`` and add the rows phi (n, d), y (n, C) of weight (n,), None being 1.

        Rows are as seen from the centre, so that these are the differences to it. ``one_hot``: y holds ones and zeros alone.

        One dsyrk and one dgemm, both in place: for many rows this is all the time it takes.
        """
        root = _ones(len(phi)) if weight is None else np.sqrt(weight)
        rooted = y if weight is None else y * root[:, None]
        phi = phi if weight is None else phi * root[:, None]
        blas().dsyrk(1.0, phi.T, beta=keep, c=self.gram, lower=1, overwrite_c=1)
        cross = self.cross[: y.shape[1]].T
        blas().dgemm(1.0, phi.T, np.asfortranarray(rooted), beta=keep, c=cross, overwrite_c=1)
        totals = root @ rooted
        squares = totals if one_hot and weight is None else np.einsum("ij,ij->j", rooted, rooted)
        if keep != 1.0:
            self._fade(keep)
        self.features = self.features + root @ phi
        self.targets = self.targets + totals
        self.squares = self.squares + squares
        self.weight += len(phi) if weight is None else float(root @ root)

    def _fade(self, keep: float) -> None:
        """Let the sums weigh ``keep`` of what they did, but for the products, which BLAS has let fade already."""
        self.features, self.targets, self.squares = keep * self.features, keep * self.targets, keep * self.squares
        self.weight, self.largest = keep * self.weight, keep * self.largest

    def move(self, centre: Floats, targets: Floats) -> None:
        """See all rows from another centre, features (d,) and targets (C,): G - s d^T - d s^T + n d d^T and so on."""
        by, up = centre - self.centre, targets - self.centre_targets
        if by.any() or up.any():
            self.largest = np.where(by == 0.0, self.largest, np.maximum(self.largest, np.diag(self.gram)))
            shift_gram(self.gram, self.features, self.weight, by)
            cross = self.cross[: len(up)]
            cross -= np.outer(self.targets - self.weight * up, by) + np.outer(up, self.features)
            self.squares = self.squares - 2.0 * up * self.targets + self.weight * up**2
            self.features = self.features - self.weight * by
            self.targets = self.targets - self.weight * up
        self.centre, self.centre_targets = centre.copy(), targets.copy()

    def add_apart(self, phi: Floats, column: int, weight: float) -> None:
        """Add rows phi (n, d), seen from the centre, of one class, each of this weight, by NumPy.

        That takes a matrix more, and other threads run meanwhile.
        """
        total, features = weight * len(phi), weight * phi.sum(axis=0)
        product = (phi.T @ phi).T  # the same again, in the order of G; nobody reads what comes above the diagonal
        product *= weight
        self.gram += product
        self.cross[column] += features
        self.features += features
        self.targets[column] += total
        self.squares[column] += total
        self.weight += total

    def combine(self, other: Sums, columns: list[int], sign: float) -> None:
        """Add (``sign`` 1) or take out (-1) the rows of ``other``, whose output i is column ``columns[i]`` here.

        Both are seen from the same centre.
        """
        before = np.maximum(self.largest, other.largest)
        self.largest = before if sign > 0 else np.maximum(before, np.diag(self.gram))
        self.gram += sign * other.gram
        self.cross[columns] += sign * other.cross[: len(columns)]
        self.targets[columns] += sign * other.targets
        self.squares[columns] += sign * other.squares
        self.features += sign * other.features
        self.weight += sign * other.weight

    def clean(self, before: Floats, empty: Array) -> None:
        """Set to 0 what rounding left of rows that were taken out.

        That is the classes ``empty``, which have no row now, and the features that no row has any more. Of those the sum of
        squares, once ``before`` (d,), is nearly 0. Where ``before`` is infinite, no row is left at all.
        """
        self.cross[empty], self.targets[empty], self.squares[empty] = 0.0, 0.0, 0.0
        gone = np.flatnonzero(np.diag(self.gram) <= FORGOTTEN * before)
        self.gram[gone, :] = self.gram[:, gone] = 0.0
        self.cross[:, gone] = 0.0
        self.features[gone] = 0.0
        if np.isinf(before).any():
            self.targets[:], self.squares[:], self.weight, self.largest[:] = 0.0, 0.0, 0.0, 0.0


@lru_cache(maxsize=4)
def _ones(rows: int) -> Floats:
    ones = np.ones(rows)
    ones.flags.writeable = False
    return ones


def shift_gram(gram: Floats, total: Floats, weight: float, by: Floats) -> None:
    """G - s d^T - d s^T + n d d^T in place, lower triangle, for rows whose centre moves by d; s is ``total``, n ``weight``."""
    blas().dsyr2(-1.0, total - 0.5 * weight * by, by, a=gram, lower=1, overwrite_a=1)


@dataclass(frozen=True, slots=True)
class Solution:
    """What the sums say, and how far to believe it."""

    weights: Floats  # W, (d, C), Fortran order
    intercept: Floats  # b, (C,): the scores at the centre
    residual: float  # ||A V - B|| / ||B|| after refinement, A and B taken from the sums themselves
    gamma: float  # the one that was used: the one asked for, unless a guard raised it
    error: float = 0.0  # ||V - V*|| is at most this, V* being the exact solution of the sums: residual ||B|| / gamma
    centre: Floats | None = None  # (d,), what features are seen from; None: from 0


@dataclass(frozen=True, slots=True)
class System:
    """A V = B as the sums give it, never held as a whole."""

    sums: Sums
    scale: Floats  # the diagonal of D, (d,); 0 for a constant feature
    mean: Floats  # s / n, (d,); 0 without an intercept
    gamma: float  # > 0, more is flatter
    apart: bool = False  # factored by NumPy, which lets other threads run meanwhile but needs two matrices more

    def matrix(self) -> Floats:
        """A, lower triangle, in an array of its own: the only (d, d) one besides G."""
        a = self.sums.gram.copy(order="F")
        blas().dsyr(-self.sums.weight, self.mean, a=a, lower=1, overwrite_a=1)
        a *= self.scale[:, None]
        a *= self.scale
        a[np.diag_indices_from(a)] += self.gamma
        return a

    def right_side(self, cut: slice) -> Floats:
        """The columns ``cut`` of B, (d, columns), Fortran order."""
        b = self.sums.cross[cut].T.copy(order="F")
        blas().dger(-1.0, self.mean, self.sums.targets[cut], a=b, overwrite_a=1)
        b *= self.scale[:, None]
        return b

    def applied(self, v: Floats) -> Floats:
        """A v for v (d, columns), from G and not from a copy of A, so that forming A is checked too."""
        scaled = v * self.scale[:, None]
        out = cast(Floats, blas().dsymm(1.0, self.sums.gram, scaled, lower=1))
        blas().dger(-self.sums.weight, self.mean, self.mean @ scaled, a=out, overwrite_a=1)
        out *= self.scale[:, None]
        out += self.gamma * v
        return out

    def misses(self, v: Floats) -> Iterator[tuple[slice, Floats, Floats]]:
        """B - A v and B, some columns at a time."""
        for start in range(0, v.shape[1], COLUMNS):
            cut = slice(start, min(start + COLUMNS, v.shape[1]))
            b = self.right_side(cut)
            yield cut, b - self.applied(v[:, cut]), b

    def residual(self, v: Floats) -> float:
        """||A v - B|| / ||B||, 0 where B is 0."""
        missed, whole = self.squared_norms(v)
        return float(np.sqrt(missed / whole)) if whole > 0.0 else 0.0

    def squared_norms(self, v: Floats) -> tuple[float, float]:
        """||A v - B||^2 and ||B||^2."""
        norms = [(np.vdot(miss, miss), np.vdot(b, b)) for _, miss, b in self.misses(v)]
        missed, whole = np.sum(norms, axis=0)
        return missed, whole

    def solved(self) -> Solution:
        """W = D V of A V = B, refined once where it misses; the intercept is 0.

        Raises: LearnerError where the sums are not finite.
        """
        system, factor = _factored(self)
        v = lapack().dpotrs(factor, system.right_side(slice(0, len(self.sums.targets))), lower=1, overwrite_b=1)[0]
        missed, whole = system.squared_norms(v)
        if whole > 0.0 and np.sqrt(missed / whole) > RESIDUAL:
            refine(system, factor, v)
            missed, _ = system.squared_norms(v)
        residual = float(np.sqrt(missed / whole)) if whole > 0.0 else 0.0
        v *= system.scale[:, None]
        if not (np.isfinite(residual) and np.isfinite(v).all()):
            raise LearnerError("the ridge solution is not finite: its sums overflowed; roll back to an earlier version")
        return Solution(v, np.zeros(v.shape[1]), residual, system.gamma, float(np.sqrt(missed)) / system.gamma)


def solve(sums: Sums, gamma: float, intercept: bool, standardise: bool, apart: bool = False) -> Solution:
    """The ridge solution: least squares with penalty gamma |D^-1 W|^2, the intercept not penalised.

    A constant feature gets weight exactly 0; gamma is raised where it is too small for float64 (see the guards above).
    ``apart``: for a thread beside learning, see System.
    Raises: LearnerError where the sums are not finite.
    """
    d, outputs = len(sums.features), len(sums.targets)
    if sums.weight <= 0.0:
        return Solution(np.zeros((d, outputs), order="F"), np.zeros(outputs), 0.0, gamma)
    system = replace(system_of(sums, gamma, intercept, standardise), apart=apart)
    solution = system.solved()
    mean = sums.centre_targets + sums.targets / sums.weight
    b = mean - system.mean @ solution.weights if intercept else np.zeros(outputs)
    if not np.isfinite(b).all():
        raise LearnerError("the ridge solution is not finite: its sums overflowed; roll back to an earlier version")
    return replace(solution, intercept=b, centre=centre_of(sums))


def refine(system: System, factor: Floats, v: Floats) -> None:
    """One step of iterative refinement of v (d, C), in place, with the Cholesky factor of A (lower triangle)."""
    for cut, miss, _ in system.misses(v):
        v[:, cut] += lapack().dpotrs(factor, miss, lower=1)[0]


def centre_of(sums: Sums) -> Floats | None:
    """A copy of what features are seen from; None where that is 0."""
    return sums.centre.copy() if sums.centre.any() else None


def centred_squares(sums: Sums, mean: Floats) -> tuple[Floats, Array]:
    """Sums of squared distances to ``mean`` (d,), seen from the centre; and which of them (d,) are more than rounding."""
    raw = np.diag(sums.gram)
    centred = raw - sums.weight * mean**2
    rounding = sums.weight * (ROUNDED * (sums.centre + mean)) ** 2
    return centred, centred > np.maximum(CONSTANT * np.maximum(raw, sums.largest), rounding)


def system_of(sums: Sums, gamma: float, intercept: bool, standardise: bool) -> System:
    """The system with its scale and mean, and gamma held above its floor."""
    mean = sums.features / sums.weight if intercept else np.zeros_like(sums.features)
    centred, varies = centred_squares(sums, mean)
    scale = np.zeros_like(centred)
    scale[varies] = np.sqrt(sums.weight / centred[varies]) if standardise else 1.0
    trace = float(np.sum(centred * scale**2))
    if not np.isfinite(trace):
        raise LearnerError("the ridge's sums are not finite; roll back to an earlier version")
    return System(sums, scale, mean, max(gamma, GAMMA_FLOOR * trace / len(scale)))


def _factored(system: System) -> tuple[System, Floats]:
    """The Cholesky factor of A (lower triangle), with gamma raised until there is one.

    Raises: LearnerError where A is not finite.
    """
    while np.isfinite(system.gamma):
        factor = _cholesky_apart(system.matrix()) if system.apart else _cholesky(system.matrix())
        if factor is not None:
            return system, factor
        system = replace(system, gamma=GAMMA_STEP * system.gamma)
    raise LearnerError("the ridge's matrix has no Cholesky factor for any gamma; roll back to an earlier version")


def _cholesky(a: Floats) -> Floats | None:
    """The Cholesky factor of ``a`` (lower triangles), in its place; None where there is none."""
    factor, info = lapack().dpotrf(a, lower=1, clean=0, overwrite_a=1)
    return None if info else cast(Floats, factor)


def _cholesky_apart(a: Floats) -> Floats | None:
    """The same in an array of its own, without Python's lock; still in Fortran order, so that nothing is copied later."""
    try:
        return cast(Floats, np.linalg.cholesky(a.T, upper=True).T)
    except np.linalg.LinAlgError:
        return None
