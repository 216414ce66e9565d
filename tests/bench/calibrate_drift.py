"""How often each detector alarms on stationary Bernoulli losses, by threshold: the table of learners/drift/calibration.py.

python tests/bench/calibrate_drift.py [--kinds adwin,kswin] [--seed 1]
python tests/bench/calibrate_drift.py --missed [--streams 60]

With ``--missed`` it prints which thresholds miss a change: the error rate goes from 0.1 to 0.3 at row 2,000, and no alarm
follows in 4,000 rows.

A figure is the smallest, over error rates and over short and long streams (so that a detector that is nervous while young,
as those of rare classes are, is not praised for its old age), of the rows that at 99 % confidence are at least what passes
between two alarms: rows / upper Poisson bound of the alarms counted. KSWIN's test is looked up instead of computed: on zeros
and ones its p-value depends on one whole number.
"""

from __future__ import annotations

import argparse
from functools import cache
from types import SimpleNamespace

import numpy as np
from scipy import stats

from millrace.learners.drift.alarms import Watch
from millrace.learners.drift.calibration import FIGURES
from millrace.learners.drift.detectors import SENSORS

ERROR_RATES = (0.02, 0.1, 0.3, 0.5, 0.8)
STREAM_ROWS = (1024, 100_000)
RISE, BEFORE, AFTER = (0.1, 0.3), 2_000, 4_000  # error rates, and rows of each
# kind, rows simulated for each threshold, error rate and length; thresholds
GRIDS = (
    ("adwin", 6_000_000, (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.06, 0.03, 0.015)),
    ("adwin", 24_000_000, (0.006, 0.002)),
    ("page-hinkley", 1_000_000, (10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 80.0, 110.0, 150.0)),
    ("kswin", 100_000, (5e-3, 1e-3, 1e-4, 1e-5, 1e-6)),
    ("hddm-a", 200_000, (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5)),
    ("hddm-w", 100_000, (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5)),
    ("fhddm", 1_000_000, (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)),
    ("fhddm", 1_000_000, (1e-9, 1e-11, 1e-13)),
    ("hddm-a", 400_000, (1e-6,)),
    ("hddm-w", 200_000, (1e-6, 1e-8)),
)


def alarms(kind: str, threshold: float, losses: list[float], seed: int) -> int:
    """Alarms on one stream, fresh after each."""
    count, update = 0, SENSORS[kind](threshold, seed).update
    for loss in losses:
        if update(loss):
            count += 1
            update = SENSORS[kind](threshold, seed + count).update
    return count


def rows_between(kind: str, threshold: float, rows: int, seed: int) -> float:
    """The figure of one threshold."""
    bounds = []
    for rate in ERROR_RATES:
        for length in STREAM_ROWS:
            rng = np.random.default_rng([seed, int(rate * 100), length])
            streams = max(1, rows // length)
            count = sum(
                alarms(kind, threshold, (rng.random(length) < rate).astype(float).tolist(), seed + 1000 * at)
                for at in range(streams)
            )
            bounds.append(streams * length / stats.gamma.ppf(0.99, count + 1))
    return min(bounds)


def missed(kind: str, threshold: float, streams: int) -> float:
    """The share of streams in which the error rate rises and no alarm says so."""
    count = 0
    for seed in range(streams):
        losses = np.random.default_rng([seed, 7]).random(BEFORE + AFTER) < np.repeat(RISE, (BEFORE, AFTER))
        alarms = Watch(kind, threshold, seed).feed(losses.astype(float).tolist(), np.arange(BEFORE + AFTER))
        count += not any(row >= BEFORE and alarm.direction == "worse" for row, alarm in alarms)
    return count / streams


def print_missed(kinds: list[str], streams: int) -> None:
    """The table ``MISSED``: thresholds that miss none are left out."""
    for kind in kinds:
        shares = {threshold: missed(kind, threshold, streams) for threshold, _ in FIGURES[kind]}
        print(
            f'    "{kind}": {{{", ".join(f"{size:g}: {share:.2f}" for size, share in shares.items() if share)}}},', flush=True
        )


def look_up_kswin() -> None:
    """Let KSWIN's test of two windows of zeros and ones be computed once for each pair of counts."""
    from river.drift import kswin

    test = kswin.stats.ks_2samp

    @cache
    def counted(ones: float, others: float, size: int) -> tuple[float, float]:
        first, second = ([1.0] * int(count) + [0.0] * (size - int(count)) for count in (ones, others))
        result = test(first, second, method="auto")
        return float(result.statistic), float(result.pvalue)

    kswin.stats = SimpleNamespace(ks_2samp=lambda first, second, method: counted(sum(first), sum(second), len(first)))


def main() -> None:
    """Print the table, one line a threshold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", default=",".join(SENSORS), help="detectors, with commas between")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--missed", action="store_true", help="print what is missed instead")
    parser.add_argument("--streams", type=int, default=60, help="with --missed: streams for each threshold")
    arguments = parser.parse_args()
    look_up_kswin()
    if arguments.missed:
        print_missed(arguments.kinds.split(","), arguments.streams)
        return
    for wanted in arguments.kinds.split(","):
        print(f'    "{wanted}": (', flush=True)
        for threshold, rows in ((each, rows) for kind, rows, thresholds in GRIDS if kind == wanted for each in thresholds):
            print(f"        ({threshold:g}, {rows_between(wanted, threshold, rows, arguments.seed):.0f}),", flush=True)
        print("    ),", flush=True)


if __name__ == "__main__":
    main()
