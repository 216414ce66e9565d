"""A draft of a real pair of models: its replay against a speculative decoding loop, its learning against a bare torch loop.

Target and draft are those of ``llm/domains5M``. transformers decodes; nothing here calls what it tests to make its expectation.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from answered import TOP, K, answered, answers, batch_of, completion, model, pair_folder, prompts

from millrace.learners.draft.completion import pack, unpack
from millrace.learners.draft.config import DraftConfig, Start
from millrace.learners.draft.folder import fingerprint
from millrace.learners.draft.learner import Draft
from millrace.learners.draft.overlap import Seen, overlap
from millrace.learners.errors import ConfigError
from millrace.learners.replay.networks import use_one_thread


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """As learners have it, for what is compared with them."""
    use_one_thread()


def draft(**config) -> Draft:
    """The chat draft, for the target's completions."""
    folder = pair_folder("draft_chat")
    start = Start(str(folder), fingerprint(folder), fingerprint(pair_folder("target")), K, TOP)
    return Draft(DraftConfig(start=start, **config), 0, 0)


def greedy(name: str, tokens: list[int], count: int) -> list[int]:
    """The next tokens, each the model's likeliest, by one whole pass each."""
    found = list(tokens)
    for _ in range(count):
        found.append(int(model(name).logits(found)[-1].argmax()))
    return found[len(tokens) :]


def speculated(prompt: list[int], most: int, k: int = K) -> tuple[list[int], list[int]]:
    """Greedy speculative decoding as it is defined: the answer, and how many drafted tokens each step accepted.

    The draft proposes k tokens, one after the other. One pass of the target over all of them gives its own token at each
    place. As many are accepted as agree, then comes the target's own. The first token comes from the prompt's pass.
    """
    end, tokens, steps = model("target").network.config.eos_token_id, greedy("target", prompt, 1), []
    while tokens[-1] != end and len(tokens) < most:
        proposed = greedy("draft_chat", prompt + tokens, k)
        own = model("target").logits(prompt + tokens + proposed)[-k - 1 :].argmax(dim=1).tolist()
        accepted = 0
        while accepted < k and proposed[accepted] == own[accepted]:
            accepted += 1
        emitted = own[: accepted + 1]
        if end in emitted:
            emitted = emitted[: emitted.index(end) + 1]
        steps.append(accepted)
        tokens += emitted
    return tokens[:most], steps


@pytest.mark.slow
def test_the_replay_is_a_speculative_decoding_loop_step_for_step() -> None:
    """On 11 answers that end by stop and by length: each step's accepted tokens, with every length from 0 to k among them."""
    values, steps_of, ends = [], [], set()
    for domain, count, most in (("chat", 9, 20), ("sql", 2, 10)):
        for text in prompts(domain, count):
            prompt = model("target").tokenizer(text)["input_ids"]
            answer, steps = speculated(prompt, most)
            values.append(pack(completion(prompt, answer, [(accepted, K) for accepted in steps], domain=domain)))
            steps_of.append(steps)
            ends.add(unpack(values[-1]).header.ended)
    replayed = draft().servable().replayed(batch_of(values))
    served = [[hits for _, hits, _ in unpack(value).steps()] for value in values]
    assert [list(each.steps) for each in replayed] == served
    assert [steps[:-1] for steps in served] == [steps[:-1] for steps in steps_of]  # the last one alone is cut
    assert {accepted for steps in steps_of for accepted in steps} == {*range(K + 1)} and ends == {"stop", "length"}
    assert np.array_equal(draft().predict_many(batch_of(values)), [unpack(value).served() for value in values])


