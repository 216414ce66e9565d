"""Experience replay: learn from what comes in and from a uniform sample of what came before.

Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", 2019, arXiv 1902.10486.

Differs from the paper: the head has columns for classes seen so far (or declared), and grows.

| symbol | name | shape |
|---|---|---|
| B_n, B_M | ``incoming``, ``drawn`` rows | (n, ...) |
| o = W z + b | ``logits`` | (n, C) |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from millrace.learners.replay.config import Head, ReplayConfig
from millrace.learners.replay.losses import summed_cross_entropy

if TYPE_CHECKING:
    from torch import Tensor

    from millrace.learners.replay.step import TrainingStep


@dataclass(frozen=True, slots=True)
class ErConfig(ReplayConfig):
    """Experience replay: learn from what comes in and from a uniform sample of what came before."""


class Er:
    """L = CE(incoming) + CE(drawn), both augmented where they are images.

    >>> import numpy as np
    >>> from millrace.learners.protocol import Batch
    >>> from millrace.learners.table import LEARNERS
    >>> learner = LEARNERS["er"].learner(ErConfig(warm_up_rows=10, hidden=(8,)), 1, 0)
    >>> names = np.array(["low", "low", "high", "high"] * 25, dtype=object)
    >>> learner.learn_many(Batch(np.array([[0.0], [1.0], [4.0], [5.0]] * 25), names))
    >>> learner.servable().classes
    ('low', 'high')
    >>> learner.predict_many(Batch(np.array([[0.5], [4.5]]))).argmax(axis=1)
    array([0, 1])
    """

    head = Head()

    def __init__(self, config: ErConfig) -> None:
        self.config = config

    def loss(self, step: TrainingStep) -> Tensor | None:
        """Algorithm 1; before the buffer holds a row, of the incoming rows alone."""
        incoming, drawn = step.view(step.incoming), step.drawn()
        parts = [incoming] if drawn is None else [incoming, step.view(drawn)]
        rows, z = step.together(*parts)
        return summed_cross_entropy(step.logits(z), rows.y, step.shares(*parts))
