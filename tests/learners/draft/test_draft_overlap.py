"""Bounds of the overlap hold for what was captured, against softmax over the whole vocabulary in NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny_draft
import torch

from millrace.learners.draft import simulator
from millrace.learners.draft.completion import Header, pack, unpack
from millrace.learners.draft.losses import Sampled, target_partition
from millrace.learners.draft.overlap import Seen, overlap

V, TOP = 60, 8
HEADER = tiny_draft.completion(np.random.default_rng(0)).header


def sampled_from(logs: np.ndarray, header: Header) -> np.ndarray:
    """p (V,) of log probabilities (V,), as vLLM makes it: divided by T, cut to the top_k likeliest, then to top_p of them."""
    scaled = logs / header.temperature
    p = np.exp(scaled - scaled.max())
    order = np.argsort(-p, kind="stable")
    if header.top_k:
        p[order[header.top_k :]] = 0.0
    p /= p.sum()
    likelier = np.cumsum(p[order]) - p[order]
    p[order[likelier >= header.top_p]] = 0.0
    return p / p.sum()


def captured(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log probabilities (N, TOP) of rows (N, V), as they are packed."""
    ids = np.argsort(-logs, axis=1, kind="stable")[:, :TOP]
    return ids, np.take_along_axis(logs, ids, axis=1).astype(np.float16)


def case(rng: np.random.Generator, rows: int = 5) -> tuple[np.ndarray, np.ndarray, Header]:
    """Log probabilities of a target, logits of a draft that is near or far, and how answers were sampled."""
    logs = rng.normal(0.0, rng.choice([0.3, 2.0, 6.0]), (rows, V))
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    logits = logs + rng.normal(0.0, rng.choice([0.1, 3.0]), (rows, V))
    temperature = float(rng.choice([0.01, 0.1, 0.5, 0.7, 1.0, 1.7, 100.0]))
    top_p, top_k = float(rng.choice([0.1, 0.5, 0.9, 0.95, 1.0])), int(rng.choice([0, 0, 1, 5, 8, 20, 200]))
    return logs, logits, replace(HEADER, temperature=temperature, top_p=top_p, top_k=top_k)


def test_the_overlap_lies_within_its_bounds_however_it_was_sampled() -> None:
    """1,500 positions: temperatures from 0.01 to 100; top_p and top_k inside and beyond what float16 captured."""
    rng, widths = np.random.default_rng(3), []
    for _ in range(300):
        logs, logits, header = case(rng)
        ids, log_p = captured(logs)
        low, high = overlap(torch.tensor(logits), Seen(torch.tensor(ids), torch.tensor(log_p), header))
        scaled = logits / header.temperature
        q = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        q /= q.sum(axis=1, keepdims=True)
        alpha = [np.minimum(sampled_from(row, header), other).sum() for row, other in zip(logs, q, strict=True)]
        assert (low <= np.array(alpha) + 1e-9).all() and (np.array(alpha) <= high + 1e-9).all(), header
        widths.append(high - low)
    assert np.median(widths) < 0.1  # bounds of 0 and 1 would hold, too


def test_where_everything_that_is_kept_was_captured_the_bounds_meet() -> None:
    """But for what float16 rounded away: with top_k within the captured tokens, and with top_p reached by them."""
    logs = np.log(np.array([[0.5, 0.2, 0.1, 0.08, 0.05, 0.03, 0.02, 0.01] + [0.01 / (V - 8)] * (V - 8)]))
    ids, log_p = captured(logs)
    for cut in ({"top_k": 3}, {"top_p": 0.75}):
        header = replace(HEADER, temperature=0.8, **cut)
        low, high = overlap(torch.tensor(logs * 0.8), Seen(torch.tensor(ids), torch.tensor(log_p), header))
        q = np.exp(logs[0])  # 0.8 of the logits at temperature 0.8
        alpha = np.minimum(sampled_from(logs[0], header), q).sum()
        assert low[0] - 1e-9 <= alpha <= high[0] + 1e-9 and high[0] - low[0] < 2e-3 and 0.5 < alpha < 0.9


@pytest.mark.parametrize("temperature", [0.01, 0.7, 1.0, 1.7, 100.0])
def test_masses_that_are_nothing_are_no_nan(temperature: float) -> None:
    """A least token whose probability underflows while nothing is left for the others; and all that is left is the others'."""
    header = replace(HEADER, temperature=temperature)
    logs = np.full((2, TOP), -60_000.0)
    logs[0, 0] = 0.0
    ids = torch.arange(TOP).repeat(2, 1)
    low, high = overlap(torch.randn((2, V)), Seen(ids, torch.tensor(logs.astype(np.float16)), header))
    assert np.isfinite(low).all() and (low <= high).all() and (low >= 0.0).all() and (high <= 1.0).all()


def test_what_is_learned_is_what_was_sampled_from_and_never_nan() -> None:
    """p of the loss in float32 against NumPy, where all tokens were captured; sampled in the same ways."""
    rng = np.random.default_rng(5)
    for _ in range(100):
        logs, _, header = case(rng)
        order = np.argsort(-logs, axis=1, kind="stable")
        log_p = torch.tensor(np.take_along_axis(logs, order, axis=1), dtype=torch.float32)
        rows = len(logs)
        sampled = Sampled(
            torch.full((rows,), header.temperature), torch.full((rows,), header.top_p), torch.full((rows,), header.top_k)
        )
        p = target_partition(log_p, sampled, V).numpy()
        expected = np.take_along_axis(np.array([sampled_from(row, header) for row in logs]), order, axis=1)
        assert np.allclose(p[:, :-1], expected, atol=2e-4) and not p[:, -1].any()


def test_positions_that_no_step_tested_are_left_out() -> None:
    """A bonus is not tested. Worked by hand: 1 and a correction, 3 and a bonus, one corrected at once; unaligned, all are."""
    completion = tiny_draft.completion(np.random.default_rng(0))
    at = np.arange(8) % len(completion.output)
    arrays = {name: getattr(completion, name)[at] for name in ("output", "ids", "log_probabilities")}
    answer = replace(completion, **arrays, accepted=np.array([1, 3, 0], np.uint8), drafted=np.array([3, 3, 3], np.uint8))
    assert simulator.tested(answer).tolist() == [1, 2, 3, 4, 5, 7]
    assert simulator.tested(replace(answer, accepted=np.zeros(0, np.uint8), drafted=np.zeros(0, np.uint8))).tolist() == [
        *range(1, 8)
    ]
    [replayed] = tiny_draft.draft().servable().replayed(tiny_draft.batch([unpack(pack(answer))]))
    assert replayed.tested == 6 == answer.served()[1] and 0.0 < replayed.accepted < replayed.most < 6


def test_a_draft_that_is_no_number_matches_nothing() -> None:
    """At temperature 0 no token, above it from none to all; what is counted of it is finite."""
    rng, draft = np.random.default_rng(2), tiny_draft.draft()
    with torch.no_grad():
        next(iter(draft.weights.values())).fill_(torch.nan)
    batch = tiny_draft.batch([tiny_draft.completion(rng, temperature=temperature) for temperature in (0.0, 0.7)])
    greedy, sampled = draft.servable().replayed(batch)
    assert (greedy.accepted, sampled.accepted, sampled.most) == (0.0, 0.0, float(sampled.tested)) and sampled.tested > 0
