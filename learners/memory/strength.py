"""How much of the error is corrected: the share that would have been best lately, found by itself.

Each row that comes with its label says what each share would have cost: the squared distance of the answer so corrected from
the label. Shares are compared by the answer and the error as they were when the row was asked, never by the memory of today.
It starts with 0, and equal shares go to the smaller: a memory that is of no use switches itself off, and on again.

The log loss of each share is kept beside and decides nothing. Scores such as a ridge's are no probabilities, so those of all
shares alike are clipped to ``LEAST`` and 1, and divided by their sum.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from millrace.learners.protocol import Floats, Value

SHARES = (0.0, 0.2, 0.4, 0.6, 0.9)  # of the error
HALF_LIFE_ROWS = 1000  # rows after which a loss counts half
ZERO, ONE = np.array(0.0), np.array(1.0)  # as arrays, which NumPy takes sooner than numbers
LEAST = 0.001  # of a score that stands for a probability


def corrected(answers: Floats, errors: Floats, share: float, bounded: bool) -> Floats:
    """Answers (n, C) with a share of their errors (n, C); those of classes are ``bounded`` to [0, 1].

    Answers that nothing is known against, and all with share 0, stay as they are, to the bit.
    """
    if share == 0.0:
        return answers
    moved = _moved(answers, errors, share, bounded)
    if np.count_nonzero(errors) == errors.size:  # as a rule, and sooner found out than of each row
        return moved
    return np.where(errors.any(axis=1, keepdims=True), moved, answers)


def _moved(answers: Floats, errors: Floats, share: float | Floats, bounded: bool) -> Floats:
    """Answers with a share of their errors, or with each of several (m, 1, 1)."""
    moved: Floats = share * errors
    moved += answers
    return np.minimum(np.maximum(moved, ZERO, out=moved), ONE, out=moved) if bounded else moved


def _log_losses(scores: Floats, labels: Floats) -> Floats:
    """-log (..., n) of the label's part of scores (..., n, C); labels (n, C) are one-hot, or 0 where they have no column."""
    parts = np.clip(scores, LEAST, 1.0)
    of_label = np.maximum((parts * labels).sum(axis=-1), LEAST)
    return np.asarray(-np.log(of_label / parts.sum(axis=-1)))


class Strength:
    """The losses of the shares, and the best one.

    >>> strength = Strength(None, bounded=True)
    >>> strength.take(np.array([[0.9, 0.1]]), np.array([[-0.5, 0.5]]), np.array([[0.0, 1.0]]), np.ones(1))
    >>> strength.share
    0.9
    """

    def __init__(self, fixed: float | None, bounded: bool) -> None:
        """``fixed``: the share that always holds; None: the best one does."""
        self._fixed, self._bounded = fixed, bounded
        self._shares = SHARES if fixed is None or fixed in SHARES else (*SHARES, fixed)
        self.losses, self.log_losses = np.zeros((2, len(self._shares)))
        self.weight = 0.0  # of the rows in the losses, halved as they are

    @property
    def share(self) -> float:
        """lambda."""
        return self._shares[int(self.losses.argmin())] if self._fixed is None else self._fixed

    def take(self, answers: Floats, errors: Floats, labels: Floats, weight: Floats) -> None:
        """Rows with what was answered, by how much it was wrong, and what came, all (n, C), and their weights (n,)."""
        ages = np.arange(len(weight) - 1, -1, -1)
        counts = weight * 2.0 ** (-ages / HALF_LIFE_ROWS)
        halved = 2.0 ** (-len(weight) / HALF_LIFE_ROWS)
        # (5, n, C), that with share 0 bounded, too: what is compared is what the shares change
        moved = _moved(answers, errors, np.array(self._shares)[:, None, None], self._bounded)
        self.losses = self.losses * halved + (((moved - labels) ** 2).sum(axis=2) * counts).sum(axis=1)
        if self._bounded:
            self.log_losses = self.log_losses * halved + (_log_losses(moved, labels) * counts).sum(axis=1)
        self.weight = self.weight * halved + float(counts.sum())

    def figures(self) -> dict[str, Value]:
        """lambda, and mean losses by it and without a correction, of rows as much as they count by now; log loss of classes."""
        figures: dict[str, Value] = {"strength": self.share}
        if self.weight == 0.0:
            return figures
        kept = {"squared_error": self.losses} | ({"log_loss": self.log_losses} if self._bounded else {})
        for name, losses in kept.items():
            figures[name] = float(losses[self._shares.index(self.share)] / self.weight)
            figures[f"{name}_uncorrected"] = float(losses[0] / self.weight)
        return figures

    def state(self) -> dict[str, Value]:
        """A copy of everything."""
        return {"losses": self.losses.copy(), "log_losses": self.log_losses.copy(), "losses_weight": self.weight}

    def load(self, state: Mapping[str, Value]) -> None:
        """Become what gave ``state``."""
        self.losses, self.log_losses = np.array(state["losses"]), np.array(state["log_losses"])
        self.weight = state["losses_weight"]
