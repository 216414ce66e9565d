"""OnPro: prototypes made of the rows at hand repel each other, and classes that stand close are mixed more often.

Wei et al., "Online Prototype Learning for Online Continual Learning", ICCV 2023, arXiv 2308.00301; the instance loss is that of
Guo et al., "Online Continual Learning through Mutual Information Maximization", ICML 2022 (OCM).

Differs from the paper: knows no task boundaries, so the step of a first task and of the others has one form. Rows are mixed
within the drawn ones and by this step's prototypes. The instance loss compares projections, without a slice of the features.
Only square images are rotated. Rows that are no images have one view.

| symbol | name | shape |
|---|---|---|
| z | directions of ``projected`` features | (n, projection) |
| p_k | mean direction of class k's rows, in each of two views | (K, projection) |
| tau, tau' | ``prototype_temperature``, ``instance_temperature`` | () |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from millrace.learners.replay.config import Head, ReplayConfig, number, one_of
from millrace.learners.replay.losses import cross_entropy, prototype_contrast, prototypes, supervised_contrast, unit

if TYPE_CHECKING:
    from torch import Tensor

    from millrace.learners.replay.step import StepRows, TrainingStep

NEAREST = 1e-3  # a smaller distance counts as this one, so that equal prototypes have a finite chance to be mixed


@dataclass(frozen=True, slots=True)
class OnproConfig(ReplayConfig):
    """OnPro: prototypes of the rows at hand repel each other, and classes that stand close are mixed more often."""

    prototype_temperature: float = number(0.5, 0.0, ends="(]")  # > 0, of the softmax over prototypes; more is softer
    instance_temperature: float = number(0.07, 0.0, ends="(]")  # > 0, of the softmax over rows; more is softer
    projection: int = number(128, 1)  # >= 1, units of the projection that rows are contrasted in; more is finer
    feedback: float = number(0.25, 0.0, 1.0)  # in [0, 1], share of drawn rows that are mixed by closeness of prototypes
    mixing: float = number(0.4, 0.0, ends="(]")  # > 0, parameter of Beta(mixing, mixing); more mixes more evenly
    replay_rows: int = number(64, 1)  # >= 1, stored rows of one gradient step, as many as in the paper
    optimiser: str = one_of("adam", "sgd")
    rate: float = number(5e-4, 0.0, ends="(]")  # > 0
    weight_decay: float = number(1e-4, 0.0)  # >= 0


class Onpro:
    """L = CE(drawn rows, some mixed) + L_INS + L_OPE, the last two for incoming and for drawn rows.

    >>> OnproConfig().optimiser, OnproConfig().rate
    ('adam', 0.0005)
    """

    def __init__(self, config: OnproConfig) -> None:
        self.config = config
        self.head = Head(projection=config.projection)

    def loss(self, step: TrainingStep) -> Tensor | None:
        """Equation 9; while the buffer is empty, the cross entropy is of the incoming rows."""
        drawn = step.drawn()
        loss, _, _ = self._contrasts(step, step.incoming)
        if drawn is None:
            (z,) = step.features(step.view(step.incoming))
            return loss + cross_entropy(step.logits(z), step.incoming.y, step.incoming.weight)
        contrast_loss, centres, labels = self._contrasts(step, drawn)
        mixed, other, share = self._mixed(step, drawn, centres.detach(), labels)
        (z,) = step.features(step.view(mixed))
        logits = step.logits(z)
        first = cross_entropy(logits, mixed.y, mixed.weight * (1.0 - share))
        return loss + contrast_loss + first + cross_entropy(logits, other, mixed.weight * share)

    def _contrasts(self, step: TrainingStep, rows: StepRows) -> tuple[Tensor, Tensor, Tensor]:
        """L_INS + L_OPE of rows, their prototypes (K, projection), and whose these are (K,)."""
        turned, parts = step.turned(rows)
        both = step.both(turned)
        z = unit(step.projected(step.features(both)[0]))
        count = len(turned)
        pseudo = (turned.y * 4 + parts).repeat(len(both) // count)
        raw, view = z[: len(rows)], z[len(both) - count :][: len(rows)]
        labels, row_means = prototypes(raw, rows.y)
        view_means = prototypes(view, rows.y)[1]
        loss = supervised_contrast(z, pseudo, self.config.instance_temperature)
        return (
            loss + prototype_contrast(row_means, view_means, self.config.prototype_temperature),
            (row_means + view_means) / 2.0,
            labels,
        )

    def _mixed(self, step: TrainingStep, drawn: StepRows, centres: Tensor, labels: Tensor) -> tuple[StepRows, Tensor, Tensor]:
        """Rows with a share (m,) of others in them, whose labels are (m,); the last ones by closeness of prototypes."""
        by_closeness = round(self.config.feedback * len(drawn)) if len(labels) > 1 else 0
        return step.mixed(drawn, self.closeness(centres), labels, by_closeness, self.config.mixing)

    @staticmethod
    def closeness(centres: Tensor) -> Tensor:
        """P(i, j) (K, K), i < j: softmax over pairs of 1 / distance of their prototypes; 0 elsewhere. Equation 7."""
        count = len(centres)
        above = centres.new_ones(count, count).triu(1) > 0.0
        distance: Tensor = (centres[:, None] - centres[None]).norm(dim=2).clamp(min=NEAREST)
        return (1.0 / distance).masked_fill(~above, -1e9).flatten().softmax(0).view(count, count) * above