def test_speculation_gives_the_targets_own_answer() -> None:
    """What the loop above emits is greedy decoding by transformers itself, so the loop is one."""
    texts = prompts("chat", 2, start=40)
    for text, (prompt, answer) in zip(texts, answers(texts, most=12), strict=True):
        assert speculated(model("target").tokenizer(text)["input_ids"], 12)[0] == answer, (text, prompt)


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.9, 0), (0.95, 7)])
def test_above_temperature_0_the_overlap_of_the_whole_vocabulary_lies_within_the_bounds(top_p: float, top_k: int) -> None:
    """At 0.5, 0.7, 1 and 1.3, cut as vLLM cuts: sum min(p, q) by softmax over all tokens, of what was captured in float16."""
    [(prompt, answer)] = answers(prompts("chat", 1, start=7), most=20)
    logits = [model(name).logits([*prompt, *answer[:-1]])[len(prompt) - 1 :].double() for name in ("target", "draft_chat")]
    captured = completion(prompt, answer, [])
    ids, log_p = torch.tensor(captured.ids.astype(np.int64)), torch.tensor(captured.log_probabilities)
    for temperature in (0.5, 0.7, 1.0, 1.3):
        p, q = (torch.softmax(each / temperature, dim=1) for each in logits)
        if top_k:
            p = torch.where(p >= p.topk(top_k).values[:, -1:], p, 0.0)
            p = p / p.sum(dim=1, keepdim=True)
        likeliest = p.sort(descending=True, dim=1)
        nucleus = likeliest.values * (likeliest.values.cumsum(dim=1) - likeliest.values < top_p)
        p = torch.zeros_like(p).scatter(1, likeliest.indices, nucleus / nucleus.sum(dim=1, keepdim=True))
        alpha = torch.minimum(p, q).sum(dim=1).numpy()
        header = replace(captured.header, temperature=temperature, top_p=top_p, top_k=top_k)
        low, high = overlap(logits[1], Seen(ids, log_p, header))
        assert (low <= alpha + 1e-9).all() and (alpha <= high + 1e-9).all() and (high > low).any()
        if (temperature, top_p, top_k) == (
            1.0,
            1.0,
            0,
        ):  # where the others lie, and what float16 rounded, is all that is not known
            assert (high - low <= (1.0 - log_p.double().exp().sum(dim=1)).numpy() + 0.01).all()


def test_learning_is_a_bare_torch_loop_on_the_same_batches() -> None:
    """AdamW of torch over KL of the captured tokens and the rest, written out: the same weights after four steps."""
    values = answered("chat", 8)
    learner = draft(draws=0, updates=2, step_completions=4, rate=2e-3)
    learner.learn_many(batch_of(values))
    bare = deepcopy(model("draft_chat").network)
    optimiser = torch.optim.AdamW(bare.parameters(), lr=2e-3, weight_decay=0.0)
    for group in (list(map(unpack, values[:4])), list(map(unpack, values[4:]))):
        tokens = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor([*each.prompt.tolist(), *each.output.tolist()]) for each in group], batch_first=True
        )
        for _ in range(2):
            logits, losses, weights = bare(tokens).logits, [], []
            for row, value in enumerate(group):
                log_q = torch.log_softmax(logits[row, len(value.prompt) - 1 : value.tokens - 1], dim=1)
                p = torch.tensor(value.log_probabilities.astype(np.float32)).exp()
                known = log_q.gather(1, torch.tensor(value.ids.astype(np.int64)))
                p = torch.cat([p, (1 - p.sum(dim=1, keepdim=True)).clamp(min=0)], dim=1)
                p = p / p.sum(dim=1, keepdim=True)
                log_q = torch.cat([known, (1 - known.exp().sum(dim=1, keepdim=True)).clamp(min=1e-7).log()], dim=1)
                losses.append((torch.xlogy(p, p) - p * log_q).sum(dim=1))
                counts, at = torch.full((len(value.output),), 0.25), 1
                for accepted in value.accepted.tolist():
                    if accepted < K and at + accepted < len(value.output):
                        counts[at + accepted] = 1.0
                    at += accepted + 1
                weights.append(counts)
            loss = (torch.cat(losses) * torch.cat(weights)).sum() / torch.cat(weights).sum()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
            optimiser.step()
    for name, weight in bare.named_parameters():
        apart = (learner.weights[name] - weight).detach().abs()  # AdamW enlarges the rounding of gradients that are near 0
        assert (apart > 1e-6).float().mean() < 0.005 and apart.max() < 0.05 * 4 * 2e-3, name
        assert not torch.equal(weight, dict(model("draft_chat").network.named_parameters())[name])


def test_a_completion_takes_little_more_than_its_tokens() -> None:
    """Of real answers with their prompts: at most 1.4 x (4 + 6 top) bytes for a token of the answer."""
    values = answered("chat", 8)
    assert sum(map(len, values)) <= 1.4 * (4 + 6 * TOP) * sum(len(unpack(value).output) for value in values)


def test_a_folder_that_was_replaced_is_refused() -> None:
    """A draft begins with what was declared, or not at all."""
    start = Start(str(pair_folder("target")), fingerprint(pair_folder("draft_chat")), "", K, TOP)
    with pytest.raises(ConfigError, match="has sha256"):
        Draft(DraftConfig(start=start), 0, 0)
