"""What a draft descends: distances of the target's p and its own q over the likeliest tokens and the rest.

| symbol | name | shape |
|---|---|---|
| p | target: the captured tokens, then all others together | (N, top + 1) |
| log q | draft: the same | (N, top + 1) |
| alpha | overlap: sum min(p, q), what is accepted of tokens drafted from q | (N,) |

p and q are those that are verified: at a temperature above 0 both are raised to 1/T and sum to 1 again, and p is cut to the
request's top_k and top_p. Of tokens outside ``top`` only their mass is known; it is taken to be spread evenly over them, and
where the request's cut lies among them they are kept. With the whole vocabulary captured nothing is assumed. All is done with
logarithms, whose largest is taken away first: p^(1/T) itself underflows in float32 at low temperatures.

Source: Zhou et al., DistillSpec, ICLR 2024 (KL, reverse KL, JSD, TV); Samarin et al., LK Losses, 2026, arXiv 2602.23881 (nla,
lk); docs/design/learners.md#draft.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_REST = 1e-7  # keeps the logarithm of a mass outside ``top`` finite where float32 leaves none
DECAY = 3.0  # of lk: how fast its weight goes from KL to TV as alpha grows


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """How each position was sampled; each (N,)."""

    temperature: Tensor  # 0: greedy; then all else is left alone
    top_p: Tensor  # in (0, 1]
    top_k: Tensor  # 0: all tokens


def divisor(temperature: Tensor) -> Tensor:
    """What logarithms are divided by (N, 1): the temperature, 1 where it is 0."""
    return torch.where(temperature > 0, temperature, torch.ones_like(temperature))[:, None]


def target_partition(log_p: Tensor, sampled: Sampled, vocabulary: int) -> Tensor:
    """p (N, top + 1) as each row was sampled, from log probabilities (N, top) at temperature 1; at 0 they stay as they are."""
    power, log_others = 1.0 / divisor(sampled.temperature), math.log(max(vocabulary - log_p.shape[1], 1))
    log_rest = (1.0 - log_p.exp().sum(dim=1, keepdim=True)).clamp(min=0.0).log()
    spread = log_others + power * (log_rest - log_others)  # sum of others^power, each an equal share of the rest
    if log_p.shape[1] == vocabulary:
        spread = torch.full_like(log_rest, -torch.inf)
    return cut(torch.softmax(torch.cat([log_p * power, spread], dim=1), dim=1), sampled)


def cut(p: Tensor, sampled: Sampled) -> Tensor:
    """p (N, top + 1) with what top_k and then top_p leave of it, summing to 1; what they cut among the others is kept."""
    top, greedy = p.shape[1] - 1, (sampled.temperature == 0)[:, None]
    place = torch.arange(top + 1)
    k = torch.where((sampled.top_k > 0) & (sampled.top_k <= top), sampled.top_k, top + 1)[:, None]
    kept = p * (place < k)
    kept = kept / kept.sum(dim=1, keepdim=True)
    likelier = kept.cumsum(dim=1) - kept  # mass of what is likelier: tokens are kept until they reach top_p
    kept = kept * ((likelier < sampled.top_p[:, None]) | (sampled.top_p == 1.0)[:, None] | (place == 0))
    return torch.where(greedy, p, kept / kept.sum(dim=1, keepdim=True))


def draft_partition(logits: Tensor, ids: Tensor, temperature: Tensor) -> Tensor:
    """log q (N, top + 1) from logits (N, V) at each row's temperature (N,), for tokens ids (N, top); at 0 it is left at 1."""
    log_q = torch.log_softmax(logits / divisor(temperature), dim=1).gather(1, ids)
    rest = (1.0 - log_q.exp().sum(dim=1, keepdim=True)).clamp(min=LEAST_REST)
    return torch.cat([log_q, rest.log()], dim=1)


def kl(p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p | q) = sum p (log p - log q)."""
    return (torch.xlogy(p, p) - p * log_q).sum(dim=1)


def rkl(p: Tensor, log_q: Tensor) -> Tensor:
    """KL(q | p); where p is 0 it is taken to be LEAST_REST."""
    return (log_q.exp() * (log_q - p.clamp(min=LEAST_REST).log())).sum(dim=1)


def jsd(p: Tensor, log_q: Tensor) -> Tensor:
    """(KL(p | m) + KL(q | m)) / 2 with m = (p + q) / 2."""
    q = log_q.exp()
    log_m = (0.5 * (p + q)).clamp(min=torch.finfo(p.dtype).tiny).log()
    return 0.5 * (kl(p, log_m) + (q * (log_q - log_m)).sum(dim=1))


def ce(p: Tensor, log_q: Tensor) -> Tensor:
    """-log q(argmax p), of the captured tokens."""
    return -log_q.gather(1, p[:, :-1].argmax(dim=1, keepdim=True))[:, 0]


def alpha(p: Tensor, log_q: Tensor) -> Tensor:
    """sum min(p, q)."""
    return torch.minimum(p, log_q.exp()).sum(dim=1)


def tv(p: Tensor, log_q: Tensor) -> Tensor:
    """1 - alpha."""
    return 1.0 - alpha(p, log_q)


def nla(p: Tensor, log_q: Tensor) -> Tensor:
    """-log alpha."""
    return -alpha(p, log_q).clamp(min=LEAST_REST).log()


def lk(p: Tensor, log_q: Tensor) -> Tensor:
    """w KL + (1 - w) TV with w = exp(-3 alpha), through which nothing is differentiated."""
    w = (-DECAY * alpha(p, log_q)).exp().detach()
    return w * kl(p, log_q) + (1.0 - w) * tv(p, log_q)


LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": kl,
    "rkl": rkl,
    "jsd": jsd,
    "ce": ce,
    "tv": tv,
    "nla": nla,
    "lk": lk,
}  # (N,) each
