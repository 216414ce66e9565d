"""PEC: the class whose small network best predicts what a frozen random one says; nothing is stored, nothing forgotten.

Zajac, Tuytelaars & van de Ven, "Prediction Error-based Classification for Class-Incremental Learning", ICLR 2024,
arXiv 2305.18806.

Differs from the paper: students and teacher have one hidden layer, for images too, and their normalisation has no weights. The
rate is constant, since nobody knows a stream's length. Students of absent classes rest, moments included.

| symbol | name | shape |
|---|---|---|
| h | ``taught``, frozen | (n, outputs) |
| g_c | ``head.0``, ``head.1``, one student a class, all begun alike | (C, hidden, d), (C, outputs, hidden) |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from millrace.learners.replay.config import Head, NetworkConfig, number, one_of

if TYPE_CHECKING:
    from torch import Tensor

    from millrace.learners.replay.step import TrainingStep


@dataclass(frozen=True, slots=True)
class PecConfig(NetworkConfig):
    """PEC: the class whose small network best predicts what a frozen random one says; nothing is stored."""

    units: int = number(20, 1)  # >= 1, hidden units of a student; more is finer and slower
    teacher_units: int = number(2000, 1)  # >= 1, hidden units of the teacher (the paper: 100 times the student's)
    outputs: int = number(100, 1)  # >= 1, numbers to predict; more is steadier and slower
    step_rows: int = number(1, 1)  # >= 1, incoming rows of one gradient step, as many as in the paper
    optimiser: str = one_of("adam", "sgd")
    rate: float = number(1e-3, 0.0, ends="(]")  # > 0


class Pec:
    """score_c(x) = -mean_k (g_c(x) - h(x))_k^2; the student of a row's class descends it.

    >>> PecConfig().step_rows, PecConfig().optimiser
    (1, 'adam')
    """

    def __init__(self, config: PecConfig) -> None:
        self.config = config
        self.head = Head("error", hidden=config.units, outputs=config.outputs, teacher=config.teacher_units)

    def loss(self, step: TrainingStep) -> Tensor | None:
        """Equation 1, summed over classes of the mean over each class's rows: every student takes a step of its own."""
        rows = step.incoming
        (x,) = step.features(rows)
        errors = -step.own_logits(x, rows.y)
        counts = rows.y.bincount()[rows.y]
        return (rows.weight * errors / counts).sum()
