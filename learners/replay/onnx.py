"""A served network as ONNX: the same list of layers that torch runs, written operator by operator.

x [n, d] float64 -> scores [n, C] float64 and label [n] (strings), as a linear model's; in between float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from millrace.learners.distribution import how_to_get
from millrace.learners.errors import LearnerError, MillraceError
from millrace.learners.linear.servable import IR, OPSET
from millrace.learners.protocol import Array
from millrace.learners.replay.losses import EPSILON
from millrace.learners.replay.networks import BATCH_NORM, FARTHEST, Layer, layers_of
from millrace.learners.replay.servable import NetworkServable


class Graph:
    """Operators and constants, as they are added; values are known by their names."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Array] = {}

    def add(self, operator: str, *inputs: str | Array, attributes: dict[str, Any] | None = None) -> str:
        """The name of an operator's output; an array among its inputs becomes a constant."""
        from onnx.helper import make_node

        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        output = f"v{len(self.nodes)}"
        self.nodes.append(make_node(operator, names, [output], **(attributes or {})))
        return output

    def constant(self, array: Array) -> str:
        """The name of a constant."""
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return name


def to_onnx(servable: NetworkServable) -> bytes:
    """The model's bytes.

    Raises: MillraceError where the package onnx is missing; LearnerError where there is no output to serve yet.
    """
    if not servable.classes:
        raise LearnerError("no class has been learned yet, so there is no ONNX model to write; learn a row first")
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ImportError as missing:
        raise MillraceError(f"ONNX export needs the package onnx. {how_to_get('onnx')}") from missing
    graph = Graph()
    tensors = {name: tensor.numpy() for name, tensor in servable.tensors.items()}
    z = _body(graph, layers_of(servable.spec), tensors, _scaled(graph, servable))
    scores = graph.add("Cast", _scores(graph, servable, tensors, z), attributes={"to": TensorProto.DOUBLE})
    label = graph.add(
        "Gather",
        np.array(servable.classes, dtype=object),
        graph.add("ArgMax", scores, attributes={"axis": 1, "keepdims": 0}),
    )
    graph.nodes.append(helper.make_node("Identity", [scores], ["scores"]))
    graph.nodes.append(helper.make_node("Identity", [label], ["label"]))
    rows = helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["n", servable.spec.d])
    outputs = [helper.make_tensor_value_info("scores", TensorProto.DOUBLE, ["n", len(servable.classes)])]
    outputs.append(helper.make_tensor_value_info("label", TensorProto.STRING, ["n"]))
    constants = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in graph.constants.items()]
    onnx_graph = helper.make_graph(graph.nodes, "millrace.network", [rows], outputs, constants)
    model = helper.make_model(onnx_graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    checker.check_model(model)
    return bytes(model.SerializeToString())


def _scaled(graph: Graph, servable: NetworkServable) -> str:
    """As ``networks.scaled``."""
    from onnx import TensorProto

    spec, x = servable.spec, "x"
    if spec.pixels:
        x = graph.add("Clip", graph.add("Round", x), np.array(0.0), np.array(255.0))
    elif servable.scale is not None:
        mean, deviation = (part.numpy() for part in servable.scale)
        x = graph.add("Clip", graph.add("Div", graph.add("Sub", x, mean), deviation), np.array(-FARTHEST), np.array(FARTHEST))
    x = graph.add("Cast", x, attributes={"to": TensorProto.FLOAT})
    if spec.pixels:
        x = graph.add("Div", x, np.array(255.0, dtype=np.float32))
    return graph.add("Reshape", x, np.array([-1, *spec.image])) if spec.image else x


def _body(graph: Graph, layers: tuple[Layer, ...], tensors: dict[str, Array], x: str) -> str:
    """As ``networks.run`` when it answers."""
    for layer in layers:
        weights = [tensors[f"{layer.name}.{part}"] for part in ("weight", "bias") if f"{layer.name}.{part}" in tensors]
        if layer.kind == "linear":
            x = graph.add("Gemm", x, *weights, attributes={"transB": 1})
        elif layer.kind == "conv":
            pads = [layer.size // 2] * 4
            x = graph.add("Conv", x, *weights, attributes={"strides": [layer.stride] * 2, "pads": pads})
        elif layer.kind == "norm":
            running = [tensors[f"{layer.name}.{part}"] for part in ("mean", "var")]
            x = graph.add("BatchNormalization", x, *weights, *running, attributes={"epsilon": BATCH_NORM})
        elif layer.kind == "relu":
            x = graph.add("Relu", x)
        elif layer.kind == "pool":
            x = graph.add("MaxPool", x, attributes={"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1})
        elif layer.kind == "mean":
            x = graph.add("AveragePool", x, attributes={"kernel_shape": [layer.size] * 2, "strides": [layer.size] * 2})
        elif layer.kind == "flatten":
            x = graph.add("Flatten", x)
        else:
            sides = [_body(graph, part, tensors, x) for part in (layer.main, layer.skip)]
            x = graph.add("Relu", graph.add("Add", *sides))
    return x


def _scores(graph: Graph, servable: NetworkServable, tensors: dict[str, Array], z: str) -> str:
    """As the servable's."""
    head = servable.spec.head
    if head.kind == "error":
        return _errors(graph, tensors, z)
    if head.kind == "cosine":
        weight = tensors["head.weight"]
        proxies = head.scale * weight / (np.linalg.norm(weight, axis=1, keepdims=True) + EPSILON)
        length = graph.add("ReduceL2", z, np.array([1]), attributes={"keepdims": 1})
        z = graph.add("Div", z, graph.add("Add", length, np.array(EPSILON, dtype=np.float32)))
        logits = graph.add("Gemm", z, proxies.astype(np.float32), attributes={"transB": 1})
    else:
        weights = [tensors[name] for name in ("head.weight", "head.bias") if name in tensors]
        logits = graph.add("Gemm", z, *weights, attributes={"transB": 1})
    return graph.add("Softmax", logits, attributes={"axis": 1})


def _errors(graph: Graph, tensors: dict[str, Array], z: str) -> str:
    """Minus the mean squared difference of each student to the teacher, (n, C)."""
    answers = []
    for part in ("head", "teacher"):
        first, second = (tensors[f"{part}.{at}.weight"].swapaxes(-1, -2) for at in (0, 1))
        biases = [tensors[f"{part}.{at}.bias"] for at in (0, 1)]
        hidden = graph.add("Add", graph.add("MatMul", z, first), biases[0][..., None, :])
        units = np.ones(first.shape[-1], dtype=np.float32)
        hidden = graph.add("LayerNormalization", hidden, units, attributes={"epsilon": EPSILON, "axis": -1})
        answers.append(graph.add("Add", graph.add("MatMul", graph.add("Relu", hidden), second), biases[1][..., None, :]))
    difference = graph.add("Sub", *answers)
    squared = graph.add("ReduceMean", graph.add("Mul", difference, difference), np.array([2]), attributes={"keepdims": 0})
    return graph.add("Neg", graph.add("Transpose", squared, attributes={"perm": [1, 0]}))
