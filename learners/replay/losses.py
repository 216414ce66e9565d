"""What several replay learners descend; on torch tensors, and importing no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-6  # keeps the direction of a zero vector finite; the value of PCR's public code


def unit(vectors: Tensor) -> Tensor:
    """Rows (n, p) of length 1; a row of zeros stays zeros."""
    length: Tensor = vectors.norm(dim=1, keepdim=True)
    return vectors / (length + EPSILON)


def cross_entropy(logits: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Mean over rows of weight times -log softmax(logits)_y; logits (n, C), y (n,), weight (n,)."""
    return summed_cross_entropy(logits, y, weight / len(y))


def summed_cross_entropy(logits: Tensor, y: Tensor, share: Tensor) -> Tensor:
    """Sum over rows of share times -log softmax(logits)_y; logits (n, C), y (n,), share (n,)."""
    from torch.nn import functional

    return functional.cross_entropy(logits, y, reduction="none").dot(share.to(logits.dtype))


def known_distance(logits: Tensor, stored: Tensor, known_columns: Tensor) -> Tensor:
    """Mean over rows of the mean over columns c < known_i of (logits - stored)^2.

    ``logits`` (n, C); ``stored`` (n, C or fewer); ``known_columns`` (n,) >= 1.
    """
    within = logits.new_ones(stored.shape[1]).cumsum(0)[None] <= known_columns[:, None]
    return ((logits[:, : stored.shape[1]] - stored).square() * (within / known_columns[:, None])).sum() / len(known_columns)


def proxy_contrast(cosines: Tensor, y: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """L_PCR: mean over rows of -s_{i,y_i} + log sum_c n_c exp(s_ic), with s = cosines / temperature.

    ``cosines`` (n, C) between rows and class proxies; n_c counts the rows of class c, so that absent classes take no part.
    Source: PCR, CVPR 2023, in the short form of docs/design/learners.md#pcr.
    """
    s = cosines / temperature
    counts = y.bincount(minlength=s.shape[1]).to(s.dtype)
    return (weight * ((s + counts.log()).logsumexp(1) - s.gather(1, y[:, None])[:, 0])).mean()


def proxy_and_row_contrast(z: Tensor, proxies: Tensor, y: Tensor, temperature: float) -> Tensor:
    """L_PCR with pairs of rows added: SupCon over [rows; proxies of the rows' classes], anchored at rows.

    Row i's positives are the n_{y_i} copies of its proxy and the n_{y_i} - 1 other rows of its class; its denominator is
    sum_c n_c exp(s_ic) + sum_{j != i} exp(z_i z_j / tau). ``z`` (n, p) and ``proxies`` (C, p) have length 1.
    Source: HPCR, TNNLS 2025, in the form of docs/design/learners.md#hpcr; a mean per row (n,).
    """
    s, pairs = z @ proxies.T / temperature, z @ z.T / temperature
    counts = y.bincount(minlength=len(proxies)).to(s.dtype)
    itself = z.new_ones(len(z)).diag() > 0.0
    every = (s + counts.log()).logsumexp(1).logaddexp(pairs.masked_fill(itself, float("-inf")).logsumexp(1))
    alike = ((y[:, None] == y[None]) & ~itself).to(z.dtype)
    own_counts = counts[y]
    positive = own_counts * s.gather(1, y[:, None])[:, 0] + (alike * pairs).sum(1)
    return every - positive / (2.0 * own_counts - 1.0)


def supervised_contrast(z: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Supervised InfoNCE over rows z (n, p) of length 1: positives are the other rows of the same class.

    A row without such is left out; 0 where none has one. Source: Khosla et al., NeurIPS 2020, equation 2.
    """
    if len(z) < 2:
        return z.sum() * 0.0
    others = z.new_ones(len(z), len(z)).fill_diagonal_(0.0)
    alike = (y[:, None] == y[None]).to(z.dtype) * others
    s = z @ z.T / temperature
    log_share = s - s.masked_fill(others == 0.0, float("-inf")).logsumexp(1, keepdim=True)
    positives = alike.sum(1)
    rows = (positives > 0).to(z.dtype)
    return -((alike * log_share).sum(1) / positives.clamp(min=1.0)).sum() / rows.sum().clamp(min=1.0)


def prototypes(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The classes (K,) that occur in y (n,), ascending, and the mean row (K, p) of each."""
    labels = y.bincount().nonzero()[:, 0]
    same_label = (labels[:, None] == y[None]).to(z.dtype)
    return labels, same_label @ z / same_label.sum(1, keepdim=True)


def prototype_contrast(view: Tensor, other: Tensor, temperature: float) -> Tensor:
    """L_pro: a prototype's direction (K, p) in one view picks that in the other out of all 2 K - 1 others; mean over 2 K.

    Source: OnPro, ICCV 2023, equation 3.
    """
    first, second = unit(view), unit(other)
    same, across = first @ first.T / temperature, first @ second.T / temperature
    itself = same.new_ones(len(view)).diag() > 0.0
    own_pair = across.diagonal()
    other_pairs = across.logsumexp(1).logaddexp(same.masked_fill(itself, float("-inf")).logsumexp(1))
    twin = (second @ second.T / temperature).masked_fill(itself, float("-inf")).logsumexp(1)
    right = across.T.logsumexp(1).logaddexp(twin)
    return (other_pairs + right - 2.0 * own_pair).mean() / 2.0
