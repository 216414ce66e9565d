"""Drift alarms: false ones against their budget, how late true ones are beside ADWIN's defaults, what a row costs.

python tests/bench/bench_drift.py [--seeds 40] [--scale 1.0]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
from river import drift as river

from millrace.learners.drift.alarms import Detectors, DriftConfig
from millrace.learners.protocol import Array, Floats

BUDGETS = (2_000, 20_000, 200_000)  # rows
BEFORE, AFTER = 2_000, 4_000  # rows of a stream with a drift
BATCH = 256  # rows
CLASSES = np.array([f"class {at}" for at in range(10)], dtype=object)


def labels(rng: np.random.Generator, n: int) -> Array:
    """Ten classes, the first a hundred times as frequent as the last."""
    weight = np.geomspace(100.0, 1.0, len(CLASSES))
    return CLASSES[rng.choice(len(CLASSES), n, p=weight / weight.sum())]


def false_alarms(budget_rows: int, per_class: bool, scale: float) -> dict[str, object]:
    """Rows between false alarms on stationary streams: 200 budgets long in all, by turns of four error rates."""
    count = taken = 0
    n = max(20_000, 2 * budget_rows)
    for seed in range(max(4, int(scale * 200 * budget_rows / n))):
        rng = np.random.default_rng([seed, budget_rows])
        losses = (rng.random(n) < (0.02, 0.1, 0.3, 0.5)[seed % 4]).astype(float)
        detectors = Detectors(DriftConfig(false_alarm_rows=budget_rows, per_class=per_class), seed)
        count += len(detectors.update(losses, labels(rng, n), np.arange(n)))
        taken += n
    who = "pipeline and 10 classes" if per_class else "pipeline"
    result = line(f"rows between false alarms, {who}", "rows", taken / max(count, 1), budget_rows, "the budget", 1.0)
    return result | {"ratio": round(taken / max(count, 1) / budget_rows, 3), "alarms": count, "rows": taken}


def delays(rates: tuple[float, float], budget_rows: int, seeds: int) -> Iterator[dict[str, object]]:
    """Median rows from the drift to the alarm (one missed counts as the end of the stream), and how far off the onset is."""
    ours, peer, misses, peer_misses, errors = [], [], 0, 0, []
    for seed in range(seeds):
        rng = np.random.default_rng([seed, 7])
        rate = np.repeat(rates, (BEFORE, AFTER))
        losses = (rng.random(BEFORE + AFTER) < rate).astype(float)
        alarms = Detectors(DriftConfig(false_alarm_rows=budget_rows, per_class=False), 0).update(
            losses, None, np.arange(len(losses))
        )
        hit = next((alarm for alarm in alarms if alarm.rows >= BEFORE and alarm.direction == "worse"), None)
        misses += hit is None
        ours.append(AFTER if hit is None else hit.rows - BEFORE)
        errors += [] if hit is None else [abs(hit.onset_rows - BEFORE)]
        late = next((row for row in defaults(losses) if row >= BEFORE), None)
        peer_misses += late is None
        peer.append(AFTER if late is None else late - BEFORE)
    case = f"delay {rates[0]} -> {rates[1]}, budget {budget_rows}"
    counts = {"misses": misses, "peer_misses": peer_misses, "onset_off_rows": statistics.median(errors)}
    yield line(case, "rows late", statistics.median(ours), statistics.median(peer), "ADWIN, delta 0.002", 1.0) | counts


def defaults(losses: Floats) -> Iterator[int]:
    """Rows at which ADWIN as it comes alarms."""
    adwin = river.ADWIN()
    for at, loss in enumerate(losses.tolist()):
        adwin.update(loss)
        if adwin.drift_detected:
            yield at


def costs(per_class: bool) -> dict[str, object]:
    """Microseconds a row in batches of 256, against bare river on the same floats."""
    rng = np.random.default_rng(0)
    n = 400 * BATCH
    losses, names, places = (rng.random(n) < 0.2).astype(float), labels(rng, n), np.arange(n)

    def us() -> None:
        detectors = Detectors(DriftConfig(per_class=per_class), 0)
        for at in range(0, n, BATCH):
            cut = slice(at, at + BATCH)
            detectors.update(losses[cut], names[cut] if per_class else None, places[cut])

    def bare() -> None:
        adwin = river.ADWIN()
        for loss in losses.tolist():
            adwin.update(loss)

    times = [(timed(us), timed(bare)) for _ in range(9)]
    ours, peer = (statistics.median(side) / n * 1e6 for side in zip(*times, strict=True))
    who = "pipeline and 10 classes" if per_class else "pipeline"
    return line(f"one row, {who}", "us", ours, peer, "river's ADWIN.update", 0.25)


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def line(case: str, unit: str, ours: float, peer: float, peer_name: str, goal: float) -> dict[str, object]:
    """One result; ratio: higher is better for us, so upside down where the unit is a time or a delay."""
    numbers = {"ours": float(f"{ours:.5g}"), "peer": float(f"{peer:.5g}"), "peer_name": peer_name}
    return {"bench": "drift", "case": case, "unit": unit, **numbers, "ratio": round(peer / ours, 3), "goal": goal}


def results(seeds: int, scale: float) -> Iterator[dict[str, object]]:
    """Every case."""
    for budget_rows in BUDGETS:
        for per_class in (False, True):
            yield false_alarms(budget_rows, per_class, scale)
    for rates in ((0.1, 0.3), (0.2, 0.3)):
        for budget_rows in BUDGETS:
            yield from delays(rates, budget_rows, seeds)
    for per_class in (False, True):
        yield costs(per_class)


def main() -> None:
    """Print one JSON line a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=40, help="streams with a drift for each case")
    parser.add_argument("--scale", type=float, default=1.0, help="more or less of the stationary rows")
    arguments = parser.parse_args()
    print(json.dumps({"bench": "machine", "cores": os.cpu_count(), "load": os.getloadavg()[0]}))
    for result in results(arguments.seeds, arguments.scale):
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
