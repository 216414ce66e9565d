"""The analytic family on imbalanced digits beside a plain ridge, what balancing costs, and DS-AL beside a wider ridge.

python tests/bench/bench_analytic.py [--seeds 3]

MNIST from $MILLRACE_DATA or ../shared/data: ten classes of 5,000 rows down to 50, each 0.6 of the one before, in random order;
scored by mean-class accuracy on all 10,000 test rows. A solve holds learning up by the longest batch from one due row to the
next, both included: learning never pauses here, so a solve behind that took longer than the rows between would show.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from results import compared, machine, say

from millrace.learners.analytic.ridge import Ridge
from millrace.learners.linear.servable import expanded
from millrace.learners.protocol import Array, Batch, Floats
from millrace.learners.table import LEARNERS
from millrace.streams.branch.host import use_threads

KINDS = ("aef-ocl", "air", "slda", "ncm")
D, BATCH, NEVER = 1000, 500, 10**9
COUNTS = (5000 * 0.6 ** np.arange(10)).astype(int)
PERIOD = 40 * BATCH  # rows from one due row to the next where a solve is to hold learning up
IN_PLACE: dict[str, Any] = {"solve_rows": PERIOD}
BEHIND, NEITHER = IN_PLACE | {"solve_behind": True}, IN_PLACE | {"solve_rows": NEVER}
REFRESH_S = 1.0  # the aim for one solve at d = 1000 and ten classes
DS_AL_WEIGHT = 0.6  # of the compensation stream, the paper's for CIFAR-100

Rows = tuple[Floats, Array]


def digits() -> tuple[Rows, Rows]:
    """Train and test rows, and their labels as numbers."""
    folder = Path(os.environ.get("MILLRACE_DATA") or "../shared/data")
    with np.load(folder / "mnist" / "mnist.npz") as file:
        x = [file[name].reshape(-1, 784) / 255.0 for name in ("x_train", "x_test")]
        return (x[0], file["y_train"]), (x[1], file["y_test"])


def imbalanced(rows: Rows, seed: int) -> Rows:
    """``COUNTS`` rows of the classes in random order, shuffled."""
    x, y = rows
    rng = np.random.default_rng(seed)
    order = zip(rng.permutation(10), COUNTS, strict=True)
    chosen = np.concatenate([rng.choice(np.flatnonzero(y == c), count, replace=False) for c, count in order])
    rng.shuffle(chosen)
    return x[chosen], y[chosen]


def made(kind: str, seed: int, **config: Any) -> Ridge:
    """An untaught learner that solves when it is asked."""
    learner = LEARNERS[kind].learner(LEARNERS[kind].config(**{"solve_rows": NEVER, "expand": D, **config}), 784, seed)
    assert isinstance(learner, Ridge)
    return learner


def taught(kind: str, rows: Rows, seed: int, **config: Any) -> tuple[Ridge, float, float]:
    """A learner of those rows; rows learned a second, and seconds of its solve, both of the processor."""
    x, y = rows
    learner, names = made(kind, seed, **config), np.array([str(label) for label in y], dtype=object)
    start_s = time.process_time()
    for at in range(0, len(x), BATCH):
        learner.learn_many(Batch(x[at : at + BATCH], names[at : at + BATCH]))
    learned_s = time.process_time()
    learner.solve_now()
    return learner, len(x) / (learned_s - start_s), time.process_time() - learned_s


def class_accuracy(predicted: Array, y: Array) -> float:
    """Mean over classes of the share answered right."""
    return float(np.mean([(predicted[y == c] == c).mean() for c in range(10)]))


def scored(learner: Ridge, test: Rows) -> float:
    """Of a learner."""
    served = learner.servable()
    return class_accuracy(np.array(served.classes, dtype=int)[served.predict_many(Batch(test[0])).argmax(axis=1)], test[1])


def accurate(case: str, pairs: list[tuple[float, float]], against: tuple[str, float | None]) -> dict[str, object]:
    """Means over seeds, and their ratio: here more is better."""
    ours, peer = np.mean(pairs, axis=0).round(4).tolist()
    numbers = {"ours": ours, "peer": peer, "peer_name": against[0], "ratio": round(ours / peer, 3), "goal": against[1]}
    return {"bench": "analytic", "case": case, "unit": "share", **numbers}


def family(train: Rows, test: Rows, seeds: int) -> Iterator[dict[str, object]]:
    """Accuracy and speed of each beside the ridge's, and the time of a solve beside the aim."""
    runs = {kind: [taught(kind, imbalanced(train, seed), seed) for seed in range(seeds)] for kind in ("ridge", *KINDS)}
    accuracy = {kind: [scored(learner, test) for learner, _, _ in models] for kind, models in runs.items()}
    for kind in KINDS:
        goal = 1.1 if kind in ("aef-ocl", "air") else None
        pairs = list(zip(accuracy[kind], accuracy["ridge"], strict=True))
        yield accurate(f"{kind}: mean-class accuracy", pairs, ("plain ridge", goal))
        speeds = [(ours[1], theirs[1]) for ours, theirs in zip(runs[kind], runs["ridge"], strict=True)]
        yield compared("analytic", f"{kind}: learning", "rows/s", speeds, ("plain ridge", None))
        yield compared("analytic", f"{kind}: solve", "s", [(run[2], REFRESH_S) for run in runs[kind]], ("the aim", 1.0))


