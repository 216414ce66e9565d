"""Completions as one block of tokens: filled up on the right, and their answers' positions one after the other.

| name | shape |
|---|---|
| tokens | (n, T) prompt and answer, then zeros |
| row, place | (N,) of each position of an answer: its completion, and where its logits are |
| ids, log_p | (N, top) |
| temperature | (N,) |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from millrace.learners.draft.completion import Completion
from millrace.learners.draft.hugging_face import logits

BLOCK_TOKENS = 16_384  # of one block that is answered, filled up


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Completions that go through a model together."""

    completions: Sequence[Completion]
    tokens: Tensor  # (n, T) int64
    last: int  # positions from the end that logits are asked of
    row: Tensor  # (N,)
    place: Tensor  # (N,) among the ``last``
    ids: Tensor  # (N, top)
    log_p: Tensor  # (N, top)
    temperature: Tensor  # (N,)

    def logits(self, model: nn.Module) -> Tensor:
        """(N, V): of each position of an answer, what the model says of the token there."""
        return logits(model, self.tokens, self.last)[self.row, self.place]


def block_of(completions: Sequence[Completion]) -> Block:
    """One block of all of them, in order."""
    longest = max(completion.tokens for completion in completions)
    first = min(len(completion.prompt) for completion in completions) - 1  # its logits are of the first token of an answer
    tokens = np.zeros((len(completions), longest), dtype=np.int64)
    for at, completion in enumerate(completions):
        tokens[at, : len(completion.prompt)] = completion.prompt
        tokens[at, len(completion.prompt) : completion.tokens] = completion.output
    lengths = [len(completion.output) for completion in completions]
    places = [np.arange(len(each.output)) + len(each.prompt) - 1 - first for each in completions]
    return Block(
        completions,
        torch.from_numpy(tokens),
        longest - first,
        torch.from_numpy(np.repeat(np.arange(len(completions)), lengths)),
        torch.from_numpy(np.concatenate(places)),
        torch.from_numpy(np.concatenate([each.ids for each in completions]).astype(np.int64)),
        torch.from_numpy(np.concatenate([each.log_probabilities for each in completions]).astype(np.float32)),
        torch.from_numpy(np.repeat([each.header.temperature for each in completions], lengths).astype(np.float32)),
    )


def blocks(completions: Sequence[Completion]) -> Iterator[Block]:
    """Blocks of consecutive completions, each of so many tokens at most that memory stays bounded."""
    start = 0
    while start < len(completions):
        longest, stop = completions[start].tokens, start + 1
        while stop < len(completions):
            longest = max(longest, completions[stop].tokens)
            if longest * (stop + 1 - start) > BLOCK_TOKENS:
                break
            stop += 1
        yield block_of(completions[start:stop])
        start = stop
