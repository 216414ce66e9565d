"""PCR: contrast rows with the proxies of the classes in the batch.

Lin et al., "PCR: Proxy-based Contrastive Replay for Online Class-Incremental Continual Learning", CVPR 2023, arXiv 2304.04408.

Differs from the paper: the loss in its short form, equal to the contrastive one over all pairs. Its augmentation, ``augment =
"colour"``, must be asked for, since only pixels have colours. The reservoir is Algorithm R per row (the public one draws per
batch). Features of any width fit the head (the public one is built for 160 and fails on 84x84 images, which give 640).

| symbol | name | shape |
|---|---|---|
| z_i, p_c | directions of features and of rows of ``step.head`` | (n, p), (C, p) |
| tau | ``temperature`` | () |
| n_c | rows of class c among the rows of the step | (C,) |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from millrace.learners.replay.config import Head, ReplayConfig, number
from millrace.learners.replay.losses import proxy_contrast, unit

if TYPE_CHECKING:
    from torch import Tensor

    from millrace.learners.replay.step import TrainingStep


@dataclass(frozen=True, slots=True)
class PcrConfig(ReplayConfig):
    """PCR: contrast rows with the proxies of the classes in the batch."""

    temperature: float = number(0.09, 0.0, ends="(]")  # > 0, of the softmax; more is softer


class Pcr:
    """L = mean_i [-s_{i,y_i} + log sum_c n_c exp(s_ic)], s_ic = z_i p_c / tau; answers by the cosine with each proxy.

    >>> import torch
    >>> round(float(proxy_contrast(torch.zeros(4, 3), torch.tensor([0, 0, 0, 1]), torch.ones(4), 0.09)), 4)  # log 4
    1.3863
    """

    def __init__(self, config: PcrConfig) -> None:
        self.config = config
        self.head = Head("cosine", scale=1.0 / config.temperature)

    def loss(self, step: TrainingStep) -> Tensor | None:
        """Over incoming and drawn rows, each with its second view; while the buffer is empty rows are only stored."""
        drawn = step.drawn()
        if drawn is None:
            return None
        rows, z = step.together(step.both(step.incoming), step.both(drawn))
        return proxy_contrast(unit(z) @ unit(step.head).T, rows.y, rows.weight, self.config.temperature)
