"""Where every record went, as it is counted and as it is shown."""

from __future__ import annotations

import msgspec

OUTSIDE = {"outside_classes": "classes", "passed": "passed"}  # fate of what a learner left out -> its key in part "outside"


def fates(counts: dict[str, int], left_out: dict[str, int]) -> dict[str, int]:
    """Counts as they are shown: what the learner left out is not learned, but of the fate that ``left_out`` names.

    >>> fates({"learned": 9, "passed": 1}, {"passed": 2})
    {'learned': 7, 'passed': 3}
    """
    moved = {fate: counts.get(fate, 0) + rows for fate, rows in left_out.items() if rows}
    return {**counts, "learned": counts["learned"] - sum(left_out.values())} | moved


class Counts(msgspec.Struct):
    """Where every record went; with the rows that wait they add up to the records read."""

    learned: int = 0
    passed: int = 0
    rejected: int = 0
