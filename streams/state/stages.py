"""What a fold is made of: the stages that rows pass on their way to the learner, and whose state it is."""

from __future__ import annotations

from dataclasses import dataclass

from millrace.streams.entity.entities import Entities
from millrace.streams.features.columns import Features
from millrace.streams.labels.join import LabelJoin
from millrace.streams.state.drift import Drift
from millrace.streams.state.held_out import HeldOut
from millrace.streams.state.microbatch import MicroBatches
from millrace.streams.state.window import Window


@dataclass(frozen=True, slots=True)
class Stages:
    """What rows pass on their way to the learner, each new and the fold's own; those that are None are left out."""

    features: Features
    batches: MicroBatches
    labels: LabelJoin | None = None  # None: labels come in the rows alone
    drift: Drift | None = None  # None: nothing is watched
    window: Window | None = None  # None: no alarm leads to ``relearn``
    held_out: HeldOut | None = None  # None: every labelled row is learned
    entities: Entities | None = None  # None: rows are nobody's


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose state a fold is."""

    branch: str
    answers_of: str  # whose answers are its own: the branch's, or those of what its shard is merged into
