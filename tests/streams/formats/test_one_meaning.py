"""One meaning in every format: what other libraries write is learned the same, bit for bit, or refused alike."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from other_writers import DECLARED, FORMATS, KINDS, MOMENTS, SCHEMAS, Case

from millrace.learners.analytic.ridge import RidgeConfig
from millrace.learners.errors import BadInputError
from millrace.learners.table import LEARNERS
from millrace.streams.features.columns import Features
from millrace.streams.formats.avro import Registry
from millrace.streams.formats.contents import Contents
from millrace.streams.parts import pack
from millrace.streams.records import Event
from millrace.streams.schema import Schema

NEVER = ("decimal", "nested")  # refused by name in every format
HARD: dict[str, list[Any]] = {
    "boolean": [True, False], "int8": [-1, 0, 7], "int64": [-(1 << 63), 7, (1 << 53) + 1, (1 << 63) - 1],
    "uint64": [7, 1 << 63, (1 << 64) - 1], "float32": [float(np.float32(0.1)), 1.0, math.nan, math.inf],
    "double": [0.1, 1.0, -0.0, 1e19, 1e101, math.nan, -math.inf], "text": ["a", "7", "true", "1.0", "ü"],
    "bytes": [b"a", b"\xff", "ü".encode()], "list": [[1.0, 2.0], [0.5], [1.0, None], [math.inf, 0.0]],
    "list of integers": [[1, 2], [0, 1 << 63], []], "list of booleans": [[True, False], [True]],
    "decimal": [Decimal("1.50")], "nested": [{"a": 1.0}], "timestamp": MOMENTS,
    "instant": [moment.replace(tzinfo=UTC) for moment in MOMENTS],
    "text of a time": ["2026-03-29T02:30:00", "1969-12-31 23:59+01:00", "2026-03-29T02:30:00.000001Z"],
}  # fmt: skip


@st.composite
def cases(draw: Any) -> Case:
    """One to six rows, some of them null."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    cells = draw(st.lists(KINDS[kind][1] | st.none(), min_size=1, max_size=6))
    return Case(draw(st.sampled_from(sorted(DECLARED))), kind, tuple(cells))


def meant(case: Case, cell: Any) -> Any:
    """What a cell means by the table of docs/how-to/values-and-types.md, written once more; a reason where it is refused."""
    kind = case.kind_of_value
    field = next((field for field in case.schema.fields if field.name == "v"), None)
    if cell is None or cell != cell:
        return "missing-field" if field and field.missing == "reject" else None
    if kind == "integer" and not -(1 << 63) <= cell < 1 << 63:
        return "wrong-type"
    family = case.declared.partition(",")[0]
    if family in ("categorical", "label string"):
        return text_meant(case, kind, cell)
    if family == "time" and kind in ("timestamp", "instant", "text"):
        return time_meant(cell)
    if family == "list":
        return list_meant(kind, cell)
    if family == "label boolean":
        return (str(cell).lower(),) if kind == "boolean" else "wrong-type"
    if family == "numeric" and kind == "boolean":
        return (float(cell),)
    if kind not in ("integer", "number"):
        return "wrong-type"
    return number_meant(family, cell)


