"""How fast the ridge learns, against the machine's own dsyrk and the papers' recursion, and what memory it takes.

python tests/bench/bench_ridge.py [--threads 1] [--seconds 12]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
from scipy.linalg import blas, lapack
from threadpoolctl import threadpool_info, threadpool_limits

from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.learners.protocol import Array, Batch, Floats

D, C, BLOCK, SMALL = 1000, 100, 256, 10
NEVER = 10**12  # solve_rows that no run reaches
NAMES = np.array([f"class {column:02d}" for column in range(C)], dtype=object)


class Textbook:
    """The papers' update of R = (G + gamma I)^-1 and W step by step; gain by Cholesky (docs/design/learners.md#ridge)."""

    def __init__(self) -> None:
        self.r = np.eye(D)  # (d, d), gamma = 1
        self.w = np.zeros((D, C))

    def learn(self, x: Floats, y: Floats) -> None:
        """Rows x (b, d) with one-hot y (b, C)."""
        rx = self.r @ x.T  # (d, b)
        factor = lapack.dpotrf(np.eye(len(x)) + x @ rx, lower=1)[0]
        self.r -= rx @ lapack.dpotrs(factor, rx.T, lower=1)[0]
        self.w += self.r @ x.T @ (y - x @ self.w)


class Tuned(Textbook):
    """The same numbers with less work: one triangle of R, updated in place, and the gain from R as it was."""

    def learn(self, x: Floats, y: Floats) -> None:
        """Rows x (b, d) with one-hot y (b, C)."""
        rx = blas.dsymm(1.0, self.r.T, x.T, lower=1)
        factor = lapack.dpotrf(np.eye(len(x)) + x @ rx, lower=1)[0]
        half = lapack.dtrtrs(factor, rx.T, lower=1)[0]  # L^-1 X R, (b, d)
        blas.dsyrk(-1.0, half, beta=1.0, c=self.r.T, trans=1, lower=1, overwrite_c=1)
        self.w += lapack.dpotrs(factor, rx.T, lower=1)[0].T @ (y - x @ self.w)


