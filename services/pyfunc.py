"""What MLflow loads an exported version with: `mlflow.pyfunc.load_model`, `mlflow models serve --env-manager local`.

Every exported folder names this module, so its name and ``_load_pyfunc`` never change. Neither MLflow nor pandas is imported:
MLflow calls us, and a table of rows is whatever has columns and values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from millrace.learners.errors import BadInputError
from millrace.learners.protocol import Array, Floats
from millrace.services.config.sections import ServingConfig
from millrace.services.pipeline.bundle import Bundle
from millrace.services.protocol.cells import Tensor, binary_texts
from millrace.services.protocol.tensors import LARGEST_SIDE, PACKED, question
from millrace.services.registry.export import opened
from millrace.streams.formats.meaning import INT64, RecordError, moment_of, number_of, text_of
from millrace.streams.schema import Field, Schema

UNLIMITED = ServingConfig(max_rows=LARGEST_SIDE, waiting_rows=LARGEST_SIDE)  # the caller's own process answers
MISSING = ("NAType", "NaTType")  # the classes of pandas.NA and pandas.NaT


@dataclass(frozen=True, slots=True)
class Model:
    """A version that answers."""

    bundle: Bundle

    def predict(self, rows: Any, params: Mapping[str, Any] | None = None) -> dict[str, Array]:
        """``scores`` (n, C) and, for classes, ``label`` (n,): what a replica answers to the same rows, bit for bit.

        ``far_out`` (n,) names the fields, with commas between, in which a row has a value far outside everything learned, as
        the parameter of an endpoint's answer does; it is empty for most rows. ``rows`` is a DataFrame or a mapping with a
        column a field (arrays of numbers as lists), or an array (n, numbers) where all fields are numbers, in their order. What
        a value means is as in a record: a time may be a datetime or text of ISO 8601.
        Raises: BadInputError naming the column, NotReadyError where nothing was learned yet.
        """
        if params:
            raise BadInputError(f"params: a version takes none, and {', '.join(params)} was given.")
        tensors, payloads = _tensors(rows, self.bundle.schema)
        predicted = self.bundle.predict(question(tensors, payloads, self.bundle.schema, UNLIMITED).columns)
        labels = {"label": np.array(predicted.labels, dtype=object)} if self.bundle.classes else {}
        far_out = [[name for name, rows in predicted.far_out.items() if rows[at]] for at in range(len(predicted.scores))]
        return (
            {"scores": predicted.scores} | labels | {"far_out": np.array([",".join(names) for names in far_out], dtype=object)}
        )


def _load_pyfunc(path: str) -> Model:
    """The model in an exported folder. Raises: DamageError."""
    return Model(opened(Path(path)))


def _tensors(rows: Any, schema: Schema) -> tuple[list[Tensor], dict[str, bytes]]:
    """Rows as a request of ours would have them, so that they are checked as requests are."""
    fields = {field.name: field for field in schema.fields}
    if isinstance(rows, np.ndarray):
        name = schema.fields[0].name if len(fields) == 1 else PACKED
        tensors = [_tensor(name, fields.get(name, Field(name)), rows)]
    elif isinstance(rows, Mapping) or hasattr(rows, "columns"):
        names = list(rows.columns) if hasattr(rows, "columns") else list(rows)
        tensors = [_tensor(str(name), fields.get(name, Field(str(name))), _cells(rows[name])) for name in names]
    else:
        raise BadInputError(f"rows: expected a DataFrame, a mapping of columns or an array, got {type(rows).__name__}.")
    return [tensor for tensor, _ in tensors], {tensor.name: payload for tensor, payload in tensors if payload is not None}


def _cells(column: Any) -> Sequence[Any] | Array:
    """NumPy's numbers as they are; its times one by one, which ``tolist`` would make plain integers; else Python's values."""
    dtype = getattr(column, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind in "fiub":
        return np.asarray(column)
    if isinstance(column, np.ndarray) and column.dtype.kind in "Mm":
        return list(column)
    return list(column.tolist() if hasattr(column, "tolist") else column)


def _tensor(name: str, field: Field, cells: Sequence[Any] | Array) -> tuple[Tensor, bytes | None]:
    if field.type == "categorical":
        try:
            texts = [None if _is_missing(cell) else text_of(_plain(cell)) for cell in cells]
            return Tensor(name, [len(texts)], "BYTES", data=msgspec.Raw(msgspec.json.encode(texts))), None
        except RecordError as error:
            raise BadInputError(f"{name}: expected names, one a row ({error.detail}).") from error
    if field.type == "image":
        if not all(isinstance(cell, bytes) for cell in cells):
            raise BadInputError(f"{name}: expected the bytes of a picture in every row.")
        return Tensor(name, [len(cells)], "BYTES"), binary_texts(cells)
    try:
        numbers = _numbers(field, cells)
    except (RecordError, TypeError, ValueError) as error:
        detail = error.detail if isinstance(error, RecordError) else error
        raise BadInputError(f"{name}: expected numbers, the same count in every row ({detail}).") from error
    return Tensor(name, list(numbers.shape), "FP64"), numbers.tobytes()


def _numbers(field: Field, cells: Sequence[Any] | Array) -> Floats:
    """Cells as float64 (n,) or (n, size), NaN for a missing one. Raises: RecordError, ValueError."""
    block = np.asarray(cells)
    integers_are_gone = block.dtype.kind == "f" and not isinstance(cells, np.ndarray) and bool((np.abs(block) >= INT64).any())
    if block.dtype.kind in "fi" and not integers_are_gone:  # among floats NumPy makes floats of those beyond int64
        return block.astype(np.float64)
    return np.array([_number(field, cell) for cell in cells], dtype=np.float64)


def _number(field: Field, cell: Any) -> Any:
    """One cell, or the list of numbers that it is."""
    if isinstance(cell, list | tuple) or (isinstance(cell, np.ndarray) and cell.ndim):
        return [_number(field, item) for item in cell]
    if _is_missing(cell):
        return math.nan
    if field.type != "time":
        return number_of(_plain(cell))
    if isinstance(cell, datetime | np.datetime64):
        return moment_of(field, str(cell) if isinstance(cell, np.datetime64) else cell.isoformat())
    if isinstance(cell, bool | np.bool_):
        raise RecordError("wrong-type", "a boolean is no time")
    return moment_of(field, _plain(cell))


def _is_missing(cell: Any) -> bool:
    """None, NaN, and what pandas and NumPy have for them."""
    return cell is None or type(cell).__name__ in MISSING or bool(isinstance(cell, float | np.generic) and cell != cell)


def _plain(cell: Any) -> Any:
    """A scalar of NumPy as Python has it; its times stay, as they are no integers."""
    return cell.item() if isinstance(cell, np.generic) and cell.dtype.kind not in "Mm" else cell
