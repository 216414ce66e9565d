"""Completions as one block of tokens: filled up on the right, and their answers' positions one after the other.

| name | shape |
|---|---|
| tokens | (n, T) prompt and answer, then zeros |
| row, place | (N,) of each position of an answer: its completion, and where its logits are |
| ids, log_p | (N, top) |
| sampled | temperature, top_p, top_k, each (N,) |

A block is bounded in tokens, and in logits: tokens x V. What is longer alone is a block of its own. Logits are asked of chunks
of its positions, each within the same bound. So one long answer never holds more logits than many short ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from millrace.learners.draft.completion import MOST_TOP, Completion, Header
from millrace.learners.draft.hugging_face import hidden
from millrace.learners.draft.losses import Sampled, target_partition

BLOCK_TOKENS = 16_384  # of one block, filled up
BLOCK_LOGITS = 1 << 24  # of one chunk, or a block that is filled up: 64 MiB in float32; learning holds about five such arrays


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Completions that go through a model together."""

    completions: Sequence[Completion]
    tokens: Tensor  # (n, T) int64
    row: Tensor  # (N,)
    place: Tensor  # (N,)
    ids: Tensor  # (N, top)
    log_p: Tensor  # (N, top)
    sampled: Sampled

    def hidden(self, model: nn.Module) -> Tensor:
        """(N, d): of each position of an answer, what the model's head reads of the token there."""
        return hidden(model, self.tokens)[self.row, self.place]

    def of(self, rows: slice) -> Block:
        """The same with these positions alone."""
        sampled = Sampled(self.sampled.temperature[rows], self.sampled.top_p[rows], self.sampled.top_k[rows])
        taken = {name: getattr(self, name)[rows] for name in ("row", "place", "ids", "log_p")}
        return replace(self, sampled=sampled, **taken)


def chunks(positions: int, vocabulary: int) -> Iterator[slice]:
    """So many positions in slices, each so small that its logits stay bounded."""
    most = max(1, BLOCK_LOGITS // vocabulary)
    for start in range(0, positions, most):
        yield slice(start, min(start + most, positions))


def block_of(completions: Sequence[Completion]) -> Block:
    """One block of all of them, in order."""
    longest = max(completion.tokens for completion in completions)
    tokens = np.zeros((len(completions), longest), dtype=np.int64)
    for at, completion in enumerate(completions):
        tokens[at, : len(completion.prompt)] = completion.prompt
        tokens[at, len(completion.prompt) : completion.tokens] = completion.output
    lengths = [len(completion.output) for completion in completions]
    places = [np.arange(len(each.output)) + len(each.prompt) - 1 for each in completions]
    return Block(
        completions,
        torch.from_numpy(tokens),
        torch.from_numpy(np.repeat(np.arange(len(completions)), lengths)),
        torch.from_numpy(np.concatenate(places)),
        torch.from_numpy(np.concatenate([each.ids for each in completions]).astype(np.int64)),
        torch.from_numpy(np.concatenate([each.log_probabilities for each in completions]).astype(np.float32)),
        _sampled([each.header for each in completions], lengths),
    )


def has_distribution(completion: Completion, vocabulary: int) -> bool:
    """Whether every position has a finite p, of a ``vocabulary`` of V tokens; then each loss is finite where logits are."""
    sampled = _sampled([completion.header], [len(completion.output)])
    log_p = torch.from_numpy(completion.log_probabilities.astype(np.float32))
    return bool(torch.isfinite(target_partition(log_p, sampled, vocabulary)).all())


def _sampled(headers: Sequence[Header], lengths: list[int]) -> Sampled:
    """Of each position of answers of these lengths."""
    temperature, top_p = (
        np.repeat(np.array([getattr(header, name) for header in headers], dtype=np.float32), lengths)
        for name in ("temperature", "top_p")
    )
    top_k = np.repeat(np.array([min(header.top_k, MOST_TOP + 1) for header in headers]), lengths)
    return Sampled(torch.from_numpy(temperature), torch.from_numpy(top_p), torch.from_numpy(top_k))


def cut(completions: Sequence[Completion], vocabulary: int) -> Iterator[tuple[int, int]]:
    """Start and stop of blocks of consecutive completions, each so small that memory stays bounded."""
    most, start, longest = min(BLOCK_TOKENS, BLOCK_LOGITS // vocabulary), 0, 0
    for at, completion in enumerate(completions):
        longest = max(longest, completion.tokens)
        if at > start and longest * (at + 1 - start) > most:
            yield start, at
            start, longest = at, completion.tokens
    if completions:
        yield start, len(completions)
