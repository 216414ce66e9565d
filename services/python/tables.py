"""Columns of what a program hands over to be answered: data frames, Arrow tables, mappings, lists of mappings, arrays.

What a value means is what it means in a record. A column of plain numbers or texts is taken as it stands; any other goes value
by value through the codec that the worker reads with. Neither pandas nor polars is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from sys import maxsize
from typing import Any

import numpy as np

from millrace.learners.errors import BadInputError
from millrace.learners.protocol import Array, Floats
from millrace.services.python.frames import columns_of_events, events_of, is_missing
from millrace.streams.formats.arrow import columns_of
from millrace.streams.formats.json_rows import number_range, outside_range
from millrace.streams.formats.meaning import INT64
from millrace.streams.schema import Field, Schema

EXPECTED = "a data frame, an Arrow table, a mapping of columns, a list of mappings, or an array (n, numbers)"
IDS = "id"  # as a request may have beside the fields; nobody looks at it here

Column = Sequence[Any] | Array


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of the fields that were handed over, each with a value a row."""

    columns: Mapping[str, Column]
    rows: int


def table_of(rows: Any, schema: Schema) -> Table:
    """What was handed over, as columns of the fields of ``schema``; its label, its weight and ids are left out.

    A mapping whose values are all one row's is one row. So is the frame of one row that MLflow makes of a mapping of columns:
    a cell that nests deeper than its field is that field's column.
    Raises: BadInputError naming a column that no field has, one that stands twice, or those whose lengths differ.
    """
    if hasattr(rows, "to_frame") and not hasattr(rows, "columns"):  # a Series
        return table_of(rows.to_frame(), schema)
    if hasattr(rows, "iloc") and hasattr(rows, "columns"):
        columns = _named(list(rows.columns), [_values(rows.iloc[:, at]) for at in range(len(rows.columns))], schema)
        return _unpacked(Table(columns, len(rows)), schema)
    if isinstance(rows, np.ndarray):
        return _of_array(rows, schema)
    if isinstance(rows, Mapping):
        return _of_mapping(_named(list(rows), list(rows.values()), schema), schema)
    if hasattr(rows, "__arrow_c_stream__") or hasattr(rows, "__arrow_c_array__") or hasattr(rows, "to_arrow"):
        table = Table(_named(*columns_of(rows.to_arrow() if hasattr(rows, "to_arrow") else rows), schema), 0)
        return replace(table, rows=_common_rows(table.columns))
    if isinstance(rows, Iterable) and not isinstance(rows, str | bytes):
        return _of_rows(list(rows), schema)
    raise BadInputError(f"rows: expected {EXPECTED}, got {type(rows).__name__}.")


def answerable(table: Table, schema: Schema) -> tuple[Array, ...]:
    """The columns of a table as a state answers them, one a field: numbers (n, size), NaN where missing; other cells (n,).

    Raises: BadInputError naming the row, counted from 0, and the column of the first value that a record may not hold.
    """
    for field in schema.fields:
        if field.missing == "reject" and field.name not in table.columns:
            raise BadInputError(f"{field.name}: this field is required, and the rows have no such column. Add it.")
    quick = {field.name: _quick(field, table) for field in schema.fields}
    others = tuple(field for field in schema.fields if quick[field.name] is None)
    exact = _exact(table, replace(schema, fields=others, weight=None)) if others else {}
    return tuple(exact[field.name] if column is None else column for field in schema.fields for column in [quick[field.name]])


def _named(names: Sequence[Any], columns: Sequence[Any], schema: Schema) -> dict[str, Any]:
    """Columns by their names, without label, weight and ids. Raises: BadInputError."""
    texts, known = [str(name) for name in names], [field.name for field in schema.fields]
    if twice := sorted({name for name in texts if texts.count(name) > 1} if len(set(texts)) < len(texts) else ()):
        raise BadInputError(f"rows: the column {twice[0]} stands twice. Rename or drop one of them.")
    for name in texts:
        if name not in {*known, schema.label.name, schema.weight, IDS}:
            close = get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(known)}. Drop the column."
            raise BadInputError(f"{name}: this model has no such field. {hint}")
    return {name: column for name, column in zip(texts, columns, strict=True) if name in known}


def _of_array(block: Array, schema: Schema) -> Table:
    """The numbers of a row stand in the order of the fields."""
    if any(not field.is_number for field in schema.fields):
        raise BadInputError("rows: some fields of this model are not numbers; give a data frame or a mapping of columns.")
    ends = np.cumsum([0, *(field.size for field in schema.fields)]).tolist()
    block = block.reshape(-1, 1) if block.ndim == 1 == ends[-1] else block
    if block.ndim != 2 or block.shape[1] != ends[-1]:
        raise BadInputError(
            f"rows: the array has shape {list(block.shape)}, and must be [n, {ends[-1]}]: the numbers of a row in the order of "
            f"{', '.join(field.name for field in schema.fields)}."
        )
    parts = zip(schema.fields, ends, ends[1:], strict=False)
    return Table({field.name: _values(block[:, start:stop]) for field, start, stop in parts}, len(block))


def _of_mapping(columns: dict[str, Any], schema: Schema) -> Table:
    """A column a field, or one row's values."""
    if not columns:
        raise BadInputError(f"rows: expected {EXPECTED}, got a mapping without any field of this model.")
    fields = [field for field in schema.fields if field.name in columns]
    given = {field.name: _as_sequence(columns[field.name]) for field in fields}
    cells = [field.name for field in fields if _is_cell(field, given[field.name])]
    if len(cells) == len(fields):
        return Table({name: [cell] for name, cell in given.items()}, 1)
    if cells:
        column = next(field.name for field in fields if field.name not in cells)
        raise BadInputError(
            f"rows: {cells[0]} is one row's value and {column} is a column. Give columns alone, or the values of one row alone."
        )
    listed = {name: _values(column) for name, column in given.items()}
    return Table(listed, _common_rows(listed))


