"""HPCR: PCR with pairs of rows, a temperature for the gradient, and distillation of what the buffer remembers.

Lin et al., "HPCR: Holistic Proxy-based Contrastive Replay for Online Continual Learning", TNNLS 2025, arXiv 2309.15038.

Differs from the paper: knows no task boundaries. kappa runs by the learner's own count of steps. Distillation begins after
``distil_rows`` learned rows, where the paper begins with its second task (5,000 rows on split CIFAR-100). Pairs of rows take
part from ``pair_rows`` drawn rows on; the paper's threshold is unknown, and its public code has no such branch. Logits and
features are stored as this step's own pass gave them; logits are compared in the columns that were there then.

| symbol | name | shape |
|---|---|---|
| kappa(i) | ``coefficient`` | () |
| s | cosines / ``temperature`` | (N, C) |
| l_old, h_old | stored ``logits``, ``features`` | (m, C), (m, p) |
| alpha, beta | ``alpha``, ``beta`` | () |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from millrace.learners.replay.config import Head, ReplayConfig, number
from millrace.learners.replay.losses import proxy_and_row_contrast, proxy_contrast, unit

if TYPE_CHECKING:
    from torch import Tensor

    from millrace.learners.replay.step import StepRows, TrainingStep


@dataclass(frozen=True, slots=True)
class HpcrConfig(ReplayConfig):
    """HPCR: PCR with pairs of rows, a temperature for the gradient, and distillation of what the buffer remembers."""

    temperature: float = number(0.09, 0.0, ends="(]")  # > 0, of the softmax; more is softer
    sharpest: float = number(0.05, 0.0, ends="(]")  # > 0, temperature of the gradient at its strongest; less is stronger
    softest: float = number(0.16, 0.0, ends="(]")  # > 0, temperature of the gradient at its weakest
    period_steps: int = number(500, 1)  # >= 1, steps from weakest to weakest
    pair_rows: int = number(100, 1)  # >= 1, drawn rows from which on rows are contrasted with rows; more: with proxies alone
    distil_rows: int = number(5000, 0)  # >= 0, learned rows before distillation begins
    alpha: float = number(0.1, 0.0)  # >= 0, of distilled logits (CIFAR-10: 0.01); more holds on to old answers
    beta: float = number(0.5, 0.0)  # >= 0, of distilled structure; more holds on to old features


class Hpcr:
    """L = kappa L_PCR + alpha PCD + beta SCD.

    >>> hpcr = Hpcr(HpcrConfig())
    >>> [round(hpcr.coefficient(step), 4) for step in (0, 250, 500)]
    [0.5625, 1.8, 0.5625]
    """

    def __init__(self, config: HpcrConfig) -> None:
        self.config = config
        self.head = Head("cosine", scale=1.0 / config.temperature)

    def coefficient(self, step: int) -> float:
        """kappa(i) = kmin + (kmax - kmin) / 2 (1 - cos(2 pi i / period)): the gradient's share of the softmax's."""
        highest, lowest = self.config.temperature / self.config.sharpest, self.config.temperature / self.config.softest
        return lowest + (highest - lowest) / 2.0 * (1.0 - math.cos(2.0 * math.pi * step / self.config.period_steps))

    def loss(self, step: TrainingStep) -> Tensor | None:
        """While the buffer is empty rows are only stored, with their logits and features."""
        incoming, drawn = step.both(step.incoming), step.drawn()
        if drawn is None:
            z = step.features(incoming)[0]
            self._keep(step, z)
            return None
        replayed = step.both(drawn)
        rows, z = step.together(incoming, replayed)
        self._keep(step, z)
        directions, proxies = unit(z), unit(step.head)
        loss = self.coefficient(step.steps) * self._contrast(directions, proxies, rows, len(drawn))
        if step.rows >= self.config.distil_rows:
            present = directions[len(incoming) :]
            loss = loss + self.config.alpha * self.logits_kept(present @ proxies.T, rows.y, drawn)
            loss = loss + self.config.beta * self.structure_kept(present, drawn.stored["features"])
        return loss

    def _keep(self, step: TrainingStep, z: Tensor) -> None:
        """l_old and h_old of the raw incoming rows, which stand first."""
        raw = z[: len(step.incoming)]
        step.keep("features", raw)
        step.keep("logits", unit(raw) @ unit(step.head).T)

    def _contrast(self, directions: Tensor, proxies: Tensor, rows: StepRows, drawn: int) -> Tensor:
        """L_PCR, with pairs of rows where enough are drawn for them to be stable."""
        if drawn < self.config.pair_rows:
            return proxy_contrast(directions @ proxies.T, rows.y, rows.weight, self.config.temperature)
        return (rows.weight * proxy_and_row_contrast(directions, proxies, rows.y, self.config.temperature)).mean()

    @staticmethod
    def logits_kept(cosines: Tensor, labels: Tensor, drawn: StepRows) -> Tensor:
        """PCD = mean (l - l_old)^2 in the columns of the step's ``labels`` (N,), repeats included; cosines (m or 2m, C)."""
        views = len(cosines) // len(drawn)
        old, known_columns = drawn.stored["logits"].repeat(views, 1), drawn.stored["known"].repeat(views)
        counts = labels.bincount(minlength=cosines.shape[1])[: old.shape[1]].to(cosines.dtype)
        counted = counts * (counts.new_ones(len(counts)).cumsum(0)[None] <= known_columns[:, None])
        return (counted * (cosines[:, : old.shape[1]] - old).square()).sum() / counted.sum().clamp(min=1.0)

    def structure_kept(self, present: Tensor, stored: Tensor) -> Tensor:
        """SCD = mean_i -sum_j P_old log P_new: softmax over j != i of cosines / tau, by stored features and by today's."""
        stored_units = unit(stored.repeat(len(present) // len(stored), 1))
        if len(present) < 2:
            return present.sum() * 0.0
        itself = present.new_ones(len(present)).diag() > 0.0
        new, old = (
            (rows @ rows.T / self.config.temperature).masked_fill(itself, -1e9).log_softmax(1)
            for rows in (present, stored_units)
        )
        return -(old.exp() * new).masked_fill(itself, 0.0).sum(1).mean()
