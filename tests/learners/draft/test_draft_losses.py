"""Losses against NumPy in float64, and against the whole vocabulary in torch where all of it was captured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny_draft
import torch

from millrace.learners.draft.completion import pack, unpack
from millrace.learners.draft.config import DraftConfig
from millrace.learners.draft.learner import counted, loss_of
from millrace.learners.draft.losses import LOSSES, Sampled, draft_partition, target_partition
from millrace.learners.draft.rows import block_of

V = tiny_draft.VOCABULARY


def some(top: int, rows: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Target's log probabilities over V, draft's logits, ids of the likeliest, temperatures."""
    rng = np.random.default_rng(seed)
    target, logits = rng.normal(0.0, 2.5, (rows, V)), rng.normal(0.0, 2.0, (rows, V))
    target -= np.log(np.exp(target).sum(axis=1, keepdims=True))
    return target, logits, np.argsort(-target, axis=1)[:, :top], rng.choice([0.0, 0.5, 1.0, 1.7], rows)


def plainly(temperature: torch.Tensor) -> Sampled:
    """Neither cut to top_k nor to top_p."""
    return Sampled(temperature, torch.ones_like(temperature), torch.zeros(len(temperature), dtype=torch.int64))


def of_torch(loss: str, top: int) -> np.ndarray:
    """The loss as the learner computes it, in float64 (N,)."""
    target, logits, ids, temperature = some(top)
    at_temperature = torch.tensor(temperature)
    p = target_partition(torch.tensor(np.take_along_axis(target, ids, axis=1)), plainly(at_temperature), V)
    return LOSSES[loss](p, draft_partition(torch.tensor(logits), torch.tensor(ids), at_temperature)).numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Of one row."""
    exps = np.exp(logits - logits.max())
    return exps / exps.sum()


def distances(p: np.ndarray, q: np.ndarray, captured: int) -> dict[str, float]:
    """All losses of one row, written as their definitions."""
    inside = p > 0
    kl = float((p[inside] * np.log(p[inside] / q[inside])).sum())
    m, alpha = (p + q) / 2, float(np.minimum(p, q).sum())
    jsd = float((p[inside] * np.log(p[inside] / m[inside])).sum() + (q * np.log(q / m)).sum()) / 2
    w = np.exp(-3 * alpha)
    return {
        "kl": kl,
        "rkl": float((q * np.log(q / np.maximum(p, 1e-7))).sum()),
        "jsd": jsd,
        "ce": float(-np.log(q[np.argmax(p[:captured])])),
        "tv": float(np.abs(p - q).sum() / 2),
        "nla": -float(np.log(alpha)),
        "lk": w * kl + (1 - w) * (1 - alpha),
    }


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_is_its_definition_over_the_likeliest_tokens_and_the_rest(loss: str) -> None:
    """Row by row in NumPy, float64: the others together are one more token, each with an equal share of their mass."""
    target, logits, ids, temperatures = some(top := 5)
    expected = []
    for row, likeliest, temperature in zip(range(len(ids)), ids, temperatures, strict=True):
        t = temperature or 1.0
        p, q = np.exp(target[row]), softmax(logits[row] / t)
        rest = 1.0 - p[likeliest].sum()
        raised = np.append(p[likeliest] ** (1 / t), (V - top) * (rest / (V - top)) ** (1 / t))
        expected.append(distances(raised / raised.sum(), np.append(q[likeliest], 1 - q[likeliest].sum()), top)[loss])
    assert np.allclose(of_torch(loss, top), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss != "rkl"])
def test_with_the_whole_vocabulary_a_loss_is_that_of_the_two_softmaxes(loss: str) -> None:
    """By torch's own softmax over all tokens at the request's temperature; the rest of q is LEAST_REST, and weighs nothing."""
    target, logits, _, temperatures = some(V)
    t = torch.tensor(np.where(temperatures > 0, temperatures, 1.0))[:, None]
    p, q = torch.softmax(torch.tensor(target) / t, dim=1), torch.softmax(torch.tensor(logits) / t, dim=1)
    expected = [distances(a, b, V)[loss] for a, b in zip(p.numpy(), q.numpy(), strict=True)]
    assert np.allclose(of_torch(loss, V), expected, rtol=0.0, atol=1e-6)


def test_the_captured_loss_is_never_above_that_of_the_whole_vocabulary() -> None:
    """Joining tokens loses divergence: KL and TV over the partition are lower bounds of the true ones, at temperature 1."""
    target, logits, ids, _ = some(top=4)
    one = torch.ones(len(ids))
    p = target_partition(torch.tensor(np.take_along_axis(target, ids, axis=1)), plainly(one), V)
    log_q = draft_partition(torch.tensor(logits), torch.tensor(ids), one)
    for loss in ("kl", "tv"):
        whole = [distances(np.exp(row), softmax(other), V)[loss] for row, other in zip(target, logits, strict=True)]
        captured = LOSSES[loss](p, log_q).numpy()
        assert (captured <= np.array(whole) + 1e-12).all() and (captured < np.array(whole) - 1e-6).any()


def test_the_weighted_sum_goes_over_answers_alone() -> None:
    """A block's loss is the sum over the positions of its answers, by weight, whatever is filled up on the right."""
    rng = np.random.default_rng(2)
    block = block_of([unpack(pack(tiny_draft.completion(rng))) for _ in range(3)])
    rows = len(block.row)
    logits, weights = torch.tensor(rng.normal(size=(rows, V)), dtype=torch.float32), torch.tensor(rng.uniform(size=rows))
    log_q = draft_partition(logits, block.ids, block.sampled.temperature)
    each = LOSSES["kl"](target_partition(block.log_p, block.sampled, V), log_q)
    assert np.isclose(float(loss_of(block, logits, weights, "kl")), (each.numpy() * weights.numpy()).sum())
    assert rows == sum(len(completion.output) for completion in block.completions)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_at_the_lowest_temperature_is_a_number(loss: str) -> None:
    """In float32 at 0.01, where p^100 of all tokens may be 0: loss and gradient are finite, and p is right."""
    logs = np.log(np.array([[0.22, 0.21, 0.2], [0.9, 0.05, 0.01]], dtype=np.float32))
    sampled = plainly(torch.full((2,), 0.01))
    p = target_partition(torch.tensor(logs), sampled, V)
    exact = np.append(logs.astype(np.float64) * 100, [[np.log(29) + 100 * np.log(0.37 / 29)], [-np.inf]], axis=1)
    exact -= exact.max(axis=1, keepdims=True)
    assert np.allclose(p.numpy(), np.exp(exact) / np.exp(exact).sum(axis=1, keepdims=True), atol=1e-4)
    logits = torch.randn((2, V), requires_grad=True)
    log_q = draft_partition(logits, torch.tensor([[0, 1, 2], [3, 4, 5]]), sampled.temperature)
    LOSSES[loss](p, log_q).sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_positions_count_by_what_became_of_them() -> None:
    """Worked by hand on an answer of 8 tokens in steps of 1 and a correction, 3 and a bonus, and one corrected at once."""
    completion = tiny_draft.completion(np.random.default_rng(0))
    at = np.arange(8) % len(completion.output)
    arrays = {name: getattr(completion, name)[at] for name in ("output", "ids", "log_probabilities")}
    steps = {"accepted": np.array([1, 3, 0], np.uint8), "drafted": np.array([3, 3, 3], np.uint8)}
    answer = replace(completion, **arrays, **steps)
    #                                            0     1     2     3     4     5     6     7
    assert counted(answer, DraftConfig()).tolist() == [0.25, 0.25, 1.0, 0.25, 0.25, 0.25, 0.25, 1.0]
    assert counted(answer, DraftConfig(positions="osd-published")).tolist() == [0, 0, 1, 0, 0, 0, 0, 1]
    assert counted(answer, DraftConfig(positions="osd-coded")).tolist() == [
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        1,
    ]  # one behind each step's last
    unaligned = replace(answer, accepted=np.array([0], np.uint8), drafted=np.array([3], np.uint8))
    assert counted(unaligned, DraftConfig()).tolist() == [1.0] * 8
    assert not counted(unaligned, DraftConfig(positions="osd-published")).any()
