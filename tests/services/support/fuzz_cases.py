"""Random schemas and rows, and the ridge that is due for them, by NumPy and plain Python alone.

Nothing of ours takes part in what is expected: the clipping is done a row at a time as docs/design/overview.md tells it, and
the ridge is a centred one in float64 over all rows at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from clipped_rows import RowByRow
from fuzz_columns import DRAWN, NAMES, UNITS_NS, ZONES, Column, Draws, kind_of, labels, nothing

from millrace.streams.schema import Field, Label, Schema

GAMMA = 1.0
FILL = 9.97e36  # what a row without a label has in a field whose mean stands in, now and then
PIECES = 3  # messages, files or schemas that the rows of a case are written in
TYPES = (
    "numeric",
    "numeric, mean",
    "numeric, indicator",
    "list",
    "categorical",
    "categorical, grow",
    "categorical, category",
    "time",
)
LABELS = ("label number", "label number", "label number", "label integer", "label boolean", "label string")
BEYOND = {1 << 63, (1 << 64) - 1}  # that int64 does not have


@dataclass(frozen=True)
class Spoiled:
    """What is wrong with some rows, and that they are refused for it."""

    kind: str
    column: str
    rows: tuple[int, ...]
    reason: str = "wrong-type"  # of their dead letters
    piece: int | None = None  # all of whose rows they are, since its column is of a type that no field takes


@dataclass(frozen=True)
class Rows:
    """A schema, and rows in columns, by name, the label's among them."""

    schema: Schema
    columns: dict[str, Column]
    spoiled: Spoiled | None = None

    def __len__(self) -> int:
        return len(self.columns["y"].cells)

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Where each begins and ends."""
        ends = [len(self) * at // PIECES for at in range(PIECES + 1)]
        return list(zip(ends, ends[1:], strict=False))

    @property
    def learned(self) -> list[int]:
        """The rows that are not refused and have a label."""
        bad = self.spoiled.rows if self.spoiled else ()
        return [at for at, label in enumerate(self.columns["y"].meant) if label is not None and at not in bad]

    @property
    def kinds(self) -> set[str]:
        """Of values, and of what is wrong with them."""
        return {column.kind for column in self.columns.values()} | ({self.spoiled.kind} if self.spoiled else set())


def field_of(declared: str, name: str, kind: str, rng: Draws) -> Field:
    """A field of a type as TYPES names it."""
    if declared == "time":
        return Field(name, "time", unit=str(rng.choice(list(UNITS_NS))), zone=str(rng.choice(list(ZONES))))  # type: ignore[arg-type]
    family, _, rule = declared.partition(", ")
    if family == "categorical":
        missing, names = "category" if rule == "category" else "reject", tuple(NAMES[kind.split()[0]].values())
        grow = rule == "grow" or (rule == "category" and rng.random() < 0.5)
        return Field(name, "categorical", categories="grow" if grow else names, max=2 if grow else 0, missing=missing)  # type: ignore[arg-type]
    return Field(name, size=2 if family == "list" else 1, missing=rule or "reject")  # type: ignore[arg-type]


def drawn(seed: int, form: str) -> Rows:
    """Rows under a schema, for a format: one to four fields of any type, each of one kind of value."""
    rng = np.random.default_rng(seed)
    rows, fields, columns = int(rng.choice([20, 60, 300, 700], p=[0.4, 0.4, 0.1, 0.1])), list[Field](), dict[str, Column]()
    for at in range(int(rng.integers(1, 5))):
        declared = str(rng.choice([each for each in TYPES if form != "CSV" or each != "list"]))
        family, name = declared.partition(",")[0], f"f{at}"
        kind = kind_of(family, form, rng)
        fields.append(field_of(declared, name, kind, rng))
        columns[name] = DRAWN[family](fields[-1], kind, rows, rng)
    label = Label("y", str(rng.choice(LABELS)).partition(" ")[2])  # type: ignore[arg-type]
    signal = np.clip(np.sum([column.signal for column in columns.values()], axis=0), -20.0, 20.0)
    columns["y"] = labels(label, kind_of(f"label {label.type}", form, rng), signal, rng)
    for field in fields:
        if field.missing != "reject":
            _take_out(columns[field.name], rng.random(rows) < 0.1, rng)
    _without_labels(fields, columns, rng)
    _without_values([field.name for field in fields if field.missing != "reject"] + ["y"], columns, rng)
    drawn_rows = Rows(Schema(tuple(fields), label), columns)
    return Rows(drawn_rows.schema, columns, _spoil(drawn_rows, form, rng) if rng.random() < 0.4 else None)


def _take_out(column: Column, absent: np.ndarray, rng: Draws) -> None:
    for at in np.flatnonzero(absent).tolist():
        column.meant[at], column.cells[at] = None, nothing(column.kind, rng)


def _without_labels(fields: list[Field], columns: dict[str, Column], rng: Draws) -> None:
    """Some rows without a label, which have values that must change nobody's answer."""
    absent = rng.random(len(columns["y"].cells)) < 0.05
    _take_out(columns["y"], absent, rng)
    for at in np.flatnonzero(absent).tolist():
        for field in fields:
            column = columns[field.name]
            if field.missing == "mean" and column.kind == "double" and rng.random() < 0.5:
                column.meant[at] = column.cells[at] = FILL
            if field.categories == "grow" and column.kind == "text":
                column.meant[at] = column.cells[at] = "dodo"


