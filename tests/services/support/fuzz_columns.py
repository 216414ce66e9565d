"""Random columns: what each cell means by docs/how-to/values-and-types.md, and as which Python value it is written.

A column is of one kind of value for one declared type, as KINDS has them. What a cell means is written down as it is drawn, so
nothing of ours decides it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np

from millrace.streams.schema import Field, Label

Draws = np.random.Generator
SHAPES = ("normal", "constant at first", "heavy tails", "a counter", "an outlier", "a shift", "a rare flag", "whole numbers")
KINDS = {
    "numeric": (*["double"] * 5, "float32", "integer", "boolean"),
    "list": ("list of numbers", "list of integers", "list of booleans"),
    "categorical": ("text", "boolean as category", "integer as category", "bytes as category"),
    "time": ("number of units", "text of a time", "timestamp", "instant"),
    "label number": ("label number", "label number", "integer as number"),
    "label integer": ("label integer", "integer as float"),
    "label boolean": ("label boolean",),
    "label string": ("text label", "integer as class", "boolean as class", "bytes as class"),
}
TYPED = ("Parquet", "Arrow", "Arrow in CloudEvents", "Avro")  # formats that have bytes and timestamps
NEED_TYPES = ("bytes as category", "bytes as class", "timestamp", "instant")
NAMES: dict[str, dict[Any, str]] = {  # as it is written: what it means
    "text": {"ant": "ant", "007": "007", "1.0": "1.0"},
    "boolean": {True: "true", False: "false"},
    "integer": {7: "7", -1: "-1", 300: "300"},
    "bytes": {b"ant": "ant", "ü".encode(): "ü", b"007": "007"},
}
UNITS_NS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9}
ZONES = {"UTC": 0, "+02:00": 120, "-05:30": -330}  # minutes ahead
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Column:
    """One field, or the label."""

    kind: str
    meant: list[Any]  # floats, lists of floats, texts; None where a cell is missing
    cells: list[Any]  # as written
    signal: np.ndarray | None = None  # (n,) of deviation about 1: what the label follows


def kind_of(family: str, form: str, rng: Draws) -> str:
    """One of the kinds of a declared type that a format can write."""
    return str(rng.choice([kind for kind in KINDS[family] if form in TYPED or kind not in NEED_TYPES]))


def shaped(shape: str, rows: int, rng: Draws) -> np.ndarray:
    """Numbers (rows,) of deviation about 1."""
    plain = rng.standard_normal(rows)
    if shape == "constant at first":
        return np.where(np.arange(rows) < rows // 3, 0.0, plain)
    if shape == "heavy tails":
        return rng.standard_t(1.5, rows)
    if shape == "a counter":
        return np.arange(rows) / rows * 3.4
    if shape == "an outlier":
        return np.where(np.arange(rows) == rng.integers(rows), 1e6, plain)
    if shape == "a shift":
        return plain + 40.0 * (np.arange(rows) > rows // 2)
    if shape == "a rare flag":
        return (rng.random(rows) < 0.02).astype(float)
    return np.rint(4.0 * plain) if shape == "whole numbers" else plain


def any_numbers(size: int, rows: int, rng: Draws) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (rows, size) of any magnitude from 1e-12 to 1e36, lying anywhere; and the first of each as a signal (rows,)."""
    spread = 10.0 ** rng.uniform(-12, 36)
    place = spread * rng.choice([0.0, 0.0, 1.0, -30.0, 1e4, 1e8]) * rng.uniform(0.5, 1.0)
    shapes = np.column_stack([shaped(str(rng.choice(SHAPES)), rows, rng) for _ in range(size)])
    return shapes * spread + place, shapes[:, 0]


def whole_numbers(size: int, rows: int, rng: Draws) -> tuple[np.ndarray, np.ndarray]:
    """The same as integers, which float64 has exactly; some of them so small that int8 has them."""
    shapes = np.column_stack([np.clip(shaped(str(rng.choice(SHAPES)), rows, rng), -1e6, 1e6) for _ in range(size)])
    unit, place = float(rng.choice([1.0, 10.0, 1e6])), float(rng.choice([0.0, 0.0, 1e9]))
    return np.rint(shapes * unit) + place, shapes[:, 0]


