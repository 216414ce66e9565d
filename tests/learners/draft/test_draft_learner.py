"""A draft's steps: bounded in memory, drawn from both stores, and on no memory that is served."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_draft
import torch
from safetensors.numpy import load_file, save_file

from millrace.learners.draft import hugging_face, rows
from millrace.learners.draft.config import DraftConfig
from millrace.learners.draft.folder import fingerprint
from millrace.learners.draft.learner import Draft
from millrace.learners.errors import ConfigError


def taught(count: int, seed: int = 0, **config) -> Draft:
    """A draft that has learned so many completions, each by one step or more."""
    rng, draft = np.random.default_rng(seed), tiny_draft.draft(**{"step_completions": 1, "updates": 1} | config)
    draft.learn_many(tiny_draft.batch([tiny_draft.completion(rng, temperature=0.01) for _ in range(count)]))
    return draft


def test_the_lowest_temperature_leaves_no_step_out() -> None:
    """At 0.01 every step has a finite gradient, and the weights go on."""
    draft = taught(12, draws=0)
    assert draft.skipped == 0 and draft.rows == 12
    before = tiny_draft.draft().weights
    assert all(weight.isfinite().all() and not weight.equal(before[name]) for name, weight in draft.weights.items())


def test_the_least_top_p_keeps_the_likeliest_token() -> None:
    """1e-46 is above 0 and no float32: nothing but the likeliest is left, and every step has a finite gradient."""
    rng, draft = np.random.default_rng(2), tiny_draft.draft(step_completions=1, updates=1)
    draft.learn_many(tiny_draft.batch([tiny_draft.completion(rng, top_p=1e-46), *[tiny_draft.completion(rng)] * 9]))
    assert draft.rows == 10 and draft.skipped == 0 and len(draft.ring.items) == 10


def test_what_leaves_no_probability_is_passed_and_never_stored() -> None:
    """Likeliest tokens of no probability under top_k = 1: 0 / 0. Drawn again, one such would cost step after step."""
    rng, draft = np.random.default_rng(3), tiny_draft.draft(step_completions=1, updates=1)
    honest = [tiny_draft.completion(rng, domain="sql") for _ in range(9)]
    empty = tiny_draft.completion(rng, domain="own", top_k=1)
    empty = replace(empty, log_probabilities=np.full_like(empty.log_probabilities, -60_000.0))
    draft.learn_many(tiny_draft.batch([empty, *honest]))
    assert draft.noticed() == {"skipped_steps": 0, "flagged": 0, "other_target": 0, "too_long": 0, "not_finite": 1}
    assert draft.rows == 9 and {item.domain for item in [*draft.ring.items, *draft.reservoir.items]} == {"sql"}
    assert draft.predict_many(tiny_draft.batch([empty])).tolist() == [[0.0, 0.0]]


def test_a_step_is_the_same_in_one_block_or_in_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of blocks add up to that of all: the same weights but for rounding, whatever a block may hold."""
    whole = taught(40, step_completions=20)
    monkeypatch.setattr(rows, "BLOCK_TOKENS", 50)
    cut = taught(40, step_completions=20)
    for name, weight in whole.weights.items():
        assert torch.allclose(weight, cut.weights[name], rtol=0.0, atol=1e-5), name


