"""DER++: stored rows are to get the label they had and the logits that they were given when they came.

Buzzega et al., "Dark Experience for General Continual Learning: a Strong, Simple Baseline", NeurIPS 2020, arXiv 2004.07211,
equation 6.

Differs from the paper: the head grows, so logits are compared in the columns that were there when they were stored (``known``);
their squared distance is the mean over columns, as in public code, which alpha is tuned for.

| symbol | name | shape |
|---|---|---|
| h(x) | ``logits`` | (n, C) |
| z | stored ``logits`` | (n, C) |
| alpha, beta | ``alpha``, ``beta`` | () |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from millrace.learners.replay.config import Head, ReplayConfig, number
from millrace.learners.replay.losses import cross_entropy, known_distance, summed_cross_entropy

if TYPE_CHECKING:
    from torch import Tensor

    from millrace.learners.replay.step import TrainingStep


@dataclass(frozen=True, slots=True)
class DerppConfig(ReplayConfig):
    """DER++: stored rows are to get the label they had and the logits that they were given when they came."""

    alpha: float = number(0.2, 0.0)  # >= 0; more holds on to the logits of old
    beta: float = number(1.0, 0.0)  # >= 0; more holds on to the labels of old


class Derpp:
    """L = CE(incoming) + alpha ||h(x') - z'||^2 + beta CE(x'', y''), with two independent draws.

    >>> DerppConfig().alpha, DerppConfig().beta
    (0.2, 1.0)
    """

    head = Head()

    def __init__(self, config: DerppConfig) -> None:
        self.config = config

    def loss(self, step: TrainingStep) -> Tensor | None:
        """Equation 6. The buffer keeps the logits of this step's own pass."""
        incoming, distilled, replayed = step.view(step.incoming), step.drawn(), step.drawn()
        if distilled is None or replayed is None:
            logits = step.logits(step.together(incoming)[1])
            step.keep("logits", logits)
            return cross_entropy(logits, incoming.y, incoming.weight)
        replayed.weight *= self.config.beta  # drawn rows are copies
        distilled, replayed = step.view(distilled), step.view(replayed)
        rows, z = step.together(incoming, replayed, distilled)
        logits, labelled = step.logits(z), len(incoming) + len(replayed)
        step.keep("logits", logits[: len(incoming)])
        labels = summed_cross_entropy(logits[:labelled], rows.y[:labelled], step.shares(incoming, replayed))
        return labels + self.config.alpha * known_distance(
            logits[labelled:], distilled.stored["logits"], distilled.stored["known"]
        )