def numeric(field: Field, kind: str, rows: int, rng: Draws) -> Column:
    """A field of one number, or a list of them."""
    if "boolean" in kind:
        flags = rng.random((rows, field.size)) < 0.5
        return _numbers(field, kind, flags.astype(float), flags.tolist(), flags[:, 0].astype(float))
    if "integer" in kind:
        numbers, signal = whole_numbers(field.size, rows, rng)
        return _numbers(field, kind, numbers, numbers.astype(np.int64).tolist(), signal)
    if kind == "float32":
        spread = 10.0 ** rng.uniform(-12, 30)
        signal = shaped(str(rng.choice(SHAPES)), rows, rng)
        numbers = (spread * (signal + rng.choice([0.0, 1.0, -30.0]))).astype(np.float32).astype(float)[:, None]
    else:
        numbers, signal = any_numbers(field.size, rows, rng)
    return _numbers(field, kind, numbers, numbers.tolist(), signal)


def _numbers(field: Field, kind: str, numbers: np.ndarray, cells: list[Any], signal: np.ndarray) -> Column:
    meant = numbers.tolist()
    if field.size > 1:
        return Column(kind, meant, cells, signal)
    return Column(kind, [row[0] for row in meant], [row[0] for row in cells], signal)


def category(_field: Field, kind: str, rows: int, rng: Draws) -> Column:
    """A name a row."""
    names = NAMES[kind.split()[0]]
    cells = [list(names)[place] for place in rng.integers(len(names), size=rows)]
    meant = [names[cell] for cell in cells]
    return Column(kind, meant, cells, np.array([float(name == next(iter(names.values()))) for name in meant]))


def moments(field: Field, kind: str, rows: int, rng: Draws) -> Column:
    """A time a row: microseconds, in the field's unit since 1970, of which an instant or a text of its offset says its own."""
    spread_us = 10.0 ** rng.uniform(6, 13)
    signal = np.clip(shaped(str(rng.choice(SHAPES)), rows, rng), -300.0, 300.0)
    us = [1_750_000_000_000_000 + round(spread_us * each) for each in signal.tolist()]
    meant = [each * 1000 / UNITS_NS[field.unit] for each in us]
    if kind == "number of units":
        return Column(kind, meant, list(meant), signal)
    here = timezone(timedelta(minutes=ZONES[field.zone]))
    instants = [EPOCH + timedelta(microseconds=each) for each in us]
    if kind == "instant":
        return Column(kind, meant, instants, signal)
    local = [moment.astimezone(here).replace(tzinfo=None) for moment in instants]
    if kind == "timestamp":
        return Column(kind, meant, local, signal)
    away = timezone(timedelta(hours=9))
    told = [
        moment.astimezone(away) if at % 2 else naive for at, (moment, naive) in enumerate(zip(instants, local, strict=True))
    ]
    return Column(kind, meant, [moment.isoformat() for moment in told], signal)


def labels(label: Label, kind: str, signal: np.ndarray, rng: Draws) -> Column:
    """What is to be predicted, which follows the features' signal (n,)."""
    noisy = signal + 0.1 * rng.standard_normal(len(signal))
    if kind == "label number":
        numbers = (10.0 ** rng.uniform(-6, 12) * (noisy + rng.choice([0.0, 1e6]))).tolist()
        return Column(kind, numbers, list(numbers))
    if kind == "integer as number":
        whole = np.rint(100.0 * noisy) + rng.choice([0.0, 1e12])
        return Column(kind, whole.tolist(), whole.astype(np.int64).tolist())
    if label.type == "string":
        names = NAMES[kind.split()[0]]
    elif label.type == "boolean":
        names = NAMES["boolean"]
    else:
        names = {float(each) if kind == "integer as float" else each: str(each) for each in (3, 0, -7)}
    edges = np.quantile(noisy, np.linspace(0.0, 1.0, len(names) + 1)[1:-1])
    cells = [list(names)[place] for place in np.searchsorted(edges, noisy).tolist()]
    return Column(kind, [names[cell] for cell in cells], cells)


def nothing(kind: str, rng: Draws) -> Any:
    """How a missing cell of a kind is written: a NaN, where a program may write one for it, or None."""
    floats = ("double", "float32", "label number", "integer as float")
    return math.nan if kind in floats and rng.random() < 0.5 else None


DRAWN: dict[str, Callable[[Field, str, int, Draws], Column]] = {
    "numeric": numeric,
    "list": numeric,
    "categorical": category,
    "time": moments,
}
