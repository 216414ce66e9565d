"""The threshold at which a drift detector keeps a budget of false alarms, from a table measured once.

A figure is the least number of rows between two false alarms on stationary zeros and ones that are drawn independently. It
holds at 99 % confidence, for the worst of five error rates from 0.02 to 0.8 and of short and long streams. Losses that hang on
each other alarm more often. Between two thresholds of the table the stricter one is taken, so nothing rests on interpolation.
A budget above the last figure has not been measured, and is refused. A change of this table changes what the same rows lead
to; a branch that has begun goes on with the threshold in its state.

A strict threshold may keep its budget by seeing nothing. ``MISSED`` has the share of 60 streams in which the error rate rises
from 0.1 to 0.3 at row 2,000 and no alarm follows within 4,000 rows.

Source of the numbers: ``make calibrate`` (tests/bench/calibrate_drift.py, seed 1; ``--missed``) with river 0.26.1.
"""

from __future__ import annotations

from millrace.learners.errors import ConfigError

FIGURES: dict[str, tuple[tuple[float, int], ...]] = {  # kind -> (threshold, rows between false alarms at least)
    "adwin": (
        (1.0, 1794),
        (0.7, 3194),
        (0.5, 5394),
        (0.35, 9069),
        (0.25, 13954),
        (0.15, 26457),
        (0.1, 40226),
        (0.06, 68573),
        (0.03, 148022),
        (0.015, 297845),
        (0.006, 753642),
        (0.002, 2068141),
    ),
    "page-hinkley": (
        (10.0, 248),
        (15.0, 567),
        (20.0, 1068),
        (30.0, 2492),
        (40.0, 4825),
        (60.0, 12767),
        (80.0, 21455),
        (110.0, 37393),
        (150.0, 118963),
    ),
    "kswin": ((5e-3, 2327), (1e-3, 4931), (1e-4, 11816), (1e-5, 14963), (1e-6, 21569)),
    "hddm-a": ((1e-2, 1123), (3e-3, 3632), (1e-3, 7467), (3e-4, 13704), (1e-4, 17207), (1e-5, 23755), (1e-6, 86720)),
    "hddm-w": (
        (1e-2, 271),
        (3e-3, 468),
        (1e-3, 718),
        (3e-4, 1240),
        (1e-4, 2203),
        (1e-5, 7629),
        (1e-6, 19910),
        (1e-8, 43360),
    ),
    "fhddm": (
        (1e-2, 545),
        (1e-3, 820),
        (1e-4, 1298),
        (1e-5, 1871),
        (1e-6, 3675),
        (1e-7, 5956),
        (1e-9, 17086),
        (1e-11, 37393),
        (1e-13, 86173),
    ),
}

MISSED: dict[str, dict[float, float]] = {  # kind -> threshold -> share of rises that it misses; not there: none
    "kswin": {5e-3: 0.78, 1e-3: 0.92, 1e-4: 0.98, 1e-5: 0.98, 1e-6: 1.0},
    "hddm-w": {1e-5: 0.60, 1e-6: 0.97, 1e-8: 1.0},
    "fhddm": {1e-11: 0.02, 1e-13: 0.35},
}
BLIND = 0.5  # a detector that misses more than this share of rises is none to begin with


def reach(kind: str) -> int:
    """The most rows between false alarms that a detector has been shown to keep."""
    return max(rows for _, rows in FIGURES[kind])


def threshold_for(kind: str, each_rows: int, budget_rows: int) -> tuple[float, int]:
    """The most sensitive threshold whose figure is ``each_rows`` or more, and that figure.

    ``budget_rows`` is what the user asked for of all detectors together, and what an error speaks of.
    Raises: ConfigError naming what can be kept.
    """
    feasible = [(rows, threshold) for threshold, rows in FIGURES[kind] if rows >= each_rows]
    if not feasible:
        reachable = {name: reach(name) * budget_rows // each_rows for name in FIGURES}
        others = ", ".join(f"{name} {rows}" for name, rows in reachable.items() if rows >= budget_rows)
        raise ConfigError(
            f"false_alarm_rows = {budget_rows}: {kind} is known to keep at most {reachable[kind]} rows between false alarms "
            f"with so many detectors. Lower it{f', or choose another detector ({others})' if others else ''}."
        )
    figure, threshold = min(feasible)
    return threshold, figure


def missed_share(kind: str, each_rows: int, budget_rows: int) -> float:
    """The share of rises from 0.1 to 0.3 that a detector misses at its threshold. Raises: as ``threshold_for``."""
    return MISSED.get(kind, {}).get(threshold_for(kind, each_rows, budget_rows)[0], 0.0)


def refuse_blind(kind: str, each_rows: int, budget_rows: int) -> None:
    """Raises: ConfigError where a detector misses most rises at this budget, with the detectors and budgets that do not."""
    share = missed_share(kind, each_rows, budget_rows)
    if share <= BLIND:
        return
    others = ", ".join(name for name in FIGURES if reach(name) >= each_rows and _sees(name, each_rows))
    least = [rows for threshold, rows in FIGURES[kind] if MISSED[kind].get(threshold, 0.0) <= BLIND]
    lower = f", or set false_alarm_rows = {max(least) * budget_rows // each_rows} or less" if least else ""
    raise ConfigError(
        f"drift.detector = {kind!r}: with false_alarm_rows = {budget_rows} it misses {share:.0%} of the changes of an error "
        f"rate from 10 % to 30 %, so no branch is begun with it. Choose another detector ({others}){lower}."
    )


def _sees(kind: str, each_rows: int) -> bool:
    return missed_share(kind, each_rows, each_rows) <= BLIND
