"""How far two parts of a state are from each other.

Source: docs/design/journal.md, rule 14.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from millrace.learners.protocol import Value
from millrace.streams.parts import pack


def difference(part: Mapping[str, Value], other_part: Mapping[str, Value]) -> float:
    """The largest difference between two parts, relative to each array's largest entry; infinite where shapes differ.

    >>> difference({"w": np.array([1.0, 4.0])}, {"w": np.array([1.0, 3.8])})
    0.05
    >>> difference({"totals": {"rows": 4, "error": 1.0}}, {"totals": {"rows": 4, "error": 0.9}})
    0.1
    """
    if set(part) != set(other_part):
        return float("inf")
    return max((_difference(part[name], other_part[name]) for name in part), default=0.0)


def _difference(value: Value, other_value: Value) -> float:
    if isinstance(value, dict) and isinstance(other_value, dict):
        return difference(value, other_value)
    if isinstance(value, list) and isinstance(other_value, list) and len(value) == len(other_value):
        return max(map(_difference, value, other_value), default=0.0)
    numbers = isinstance(value, np.ndarray) and value.dtype != object or isinstance(value, float)
    floor = 1.0 if isinstance(value, float) else 0.0  # a number by itself may be a residual, which is rounding and nothing else
    if not numbers or not isinstance(other_value, np.ndarray | float):
        return 0.0 if pack({"value": value}) == pack({"value": other_value}) else float("inf")
    value, other_value = np.asarray(value, dtype=np.float64), np.asarray(other_value, dtype=np.float64)
    if value.shape != other_value.shape:
        return float("inf")
    largest = max(floor, *(float(np.abs(each[np.isfinite(each)]).max(initial=0.0)) for each in (value, other_value)))
    equal = (value == other_value) | (np.isnan(value) & np.isnan(other_value))  # what is not finite equals itself alone
    value, other_value = value[~equal], other_value[~equal]
    if not (np.isfinite(value).all() and np.isfinite(other_value).all()):
        return float("inf")
    return round(float(np.abs(value - other_value).max(initial=0.0)) / largest, 15) if largest else 0.0