def _unpacked(table: Table, schema: Schema) -> Table:
    """A frame of one row whose cells are whole columns, as those columns."""
    fields = [field for field in schema.fields if field.name in table.columns]
    if table.rows != 1 or not fields or any(_is_cell(field, table.columns[field.name][0]) for field in fields):
        return table
    columns = {field.name: _values(table.columns[field.name][0]) for field in fields}
    return Table(columns, _common_rows(columns))


def _of_rows(rows: Sequence[Any], schema: Schema) -> Table:
    for at, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise BadInputError(f"Row {at} (counted from 0) is of type {type(row).__name__}; expected {EXPECTED}.")
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = _named(names, [[row.get(name) for row in rows] for name in names], schema)
    absent: dict[str, Column] = {field.name: [] for field in schema.fields if not rows}  # no rows are rows of any columns
    return Table(columns | absent, len(rows))


def _common_rows(columns: Mapping[str, Column]) -> int:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise BadInputError(f"rows: the columns differ in their number of rows: {told}. Give each a value a row.")
    return next(iter(lengths.values()), 0)


def _as_sequence(given: Any) -> Any:
    """What can be gone through once, as a list; anything else as it is."""
    if hasattr(given, "to_pylist"):  # an array of pyarrow
        return given.to_pylist()
    return list(given) if isinstance(given, Iterable) and not hasattr(given, "__len__") else given


def _depth(given: Any) -> int:
    """How many lists a value is within: 0 of a number or a text, 1 of a list of these."""
    if isinstance(given, np.ndarray) and given.dtype != object:
        return given.ndim
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable) or getattr(given, "ndim", 1) == 0:
        return 0
    return 1 + _depth(next((item for item in given if not is_missing(item)), None))


def _is_cell(field: Field, given: Any) -> bool:
    """Whether it is of one row: no field's cell is an empty list, or nests deeper than its numbers."""
    depth = _depth(given)
    return depth <= (field.size > 1) and not (depth and not len(given))


def _values(column: Any) -> Column:
    """NumPy's numbers as they are; anything else as a list of Python's values, in which what is masked or null is missing."""
    kind = column.dtype.kind if isinstance(getattr(column, "dtype", None), np.dtype) else ""
    if kind in {*"fiub"} and not isinstance(column, np.ma.MaskedArray):
        return np.asarray(column)
    if kind in {*"mM"}:  # tolist would make plain integers of them
        return list(column)
    return list(column.tolist() if hasattr(column, "tolist") else column)


def _quick(field: Field, table: Table) -> Array | None:
    """A column that is plainly good, without a look at each value; None where there is more to look at."""
    column = table.columns.get(field.name)
    if column is None:
        return np.full((table.rows, 1), np.nan) if field.is_number else np.full(table.rows, None, dtype=object)
    if field.type == "categorical":
        return _quick_names(field, column)
    return _quick_numbers(field, column, table.rows) if field.is_number else None


def _quick_names(field: Field, column: Column) -> Array | None:
    if isinstance(column, np.ndarray):
        return None
    column = [None if is_missing(cell) else cell for cell in column]
    if not set(map(type, column)) <= {str, type(None)}:
        return None
    names = set(column)
    allowed = {*field.categories, None} if isinstance(field.categories, tuple) else names
    if (field.missing == "reject" and None in names) or not names <= allowed:
        return None
    if not all(name is None or name.isascii() for name in names):  # half a character is no text
        return None
    texts = np.empty(len(column), dtype=object)
    texts[:] = column
    return texts


def _quick_numbers(field: Field, column: Column, rows: int) -> Floats | None:
    if field.size == 1 and not isinstance(column, np.ndarray):
        column = [np.nan if is_missing(cell) else cell for cell in column]
    try:
        block = np.asarray(column)
    except ValueError:  # rows of different lengths
        return None
    if block.dtype.kind not in ({*"fiu"} if field.type == "time" else {*"fiub"}) or block.size != rows * field.size:
        return None
    if field.type == "time" and not isinstance(column, np.ndarray) and not set(map(type, column)) <= {int, float}:
        return None  # booleans among numbers
    numbers = block.astype(np.float64).reshape(rows, field.size)
    exact_from = np.inf if isinstance(column, np.ndarray) and block.dtype.kind == "f" else INT64  # as floats integers are gone
    low, high = number_range(field)
    gone = np.isnan(numbers)
    if gone.any() and field.missing == "reject":
        return None
    inside = gone | ((low <= numbers) & (numbers <= high) & (np.abs(numbers) < exact_from))
    return numbers if inside.all() and outside_range(field, numbers) is None else None


def _exact(table: Table, schema: Schema) -> dict[str, Array]:
    """Columns through the codec that the worker reads with. Raises: BadInputError."""
    columns = {field.name: _cells(field, table.columns[field.name]) for field in schema.fields}
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    read = columns_of_events(events_of(rows, schema, maxsize), schema)
    return {field.name: column for field, column in zip(schema.fields, read, strict=True)}


def _cells(field: Field, column: Column) -> list[Any]:
    if field.type == "image":
        return [cell.decode("ascii") if isinstance(cell, bytes) and cell.isascii() else cell for cell in column]  # base64
    if field.size > 1 or not field.is_number:
        return list(column)
    return [cell[0] if _depth(cell) == 1 == len(cell) else cell for cell in column]  # one number in a list of its own