def stream(seed: int, rows: int) -> tuple[Floats, Array, Floats]:
    """Features (rows, d), names and one-hot targets; every class is there where there are rows enough."""
    rng = np.random.default_rng(seed)
    column = rng.permutation(np.arange(rows) % C)
    return rng.normal(size=(rows, D)), NAMES[column], np.eye(C)[column]


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(ours: Callable[[], object], peer: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Median seconds of each, called in turn for about ``seconds``, after one call of each that is not counted."""
    ours(), peer()
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        times.append((timed(ours), timed(peer)))
    return statistics.median(t[0] for t in times), statistics.median(t[1] for t in times)


def line(case: str, unit: str, ours: float, peer: float, peer_name: str, goal: float) -> dict[str, object]:
    """One result; ratio: higher is better for us, so upside down where the unit is a time or a size."""
    ratio = ours / peer if unit.endswith("/s") else peer / ours
    numbers = {"ours": float(f"{ours:.5g}"), "peer": float(f"{peer:.5g}"), "peer_name": peer_name}
    return {"bench": "ridge", "case": case, "unit": unit, **numbers, "ratio": round(ratio, 3), "goal": goal or None}


def learned(ridge: Ridge, batch: Batch, rows: int) -> Callable[[], None]:
    """Learns the batch in parts of so many rows, when called."""

    def call() -> None:
        for start in range(0, len(batch), rows):
            ridge.learn_many(batch.rows(start, start + rows))

    return call


def recursed(recursion: Textbook, x: Floats, y: Floats, rows: int) -> Callable[[], None]:
    """The same for a recursion."""

    def call() -> None:
        for start in range(0, len(x), rows):
            recursion.learn(x[start : start + rows], y[start : start + rows])

    return call


def blocks(seconds: float) -> dict[str, object]:
    """Learning in blocks of 256, no solve, against a bare rank-256 update of a 1000 x 1000 matrix."""
    x, y, _ = stream(1, BLOCK)
    gram = np.zeros((D, D), order="F")
    ours, peer = interleaved(
        learned(warm(NEVER), Batch(x, y), BLOCK),
        lambda: blas.dsyrk(1.0, x.T, beta=1.0, c=gram, lower=1, overwrite_c=1),
        seconds,
    )
    return line("learn, blocks of 256", "rows/s", BLOCK / ours, BLOCK / peer, "dsyrk n=1000 k=256", 0.7)


def small_batches(seconds: float, recursion: Textbook, name: str, goal: float) -> dict[str, object]:
    """Learning in batches of 10, no solve, against a recursion, twenty batches at a time."""
    x, y, one_hot = stream(2, 20 * SMALL)
    ours, peer = interleaved(learned(warm(NEVER), Batch(x, y), SMALL), recursed(recursion, x, one_hot, SMALL), seconds)
    return line(f"learn, batches of 10, vs {name}", "rows/s", len(x) / ours, len(x) / peer, name, goal)


def solves(seconds: float) -> Iterator[dict[str, object]]:
    """Learning 1,024 rows with their solve, against the same rows without: what solving takes off."""
    x, y, _ = stream(3, 4 * BLOCK)
    batch = Batch(x, y)
    ours, peer = interleaved(learned(warm(4 * BLOCK), batch, BLOCK), learned(warm(NEVER), batch, BLOCK), seconds)
    name = "the same without its solve"
    yield line("learn, a solve every 1,024 rows", "rows/s", len(x) / ours, len(x) / peer, name, 0.0)
    yield line("one solve", "s", ours - peer, peer, "learning 1,024 rows", 0.0)


def snapshot(seconds: float) -> dict[str, object]:
    """state_dict, which the learning thread waits for, against a copy of G as a whole."""
    gram = np.asfortranarray(np.random.default_rng(5).normal(size=(D, D)))
    ours, peer = interleaved(warm(NEVER).state_dict, lambda: gram.copy(order="F"), seconds)
    return line("state_dict", "s", ours, peer, "copy of a 1000 x 1000 matrix", 0.5)


def memory() -> dict[str, object]:
    """Largest allocation of a whole life (blocks of 256, solves, served weights) against 8 (2 d^2 + 2 d C) bytes."""
    x, y, _ = stream(4, 4 * BLOCK)
    tracemalloc.start()
    try:
        learned(Ridge(RidgeConfig(solve_rows=2 * BLOCK), D, seed=0), Batch(x, y), BLOCK)()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return line("peak memory", "bytes", peak, 8 * (2 * D * D + 2 * D * C), "8 (2 d^2 + 2 d C)", 1.0)


def warm(solve_rows: int) -> Ridge:
    """A ridge that knows every class, so that only its schedule makes it solve."""
    ridge = Ridge(RidgeConfig(solve_rows=solve_rows), D, seed=0)
    x, y, _ = stream(0, 4 * BLOCK)
    ridge.learn_many(Batch(x, y))
    return ridge


def machine(threads: int) -> dict[str, object]:
    """Where this ran."""
    libraries = sorted({f"{info['internal_api']} {info['version']} {info['architecture']}" for info in threadpool_info()})
    load = os.getloadavg()[0]
    here = {"cores": os.cpu_count(), "threads": threads, "blas": libraries, "load": load}
    return {"bench": "machine", **here, "d": D, "classes": C}


def results(seconds: float) -> Iterator[dict[str, object]]:
    """Every case."""
    yield blocks(seconds)
    yield small_batches(seconds, Textbook(), "RLS as in the papers", 7.0)
    yield small_batches(seconds, Tuned(), "RLS tuned by us", 0.0)
    yield from solves(seconds)
    yield snapshot(seconds / 8)
    yield memory()


def main() -> None:
    """Print one JSON line a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="BLAS threads, for us and for the peers")
    parser.add_argument("--seconds", type=float, default=12.0, help="time for each case")
    arguments = parser.parse_args()
    with threadpool_limits(arguments.threads):
        print(json.dumps(machine(arguments.threads)))
        for result in results(arguments.seconds):
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
