"""What a linear learner serves: weights, an intercept and, where features are expanded, the random projection.

scores = phi W + b with phi = x, or phi = relu(x A^T) where there is a projection A; or the softmax of these scores. Where
there are bounds, x is clipped to them first. Where there is a centre c, features far from 0 lose no digits: scores =
(phi - c) W + level, and b = level - c W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from millrace.learners.distribution import how_to_get
from millrace.learners.errors import BadInputError, LearnerError, MillraceError
from millrace.learners.linear.answered import Answered
from millrace.learners.linear.decoded import NEWEST
from millrace.learners.protocol import Array, Batch, Floats, Value, within

LARGEST = 1e100  # features beyond it are refused: their squares, summed and weighted, could overflow float64
OPSET = 18  # of ONNX operators: has Relu, MatMul and ArgMax in float64, and older runtimes know it too
IR = 10  # of the ONNX file format, for the same reason


@dataclass(frozen=True, slots=True, eq=False)
class LinearServable:
    """An immutable linear model; the arrays it holds are read-only views."""

    classes: tuple[str, ...]  # in the order of the score columns; empty for regression
    weights: Floats  # W, (d_phi, C), Fortran order, so that answers do not depend on how it was stored
    intercept: Floats  # b, (C,)
    projection: Floats | None = None  # A, (d_phi, d); None: phi = x
    softmax: bool = False  # whether scores are probabilities: the softmax of phi W + b
    bounds: Floats | None = None  # (2, d), least and largest value of each feature, to which x is clipped; None: it is not
    centre: Floats | None = None  # c, (d_phi,), near the learned rows; None: 0
    level: Floats | None = None  # the scores at the centre, (C,); there if and only if the centre is
    answered: Answered | None = None  # where the rows that it answers are noted for the learner it came from

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", _read_only(np.asfortranarray(self.weights)))
        object.__setattr__(self, "intercept", _read_only(self.intercept))
        for name in ("projection", "bounds", "centre", "level"):
            if (array := getattr(self, name)) is not None:
                object.__setattr__(self, name, _read_only(array))

    @property
    def d(self) -> int:
        """Features of a row as it comes in."""
        return len(self.weights) if self.projection is None else self.projection.shape[1]

    def predict_many(self, batch: Batch) -> Floats:
        """Scores (n, C).

        Raises: BadInputError where ``batch.x`` is not finite numbers (n, d).
        """
        x = finite("x", batch.x, (self.d,))
        phi = expanded(x if self.bounds is None else np.clip(x, *self.bounds), self.projection)
        seen = phi if self.centre is None else phi - self.centre
        if self.answered is not None:
            self.answered.note(x, self.centre, seen)
        scores: Floats = seen @ self.weights
        scores += self.intercept if self.level is None else self.level
        return softmax(scores) if self.softmax else scores

    def arrays(self) -> dict[str, Value]:
        """Everything ``from_arrays`` needs; the arrays are read-only."""
        arrays = {"classes": list(self.classes), "weights": self.weights, "intercept": self.intercept}
        arrays |= {"projection": self.projection} | ({"softmax": True} if self.softmax else {})
        optional = {"bounds": self.bounds, "centre": self.centre, "level": self.level}
        return arrays | {name: array for name, array in optional.items() if array is not None}

    @classmethod
    def from_arrays(cls, arrays: dict[str, Value]) -> LinearServable:
        """The servable that gave ``arrays``, on copies of them, with equal answers bit for bit."""
        projection, centre, level = (
            None if array is None else np.array(array, order="C")
            for array in (arrays["projection"], arrays.get("centre"), arrays.get("level"))
        )
        return cls(
            tuple(arrays["classes"]),
            np.array(arrays["weights"], order="F"),
            np.array(arrays["intercept"]),
            projection,
            arrays.get("softmax", False),
            np.array(arrays["bounds"]) if "bounds" in arrays else None,
            centre,
            level,
        )


def softmax(scores: Floats) -> Floats:
    """exp(scores) (n, C) over the sum of each row, without overflow. Source: Bishop, PRML, 2006, (4.104)."""
    if not scores.shape[1]:
        return scores
    powers: Floats = np.exp(scores - scores.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def expanded(x: Floats, projection: Floats | None) -> Floats:
    """phi (n, d_phi) of x (n, d): random ReLU features, or x itself. Source: ACIL, arXiv 2205.14922, section 3."""
    if projection is None:
        return x
    phi: Floats = x @ projection.T
    return np.maximum(phi, 0.0, out=phi)


def finite(column: str, values: Array, row: tuple[int, ...]) -> Floats:
    """``values`` as float64 in C order, known to be rows of shape ``row`` with every number up to LARGEST in magnitude.

    Raises: BadInputError naming the column, what was expected and what came.
    """
    if values.shape[1:] != row or values.ndim == 0 or values.dtype.kind not in "fiub":
        expected = ", ".join(["n", *map(str, row)])
        raise BadInputError(f"column {column}: expected numbers ({expected}), got {values.dtype} {values.shape}")
    numbers: Floats = np.ascontiguousarray(values, dtype=np.float64)
    if not NEWEST.has(numbers) and not within(numbers, -LARGEST, LARGEST):
        place = tuple(int(i) for i in np.argwhere(~(np.abs(numbers) <= LARGEST))[0])
        raise BadInputError(
            f"column {column}: expected finite numbers up to {LARGEST:g}, got {numbers[place]} at {list(place)}"
        )
    return numbers


def to_onnx(servable: LinearServable) -> bytes:
    """The servable as a float64 ONNX model: x [n, d] -> scores [n, C] and, for classes, label [n] (strings).

    Raises: MillraceError where the package onnx is missing; LearnerError where there is no output to serve yet.
    """
    if not servable.weights.shape[1]:
        raise LearnerError("no class has been learned yet, so there is no ONNX model to write; learn a row first")
    try:
        from onnx import TensorProto, checker, helper
    except ImportError as missing:
        raise MillraceError(f"ONNX export needs the package onnx. {how_to_get('onnx')}") from missing
    rows = helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["n", servable.d])
    outputs = [helper.make_tensor_value_info("scores", TensorProto.DOUBLE, ["n", servable.weights.shape[1]])]
    if servable.classes:
        outputs.append(helper.make_tensor_value_info("label", TensorProto.STRING, ["n"]))
    graph = helper.make_graph(_nodes(servable), "millrace.linear", [rows], outputs, _constants(servable))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    checker.check_model(model)
    return bytes(model.SerializeToString())


def _nodes(servable: LinearServable) -> list[Any]:
    """The graph's operators, in order."""
    from onnx.helper import make_node

    nodes, features = [], "x"
    if servable.bounds is not None:
        nodes += [make_node("Max", ["x", "low"], ["raised"]), make_node("Min", ["raised", "high"], ["clipped"])]
        features = "clipped"
    if servable.projection is not None:
        nodes += [make_node("MatMul", [features, "projection"], ["projected"]), make_node("Relu", ["projected"], ["phi"])]
        features = "phi"
    if servable.centre is not None:
        nodes.append(make_node("Sub", [features, "centre"], ["away"]))
        features = "away"
    nodes.append(make_node("MatMul", [features, "weights"], ["product"]))
    nodes.append(make_node("Add", ["product", "intercept"], ["sums" if servable.softmax else "scores"]))
    if servable.softmax:
        nodes.append(make_node("Softmax", ["sums"], ["scores"], axis=1))
    if servable.classes:
        nodes.append(make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0))
        nodes.append(make_node("Gather", ["classes", "best"], ["label"]))
    return nodes


def _constants(servable: LinearServable) -> list[Any]:
    """The graph's tensors."""
    from onnx.numpy_helper import from_array

    constants = [from_array(np.ascontiguousarray(servable.weights), "weights")]
    constants.append(from_array(servable.intercept if servable.level is None else servable.level, "intercept"))
    if servable.centre is not None:
        constants.append(from_array(servable.centre, "centre"))
    if servable.projection is not None:
        constants.append(from_array(np.ascontiguousarray(servable.projection.T), "projection"))
    if servable.bounds is not None:
        constants += [from_array(np.array(row), name) for name, row in zip(("low", "high"), servable.bounds, strict=True)]
    if servable.classes:
        constants.append(from_array(np.array(servable.classes, dtype=object), "classes"))
    return constants


def _read_only(array: Floats) -> Floats:
    """A view of ``array`` that cannot be written to."""
    view = array.view()
    view.flags.writeable = False
    return view
