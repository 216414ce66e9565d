"""Ours beside the papers' own recursions, written down from their pseudocode: the same features, the same test rows."""

from __future__ import annotations

import numpy as np
from family import ONCE, class_accuracy, made, taught, toy

from millrace.learners.linear.servable import expanded
from millrace.learners.protocol import Array, Floats

GAMMA, EXPAND, BATCH = 0.1, 120, 50
COUNTS = (3000, 1500, 600, 100, 40, 20)
AS_PAPER = {"gamma": GAMMA, "expand": EXPAND, "intercept": False, "standardise": False}


class Recursion:
    """R and W of ACIL (Zhuang et al., 2022), with the statistics and pseudo-features of AEF-OCL. Spec 1.1 and 1.3."""

    def __init__(self, d: int, projection: Floats, classes: int) -> None:
        self.projection = projection
        self.r, self.w = np.eye(len(projection)) / GAMMA, np.zeros((len(projection), classes))
        self.n, self.s1, self.s2 = np.zeros(classes), np.zeros((classes, d)), np.zeros((classes, d))

    def update(self, x: Floats, y: Array) -> None:
        """S = I + X R X^T; R <- R - R X^T S^-1 X R; W <- W + R X^T (Y - X W)."""
        phi, target = expanded(x, self.projection), np.eye(len(self.n))[y]
        gain = np.linalg.solve(np.eye(len(phi)) + phi @ self.r @ phi.T, phi @ self.r)
        self.r = self.r - self.r @ phi.T @ gain
        self.w = self.w + self.r @ phi.T @ (target - phi @ self.w)

    def observe(self, x: Floats, y: Array) -> None:
        """Real rows."""
        np.add.at(self.n, y, 1)
        np.add.at(self.s1, y, x)
        np.add.at(self.s2, y, x * x)
        self.update(x, y)

    def balanced(self, rng: np.random.Generator) -> Floats:
        """W after pseudo-features for every class, from a copy of R and W that is put back."""
        snapshot = self.r, self.w
        mean = self.s1 / self.n[:, None]
        variance = (self.s2 / self.n[:, None] - mean**2) * (self.n / (self.n - 1))[:, None]
        for c, k in enumerate((self.n.max() - self.n).astype(int)):
            for start in range(0, k, 200):
                rows = min(200, k - start)
                z = mean[c] + np.sqrt(np.maximum(variance[c], 0.0)) * rng.standard_normal((rows, mean.shape[1]))
                self.update(z, np.full(rows, c))
        answer, (self.r, self.w) = self.w, snapshot
        return answer


def test_aef_ocl_is_within_half_a_point_of_the_papers_recursion() -> None:
    """Mean-class accuracy, mean of five seeds (spec 1.3, parity bar 2); without pseudo-features W is the same to 1e-9."""
    ours, theirs, plain = [], [], []
    for seed in range(5):
        x, y, test_x, test_y = toy(seed, correlated=False, counts=COUNTS)
        order = np.random.default_rng(seed).permutation(len(x))
        x, y = x[order], y[order]
        learner = taught(made("aef-ocl", 24, solve_rows=ONCE, pseudo_rows=10**6, **AS_PAPER), x, y)
        known = learner.known()
        assert known.projection is not None
        paper = Recursion(24, known.projection, len(known.names))
        column = np.array([known.names.index(name) for name in y])
        for start in range(0, len(x), BATCH):
            paper.observe(x[start : start + BATCH], column[start : start + BATCH])
        ridge = taught(made("ridge", 24, solve_rows=ONCE, **AS_PAPER), x, y)
        served = ridge.servable()
        again = [served.classes.index(name) for name in known.names]
        assert np.abs(served.weights[:, again] - paper.w).max() <= 1e-9 * np.abs(paper.w).max()
        phi = expanded(test_x, known.projection)
        predicted = np.array(known.names, dtype=object)[(phi @ paper.balanced(np.random.default_rng(seed))).argmax(axis=1)]
        theirs.append(float(np.mean([(predicted[test_y == name] == name).mean() for name in known.names])))
        ours.append(class_accuracy(learner, test_x, test_y))
        plain.append(class_accuracy(ridge, test_x, test_y))
    assert abs(np.mean(ours) - np.mean(theirs)) <= 0.005, (ours, theirs)
    assert np.mean(plain) < np.mean(theirs) - 0.05, (plain, theirs)  # else there was nothing to balance