@pytest.mark.parametrize("limit", ["BLOCK_TOKENS", "BLOCK_LOGITS"])
def test_no_block_is_larger_than_a_step_may_hold(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """In learning and in answering, in tokens and in tokens x V, however many completions there are."""
    most_tokens = 400
    monkeypatch.setattr(rows, limit, most_tokens * (tiny_draft.VOCABULARY if limit == "BLOCK_LOGITS" else 1))
    draft, seen, rng = tiny_draft.draft(step_completions=60, updates=1), [], np.random.default_rng(1)
    draft.model.base_model.register_forward_pre_hook(lambda _, given: seen.append(given[0].numel()))
    batch = tiny_draft.batch([tiny_draft.completion(rng) for _ in range(60)])
    draft.learn_many(batch)
    assert len(seen) >= 2 and 200 < max(seen) <= most_tokens
    completions = [tiny_draft.completion(rng) for _ in range(60)]
    stops = [stop for _, stop in rows.cut(completions, tiny_draft.VOCABULARY)]
    starts = [start for start, _ in rows.cut(completions, tiny_draft.VOCABULARY)]
    assert [*starts[1:], 60] == stops and starts[0] == 0
    held = [rows.block_of(completions[a:b]).tokens.numel() for a, b in zip(starts, stops, strict=True)]
    assert max(held) <= most_tokens


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_one_long_answer_holds_no_more_logits_than_many(monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    """In learning and in replaying, chunk by chunk; the draft and the counts are those of one chunk but for rounding."""
    rng = np.random.default_rng(4)
    answer = tiny_draft.completion(rng, temperature=temperature)
    at = np.arange(40) % len(answer.output)
    arrays = {name: getattr(answer, name)[at] for name in ("output", "ids", "log_probabilities")}
    batch, drafts, counts = tiny_draft.batch([replace(answer, **arrays)]), [], []
    for most_rows in (1_000, 7):
        monkeypatch.setattr(rows, "BLOCK_LOGITS", most_rows * tiny_draft.VOCABULARY)
        draft, seen = tiny_draft.draft(step_completions=1, updates=1, reservoir_tokens=512), []
        heads = [model.get_output_embeddings() for model in (draft.model, hugging_face._skeleton(draft.described))]
        hooks = [head.register_forward_hook(lambda _, given, z, seen=seen: seen.append(z.shape[:-1])) for head in heads]
        counts.append(draft.predict_many(batch))
        replayed = sum(rows for (rows,) in seen)
        draft.learn_many(batch)
        assert (replayed, sum(rows for (rows,) in seen)) == (39, 79) and max(rows for (rows,) in seen) == min(most_rows, 40)
        drafts.append(draft)
        for hook in hooks:
            hook.remove()
    assert drafts[0].rows == 1 and np.allclose(*counts, rtol=1e-12, atol=1e-6)
    for name, weight in drafts[0].weights.items():
        assert torch.allclose(weight, drafts[1].weights[name], rtol=0.0, atol=1e-5), name


def test_what_is_longer_than_its_share_is_passed_and_moves_no_domain() -> None:
    """It is counted; neither the ring nor the limit of its domain in the reservoir knows of it."""
    rng, draft = np.random.default_rng(6), tiny_draft.draft(step_completions=1, reservoir_tokens=120, ring_tokens=400)
    short = [tiny_draft.completion(rng, domain="sql") for _ in range(3)]
    long = tiny_draft.completion(rng, domain="sql")
    fits, longer = (replace(long, prompt=np.zeros(size - len(long.output), np.uint32)) for size in (15, 16))
    draft.learn_many(tiny_draft.batch([*short, longer]))
    assert draft.config.longest_tokens == 15 and (draft.rows, draft.passed["too_long"]) == (3, 1)
    assert len(draft.ring.items) == 3 and draft.reservoir.below == {"sql": 1.0}
    draft.learn_many(tiny_draft.batch([fits]))
    assert (draft.rows, draft.passed["too_long"]) == (4, 1)


@pytest.mark.parametrize(
    ("kind", "after"), [("gemma2", {"final_logit_softcapping": 30.0}), ("granite", {"logits_scaling": 4.0})]
)
def test_a_head_that_caps_its_logits_is_refused(tmp_path: Path, kind: str, after: dict[str, float]) -> None:
    """Chunks go through the head alone, so what comes behind it would be lost; and so is one that scales them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        kind,
        vocab_size=tiny_draft.VOCABULARY,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        **after,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "draft")
    with pytest.raises(ConfigError, match="scales or caps"):
        hugging_face.read(tmp_path / "draft")


@pytest.mark.parametrize(("draws", "recent", "kept"), [(0, 0, 0), (1, 0, 1), (2, 1, 1), (4, 3, 1), (12, 9, 3)])
def test_whatever_is_drawn_some_of_it_comes_from_the_reservoir(draws: int, recent: int, kept: int) -> None:
    """Else a domain that is gone is lost: 0.75 of two draws, rounded, would leave it none."""
    draft = taught(20, draws=draws)
    numbers = [item.order for item in draft._drawn()]  # of the reservoir; the ring's have none
    assert (numbers.count(0.0), sum(number > 0.0 for number in numbers)) == (recent, kept)


def test_what_is_served_takes_no_memory_until_the_draft_goes_on() -> None:
    """It lies on the draft's own weights, which nobody can write to; a step leaves them to it and goes on elsewhere."""
    draft = taught(4)
    served = draft.servable()
    shared = [np.shares_memory(served.weights[name], weight.detach().numpy()) for name, weight in draft.weights.items()]
    given = [np.shares_memory(served.weights[name], weight.numpy()) for name, weight in served.tensors.items()]
    assert all(shared) and all(given) and not any(weight.flags.writeable for weight in served.weights.values())
    before = {name: weight.copy() for name, weight in served.weights.items()}
    draft.learn_many(tiny_draft.batch([tiny_draft.completion(np.random.default_rng(9))]))
    assert all(np.array_equal(served.weights[name], weight) for name, weight in before.items())
    assert all(weight.grad is None for weight in draft.weights.values())
    assert not any(np.shares_memory(before[name], weight.detach().numpy()) for name, weight in draft.weights.items())
    assert not all(np.array_equal(before[name], weight.detach().numpy()) for name, weight in draft.weights.items())


def changed(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    """A copy of the tiny draft's folder with other weights."""
    shutil.copytree(tiny_draft.folder(), folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


NORM, QUERY = "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"
BROKEN: dict[str, tuple[str, Callable[[dict[str, np.ndarray]], object]]] = {
    "a weight is missing": ("model.norm.weight", lambda weights: weights.pop(NORM)),
    "a weight is too much": ("model.layers.1", lambda weights: weights.update({QUERY.replace("0", "1"): weights[QUERY]})),
    "a weight has another shape": (
        "q_proj",
        lambda weights: weights.update({QUERY: np.ascontiguousarray(weights[QUERY][:4])}),
    ),
    "a weight has another name": ("norm.weight", lambda weights: weights.update({"norm.weight": weights.pop(NORM)})),
    "a weight is no number": ("not finite", lambda weights: weights[NORM].__setitem__(0, np.nan)),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path, broken: str) -> None:
    """transformers itself draws what is missing; here it is a sentence that names it, and no generator has moved."""
    sentence, change = BROKEN[broken]
    folder = changed(tmp_path / "draft", change)
    start = replace(tiny_draft.start(), folder=str(folder), sha256=fingerprint(folder))
    before = torch.random.get_rng_state()
    with pytest.raises(ConfigError, match=sentence):
        Draft(DraftConfig(start=start), 0, 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_draft_that_stores_buffers_is_refused(tmp_path: Path) -> None:
    """They would change without a step, and be none of its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 12, "moe_intermediate_size": 4, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 4, "kv_lora_rank": 4, "qk_rope_head_dim": 4}
    heads |= {"qk_nope_head_dim": 4, "v_head_dim": 4}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0}
    config = AutoConfig.for_model("deepseek_v3", vocab_size=tiny_draft.VOCABULARY, **sizes, **heads, **experts)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "draft")
    with pytest.raises(ConfigError, match="buffers that are stored, which drafts have none of: .*correction_bias"):
        hugging_face.read(tmp_path / "draft")


def test_a_draft_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    """The weights' writer has errors of its own, as where there is no room; who exports hears of them as of any other file."""
    servable, before = tiny_draft.draft().servable(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, before[1]))  # room for the config, and not for the weights
    try:
        with pytest.raises(OSError, match="(?i)too large"):
            servable.write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_context_that_leaves_no_room_is_refused(tmp_path: Path) -> None:
    """Where k is as much as the draft takes, nothing could be learned."""
    folder = changed(tmp_path / "draft", lambda weights: None)
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": tiny_draft.K + 1}
    (folder / "config.json").write_text(json.dumps(config))
    start = replace(tiny_draft.start(), folder=str(folder), sha256=fingerprint(folder))
    with pytest.raises(ConfigError, match="llm.k = 3"):
        Draft(DraftConfig(start=start), 0, 0)


def test_where_a_draft_lies_is_no_part_of_it() -> None:
    """Its config, which is served and exported, names no place on this machine."""
    assert str(tiny_draft.folder()) not in tiny_draft.draft().servable().config


def test_a_process_of_tests_leaves_no_draft_behind() -> None:
    """The tiny draft's folder goes with the process that made it."""
    words = [sys.executable, "-c", "import tiny_draft; print(tiny_draft.folder())"]
    environment = os.environ | {"PYTHONPATH": str(Path(tiny_draft.__file__).parent)}
    told = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert Path(told.stdout.strip()).name.startswith("tiny-draft-") and not Path(told.stdout.strip()).exists()
