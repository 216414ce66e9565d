"""A draft as it proposes: config and weights, which never change. It answers what an engine would have counted with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from millrace.learners.draft.completion import Completion, unpack
from millrace.learners.draft.hugging_face import context_of, vocabulary_of, with_weights, write
from millrace.learners.draft.rows import has_distribution
from millrace.learners.draft.simulator import Replayed, replay
from millrace.learners.errors import BadInputError
from millrace.learners.protocol import Array, Batch, Floats, Value
from millrace.learners.replay.networks import use_one_thread

NONE = Replayed(0.0, 0, 0.0)  # of a completion that no draft of this target is asked about


@dataclass(frozen=True, slots=True, eq=False)
class DraftServable:
    """An immutable picture of a draft."""

    config: str  # the model's, as JSON
    weights: Mapping[str, Array]  # float32, as ``read_only`` makes them
    k: int  # tokens drafted a step
    target: str  # sha256 of the target's folder

    @property
    def classes(self) -> tuple[str, ...]:
        """None: a draft counts."""
        return ()

    def predict_many(self, batch: Batch) -> Floats:
        """Accepted and tested positions (n, 2), as an engine with this draft would have counted them; see ``simulator.py``.

        Above temperature 0 the first is the sum of the lower bounds of alpha. Completions that are not learned have 0 of both.
        Raises: BadInputError where the batch has no completions, or bytes that are none.
        """
        replayed = self.replayed(batch)
        return np.array([[each.accepted, each.tested] for each in replayed], dtype=np.float64).reshape(-1, 2)

    def replayed(self, batch: Batch) -> list[Replayed]:
        """The same with its steps, and with the upper bounds."""
        use_one_thread()
        completions = completions_of(batch)
        most = most_tokens(context_of(self.config), self.k)
        asked = [why_not(completion, self.target, most, vocabulary_of(self.config)) == "" for completion in completions]
        chosen = [each for each, yes in zip(completions, asked, strict=True) if yes]
        with with_weights(self.config, self.tensors) as model:
            answers = iter(replay(model, chosen, self.k, vocabulary_of(self.config)))
        return [next(answers) if yes else NONE for yes in asked]

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights, where they can on the same memory: nobody may write to them."""
        return {name: _tensor_of(weight) for name, weight in self.weights.items()}

    def write(self, folder: Path) -> None:
        """The draft as Hugging Face lays it out, in float32, for transformers and vLLM."""
        write(self.config, self.tensors, folder)

    def arrays(self) -> dict[str, Value]:
        """All of it."""
        weights = {f"weight.{name}": weight for name, weight in self.weights.items()}
        return {"config": self.config, "k": self.k, "target": self.target, **weights}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Value]) -> DraftServable:
        """The servable that gave ``arrays``."""
        weights = {
            name.removeprefix("weight."): read_only(np.array(value, dtype=np.float32))
            for name, value in arrays.items()
            if name.startswith("weight.")
        }
        return cls(arrays["config"], weights, int(arrays["k"]), arrays["target"])


def read_only(weight: Array) -> Array:
    """A view of an array that nobody can write to."""
    view = weight.view()
    view.flags.writeable = False
    return view


def _tensor_of(weight: Array) -> torch.Tensor:
    """On the same memory where ``read_only`` made it: torch wants an array that can be written to, and that is its base."""
    base = weight.base
    if isinstance(base, np.ndarray) and base.flags.writeable and _place(base) == _place(weight):
        return torch.from_numpy(base)
    return torch.tensor(weight)


def _place(array: Array) -> tuple[Any, ...]:
    """Where its numbers lie."""
    return array.ctypes.data, array.dtype, array.shape, array.strides


def completions_of(batch: Batch) -> list[Completion]:
    """The completions of a batch. Raises: BadInputError where it has none, or bytes that are none."""
    if batch.sequences is None or len(batch.sequences) != len(batch):
        raise BadInputError(f"column sequences: expected {len(batch)} completions, got none or another number")
    try:
        return [unpack(value) for value in batch.sequences.tolist()]
    except (BadInputError, TypeError) as error:
        raise BadInputError(f"column sequences: {error}") from error


def most_tokens(context: int, k: int) -> float:
    """Of prompt and answer, for a draft of this context: beyond it an engine has nothing drafted, or not by the draft."""
    return context - k if context else float("inf")


def why_not(completion: Completion, target: str, most: float, vocabulary: int) -> str:
    """Why a draft of this target that takes so many tokens does not learn a completion, in a word; empty: it does."""
    if completion.header.target.hex() != target:
        return "other_target"
    if not completion.learnable:
        return "flagged"
    if completion.tokens > most:
        return "too_long"
    return "" if has_distribution(completion, vocabulary) else "not_finite"
