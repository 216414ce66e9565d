"""UER: incoming rows turn class vectors by their angle only; stored rows set their lengths.

Lin et al., "UER: A Heuristic Bias Addressing Approach for Online Continual Learning", ACM MM 2023, arXiv 2309.04081.

Differs from the paper: no code of its authors is to be had, so the two losses are put together from its text
(docs/design/learners.md#uer). Open there and chosen here: ``temperature``; classes never seen take no part;
both losses weigh the same; images go in as they are and augmented, as in the author's later work.

Gradients of z are about 1 / (tau |z|) in L_in and |w| in L_re, so where features are short, stored rows have little say. A
network that is not normalised may have such (on CIFAR-10 |z| is 0.4 to 1.1 with convnet, 7 to 8 with resnet18).

| symbol | name | shape |
|---|---|---|
| z | features of ``incoming``, ``drawn`` | (n, p) |
| w_c | rows of ``step.head``, no bias | (C, p) |
| tau | ``temperature`` | () |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from millrace.learners.replay.config import Head, ReplayConfig, number
from millrace.learners.replay.losses import cross_entropy, unit

if TYPE_CHECKING:
    from torch import Tensor

    from millrace.learners.replay.step import TrainingStep


@dataclass(frozen=True, slots=True)
class UerConfig(ReplayConfig):
    """UER: incoming rows turn class vectors by their angle only; stored rows set their lengths."""

    temperature: float = number(0.1, 0.0, ends="(]")  # > 0, of the softmax; more is softer (the author's cosine head: 0.09)


class Uer:
    """L = L_in + L_re: cosine logits for what comes in, dot products for what is drawn; answers are by dot products.

    >>> import torch
    >>> W, z = torch.tensor([[1.0, 2.0], [2.0, -1.0]], requires_grad=True), torch.tensor([[1.0, 0.5]])
    >>> Uer.incoming_loss(Uer(UerConfig()).angles(z, W), torch.tensor([0]), torch.ones(1)).backward()
    >>> bool(((W.grad * W).sum(1).abs() < 1e-5).all())  # each class vector is turned, and not lengthened
    True
    """

    head = Head(bias=False)

    def __init__(self, config: UerConfig) -> None:
        self.config = config

    def angles(self, z: Tensor, W: Tensor) -> Tensor:
        """cos(z, w_c) / tau, (n, C)."""
        return unit(z) @ unit(W).T / self.config.temperature

    @staticmethod
    def incoming_loss(angles: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        """L_in = mean -log [exp(cos(z, w_y) / tau) / sum_c exp(cos(z, w_c) / tau)]."""
        return cross_entropy(angles, y, weight)

    def loss(self, step: TrainingStep) -> Tensor | None:
        """L_in + L_re, with L_re = mean -log [exp(z w_y) / sum_c exp(z w_c)]; before the buffer holds a row, L_in."""
        incoming, drawn = step.both(step.incoming), step.drawn()
        parts = [incoming] if drawn is None else [incoming, step.both(drawn)]
        z = step.features(*parts)
        angles = step.over_seen(self.angles(z[0], step.head))
        loss = self.incoming_loss(angles, incoming.y, incoming.weight)
        if drawn is None:
            return loss
        return loss + cross_entropy(step.over_seen(step.logits(z[1])), parts[1].y, parts[1].weight)
