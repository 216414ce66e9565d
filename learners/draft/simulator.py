"""What an engine with this draft would have counted on completions that are in the log: a replay, not a guess.

At temperature 0 every prefix that a step can reach lies on the answer itself. So one pass of the draft over the answer says
each match, and steps are played over the matches: begin at position 1, count hits up to k, go on behind the next token. The
last step is cut at the number of tokens. That is exact, step for step.

Above 0 a token drafted from q is accepted with probability alpha = sum min(p, q). Positions are those that were tested as
served, for a bonus is not; all, where steps and tokens do not align. The bounds of alpha: overlap.py.

A draft whose logits are not finite proposes nothing that anybody could foresee: it has no match there, and bounds 0 and 1.

Source: Leviathan, Kalman, Matias, "Fast inference from transformers via speculative decoding", ICML 2023, corollary 3.6;
docs/design/learners.md#draft.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from millrace.learners.draft.completion import Completion, Header, Tokens
from millrace.learners.draft.hugging_face import logits
from millrace.learners.draft.overlap import Seen, overlap
from millrace.learners.draft.rows import Block, block_of, chunks, cut
from millrace.learners.protocol import Array


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """What would have been counted of one completion."""

    accepted: float  # positions; above temperature 0 the sum of the lower bounds of alpha
    tested: int  # positions
    most: float  # as ``accepted``, with the upper bounds; at temperature 0 the same
    steps: tuple[int, ...] = ()  # at temperature 0: accepted positions of each step, the last one cut

    @property
    def tau(self) -> float:
        """Tokens a step, of those that came by steps; NaN above temperature 0, and where there was no step."""
        return (sum(self.steps) / len(self.steps) + 1.0) if self.steps else np.nan


def replay(model: nn.Module, completions: list[Completion], k: int, vocabulary: int) -> list[Replayed]:
    """Of each completion, in order, with ``k`` >= 1 tokens drafted a step, of ``vocabulary`` = V there are."""
    replayed: list[Replayed] = []
    with torch.no_grad():
        for start, stop in cut(completions, vocabulary):
            block = block_of(completions[start:stop])
            replayed += _of_block(block, block.hidden(model), Asked(model, vocabulary, k))
    return replayed


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Of whom a replay asks, and for how many tokens a step."""

    model: nn.Module
    vocabulary: int
    k: int

    def logits(self, states: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Of states (N, d): chunks of positions, and their logits."""
        for rows in chunks(len(states), self.vocabulary):
            yield rows, logits(self.model, states[rows])


def _of_block(block: Block, states: Tensor, asked: Asked) -> list[Replayed]:
    at, found = 0, []
    for completion in block.completions:
        rows = slice(at + 1, at + len(completion.output))  # position 0 is not tested
        at += len(completion.output)
        if completion.header.temperature == 0.0:
            found.append(played(_matches(asked, states[rows], completion.output[1:]), asked.k))
        else:
            found.append(_bounded(asked, block, states, rows.start + tested(completion) - 1, completion.header))
    return found


def _matches(asked: Asked, states: Tensor, tokens: Tokens) -> Array:
    """Whether the draft's likeliest token is the answer's (N,); of logits that are not finite it never is."""
    greedy = [torch.where(z.isfinite().all(dim=1), z.argmax(dim=1), -1) for _, z in asked.logits(states)]
    matches: Array = np.concatenate([np.zeros(0, dtype=np.int64), *(each.numpy() for each in greedy)]) == tokens
    return matches


def _bounded(asked: Asked, block: Block, states: Tensor, chosen: Array, header: Header) -> Replayed:
    """The bounds of alpha, added up over the chosen positions of an answer."""
    least, most = 0.0, 0.0
    for rows, z in asked.logits(states[chosen]):
        finite = z.isfinite().all(dim=1).numpy()
        low, high = overlap(z, Seen(block.ids[chosen[rows]], block.log_p[chosen[rows]], header))
        least, most = least + float(low[finite].sum()), most + float(np.where(finite, high, 1.0).sum())
    return Replayed(least, len(chosen), most)


def tested(completion: Completion) -> Array:
    """Positions (m,) of an answer that its steps tested; all behind the first where steps and tokens do not align."""
    if not completion.aligned:
        return np.arange(1, len(completion.output))
    return np.array([at + offset for at, _, count in completion.steps() for offset in range(count)], dtype=np.int64)


def played(matches: Array, k: int) -> Replayed:
    """Steps over matches (L - 1,) of positions 1 to L - 1.

    >>> played(np.array([True, True, False, True]), k=4)
    Replayed(accepted=3.0, tested=4, most=3.0, steps=(2, 1))
    """
    hits, steps, tested, at = matches.tolist(), [], 0, 0
    while at < len(hits):
        drafted = hits[at : at + k]
        accepted = drafted.index(False) if False in drafted else len(drafted)
        steps.append(accepted)
        tested += accepted + (accepted < len(drafted))
        at += accepted + 1
    return Replayed(float(sum(steps)), tested, float(sum(steps)), tuple(steps))
