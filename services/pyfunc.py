"""What MLflow loads an exported version with: `mlflow.pyfunc.load_model`, `mlflow models serve --env-manager local`.

Every exported folder names this module, so its name and ``_load_pyfunc`` never change. Neither MLflow nor pandas is imported:
MLflow calls us, and a table of rows is whatever has columns and values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from millrace.learners.errors import BadInputError
from millrace.learners.protocol import Array
from millrace.services.config.sections import ServingConfig
from millrace.services.pipeline.bundle import Bundle
from millrace.services.protocol.cells import Tensor, binary_texts
from millrace.services.protocol.tensors import LARGEST_SIDE, PACKED, question
from millrace.services.registry.export import opened
from millrace.streams.formats.meaning import RecordError, text_of
from millrace.streams.schema import Field, Schema

UNLIMITED = ServingConfig(max_rows=LARGEST_SIDE, waiting_rows=LARGEST_SIDE)  # the caller's own process answers


@dataclass(frozen=True, slots=True)
class Model:
    """A version that answers."""

    bundle: Bundle

    def predict(self, rows: Any, params: Mapping[str, Any] | None = None) -> dict[str, Array]:
        """``scores`` (n, C) and, for classes, ``label`` (n,): what a replica answers to the same rows, bit for bit.

        ``rows`` is a DataFrame or a mapping with a column a field (arrays of numbers as lists), or an array (n, numbers) where
        all fields are numbers, in their order.
        Raises: BadInputError naming the column, NotReadyError where nothing was learned yet.
        """
        if params:
            raise BadInputError(f"params: a version takes none, and {', '.join(params)} was given.")
        tensors, payloads = _tensors(rows, self.bundle.schema)
        predicted = self.bundle.predict(question(tensors, payloads, self.bundle.schema, UNLIMITED).columns)
        labels = {"label": np.array(predicted.labels, dtype=object)} if self.bundle.classes else {}
        return {"scores": predicted.scores} | labels


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


def _cells(column: Any) -> Sequence[Any]:
    return list(column.tolist() if hasattr(column, "tolist") else column)


def _tensor(name: str, field: Field, cells: Sequence[Any] | Array) -> tuple[Tensor, bytes | None]:
    if field.type == "categorical":
        try:
            texts = [
                None if cell is None or cell != cell else text_of(cell) for cell in cells
            ]  # pandas has NaN for a missing name
            return Tensor(name, [len(texts)], "BYTES", data=msgspec.Raw(msgspec.json.encode(texts))), None
        except RecordError as error:
            raise BadInputError(f"{name}: expected names, one a row ({error.detail}).") from error
    if field.type == "image":
        if not all(isinstance(cell, bytes) for cell in cells):
            raise BadInputError(f"{name}: expected the bytes of a picture in every row.")
        return Tensor(name, [len(cells)], "BYTES"), binary_texts(cells)
    try:
        numbers = np.asarray(cells, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadInputError(f"{name}: expected numbers, the same count in every row ({error}).") from error
    return Tensor(name, list(numbers.shape), "FP64"), numbers.tobytes()
