"""What a learner kept and what it lost while it went on: accuracy by task after each task, and at every evaluation.

| symbol | meaning | shape |
|---|---|---|
| a | ``table``: a[t, i] is the accuracy on task i after task t, in the order of learning; NaN: not measured | (T, T) |
| acc | ``curve``: accuracy on task i at evaluation n; NaN before the task was met | (N, T) |

In a stream without tasks every class is one, met when it is first evaluated (``ContinualScores``).

Differs from RaptorMai/online-continual-learning (and PCR, which has it from there). Its forgetting takes the largest accuracy
over all t, the last too, and divides by T where T - 1 tasks can be forgotten. So times T / (T - 1) it compares with ours where
nothing improved at the end. Its backward transfer is over all pairs t > i, and never below 0. Both are here under their names.

Source: Lopez-Paz and Ranzato, GEM, NIPS 2017 (BWT, FWT); Chaudhry et al., ECCV 2018 (forgetting); De Lange et al., arXiv
2205.13452 (min-ACC, WC-ACC, windowed); Caccia et al., ICLR 2022 (AAA); Verwimp et al., CLAD, arXiv 2210.03482 (AMCA).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from millrace.learners.protocol import Floats, Value


def final_average_accuracy(table: Floats) -> float:
    """A_T = mean_i a[T, i]."""
    return float(table[-1].mean())


def average_incremental_accuracy(table: Floats) -> float:
    """mean_t A_t, with A_t = mean_{i <= t} a[t, i]."""
    return float(np.mean([table[t, : t + 1].mean() for t in range(len(table))]))


def forgetting(table: Floats) -> float:
    """mean_{i < T} (max_{t < T} a[t, i] - a[T, i]); negative where tasks improved; 0 for one task."""
    if len(table) < 2:
        return 0.0
    return float((np.nanmax(table[:-1, :-1], axis=0) - table[-1, :-1]).mean())


def raptormai_forgetting(table: Floats) -> float:
    """(1 / T) sum_i (max_t a[t, i] - a[T, i]), never negative. Source: RaptorMai/online-continual-learning."""
    return float((np.nanmax(table, axis=0) - table[-1]).mean())


def backward_transfer(table: Floats) -> float:
    """BWT = mean_{i < T} (a[T, i] - a[i, i]); negative where tasks were forgotten; 0 for one task."""
    return float((table[-1, :-1] - np.diag(table)[:-1]).mean()) if len(table) > 1 else 0.0


def raptormai_backward_transfer(table: Floats) -> float:
    """max(0, mean over all pairs t > i of a[t, i] - a[i, i]). Source: RaptorMai/online-continual-learning."""
    later, task = np.tril_indices(len(table), -1)
    return max(0.0, float((table[later, task] - table[task, task]).mean())) if len(later) else 0.0


def forward_transfer(table: Floats) -> float:
    """FWT = mean over t < i of a[t, i]: what is known of tasks not yet learned; 0 for one task."""
    return float(table[np.triu_indices(len(table), 1)].mean()) if len(table) > 1 else 0.0


def min_accuracy(curve: Floats, learned_at: Sequence[int]) -> float:
    """min-ACC = mean_{i < k} min_{n > learned_at[i]} acc[n, i]; of k tasks, all but the newest; NaN for one task.

    ``learned_at`` (k,): the evaluation at which each task had just been learned, rising.
    """
    old = [np.nanmin(curve[at + 1 :, task]) for task, at in enumerate(learned_at[:-1])]
    return float(np.mean(old)) if old else float("nan")


def worst_case_accuracy(curve: Floats, learned_at: Sequence[int]) -> float:
    """WC-ACC = acc[N, k] / k + (1 - 1 / k) min-ACC."""
    tasks, newest = len(learned_at), float(curve[-1, len(learned_at) - 1])
    return newest / tasks + (1.0 - 1.0 / tasks) * min_accuracy(curve, learned_at) if tasks > 1 else newest


def average_anytime_accuracy(curve: Floats) -> float:
    """AAA = mean_n of the mean accuracy over tasks met so far; with classes for tasks, AMCA."""
    return float(np.mean(np.nanmean(curve, axis=1)))


def area_under_accuracy(curve: Floats, rows: Sequence[int]) -> float:
    """A_AUC: as AAA, every evaluation weighing the ``rows`` (N,) learned since the one before."""
    return float(np.average(np.nanmean(curve, axis=1), weights=rows))


def windowed_forgetting(curve: Floats, window: int) -> float:
    """WF^D: the largest drop between two of ``window`` evaluations in a row, the mean over tasks; 0 where nothing dropped."""
    return float(np.mean([_largest_drop(task[~np.isnan(task)], window) for task in curve.T]))


def windowed_plasticity(curve: Floats, window: int) -> float:
    """WP^D: the largest rise between two of ``window`` evaluations in a row, the mean over tasks."""
    return windowed_forgetting(-curve, window)


def _largest_drop(accuracy: Floats, window: int) -> float:
    """max of accuracy[m] - accuracy[n] over m <= n < m + window."""
    falls = [(accuracy[: len(accuracy) - lag] - accuracy[lag:]).max() for lag in range(min(window, len(accuracy)))]
    return float(max(falls, default=0.0))


class ContinualScores:
    """The same figures as a stream goes on, with classes for tasks, in memory that does not grow with evaluations.

    >>> scores = ContinualScores(window=10)
    >>> scores.update({"cat": (9, 10)})
    >>> scores.update({"cat": (5, 10), "dog": (10, 10)})
    >>> figures = scores.figures()
    >>> round(figures["forgetting"], 2), figures["min_accuracy"], figures["worst_case_accuracy"], figures["amca"]
    (0.4, 0.5, 0.75, 0.825)
    """

    def __init__(self, window: int) -> None:
        """No evaluation yet; windowed figures look at ``window`` evaluations, >= 2."""
        self.evaluations = 0
        self.names: list[str] = []  # classes, in the order in which they were first evaluated
        self._met = np.zeros(0, dtype=np.int64)  # (C,) the evaluation at which each was
        self._sums = np.zeros(2)  # over evaluations: accuracy over rows, mean over classes
        self._rows_accuracy = 0.0  # over rows, at the newest evaluation
        self._recent = np.full((window, 0), np.nan)  # (window, C) the newest evaluations, the newest last
        self._by_class = np.zeros((6, 0))  # first, best before now, now, least since the first, largest drop, largest rise

    def update(self, counted: dict[str, tuple[int, int]]) -> None:
        """One evaluation: of each class, rows answered right and rows, at least one; classes it lacks stay as they were."""
        for name in counted:
            if name not in self.names:
                self._meet(name, counted[name][0] / counted[name][1])
        shares = np.array([counted[name][0] / counted[name][1] if name in counted else np.nan for name in self.names])
        first, best, newest, least, drop, rise = self._by_class
        evaluated, known_before = ~np.isnan(shares), ~np.isnan(shares) & (self._met < self.evaluations)
        best[known_before] = np.maximum(best[known_before], newest[known_before])
        least[known_before] = np.fmin(least[known_before], shares[known_before])
        newest[evaluated] = shares[evaluated]
        self._recent = np.concatenate([self._recent[1:], shares[None]])
        higher, lower = np.fmax.reduce(self._recent), np.fmin.reduce(self._recent)
        drop[evaluated] = np.maximum(drop[evaluated], higher[evaluated] - shares[evaluated])
        rise[evaluated] = np.maximum(rise[evaluated], shares[evaluated] - lower[evaluated])
        hits, rows = (sum(counts[at] for counts in counted.values()) for at in (0, 1))
        self._rows_accuracy = hits / rows
        self._sums += (self._rows_accuracy, float(np.nanmean(shares)))
        self.evaluations += 1

    def figures(self) -> dict[str, float]:
        """What the evaluations so far say; empty before the first."""
        if not self.evaluations:
            return {}
        first, best, newest, least, drop, rise = self._by_class
        old = ~np.isnan(least)  # met before the newest evaluation
        anytime, mean_class = self._sums / self.evaluations
        return {
            "accuracy": self._rows_accuracy,
            "mean_class_accuracy": float(newest.mean()),
            "average_anytime_accuracy": float(anytime),
            "amca": float(mean_class),
            "forgetting": _mean((best - newest)[old]),
            "backward_transfer": _mean((newest - first)[old]),
            "min_accuracy": self._min_accuracy(),
            "worst_case_accuracy": float(newest[-1]) / len(newest) + (1.0 - 1.0 / len(newest)) * self._min_accuracy(),
            "windowed_forgetting": _mean(drop),
            "windowed_plasticity": _mean(rise),
        }

    def recall(self) -> dict[str, float]:
        """Of each class, the share answered right when it was last evaluated."""
        return dict(zip(self.names, self._by_class[2].tolist(), strict=True))

    def _min_accuracy(self) -> float:
        """Mean over all classes but the newest of the least since the first evaluation; its first where there is no other."""
        least = np.where(np.isnan(self._by_class[3]), self._by_class[0], self._by_class[3])
        return float(least[:-1].mean()) if len(least) > 1 else float(least[-1])

    def _meet(self, name: str, share: float) -> None:
        """A class that is evaluated for the first time."""
        self.names.append(name)
        new = np.array([share, share, share, np.nan, 0.0, 0.0])
        self._by_class = np.concatenate([self._by_class, new[:, None]], axis=1)
        self._recent = np.concatenate([self._recent, np.full((len(self._recent), 1), np.nan)], axis=1)
        self._met = np.append(self._met, self.evaluations)

    def state(self) -> dict[str, Value]:
        """Everything, as arrays and plain values."""
        return {
            "evaluations": self.evaluations,
            "names": list(self.names),
            "met": self._met.copy(),
            "sums": self._sums.copy(),
            "rows_accuracy": self._rows_accuracy,
            "recent": self._recent.copy(),
            "by_class": self._by_class.copy(),
        }

    def load(self, state: dict[str, Value]) -> None:
        """Go on where ``state`` was taken."""
        self.evaluations, self.names, self._rows_accuracy = state["evaluations"], list(state["names"]), state["rows_accuracy"]
        self._met, self._sums = np.array(state["met"]), np.array(state["sums"])
        self._recent, self._by_class = np.array(state["recent"]), np.array(state["by_class"])


def _mean(values: Floats) -> float:
    """Their mean; 0 of none."""
    return float(values.mean()) if len(values) else 0.0
