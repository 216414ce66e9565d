"""ER-ACE: incoming rows do not push down classes that only the buffer holds.

Caccia et al., "New Insights on Reducing Abrupt Representation Change in Online Continual Learning", ICLR 2022,
arXiv 2104.05025.

Differs from the paper: nothing known. Differs from public code: the mask here is the set of the definition. AML and mammoth
unmask all columns from the highest class seen upward, which assumes that classes come in order. CCL-DC and MKD take the
batch's size for the number of classes.

| symbol | name | shape |
|---|---|---|
| C_curr | ``present`` | (C,) |
| C_old | ``step.seen`` and not ``present`` | (C,) |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from millrace.learners.replay.config import Head, ReplayConfig, number
from millrace.learners.replay.losses import summed_cross_entropy

if TYPE_CHECKING:
    from torch import Tensor

    from millrace.learners.replay.step import TrainingStep


@dataclass(frozen=True, slots=True)
class ErAceConfig(ReplayConfig):
    """ER-ACE: incoming rows do not push down classes that only the buffer holds."""

    scale: float = number(10.0, 0.0, ends="(]")  # > 0, what cosines are multiplied by; more is more confident


class ErAce:
    """L = CE(incoming, over classes present or never seen) + CE(drawn, over all).

    >>> import torch
    >>> ErAce.masked(torch.zeros(1, 4), torch.tensor([2]), torch.tensor([True, True, True, False]))
    tensor([[-inf, -inf, 0., 0.]])
    """

    def __init__(self, config: ErAceConfig) -> None:
        self.config = config
        self.head = Head("cosine", scale=config.scale)

    @staticmethod
    def masked(logits: Tensor, y: Tensor, seen: Tensor) -> Tensor:
        """Logits (N, C), whose first rows are the incoming y (n,), without their columns of classes seen before and absent."""
        left_out = seen.new_zeros(logits.shape)
        left_out[: len(y)] = seen & (y.bincount(minlength=len(seen)) == 0)
        return logits.masked_fill(left_out, float("-inf"))

    def loss(self, step: TrainingStep) -> Tensor | None:
        """Section 4, equation 4; before the buffer holds a row, of the incoming rows alone."""
        incoming, drawn = step.view(step.incoming), step.drawn()
        parts = [incoming] if drawn is None else [incoming, step.view(drawn)]
        rows, z = step.together(*parts)
        logits = self.masked(step.logits(z), incoming.y, step.seen)
        return summed_cross_entropy(logits, rows.y, step.shares(*parts))
