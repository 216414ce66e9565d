"""What MLflow is told of an exported folder: who opens it, and the columns that it takes and gives.

MLflow checks rows against `inputs` before it calls us. A declared type would refuse what a record may hold: `double` refuses
integers of 64 bits, booleans and what is missing among them; `string` refuses integers, booleans and pandas' categories. So a
cell is of type `any`, and we say what is wrong with it. An array of numbers is an `array`, a picture is `binary`, base64 in
JSON. A field that may be missing is not required.
Source: mlflow/types/schema.py and `_enforce_schema` in mlflow/models/utils.py, MLflow 3.17.
"""

from __future__ import annotations

import json
import platform
from typing import Any

from millrace.streams.schema import Field, Schema

LOADER = "millrace.services.pyfunc"  # frozen: every folder that was ever exported names it


def mlmodel(schema: Schema) -> str:
    """The file `MLmodel`, in its YAML; JSON is YAML. Classes grow, so no shape is fixed."""
    flavor = {
        "loader_module": LOADER,
        "python_version": platform.python_version(),
        "env": {"virtualenv": "python_env.yaml"},
    }
    signature = {"inputs": json.dumps(inputs(schema)), "outputs": json.dumps(outputs(schema)), "params": None}
    return json.dumps({"flavors": {"python_function": flavor}, "signature": signature}, indent=2) + "\n"


def inputs(schema: Schema) -> list[dict[str, Any]]:
    """A column a field, as MLflow's schema has it.

    >>> from millrace.streams.schema import Label
    >>> inputs(Schema((Field("x", size=3), Field("n", missing="mean")), Label("y")))[1]
    {'type': 'any', 'name': 'n', 'required': False}
    """
    return [_kind(field) | {"name": field.name, "required": field.missing == "reject"} for field in schema.fields]


def _kind(field: Field) -> dict[str, Any]:
    if field.type == "image":
        return {"type": "binary"}
    return {"type": "array", "items": {"type": "any"}} if field.size > 1 else {"type": "any"}


def outputs(schema: Schema) -> list[dict[str, Any]]:
    """A tensor for each array of an answer; `classes` names the columns of `scores`.

    >>> from millrace.streams.schema import Label
    >>> [tensor["name"] for tensor in outputs(Schema((Field("x"),), Label("y")))]
    ['scores', 'label', 'classes', 'far_out']
    """
    names = ("far_out",) if schema.label.task == "regress" else ("label", "classes", "far_out")
    texts = [{"name": name, "type": "tensor", "tensor-spec": {"dtype": "object", "shape": [-1]}} for name in names]
    return [{"name": "scores", "type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, -1]}}, *texts]
