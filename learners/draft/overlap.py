"""Least and largest overlap alpha = sum min(p, q) of a draft's q with the p that a request was sampled from.

Of p only the ``top`` likeliest tokens at temperature 1 are known, in float16, and the mass r of all others. As the request was
sampled, each is m = p^(1/T) / M, cut to top_k and then top_p. M is the sum over what is kept. Engines cut the target alone, so
q is the draft's softmax at T.

R, the sum of p^(1/T) over the others, lies between that of equal shares of r and that of shares as large as the least that is
known. So M has bounds, and so has the number of known tokens that top_p keeps. What float16 rounded away widens them. All
masses are seen from the likeliest token's, so that none underflows which counts.

Source: Leviathan, Kalman, Matias, "Fast inference from transformers via speculative decoding", ICML 2023, corollary 3.6;
docs/design/learners.md#draft.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from millrace.learners.draft.completion import Header
from millrace.learners.protocol import Floats

ROUNDING = 2.0**-11, 2.0**-25  # of float16: relative, and where numbers are smallest


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What was captured of positions of one answer."""

    ids: Tensor  # (N, top), likeliest first
    log_p: Tensor  # (N, top), at temperature 1
    header: Header  # how the answer was sampled; its temperature is above 0


@dataclass(frozen=True, slots=True, eq=False)
class Masses:
    """One end of what p^(1/T) can be, over that of the likeliest token."""

    known: Tensor  # (N, top)
    others: Tensor  # (N,) their sum

    @property
    def total(self) -> Tensor:
        """Of all tokens (N,)."""
        return self.known.sum(dim=1) + self.others

    @property
    def before(self) -> Tensor:
        """Of the tokens that are likelier than each (N, top)."""
        return self.known.cumsum(dim=1) - self.known


def overlap(logits: Tensor, seen: Seen) -> tuple[Floats, Floats]:
    """Least and largest alpha (N,) of logits (N, V)."""
    header, k = seen.header, seen.header.top_k or seen.ids.shape[1]
    ids, log_p = seen.ids[:, :k], seen.log_p[:, :k].double()
    q = torch.log_softmax(logits.double() / header.temperature, dim=1).gather(1, ids).exp()
    q_others = (1.0 - q.sum(dim=1)).clamp(min=0.0)
    least, most = masses(log_p, header, logits.shape[1])
    floor, ceiling = header.top_p * least.total, header.top_p * most.total  # what is kept reaches top_p of all
    whole = header.top_p == 1.0
    surely, perhaps = (most.before < floor[:, None]) | whole, (least.before < ceiling[:, None]) | whole
    spills = (least.known.sum(dim=1) < ceiling) & (most.others > 0)  # whether others may be kept too
    smallest = torch.maximum((least.known * surely).sum(dim=1), floor)
    largest = (most.known * perhaps).sum(dim=1)  # or beyond: one token at most goes over top_p of all
    largest = torch.where(spills, torch.maximum(torch.minimum(most.total, ceiling + most.known[:, -1]), largest), largest)
    low = torch.minimum(least.known / largest[:, None], q) * surely
    high = torch.minimum(most.known / smallest[:, None], q) * perhaps
    of_others = torch.minimum(most.others, largest - least.known.sum(dim=1))
    p_others = of_others / (least.known.sum(dim=1) + of_others)
    others = torch.where(spills, torch.minimum(p_others, q_others), 0.0)
    return low.sum(dim=1).numpy(), (high.sum(dim=1) + others).clamp(max=1.0).numpy()


def masses(log_p: Tensor, header: Header, vocabulary: int) -> tuple[Masses, Masses]:
    """The least and the most that tokens with log_p (N, top) at temperature 1, and the others of V, can weigh."""
    power, count = 1.0 / header.temperature, vocabulary - log_p.shape[1]
    slack = ROUNDING[0] * log_p.abs() + ROUNDING[1]
    down, up = log_p - slack, (log_p + slack).clamp(max=0.0)
    log_rest = torch.stack([(1.0 - end.exp().sum(dim=1)).clamp(min=0.0).log() for end in (up, down)])  # (2, N)
    share = log_rest[1] - math.log(max(count, 1))
    likeliest = torch.maximum(log_p[:, 0], share)
    largest = torch.maximum(up[:, -1], share)  # no other is likelier than the least that is known
    even = power * log_rest + (1.0 - power) * math.log(max(count, 1))  # where all have an equal share of the rest
    heaped = log_rest + (power - 1.0) * largest  # where as few as can be have it
    fewest, most = (torch.minimum(even, heaped)[0], torch.maximum(even, heaped)[1])
    if count == 0 or header.top_k:  # top_k leaves none of the others, or nobody knows how many
        fewest = torch.full_like(share, -torch.inf)
    if count == 0 or 0 < header.top_k <= log_p.shape[1]:
        most = torch.full_like(share, -torch.inf)
    ends = ((down, fewest), (up, most))
    first, second = (
        Masses((power * (known - likeliest[:, None])).exp(), (others - power * likeliest).exp()) for known, others in ends
    )
    return first, second
