"""What an engine with this draft would have counted on completions that are in the log: a replay, not a guess.

At temperature 0 every prefix that a step can reach lies on the answer itself. So one pass of the draft over the answer says
each match, and steps are played over the matches: begin at position 1, count hits up to k, go on behind the next token. The
last step is cut at the number of tokens. That is exact, step for step.

Above 0 a token drafted from q is accepted with probability alpha = sum min(p, q). Of p only the ``top`` likeliest at
temperature 1 are known, and the mass r of all others. At temperature T each is p^(1/T) / Z, and Z = sum over the known + R. R,
the sum over the others, lies between that of equal shares of r and that of shares as large as the least that is known. So
alpha has bounds.

Source: Leviathan, Kalman, Matias, "Fast inference from transformers via speculative decoding", ICML 2023, corollary 3.6;
docs/design/learners.md#draft.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from millrace.learners.draft.completion import Completion
from millrace.learners.draft.rows import Block, blocks
from millrace.learners.protocol import Array, Floats


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


def replay(model: nn.Module, completions: list[Completion], k: int) -> list[Replayed]:
    """Of each completion, in order, with ``k`` >= 1 tokens drafted a step."""
    replayed: list[Replayed] = []
    with torch.no_grad():
        for block in blocks(completions):
            replayed += _of_block(block, block.logits(model), k)
    return replayed


def _of_block(block: Block, logits: Tensor, k: int) -> list[Replayed]:
    greedy = logits.argmax(dim=1).numpy()
    vocabulary, at, found = logits.shape[1], 0, []
    for completion in block.completions:
        rows = slice(at + 1, at + len(completion.output))  # position 0 is not tested
        at += len(completion.output)
        if completion.header.temperature == 0.0:
            found.append(played(greedy[rows] == completion.output[1:], k))
            continue
        low, high = bounds(logits[rows], block.ids[rows], block.log_p[rows], completion.header.temperature, vocabulary)
        found.append(Replayed(float(low.sum()), len(low), float(high.sum())))
    return found


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


def bounds(logits: Tensor, ids: Tensor, log_p: Tensor, temperature: float, vocabulary: int) -> tuple[Floats, Floats]:
    """Least and largest alpha (N,) of logits (N, V), given tokens ids (N, top) with log_p (N, top) at temperature 1."""
    power, others = 1.0 / temperature, vocabulary - log_p.shape[1]
    known = log_p.double()
    log_q = torch.log_softmax(logits.double() / temperature, dim=1).gather(1, ids)
    q = log_q.exp()
    q_rest = (1.0 - q.sum(dim=1)).clamp(min=0.0)
    rest = (1.0 - known.exp().sum(dim=1)).clamp(min=0.0)
    even = others * (rest / max(others, 1)) ** power
    least = torch.maximum(known[:, -1].exp(), rest / max(others, 1))  # no other is likelier than the least that is known
    heaped = rest * least ** (power - 1.0)
    masses = (known * power).exp()
    total = masses.sum(dim=1)
    ends = torch.minimum(even, heaped), torch.maximum(even, heaped)  # of R
    fewest, most = (masses / (total + end)[:, None] for end in reversed(ends))
    low = torch.minimum(fewest, q).sum(dim=1)
    p_rest = ends[1] / (total + ends[1])
    high = torch.minimum(most, q).sum(dim=1) + torch.minimum(p_rest, q_rest)
    return low.numpy(), high.clamp(max=1.0).numpy()