def _without_values(names: list[str], columns: dict[str, Column], rng: Draws) -> None:
    """Now and then a column that has no value in the middle piece, and so perhaps no type."""
    rows = np.arange(len(columns["y"].cells))
    for name in names:
        if rng.random() < 0.3:
            column, middle = columns[name], (len(rows) // PIECES <= rows) & (rows < 2 * len(rows) // PIECES)
            meant = [None if absent else cell for cell, absent in zip(column.meant, middle, strict=True)]
            cells = [None if absent else cell for cell, absent in zip(column.cells, middle, strict=True)]
            columns[name] = Column(column.kind, meant, cells, column.signal)


# What is refused.


def _spoil(rows: Rows, form: str, rng: Draws) -> Spoiled | None:
    """One column of some rows spoiled, where there is one that can be; its cells become what is wrong with them."""
    last = len(rows) * 2 // PIECES - 1  # of the middle piece
    ways = [way for field in rows.schema.fields for way in _ways(field, rows.columns[field.name], form)]
    if not ways:
        return None
    kind = str(rng.choice(sorted({kind for kind, _ in ways})))
    name = str(rng.choice([name for each, name in ways if each == kind]))
    column, middle = rows.columns[name], rows.pieces[1]
    if kind in ("decimal", "nested", "bytes as number") and form in ("Parquet", "Arrow", "Arrow in CloudEvents", "Avro"):
        return Spoiled(kind, name, tuple(range(*middle)), piece=1)
    if kind == "short row":
        return Spoiled(kind, name, (last,))
    chosen = sorted({last, *rng.integers(len(rows), size=2).tolist()})
    if kind == "beyond int64":  # which only columns without a sign have
        column.cells[:] = [None if cell is None else abs(cell) for cell in column.cells]
        column.meant[:] = [None if cell is None else abs(cell) for cell in column.meant]
    wrong = {
        "infinity": (math.inf, -math.inf),
        "beyond int64": tuple(BEYOND),
        "bytes that are no text": (b"\xff",),
        "nested": ({"a": 1.0},),
    }[kind]
    for at in chosen:
        column.cells[at] = wrong[at % len(wrong)]
    return Spoiled(kind, name, tuple(chosen), "not-finite" if kind == "infinity" else "wrong-type")


def _ways(field: Field, column: Column, form: str) -> list[tuple[str, str]]:
    """What can be wrong with a column in a format."""
    kinds = {
        "double": ("infinity", "decimal", "bytes as number", "nested"),
        "float32": ("infinity",),
        "integer": ("beyond int64", "decimal"),
        "bytes as category": ("bytes that are no text",),
    }.get(column.kind, ())
    lacking = {"JSON": ("decimal", "bytes as number"), "CloudEvents": ("decimal", "bytes as number"), "Avro": ("beyond int64",)}
    lacking["CSV"] = ("decimal", "bytes as number", "nested")
    ways = [(kind, field.name) for kind in kinds if kind not in lacking.get(form, ())]
    short = form == "CSV" and field.missing == "reject"  # its cell stays, so the line is not empty
    return [*ways, ("short row", field.name)] if short else ways


# What is due.


def features_due(rows: Rows) -> np.ndarray:
    """x (n, d) as each row is to be learned."""
    learned = rows.learned
    return np.column_stack(
        [
            part
            for field in rows.schema.fields
            for part in columns_due(field, [rows.columns[field.name].meant[at] for at in learned])
        ]
    )


def columns_due(field: Field, cells: list[Any]) -> list[np.ndarray]:
    """The columns of one field."""
    if field.type == "categorical":
        present = [cell for cell in cells if cell is not None]
        slots = list(dict.fromkeys(present))[: field.max] if field.categories == "grow" else list(field.categories)
        other = len(slots) if field.categories != "grow" else field.max
        missing = field.width - 1  # the last column, where the field has one
        places = [missing if cell is None else slots.index(cell) if cell in slots else other for cell in cells]
        return [np.array([float(place == slot) for place in places]) for slot in range(field.width)]
    if field.size > 1:
        clips = [RowByRow() for _ in range(field.size)]
        return [np.array([clip.row(cell[at]) for cell in cells]) for at, clip in enumerate(clips)]
    clip, present, learned = RowByRow(), list[float](), list[float]()
    for cell in cells:
        value = math.fsum(present) / max(len(present), 1) if cell is None else float(cell)
        present += [] if cell is None else [value]
        kept = clip.row(value)
        learned.append(0.0 if cell is None and field.missing == "indicator" else kept)
    flag = [np.array([float(cell is None) for cell in cells])] if field.missing == "indicator" else []
    return [np.array(learned), *flag]


def targets_due(rows: Rows) -> np.ndarray:
    """Y (n, C): the numbers, or one column a class in order of first appearance."""
    cells = [rows.columns["y"].meant[at] for at in rows.learned]
    if rows.schema.label.type == "number":
        return np.array(cells, dtype=float)[:, None]
    return np.array([[float(cell == name) for name in dict.fromkeys(cells)] for cell in cells])


def answers_due(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What a ridge over standardised features answers to the rows that it learned (n, C)."""
    centred = x - x.mean(axis=0)
    deviation = centred.std(axis=0)
    varies = deviation > 1e-13 * np.abs(x).max(axis=0, initial=0.0)
    z = centred[:, varies] / deviation[varies]
    z = z - z.mean(axis=0)
    weights = np.linalg.solve(z.T @ z + GAMMA * np.eye(z.shape[1]), z.T @ (y - y.mean(axis=0)))
    return z @ weights + y.mean(axis=0)
