"""Tables of workers that learned different rows, as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from millrace.learners.protocol import Value

COUNTED: dict[str, Callable[[Sequence[Any]], Any]] = {  # tables that count learned rows, and how those of workers are joined
    "rows": sum,
    "low": lambda tables: np.min(tables, axis=0),
    "high": lambda tables: np.max(tables, axis=0),
    "outside": lambda tables: np.sum(tables, axis=0),
    "far": lambda tables: np.sum(tables, axis=0),
    "scale.clipped": lambda tables: np.sum(tables, axis=0),
}


def of_rows(tables: Mapping[str, Value]) -> dict[str, Value]:
    """Those tables that count, and that workers over different rows may have different."""
    return {name: table for name, table in tables.items() if name in COUNTED}


def joined_tables(workers: Sequence[Mapping[str, Value]]) -> dict[str, Value]:
    """The tables of several workers as one; those that do not count are equal."""
    joined = {name: COUNTED[name]([tables[name] for tables in workers]) for name in of_rows(workers[0])}
    return dict(workers[0]) | joined
