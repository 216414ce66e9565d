"""Completions that a real target gave: transformers decodes, and a draft's tokens are counted as an engine counts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from millrace.learners.draft.completion import Completion, Header, pack
from millrace.learners.draft.folder import fingerprint
from millrace.learners.protocol import Batch
from millrace.learners.replay.networks import use_one_thread
from millrace.services.config.config import data_folder

K, TOP = 4, 20
END = "<|end|>"


def pair_folder(name: str) -> Path:
    """The folder of ``target`` or ``draft_chat``; without it the test is skipped."""
    folder = data_folder() / "llm" / "domains5M" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here: MILLRACE_DATA names the folder of development data")
    return folder.resolve()


@dataclass(frozen=True)
class Model:
    """A model that transformers loaded, in float32."""

    folder: Path

    @cached_property
    def network(self) -> Any:
        """For logits and decoding."""
        from transformers import AutoModelForCausalLM

        use_one_thread()
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype="float32").eval()

    @cached_property
    def tokenizer(self) -> Any:
        """Text into tokens."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder, padding_side="left")

    def logits(self, tokens: Sequence[int]) -> Any:
        """(T, V) of one sequence."""
        import torch

        with torch.no_grad():
            return self.network(torch.tensor([list(tokens)])).logits[0]


@cache
def model(name: str) -> Model:
    """``target`` or ``draft_chat``, once a process."""
    return Model(pair_folder(name))


def prompts(domain: str, count: int, start: int = 0) -> list[str]:
    """Prompts of a domain, sql or chat, from ``start`` on."""
    import pyarrow.parquet as parquet

    if domain == "sql":
        texts = parquet.read_table(data_folder() / "prompts" / "spider_train.parquet").column("prompt").to_pylist()
    else:
        table = parquet.read_table(data_folder() / "irc_ubuntu" / "irc_2004_2011.parquet")
        texts = [text for text in table.column("text").to_pylist() if 20 <= len(text) <= 120]
    distinct = dict.fromkeys(texts)
    return [f"<|user|>{text}<|assistant|>" for text in islice(distinct, start, start + count)]


def answers(texts: Sequence[str], most: int = 40) -> list[tuple[list[int], list[int]]]:
    """Tokens of prompt and of the target's own greedy answer, of ``most`` tokens at most, its end among them."""
    import torch

    target = model("target")
    encoded = target.tokenizer(list(texts), return_tensors="pt", padding=True)
    with torch.no_grad():
        tokens = target.network.generate(
            **encoded, do_sample=False, max_new_tokens=most, pad_token_id=target.tokenizer.pad_token_id
        )
    width, end = encoded["input_ids"].shape[1], target.network.config.eos_token_id
    found = []
    for prompt, mask, row in zip(
        encoded["input_ids"].tolist(), encoded["attention_mask"].tolist(), tokens.tolist(), strict=True
    ):
        answer = row[width:]
        answer = answer[: answer.index(end) + 1] if end in answer else answer
        found.append(([token for token, there in zip(prompt, mask, strict=True) if there], answer))
    return found


def counts_of(draft: Model, prompt: Sequence[int], answer: Sequence[int], k: int = K) -> list[tuple[int, int]]:
    """Accepted and drafted tokens of each step, of a draft whose proposals begin at every token of the answer."""
    logits = draft.logits([*prompt, *answer[:-1]])[len(prompt) - 1 :]
    greedy, steps, at = logits.argmax(dim=1).tolist(), [], 1
    while at < len(answer):
        accepted = 0
        while accepted < k and at + accepted < len(answer) and greedy[at + accepted] == answer[at + accepted]:
            accepted += 1
        steps.append((accepted, k))
        at += accepted + 1
    return steps


def completion(
    prompt: Sequence[int], answer: Sequence[int], steps: Sequence[tuple[int, int]], temperature: float = 0.0, **header: Any
) -> Completion:
    """What a server would have captured of it: likeliest tokens by the target's own pass over the answer."""
    import torch

    logits = model("target").logits([*prompt, *answer[:-1]])[len(prompt) - 1 :]
    likeliest = torch.log_softmax(logits, dim=1).topk(TOP)
    said = {"id": sha256(repr((prompt, answer)).encode()).hexdigest()[:12], "domain": "", **header}
    target = bytes.fromhex(fingerprint(pair_folder("target")))
    ended = "stop" if answer[-1] == model("target").network.config.eos_token_id else "length"
    return Completion(
        Header(said["id"], said["domain"], "main", 0, 1, target, temperature, 1.0, 0, (), 0, ended, 0, 0, 0, 0),
        np.array(prompt, np.uint32),
        np.array(answer, np.uint32),
        likeliest.indices.numpy().astype(np.uint32),
        likeliest.values.numpy().astype(np.float16),
        np.array([drafted for _, drafted in steps], np.uint8),
        np.array([accepted for accepted, _ in steps], np.uint8),
    )


@cache
def answered(domain: str, count: int, start: int = 0) -> tuple[bytes, ...]:
    """Completions of a domain as the log has them, with the chat draft's counts."""
    found = []
    for first in range(0, count, 32):
        texts = prompts(domain, min(32, count - first), start + first)
        for prompt, answer in answers(texts):
            steps = counts_of(model("draft_chat"), prompt, answer)
            found.append(pack(completion(prompt, answer, steps, domain=domain)))
    return tuple(found)


def batch_of(values: Sequence[bytes]) -> Batch:
    """Completions as a learner gets them."""
    from millrace.learners.draft.completion import unpack

    sequences = np.empty(len(values), dtype=object)
    sequences[:] = list(values)
    y = np.array([unpack(value).served() for value in values], dtype=np.float64).reshape(-1, 2)
    return Batch(np.empty((len(values), 0)), y, sequences=sequences)
