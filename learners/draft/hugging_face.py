"""The one door to transformers: a model's folder into a model, weights and back, and its logits.

Those who only answer share one model a process for each config; it has weights for as long as it is asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as said_by_transformers

from millrace.learners.errors import ConfigError

said_by_transformers.disable_progress_bar()  # what a command prints is ours


def read(folder: Path) -> tuple[str, nn.Module]:
    """A model's config as JSON, and the model in float32. Raises: ConfigError."""
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(f"{folder} is no language model that transformers loads: {error}") from error
    model.config.dtype = torch.float32
    return str(model.config.to_json_string(use_diff=False)), model.eval()


def _model(config: str) -> Any:
    described = json.loads(config)
    kind = described.pop("model_type")
    with torch.random.fork_rng(devices=[]):  # weights are drawn, and written over
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **described), dtype=torch.float32)


@lru_cache(maxsize=4)
def _skeleton(config: str) -> nn.Module:
    """The model of a config, with buffers and without weights."""
    model: nn.Module = _model(config).eval()
    for parameter in model.parameters():
        parameter.data = torch.empty(0)
        parameter.requires_grad_(False)
    return model


@contextmanager
def with_weights(config: str, weights: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """The model of a config with these weights, for as long as the block runs; not for two threads at once."""
    model = _skeleton(config)
    try:
        for name, parameter in model.named_parameters():
            parameter.data = weights[name]
        yield model
    finally:
        for parameter in model.parameters():
            parameter.data = torch.empty(0)


def logits(model: nn.Module, tokens: Tensor, last: int) -> Tensor:
    """Logits (n, last, V) at the ``last`` positions of tokens (n, T). Rows are filled up on the right: nothing looks ahead."""
    answered: Tensor = model(tokens, use_cache=False, logits_to_keep=last).logits
    return answered


@lru_cache(maxsize=4)
def context_of(config: str) -> int:
    """Tokens that the model takes at most; 0: it does not say."""
    return int(json.loads(config).get("max_position_embeddings") or 0)


def write(config: str, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Config and weights as Hugging Face lays them out, in float32."""
    model = _model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    model.save_pretrained(folder)
