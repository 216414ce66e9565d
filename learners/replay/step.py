"""One gradient step as an algorithm sees it: the incoming rows, stored ones on demand, views, features and scores."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from millrace.learners.replay.augmentation import augmented, partners
from millrace.learners.replay.config import Head, NetworkConfig, ReplayConfig, Spec
from millrace.learners.replay.networks import (
    Layer,
    Tensors,
    drawn_body,
    drawn_head,
    drawn_teacher,
    layers_of,
    logits_of,
    run,
    scaled,
    taught,
    two_layers,
)
from millrace.learners.replay.reservoir import Reservoir


@dataclass(slots=True, eq=False)
class StepRows:
    """Rows as the network sees them."""

    x: Tensor  # (n, d), or (n, C, H, W)
    y: Tensor  # (n,) columns of classes
    weight: Tensor  # (n,) >= 0
    stored: dict[str, Tensor] = field(default_factory=dict)  # of rows from the buffer: what was kept beside them

    def __len__(self) -> int:
        return len(self.y)


def joined(*parts: StepRows) -> StepRows:
    """The rows of several, in order, without what was kept beside them."""
    if len(parts) == 1:
        return StepRows(parts[0].x, parts[0].y, parts[0].weight)
    x, y, weight = zip(*((part.x, part.y, part.weight) for part in parts), strict=True)
    return StepRows(torch.cat(x), torch.cat(y), torch.cat(weight))


class Network:
    """Body, head and running statistics, with heads that grow."""

    def __init__(self, spec: Spec, device: str, seed: int) -> None:
        self.spec = spec
        self.layers: tuple[Layer, ...] = layers_of(spec)
        self._seed = seed
        draws = np.random.Generator(np.random.PCG64([seed, 1]))
        self.weights, self.statistics = drawn_body(self.layers, draws)
        zeros = scaled(spec, None, torch.zeros(1, spec.d, dtype=torch.uint8 if spec.pixels else torch.float64))
        self.p = run(self.layers, {**self.weights, **self.statistics}, zeros).shape[1]
        if spec.head.projection:
            self.weights["projection.weight"] = drawn_head(Head(bias=False), self.p, spec.head.projection, draws)["head.weight"]
        self.statistics |= drawn_teacher(spec.head, self.p, draws)
        self.weights |= drawn_head(spec.head, self.p, 0, draws)
        self.move_to(device)

    def move_to(self, device: str) -> None:
        """Let every tensor lie there, the weights as leaves."""
        self.weights = {name: tensor.to(device).requires_grad_() for name, tensor in self.weights.items()}
        self.statistics = {name: tensor.to(device) for name, tensor in self.statistics.items()}
        self.device = device

    @property
    def tensors(self) -> Tensors:
        """Weights and running statistics."""
        return {**self.weights, **self.statistics}

    def features(self, x: Tensor) -> Tensor:
        """z (n, p) of rows that are learned; images with their channels last, which is a third faster in a convolution."""
        return run(self.layers, self.tensors, x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x, True)

    @property
    def classes(self) -> int:
        """C, columns of the head."""
        return next(len(weight) for name, weight in self.weights.items() if name.startswith("head."))

    def grow(self, classes: int, draws: np.random.Generator) -> Tensors:
        """Begin columns for more classes; the new rows of each weight of the head."""
        generator = np.random.Generator(np.random.PCG64([self._seed, 2])) if self.spec.head.kind == "error" else draws
        rows = drawn_head(self.spec.head, self.p, classes - self.classes, generator)
        new = {name: tensor.to(self.device) for name, tensor in rows.items()}
        for name, added in new.items():
            self.weights[name] = torch.cat([self.weights[name].detach(), added]).requires_grad_()
        return new


@dataclass(slots=True, eq=False)
class TrainingStep:
    """One step."""

    incoming: StepRows
    network: Network
    buffer: Reservoir
    config: NetworkConfig
    draws: np.random.Generator
    seen: Tensor  # (C,) classes of which a row was learned, the incoming ones included
    steps: int  # gradient steps before this one
    rows: int  # rows learned before this step
    kept: dict[str, Tensor] = field(default_factory=dict)  # (n, ...) what the buffer is to keep beside the incoming rows

    @property
    def augments(self) -> bool:
        """Whether a second view of a row differs from it."""
        return bool(isinstance(self.config, ReplayConfig) and self.config.image and self.config.augment != "none")

    @property
    def head(self) -> Tensor:
        """W, (C, p)."""
        return self.network.weights["head.weight"]

    def drawn(self) -> StepRows | None:
        """``replay_rows`` rows of the buffer, uniformly; None where it is empty."""
        assert isinstance(self.config, ReplayConfig)
        columns = self.buffer.draw(self.config.replay_rows, self.draws)
        if not columns:
            return None
        x, y, weight = (columns.pop(name) for name in ("x", "y", "weight"))
        return StepRows(scaled(self.network.spec, None, x), y, weight, columns)

    def view(self, rows: StepRows) -> StepRows:
        """The same rows, augmented where they are images and the config says so."""
        if not self.augments:
            return rows
        assert isinstance(self.config, ReplayConfig)
        return StepRows(augmented(rows.x, self.config.augment, self.draws), rows.y, rows.weight, rows.stored)

    def both(self, rows: StepRows) -> StepRows:
        """The rows, followed by their second views where these differ."""
        return joined(rows, self.view(rows)) if self.augments else rows

    def features(self, *parts: StepRows) -> list[Tensor]:
        """z (n, p) of each."""
        return list(self.together(*parts)[1].split_with_sizes([len(part) for part in parts]))

    def together(self, *parts: StepRows) -> tuple[StepRows, Tensor]:
        """All rows and their features (N, p), in order; where batches are normalised, each part by its own statistics."""
        rows = joined(*parts)
        normed = any(name.endswith(".norm.mean") for name in self.network.statistics)
        return rows, torch.cat([self.network.features(part.x) for part in parts]) if normed else self.network.features(rows.x)

    @staticmethod
    def shares(*parts: StepRows) -> Tensor:
        """(N,) each row's weight over the number of rows of its part: a sum with these is the sum of the parts' means."""
        return torch.cat([part.weight / len(part) for part in parts])

    def keep(self, name: str, values: Tensor) -> None:
        """Let the buffer keep a value (n, ...) beside each incoming row; beside logits, how many classes they were for."""
        self.kept[name] = values.detach()
        if name == "logits":
            self.kept["known"] = self.incoming.y.new_full((len(self.incoming),), values.shape[1])

    def logits(self, z: Tensor) -> Tensor:
        """Scores (n, C) of features."""
        return logits_of(self.network.spec.head, self.network.tensors, z)

    def own_logits(self, x: Tensor, y: Tensor) -> Tensor:
        """Of a head that compares errors: each row's score (n,) by its own class's student."""
        weights = [self.network.weights[f"head.{name}"][y] for name in ("0.weight", "0.bias", "1.weight", "1.bias")]
        answers = two_layers(self.network.spec.head.hidden, x[:, None], weights)[:, 0]
        return -(answers - taught(self.network.spec.head, self.network.statistics, x)).square().mean(1)

    def projected(self, z: Tensor) -> Tensor:
        """The linear map (n, projection) of features that only training uses."""
        return z @ self.network.weights["projection.weight"].T

    def turned(self, rows: StepRows) -> tuple[StepRows, Tensor]:
        """The rows, then where they are square images that are augmented, their three turns by 90 degrees; and which turn."""
        square = self.augments and rows.x.shape[2] == rows.x.shape[3]
        turns = range(4 if square else 1)
        x = torch.cat([rows.x.rot90(turn, (2, 3)) if turn else rows.x for turn in turns])
        turn_numbers = torch.cat([torch.full_like(rows.y, turn) for turn in turns])
        return StepRows(x, rows.y.repeat(len(turns)), rows.weight.repeat(len(turns))), turn_numbers

    def mixed(
        self, rows: StepRows, pairs: Tensor, labels: Tensor, by_closeness: int, beta: float
    ) -> tuple[StepRows, Tensor, Tensor]:
        """Rows, each with a share (n,) from Beta(beta, beta) of another, whose labels are (n,); see ``partners``."""
        first, second = partners(rows.y, pairs, labels, by_closeness, self.draws)
        share = torch.from_numpy(self.draws.beta(beta, beta, len(rows)).astype(np.float32)).to(rows.weight.device)
        wide = share.view(-1, *[1] * (rows.x.ndim - 1))
        x = (1.0 - wide) * rows.x[first] + wide * rows.x[second]
        return StepRows(x, rows.y[first], rows.weight[first]), rows.y[second], share

    def over_seen(self, logits: Tensor) -> Tensor:
        """The same, with classes never seen left out of a softmax."""
        return logits if bool(self.seen.all()) else logits.masked_fill(~self.seen, float("-inf"))
