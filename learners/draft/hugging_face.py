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
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as said_by_transformers

from millrace.learners.errors import ConfigError

WHOLE = 1 << 62  # bytes of one file of weights, at most: it is never cut into several

said_by_transformers.disable_progress_bar()  # what a command prints is ours
said_by_transformers.set_verbosity_error()


def read(folder: Path) -> tuple[str, nn.Module]:
    """A model's config as JSON, and the model in float32, all of whose weights lie in the folder. Raises: ConfigError."""
    model, loading = _loaded(folder)
    problems = [f"{what.replace('_', ' ')}: {_few(names)}" for what, names in loading.items() if names]
    names, owned = _names(folder), {name for name, _ in model.named_parameters()}
    problems += [f"weights of other names than the model's: {_few(other)}"] if (other := names ^ owned) - _tied(model) else []
    if kept := {name for name, _ in model.named_buffers()} & set(model.state_dict()):
        problems.append(f"buffers that are stored, which drafts have none of: {_few(kept)}")
    if bad := {name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()}:
        problems.append(f"weights that are not finite: {_few(bad)}")
    if problems:
        raise ConfigError(f"{folder} cannot be a draft: {'; '.join(problems)}. Take a folder that transformers wrote whole.")
    model.config.dtype, model.config.name_or_path = torch.float32, ""  # a place on this machine is none of the draft's
    return str(model.config.to_json_string(use_diff=False)), model.eval()


def _loaded(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model, and what transformers found missing or too much. What it draws for that comes from no generator of others."""
    try:
        with torch.random.fork_rng(devices=[]):
            model, loading = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # they are named below
                output_loading_info=True,
            )
            tokens = torch.arange(2)[None]
            with torch.no_grad():
                whole, by_head = model.eval()(tokens).logits[0], logits(model, hidden(model, tokens)[0])
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError) as error:
        raise ConfigError(f"{folder} is no language model that transformers loads: {error}") from error
    capped = getattr(model.config, "final_logit_softcapping", None)  # which small logits do not show
    if capped or not torch.allclose(whole, by_head, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise ConfigError(f"{folder} scales or caps what its head says, and cannot be a draft. Take one that does not.")
    return model, loading


def _names(folder: Path) -> set[str]:
    """Of the weights in the folder's files."""
    return {name for path in folder.glob("*.safetensors") for name in safe_open(path, "pt").keys()}  # type: ignore[no-untyped-call]  # noqa: SIM118


def _tied(model: Any) -> set[str]:
    """Second names of weights that have another: they may be stored, and need not."""
    return set(model.state_dict()) - {name for name, _ in model.named_parameters()}


def _few(names: Any) -> str:
    """Some of them, for a sentence; of a tuple the first is the name."""
    named = sorted(name if isinstance(name, str) else str(name[0]) for name in names)
    return ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")


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


def hidden(model: Any, tokens: Tensor) -> Tensor:
    """What the head reads (n, T, d) of tokens (n, T). Rows are filled up on the right: nothing looks ahead."""
    states: Tensor = model.base_model(tokens, use_cache=False).last_hidden_state
    return states


def logits(model: Any, states: Tensor) -> Tensor:
    """Logits (N, V) of what ``hidden`` gave (N, d)."""
    answered: Tensor = model.get_output_embeddings()(states)
    return answered


def context_of(config: str) -> int:
    """Tokens that the model takes at most; 0: it does not say."""
    return int(getattr(_skeleton(config).config, "max_position_embeddings", 0) or 0)


def vocabulary_of(config: str) -> int:
    """Tokens that the model knows."""
    return int(_skeleton(config).config.vocab_size)  # type: ignore[union-attr, arg-type]  # transformers' own record


def write(config: str, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Config and weights as Hugging Face lays them out, in float32. Raises: OSError, of the weights' writer too."""
    model = _model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    try:
        model.save_pretrained(folder, max_shard_size=WHOLE)
    except SafetensorError as error:  # of a full disk, too
        raise OSError(str(error)) from error
