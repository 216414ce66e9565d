"""What MLflow loads an exported version with: `mlflow.pyfunc.load_model`, `mlflow models serve --env-manager local`.

Every exported folder names this module, so its name and ``_load_pyfunc`` never change. Neither MLflow nor pandas is imported:
MLflow calls us, and a table of rows is whatever has columns and values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from millrace.learners.errors import BadInputError
from millrace.learners.protocol import Array
from millrace.services.pipeline.bundle import Bundle
from millrace.services.python.tables import answerable, table_of
from millrace.services.registry.export import opened


@dataclass(frozen=True, slots=True)
class Model:
    """A version that answers."""

    bundle: Bundle

    def predict(self, rows: Any, params: Mapping[str, Any] | None = None) -> dict[str, Array]:
        """What a replica answers to the same rows, bit for bit.

        ``scores`` (n, C); for classes ``label`` (n,), and ``classes`` (C,), which names the columns of ``scores``. ``far_out``
        (n,) names the fields, with commas between, in which a row has a value far outside everything learned, as the parameter
        of an endpoint's answer does; it is empty for most rows.

        ``rows`` is a data frame, an Arrow table, a mapping with a column a field or one row's values, a list of mappings, or an
        array (n, numbers) where all fields are numbers, in their order. A value means what it means in a record; None, NaN, NA
        and NaT are missing. A label, a weight and an id are not looked at.
        Raises: BadInputError naming row and column, NotReadyError where nothing was learned yet.
        """
        if params:
            raise BadInputError(f"params: a version takes none, and {', '.join(params)} was given.")
        schema = self.bundle.schema
        predicted = self.bundle.predict(answerable(table_of(rows, schema), schema))
        far_out = [[name for name, rows in predicted.far_out.items() if rows[at]] for at in range(len(predicted.scores))]
        of_classes = {"label": _texts(predicted.labels), "classes": _texts(self.bundle.classes)} if self.bundle.classes else {}
        return {"scores": predicted.scores} | of_classes | {"far_out": _texts(",".join(names) for names in far_out)}


def _texts(texts: Iterable[str]) -> Array:
    return np.array(list(texts), dtype=object)


def _load_pyfunc(path: str) -> Model:
    """The model in an exported folder. Raises: DamageError."""
    return Model(opened(Path(path)))
