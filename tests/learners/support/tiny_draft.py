"""A draft of a few hundred weights over 32 tokens, written as Hugging Face lays it out, and completions of no target at all."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from millrace.learners.draft.completion import Completion, Header, pack
from millrace.learners.draft.config import DraftConfig, Start
from millrace.learners.draft.folder import fingerprint
from millrace.learners.draft.learner import Draft
from millrace.learners.protocol import Array, Batch

VOCABULARY, TOP, K = 32, 5, 3
TARGET = bytes(range(32))
WIDTH, HEADS, INNER = 8, 2, 12


@cache
def folder() -> Path:
    """The draft's folder, one a process."""
    place, rng = Path(tempfile.mkdtemp(prefix="tiny-draft-")), np.random.default_rng(5)
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "head_dim": WIDTH // HEADS,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 0,
        "dtype": "float32",
    }
    half, layer = WIDTH // HEADS, "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": (VOCABULARY, WIDTH),
        "model.norm.weight": (WIDTH,),
        layer + "input_layernorm.weight": (WIDTH,),
        layer + "post_attention_layernorm.weight": (WIDTH,),
        layer + "self_attn.q_proj.weight": (WIDTH, WIDTH),
        layer + "self_attn.k_proj.weight": (half, WIDTH),
        layer + "self_attn.v_proj.weight": (half, WIDTH),
        layer + "self_attn.o_proj.weight": (WIDTH, WIDTH),
        layer + "mlp.gate_proj.weight": (INNER, WIDTH),
        layer + "mlp.up_proj.weight": (INNER, WIDTH),
        layer + "mlp.down_proj.weight": (WIDTH, INNER),
    }
    weights = {
        name: rng.normal(1.0 if len(shape) == 1 else 0.0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()
    }
    (place / "config.json").write_text(json.dumps(config))
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    return place


def start(top: int = TOP) -> Start:
    """What a draft begins with, for completions of ``TARGET``."""
    return Start(str(folder()), fingerprint(folder()), TARGET.hex(), K, top)


def draft(top: int = TOP, seed: int = 3, **config: Any) -> Draft:
    """A draft that has learned nothing."""
    return Draft(DraftConfig(start=start(top), **config), 0, seed)


def completion(rng: np.random.Generator, top: int = TOP, **header: Any) -> Completion:
    """A completion of random tokens; likely ones are next to each other, so that there is something to learn."""
    prompt, answer = rng.integers(0, VOCABULARY, rng.integers(2, 6)), rng.integers(0, VOCABULARY, rng.integers(4, 10))
    logits = rng.normal(0.0, 2.0, (len(answer), VOCABULARY))
    logits[np.arange(len(answer)), answer] += 4.0
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    ids = np.argsort(-logs, axis=1)[:, :top]
    steps = steps_of(rng, len(answer))
    said: dict[str, Any] = {
        "id": f"request {rng.integers(1 << 30)}",
        "domain": "",
        "branch": "main",
        "epoch": 1,
        "seq": 2,
        "target": TARGET,
        "temperature": 0.8,
        "top_p": 1.0,
        "top_k": 0,
        "flags": (),
        "cached": 0,
        "ended": "stop",
    }
    return Completion(
        Header(**said | header, prompt=0, output=0, top=0, steps=0),
        prompt.astype(np.uint32),
        answer.astype(np.uint32),
        ids.astype(np.uint32),
        np.take_along_axis(logs, ids, axis=1).astype(np.float16),
        np.array([K] * len(steps), np.uint8),
        np.array(steps, np.uint8),
    )


def steps_of(rng: np.random.Generator, length: int) -> list[int]:
    """Accepted tokens of each step that an answer of so many tokens could have had."""
    steps, at = [], 1
    while at < length:
        steps.append(int(rng.integers(0, K + 1)))
        at += steps[-1] + 1
    return steps


def column(values: list[bytes]) -> Array:
    """Bytes as a batch has them."""
    sequences = np.empty(len(values), dtype=object)
    sequences[:] = values
    return sequences


def batch(completions: list[Completion], d: int = 0, weight: Array | None = None) -> Batch:
    """Completions as a learner gets them."""
    y = np.array([each.served() for each in completions], dtype=np.float64).reshape(-1, 2)
    return Batch(np.zeros((len(completions), d)), y, weight=weight, sequences=column([pack(each) for each in completions]))


@cache
def _packed(seed: int, rows: int) -> tuple[list[bytes], Array, Array]:
    """Completions of two domains as bytes, as served (n, 2), and weights (n,)."""
    rng = np.random.default_rng(seed)
    made = batch([completion(rng, domain=("sql", "chat")[at % 2]) for at in range(rows)])
    assert made.sequences is not None and made.y is not None
    return made.sequences.tolist(), made.y, rng.uniform(0.5, 2.0, rows)


def lesson(seed: int, rows: int, d: int) -> Batch:
    """One of six batches of completions with weights, the same whenever it is called, in arrays of its own."""
    values, y, weight = _packed(seed % 6, rows)
    return Batch(np.zeros((rows, d)), y.copy(), weight=weight.copy(), sequences=column(values))