def longest_s(kind: str, rows: Rows, seed: int, **config: Any) -> Floats:
    """Seconds of the longest batch from the first due row to the second, both included: of the learning thread, on the wall."""
    x, y = rows
    learner, names = made(kind, seed, **config), np.array([str(label) for label in y], dtype=object)
    took_s = []
    for start in range(0, 2 * PERIOD, BATCH):
        at = np.arange(start, start + BATCH) % len(x)
        batch = Batch(x[at], names[at])
        begun_s = np.array([time.thread_time(), time.perf_counter()])
        learner.learn_many(batch)
        took_s.append(np.array([time.thread_time(), time.perf_counter()]) - begun_s)
    return np.array(took_s[PERIOD // BATCH - 1 :]).max(axis=0)


def behind(train: Rows, seeds: int) -> Iterator[dict[str, object]]:
    """The time of a solve behind, and what it holds learning up by beside one in its place, and beside none."""
    for kind in ("aef-ocl", "air"):
        solved = [taught(kind, imbalanced(train, seed), seed, solve_behind=True)[2] for seed in range(seeds)]
        yield compared("analytic", f"{kind}: solve, behind", "s", [(took_s, REFRESH_S) for took_s in solved], ("the aim", 1.0))
        runs = [
            [longest_s(kind, imbalanced(train, seed), seed, **how) for how in (BEHIND, IN_PLACE, NEITHER)]
            for seed in range(seeds)
        ]
        for clock, name in enumerate(("processor of the learning thread", "wall")):
            for peer, against in ((1, "solved in its place"), (2, "not solved")):
                pairs = [(run[0][clock], run[peer][clock]) for run in runs]
                yield compared("analytic", f"{kind}: longest batch, solved behind, {name}", "s", pairs, (against, None))


def ds_al(train: Rows, test: Rows, seed: int) -> tuple[float, float]:
    """Mean-class accuracy of a ridge of half the features with DS-AL's compensation stream, and of one as large in memory.

    The stream fits what the ridge misses at that time (there are no task ends to wait for) on tanh of the same projection.
    """
    x, y = imbalanced(train, seed)
    bound, half = 1.0 / np.sqrt(784), D // 2
    a = np.random.default_rng(seed).uniform(-bound, bound, (round(half * 2**0.5), 784))
    eye, target = np.eye(half), np.eye(10)[y]
    g, h = eye.copy(), eye.copy()
    q, k = np.zeros((half, 10)), np.zeros((half, 10))
    for at in range(0, len(x), BATCH):
        cut = slice(at, at + BATCH)
        relu, tanh = expanded(x[cut], a[:half]), np.tanh(x[cut] @ a[:half].T)
        g, q = g + relu.T @ relu, q + relu.T @ target[cut]
        h, k = h + tanh.T @ tanh, k + tanh.T @ (target[cut] - relu @ np.linalg.solve(g, q))
    main = expanded(test[0], a[:half]) @ np.linalg.solve(g, q)
    both = main + DS_AL_WEIGHT * np.tanh(test[0] @ a[:half].T) @ np.linalg.solve(h, k)
    wide = expanded(x, a)
    alone = expanded(test[0], a) @ np.linalg.solve(wide.T @ wide + np.eye(len(a)), wide.T @ target)
    return class_accuracy(both.argmax(axis=1), test[1]), class_accuracy(alone.argmax(axis=1), test[1])


def main() -> None:
    """Print one JSON line a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    use_threads(1)
    say(machine("analytic"))
    train, test = digits()
    for line in chain(family(train, test, seeds), behind(train, seeds)):
        say(line)
    pairs = [ds_al(train, test, seed) for seed in range(seeds)]
    why = ("ridge of the same bytes", None)
    say(accurate("DS-AL without tasks, not offered: mean-class accuracy", pairs, why))


if __name__ == "__main__":
    main()