def time_meant(cell: Any) -> Any:
    """Of a time in hours, two hours ahead of UTC where nothing else is said."""
    try:
        moment = datetime.fromisoformat(cell) if isinstance(cell, str) else cell
    except ValueError:
        return "wrong-type"
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone(timedelta(hours=2)))
    return ((moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(hours=1),)


def text_meant(case: Case, kind: str, cell: Any) -> Any:
    """Of a category or a string label."""
    if (kind == "bytes" and b"\xff" in cell) or kind not in ("boolean", "integer", "text", "bytes"):
        return "wrong-type"
    text = cell.decode() if kind == "bytes" else str(cell).lower() if kind == "boolean" else str(cell)
    return (text,) if case.declared != "categorical, fixed" or text in ("true", "a", "7") else "unknown-category"


def list_meant(kind: str, cell: Any) -> Any:
    """Of an array of two numbers."""
    if not kind.startswith("list"):
        return "wrong-type"
    if len(cell) != 2:
        return "wrong-shape"
    if None in cell or 1 << 63 in cell:
        return "wrong-type"
    return "not-finite" if max(map(abs, cell)) > 1e100 else (tuple(map(float, cell)),)


def number_meant(family: str, cell: Any) -> Any:
    """Of a number, an integer label or a weight."""
    if family == "label integer" and math.isfinite(cell):
        return (str(int(cell)),) if cell == cell // 1 and -(1 << 63) <= cell < 1 << 63 else "wrong-type"
    if not abs(cell) <= 1e100:
        return "not-finite"
    return "negative-weight" if family == "weight" and cell < 0 else (float(cell),)


def decoded(schema: Schema, events: Sequence[Event]) -> tuple[Any, dict[int, str]]:
    """The rows that are taken, and the reasons of the others by their number."""
    with TemporaryDirectory() as folder:
        registry = Registry("http://127.0.0.1:9", Path(folder))
        if SCHEMAS[0]:
            (Path(folder) / "1.avsc").write_text(SCHEMAS[0])
        rows, refused = Contents(schema, 1 << 20, registry=registry).decode(events)
    return rows, {rejection.event.offset: rejection.reason for rejection in refused}


def weights(schema: Schema, rows: Any) -> bytes:
    """What a ridge learns of the rows, as bytes."""
    learner = LEARNERS["ridge"].ready().learner(RidgeConfig(schema.label.task, solve_rows=1), schema.width, 3)
    kept = rows.only([label is not None and label == label for label in rows.y.tolist()])
    if len(kept):
        stage = Features(schema, "clip")
        learner.learn_many(stage.learn(stage.encode(kept)))
    return pack(learner.servable().arrays())


def cells_of(schema: Schema, rows: Any) -> list[Any]:
    """The decoded cells of ``v``, NaN and None as None."""
    at = [field.name for field in schema.fields].index("v") if "v" in [field.name for field in schema.fields] else None
    column = rows.weight if schema.weight else rows.y if at is None else rows.columns[at]
    cells = [cell[0] if isinstance(cell, list) and len(cell) == 1 else cell for cell in column.tolist()]
    cells = [tuple(cell) if isinstance(cell, list) else cell for cell in cells]
    return [None if cell is None or cell != cell else (cell,) for cell in cells]


@settings(max_examples=400, deadline=None)
@given(cases(), st.sampled_from(sorted(FORMATS)))
def test_whatever_writes_a_row_the_same_is_learned_or_it_is_refused_alike(case: Case, name: str) -> None:
    """Against the table, written down once more; the weights that are learned against those that plain JSON leads to."""
    agree(case, name)


def agree(case: Case, name: str) -> None:
    """Raise where a format does not give what the table says."""
    SCHEMAS[0] = ""
    expected = [meant(case, cell) for cell in case.cells]
    reasons = {at: why for at, why in enumerate(expected) if isinstance(why, str)}
    good = [cell for cell in expected if not isinstance(cell, str)]
    if case.schema.weight:
        good = [(1.0,) if cell is None else cell for cell in good]
    if name == "Avro" and case.kind in NEVER:  # its schema says it for every record, those with a null too
        assert set(decoded(case.schema, list(FORMATS[name](case)))[1].values()) == {"wrong-type"}
        return
    timed = case.kind in ("timestamp", "instant") and case.declared != "time"
    if name.startswith("Parquet") and (case.kind in NEVER or timed):
        with pytest.raises(BadInputError, match="The column v is"):
            FORMATS[name](case)
        return
    events = FORMATS[name](case)
    if events is None:
        return
    rows, refused = decoded(case.schema, list(events))
    for at, cell in enumerate(case.cells):  # an infinity where no float is taken may be called either
        if isinstance(cell, float) and math.isinf(cell) and reasons[at] == "wrong-type" and at in refused:
            reasons[at] = {"not-finite": "not-finite"}.get(refused[at], "wrong-type")
    assert refused == reasons, (case, name, refused)
    assert repr(cells_of(case.schema, rows)) == repr(good), (case, name)
    values = [json.dumps(row).encode() for row in plain_rows(case, expected)]
    reference, none = decoded(case.schema, [Event(at, 1000, None, b"", value) for at, value in enumerate(values)])
    assert not none and weights(case.schema, rows) == weights(case.schema, reference), (case, name)


def plain_rows(case: Case, expected: list[Any]) -> list[dict[str, Any]]:
    """The good rows as JSON that needs no rule at all."""
    kept = [row | {"v": why and why[0]} for row, why in zip(case.rows, expected, strict=True) if not isinstance(why, str)]
    typed = case.declared in ("label boolean", "label integer")
    return [row | {"v": row["v"] and json.loads(row["v"])} if typed else row for row in kept]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("declared", DECLARED)
def test_every_cell_of_the_table_is_the_same_in_every_format(declared: str, kind: str) -> None:
    """Every kind of value beside every declared type, the values that are hard among them."""
    for name in FORMATS:
        agree(Case(declared, kind, (*HARD.get(kind, []), None)), name)
