"""Lessons made by hand: a small taught network, its buffer, and rows to come, the same however often they are asked for."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from millrace.learners.protocol import Batch
from millrace.learners.replay.learner import Replay
from millrace.learners.replay.step import StepRows, TrainingStep
from millrace.learners.table import LEARNERS
from millrace.streams.parts import pack, sha256

CLASSES = np.array(["a", "b", "c", "d", "e"], dtype=object)


def rows(count: int, seed: int, classes: int = 3, d: int = 6) -> Batch:
    """Labelled rows around class means."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, count)
    return Batch(rng.normal(size=(count, d)) + 3.0 * np.eye(5, d)[y], CLASSES[y])


def learner(kind: str, d: int = 6, **config: object) -> Replay:
    """An untaught small one."""
    small: dict[str, object] = {"warm_up_rows": 20}
    small |= {"units": 5, "teacher_units": 9, "outputs": 4} if kind == "pec" else {"hidden": (8,), "buffer_rows": 25}
    made = LEARNERS[kind].learner(LEARNERS[kind].config(**small | config), d, 3)
    assert isinstance(made, Replay)
    return made


def lesson(taught: Replay, y: list[int], seed: int = 5) -> TrainingStep:
    """The next step of a taught learner, with rows of these classes and draws of its own."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(len(y), taught.d)).astype(np.float32))
    incoming = StepRows(x.view(-1, *taught.spec.image) if taught.spec.image else x, torch.tensor(y), torch.ones(len(y)))
    seen = torch.from_numpy(taught.seen.copy())
    seen[incoming.y] = True
    draws = np.random.default_rng(seed)
    return TrainingStep(incoming, taught.network, taught.buffer, taught.config, draws, seen, taught.steps, taught.rows)


def cosine(z: Tensor, w: Tensor) -> Tensor:
    """cos(z_i, w_c), (n, C), one by one."""
    return torch.stack([torch.stack([torch.dot(a, b) / (a.norm() * b.norm()) for b in w]) for a in z])


ASKED = rows(9, 77)
KINDS = [kind for kind, algorithm in LEARNERS.items() if algorithm.needs == "torch"]
FULL = {
    "er": {"momentum": 0.9, "ema": 0.9, "image": (1, 2, 3)},
    "hpcr": {"distil_rows": 30, "pair_rows": 5},
    "onpro": {"replay_rows": 6},
}


def blob(taught: Replay) -> bytes:
    """Everything, as the store keeps it."""
    return pack(taught.state_dict().truth)


def bits(taught: Replay) -> str:
    """A name for all of its bits."""
    return sha256(blob(taught))


def taught_in(kind: str, sizes: list[int], *batches: Batch) -> Replay:
    """A learner that learned the batches in pieces of these sizes, again and again."""
    made, piece = learner(kind, **FULL.get(kind, {})), 0
    for batch in batches:
        at = 0
        while at < len(batch):
            made.learn_many(batch.rows(at, at + sizes[piece % len(sizes)]))
            at += sizes[piece % len(sizes)]
            piece += 1
    return made
