"""Networks as data: a list of layers that one small interpreter runs in torch, and another writes as ONNX.

There are an mlp, a small convnet, and the reduced ResNet-18 of online continual learning. That has nf = 20, a first
convolution of 3x3 with stride 1, and 160 features of a 32x32 image or 640 of an 84x84 one; the head takes what comes. Weights
are drawn as PyTorch draws them, uniform in +-1 / sqrt(fan in), from a generator that is an argument.

| symbol | name | shape |
|---|---|---|
| z | features | (n, p) |
| W, b | ``head.weight``, ``head.bias`` | (C, p), (C,) |

Source: He et al., CVPR 2016; Lopez-Paz & Ranzato, NeurIPS 2017 (the reduced form);
docs/design/learners.md#networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from millrace.learners.replay.config import Head, Spec
from millrace.learners.replay.losses import EPSILON, unit

FARTHEST = 1e4  # deviations; a feature beyond is taken for that far, so that float32 sums of squares stay finite
BATCH_NORM = 1e-5  # keeps a constant channel's division finite; PyTorch's own
Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Layer:
    """One step of a network; ``name`` is that of its tensors."""

    kind: str  # linear | conv | norm | relu | pool (largest of 2x2) | mean (of ``size`` x ``size``) | flatten | residual
    name: str = ""
    ins: int = 0
    outs: int = 0
    size: int = 0  # of a kernel
    stride: int = 1
    main: tuple[Layer, ...] = ()  # residual: relu(main + skip)
    skip: tuple[Layer, ...] = ()


def layers_of(spec: Spec) -> tuple[Layer, ...]:
    """The body of a network: rows as they come in -> z."""
    if spec.network == "convnet":
        return _convnet(spec)
    if spec.network == "resnet18":
        return _resnet18(spec)
    layers, ins = [Layer("flatten")], spec.d
    for at, outs in enumerate(spec.hidden):
        layers += [Layer("linear", f"body.{at}", ins, outs), Layer("relu")]
        ins = outs
    return tuple(layers)


def _convnet(spec: Spec) -> tuple[Layer, ...]:
    """Two convolutions 3x3, each with the largest of 2x2, then z of 8 nf units."""
    colours, height, width = spec.image
    first, second = spec.channels, 2 * spec.channels
    ins = second * -(-height // 4) * -(-width // 4)
    relu, pool = Layer("relu"), Layer("pool")
    convolutions = (
        Layer("conv", "body.0", colours, first, 3),
        relu,
        pool,
        Layer("conv", "body.1", first, second, 3),
        relu,
        pool,
    )
    return (*convolutions, Layer("flatten"), Layer("linear", "body.2", ins, 4 * second), relu)


def _resnet18(spec: Spec) -> tuple[Layer, ...]:
    """Eight residual blocks of nf, 2 nf, 4 nf, 8 nf channels; the mean of 4x4 at the end."""
    colours, height, width = spec.image
    layers, ins = [*_convolution("body.0", colours, spec.channels, 3, 1), Layer("relu")], spec.channels
    for at in range(8):
        outs, stride = spec.channels * 2 ** (at // 2), 2 if at in (2, 4, 6) else 1
        height, width = -(-height // stride), -(-width // stride)
        name = f"body.{at + 1}"
        main = (*_convolution(f"{name}.0", ins, outs, 3, stride), Layer("relu"), *_convolution(f"{name}.1", outs, outs, 3, 1))
        same = stride == 1 and ins == outs
        layers.append(Layer("residual", main=main, skip=() if same else _convolution(f"{name}.skip", ins, outs, 1, stride)))
        ins = outs
    return (*layers, Layer("mean", size=min(4, height, width)), Layer("flatten"))


def _convolution(name: str, ins: int, outs: int, size: int, stride: int) -> tuple[Layer, ...]:
    """Without a bias: the normalisation after it has one."""
    return Layer("conv", f"{name}.conv", ins, outs, size, stride), Layer("norm", f"{name}.norm", outs, outs)


def drawn_body(layers: Sequence[Layer], draws: np.random.Generator) -> tuple[Tensors, Tensors]:
    """The weights of layers as they begin, and their running statistics."""
    weights: Tensors = {}
    statistics: Tensors = {}
    normed = any(layer.kind == "norm" for layer in layers)
    for layer in layers:
        if layer.kind in ("linear", "conv"):
            kernel = (layer.size, layer.size) if layer.kind == "conv" else ()
            fan_in = layer.ins * layer.size**2 if layer.kind == "conv" else layer.ins
            weights[f"{layer.name}.weight"] = uniform(draws, (layer.outs, layer.ins, *kernel), fan_in)
            if not normed:
                weights[f"{layer.name}.bias"] = uniform(draws, (layer.outs,), fan_in)
        elif layer.kind == "norm":
            weights |= {f"{layer.name}.weight": torch.ones(layer.outs), f"{layer.name}.bias": torch.zeros(layer.outs)}
            statistics |= {f"{layer.name}.mean": torch.zeros(layer.outs), f"{layer.name}.var": torch.ones(layer.outs)}
        for part in (layer.main, layer.skip):
            part_tensors, running = drawn_body(part, draws)
            weights |= part_tensors
            statistics |= running
    return weights, statistics


def drawn_head(head: Head, p: int, rows: int, draws: np.random.Generator) -> Tensors:
    """The weights of ``rows`` more classes."""
    if head.kind == "error":
        shapes = {"0.weight": (head.hidden, p), "0.bias": (head.hidden,)}
        shapes |= {"1.weight": (head.outputs, head.hidden), "1.bias": (head.outputs,)}
        fans = {"0": p, "1": head.hidden}
        student = {name: uniform(draws, shape, fans[name[0]]) for name, shape in shapes.items()}  # students begin alike
        return {f"head.{name}": start.expand(rows, *start.shape).clone() for name, start in student.items()}
    tensors = {"head.weight": uniform(draws, (rows, p), p)}
    if head.kind == "linear" and head.bias:
        tensors["head.bias"] = uniform(draws, (rows,), p)
    return tensors


def drawn_teacher(head: Head, p: int, draws: np.random.Generator) -> Tensors:
    """The frozen random network h of PEC; nothing for another head."""
    if head.kind != "error":
        return {}
    first = {"teacher.0.weight": uniform(draws, (head.teacher, p), p), "teacher.0.bias": uniform(draws, (head.teacher,), p)}
    second = uniform(draws, (head.outputs, head.teacher), head.teacher), uniform(draws, (head.outputs,), head.teacher)
    return first | {"teacher.1.weight": second[0], "teacher.1.bias": second[1]}


def uniform(draws: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> Tensor:
    """float32 uniform in +-1 / sqrt(fan in), which is what PyTorch's layers begin with.

    In memory of torch's own, which is aligned alike in every process: products of matrices round by alignment, too.
    """
    bound = fan_in**-0.5
    return torch.from_numpy(draws.uniform(-bound, bound, shape).astype(np.float32)).clone()


def run(layers: Sequence[Layer], tensors: Tensors, x: Tensor, training: bool = False) -> Tensor:
    """z of x; ``training``: normalised by the batch's own statistics, which the running ones follow."""
    for layer in layers:
        if layer.kind == "linear":
            x = functional.linear(x, tensors[f"{layer.name}.weight"], tensors[f"{layer.name}.bias"])
        elif layer.kind == "conv":
            bias = tensors.get(f"{layer.name}.bias")
            x = functional.conv2d(x, tensors[f"{layer.name}.weight"], bias, layer.stride, layer.size // 2)
        elif layer.kind == "norm":
            x = _normalised(layer.name, tensors, x, training)
        elif layer.kind == "relu":
            x = x.relu()
        elif layer.kind == "pool":
            x = functional.max_pool2d(x, 2, ceil_mode=True)
        elif layer.kind == "mean":
            x = functional.avg_pool2d(x, layer.size)
        elif layer.kind == "flatten":
            x = x.flatten(1)
        else:
            x = (run(layer.main, tensors, x, training) + run(layer.skip, tensors, x, training)).relu()
    return x


def _normalised(name: str, tensors: Tensors, x: Tensor, training: bool) -> Tensor:
    """Batch normalisation; of a single number a channel by the running statistics, since it has no variance."""
    mean, var, weight, bias = (tensors[f"{name}.{part}"] for part in ("mean", "var", "weight", "bias"))
    batch_statistics = training and x.numel() > x.shape[1]
    return functional.batch_norm(x, mean, var, weight, bias, batch_statistics, 0.1, BATCH_NORM)


def logits_of(head: Head, tensors: Tensors, z: Tensor) -> Tensor:
    """Scores (n, C) before any softmax."""
    if head.kind == "error":
        students = two_layers(
            head.hidden, z, [tensors[f"head.{name}"] for name in ("0.weight", "0.bias", "1.weight", "1.bias")]
        )
        return -(students - taught(head, tensors, z)).square().mean(2).T
    if head.kind == "cosine":
        return head.scale * (unit(z) @ unit(tensors["head.weight"]).T)
    return functional.linear(z, tensors["head.weight"], tensors.get("head.bias"))


def taught(head: Head, tensors: Tensors, x: Tensor) -> Tensor:
    """h(x), (n, outputs): a frozen random network of one hidden layer."""
    hidden = functional.linear(x, tensors["teacher.0.weight"], tensors["teacher.0.bias"])
    hidden = functional.layer_norm(hidden, (head.teacher,), eps=EPSILON).relu()
    return functional.linear(hidden, tensors["teacher.1.weight"], tensors["teacher.1.bias"])


def two_layers(units: int, x: Tensor, weights: list[Tensor]) -> Tensor:
    """g_c(x) of every class, (C, n, outputs), for x (n, p), or of a student a row for x (n, 1, p)."""
    first, first_bias, second, second_bias = weights
    hidden = functional.layer_norm(x @ first.mT + first_bias[:, None], (units,), eps=EPSILON).relu()
    return hidden @ second.mT + second_bias[:, None]


def scaled(spec: Spec, scale: tuple[Tensor, Tensor] | None, x: Tensor) -> Tensor:
    """What a network sees of raw rows (n, d): float32, as images where they are; pixels in [0, 1], the rest in deviations."""
    if spec.pixels:
        network_input = (x if x.dtype == torch.uint8 else x.round().clamp(0.0, 255.0).float()) / 255.0
    elif scale is None:
        network_input = x.float()
    else:
        network_input = ((x - scale[0]) / scale[1]).clamp(-FARTHEST, FARTHEST).float()
    return network_input.view(-1, *spec.image) if spec.image else network_input


def use_one_thread() -> None:
    """One thread, in which every operator of the processor adds in one order: the same rows give the same bits.

    (``torch.use_deterministic_algorithms`` adds nothing to that here, and takes four seconds to import its compiler.)
    Source: docs/design/journal.md, rule 14.
    """
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
