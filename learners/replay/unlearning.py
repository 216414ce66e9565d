"""Deletion from a learner that replays: stored rows by key, and a class with its part of the head.

What the weights have learned from deleted rows stays in them: a network cannot unlearn exactly. For that, fork the branch
without the rows.
"""

from __future__ import annotations

from collections.abc import Set

import numpy as np
import torch

from millrace.learners.errors import BadInputError
from millrace.learners.replay.learner import Replay
from millrace.learners.replay.networks import drawn_head


def forget_keys(learner: Replay, keys: Set[bytes]) -> int:
    """Delete the rows with these keys from the buffer and from those that wait for a step; how many there were."""
    is_kept = np.array([key not in keys for key in learner.waiting["key"]], dtype=bool)
    learner.waiting = {name: column[is_kept] for name, column in learner.waiting.items()}
    return learner.buffer.remove(np.array([key in keys for key in learner.buffer.keys], dtype=bool)) + int((~is_kept).sum())


def forget_class(learner: Replay, name: str) -> int:
    """Take a class out of the answers, with its part of the head and its rows; how many rows there were.

    Seen again, it begins anew. Raises: BadInputError where there is no such class.
    """
    if name not in learner.columns:
        raise BadInputError(f"There is no class {name!r}; there are: {', '.join(learner.columns) or 'none yet'}.")
    column = learner.columns[name]
    is_kept = learner.waiting["y"] != column
    learner.waiting = {key: column[is_kept] for key, column in learner.waiting.items()}
    stored = learner.buffer.columns.get("y")
    mask = np.zeros(learner.buffer.size, dtype=bool) if stored is None else stored.cpu().numpy() == column
    removed = learner.buffer.remove(mask) + int((~is_kept).sum())
    if column < learner.network.classes:
        _redraw(learner, column)
    if not learner.config.classes:  # a declared class keeps its column
        _cut(learner, name, column)
    learner.served = None
    return removed


@torch.no_grad()
def _redraw(learner: Replay, column: int) -> None:
    """Let a class's part of the head be as that of one never seen."""
    network = learner.network
    for key, row in drawn_head(network.spec.head, network.p, 1, learner.draws).items():
        network.weights[key][column] = row[0]
        if key in learner.average:
            learner.average[key][column] = row[0]
        for part in ("first", "second", "steps"):
            if f"{part}.{key}" in learner.optimiser.moments:
                learner.optimiser.moments[f"{part}.{key}"][column] = 0.0
    learner.seen[column] = False
    logits = learner.buffer.columns.get("logits")
    if logits is not None:
        logits[:, column : column + 1] = 0.0


def _cut(learner: Replay, name: str, column: int) -> None:
    """Take a column away; those after it move down by one."""
    network, moments, columns = learner.network, learner.optimiser.moments, learner.buffer.columns
    if column < network.classes:
        keep = np.delete(np.arange(network.classes), column)
        for key in [key for key in network.weights if key.startswith("head.")]:
            network.weights[key] = network.weights[key].detach()[keep].requires_grad_()
            if key in learner.average:
                learner.average[key] = learner.average[key][keep]
            for part in [f"{part}.{key}" for part in ("first", "second", "steps") if f"{part}.{key}" in moments]:
                moments[part] = moments[part][keep]
        learner.seen = learner.seen[keep]
        if "logits" in columns:
            columns["logits"] = torch.cat([columns["logits"][:, :column], columns["logits"][:, column + 1 :]], 1)
            columns["known"] = columns["known"] - (columns["known"] > column).long()
    if "y" in columns:
        columns["y"] = columns["y"] - (columns["y"] > column).long()
    learner.waiting["y"] = learner.waiting["y"] - (learner.waiting["y"] > column)
    learner.columns = {
        other_name: at for at, other_name in enumerate(other_name for other_name in learner.columns if other_name != name)
    }
