"""Gradient steps whose state is plain tensors: SGD with momentum, and Adam.

Sutskever et al., ICML 2013; Kingma & Ba, "Adam", ICLR 2015, arXiv 1412.6980, algorithm 1.

Differs from the papers: Adam counts steps for each row of a weight, since rows for new classes begin later; and a learner may
ask that rows without a gradient rest, moments included (PEC: the students of absent classes).

| symbol | name |
|---|---|
| v (SGD) | ``moments["first.NAME"]`` |
| m, v, t (Adam) | ``moments["first.NAME"]``, ``["second.NAME"]``, ``["steps.NAME"]`` |
"""

from __future__ import annotations

import torch
from torch import Tensor

FIRST, SECOND, GUARD = 0.9, 0.999, 1e-8  # beta_1, beta_2, epsilon of the paper


class Optimiser:
    """Steps of named weights, in place."""

    def __init__(self, kind: str, momentum: float, weight_decay: float, rests: bool) -> None:
        self.kind = kind
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.rests = rests  # rows (axis 0) without a gradient are left alone
        self.moments: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, weights: dict[str, Tensor], gradients: dict[str, Tensor], rate: float) -> None:
        """Move every weight that has a gradient."""
        for name, gradient in gradients.items():
            weight = weights[name]
            if self.weight_decay:
                gradient = gradient + self.weight_decay * weight
            if not self.rests:
                self._move(name, weight, gradient, rate)
                continue
            rows = gradient.flatten(1).abs().amax(1).nonzero()[:, 0] if gradient.ndim > 1 else gradient.nonzero()[:, 0]
            moved = weight[rows]
            self._move(name, moved, gradient[rows], rate, rows)
            weight[rows] = moved

    def _move(self, name: str, weight: Tensor, gradient: Tensor, rate: float, rows: Tensor | None = None) -> None:
        step = gradient
        if self.kind == "adam":
            step = self._adam(name, gradient, rows)
        elif self.momentum:
            step = self._moment(f"first.{name}", gradient, rows).mul_(self.momentum).add_(gradient)
            self._put(f"first.{name}", step, rows)
        weight.sub_(step, alpha=rate)

    def _adam(self, name: str, gradient: Tensor, rows: Tensor | None) -> Tensor:
        """m^ / (sqrt(v^) + epsilon)."""
        first = self._moment(f"first.{name}", gradient, rows).lerp_(gradient, 1.0 - FIRST)
        second = self._moment(f"second.{name}", gradient, rows).lerp_(gradient.square(), 1.0 - SECOND)
        steps = self._moment(f"steps.{name}", gradient.new_zeros(len(gradient)), rows).add_(1.0)
        for key, moment in (("first", first), ("second", second), ("steps", steps)):
            self._put(f"{key}.{name}", moment, rows)
        counted = steps.view(-1, *[1] * (gradient.ndim - 1))
        return first / (1.0 - FIRST**counted) / ((second / (1.0 - SECOND**counted)).sqrt() + GUARD)

    def _moment(self, key: str, like: Tensor, rows: Tensor | None) -> Tensor:
        """A moment itself, or a copy of some rows of it."""
        if rows is None:
            return self.moments.setdefault(key, torch.zeros_like(like))
        return self.moments[key][rows]

    def _put(self, key: str, moment: Tensor, rows: Tensor | None) -> None:
        if rows is not None:
            self.moments[key][rows] = moment

    def grow(self, name: str, weight: Tensor) -> None:
        """Take in the weight as it is now: rows that are new have no past."""
        parts = {"sgd": ("first",) if self.momentum else (), "adam": ("first", "second", "steps")}[self.kind]
        for part in parts:
            key = f"{part}.{name}"
            shape = weight.shape[:1] if part == "steps" else weight.shape
            grown = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
            if key in self.moments:
                grown[: len(self.moments[key])] = self.moments[key]
            self.moments[key] = grown
