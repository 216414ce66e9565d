"""A draft is swapped into a running engine: what is wrong is refused before the engine is touched, and answers never change."""

import asyncio
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from answered import answers, pair_folder, prompts
from llm_engine import begun_draft, named, replayed
from safetensors.numpy import load_file, save_file

from millrace.learners.errors import MillraceError
from millrace.services.errors import SwapRefusedError

pytestmark = [pytest.mark.llm, pytest.mark.slow]

FEW = 12  # tokens of an answer where a few steps are enough to tell two drafts apart
NOISE = 0.1  # how far weights of another draft are from the first one's, of themselves
DOWN = "model.layers.1.mlp.down_proj.weight"


def changed(running, seq, change, config=None):
    """A draft as ``change`` makes it of the first one's tensors, as version ``main.SEQ``."""
    folder = running.folder / f"main.{seq}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(running.folder / "main.1", folder)
    save_file(
        change(load_file(running.folder / "main.1" / "model.safetensors")), folder / "model.safetensors", {"format": "pt"}
    )
    if config:
        said = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(said | config))
    return named(folder, seq)


def other(running, seq):
    """A draft that proposes otherwise: every weight is another, as after learning, those of the embedding and its head too."""
    draws = np.random.default_rng(seq)
    noise = {name: draws.standard_normal(shape).astype(np.float32) for name, shape in shapes(running).items()}
    return changed(running, seq, lambda tensors: {name: value * (1 + NOISE * noise[name]) for name, value in tensors.items()})


def shapes(running):
    """Of the first draft's tensors."""
    return {name: value.shape for name, value in load_file(running.folder / "main.1" / "model.safetensors").items()}


@pytest.fixture(autouse=True)
def the_first_draft_again(running):
    """Each test begins and ends with the first draft, nothing cached and nothing captured."""
    running.do(running.engine.client.reset_prefix_cache())
    running.captured()
    first = running.engine.held
    yield
    running.do(running.engine.swap(first, newer=False))


def asked(texts, most=40):
    """Completions at temperature 0."""
    return [{"prompt": text, "max_tokens": most, "temperature": 0, "return_token_ids": True} for text in texts]


def tokens(replies):
    """The tokens of answers."""
    return [reply.json()["choices"][0]["token_ids"] for reply in replies]


def served(running, texts, draft, cached=False, most=40):
    """Steps of fresh answers, which are the replay's with this draft; and the answers."""
    if not cached:
        running.do(running.engine.client.reset_prefix_cache())
    answered = tokens(running.ask(asked(texts, most)))
    seen = [completion for completion, _ in running.captured()]
    steps = [tuple(hits for _, hits, _ in completion.steps()) for completion in seen]
    assert steps == [each.steps for each in replayed(seen, begun_draft(draft.folder))]
    assert {(completion.header.epoch, completion.header.seq) for completion in seen} == {draft.identity.place}
    assert all(completion.header.flags == () and not completion.header.cached for completion in seen)
    return {tuple(completion.prompt.tolist()): step for completion, step in zip(seen, steps, strict=True)}, answered


def test_answers_never_change_and_counts_follow_the_draft(running):
    """Swapped while 48 prompts are answered, and back again: answers are transformers' own, also those that span the swap.

    Before and after, each step is the replay's with the draft of then, and the two drafts differ.
    """
    first, second, texts = running.engine.held, other(running, 2), prompts("chat", 48, start=600)
    right = [answer for _, answer in answers(texts, most=40)]
    before, answered = served(running, texts, first)
    assert answered == right
    running.do(running.engine.client.reset_prefix_cache())

    async def under_load():
        work = [asyncio.create_task(running.post("/v1/completions", body)) for body in asked(texts)]
        while not any(task.done() for task in work):
            await asyncio.sleep(0.001)
        assert not all(task.done() for task in work)
        seconds = await running.engine.swap(second)
        return seconds, await asyncio.gather(*work)

    seconds, replies = running.do(under_load())
    assert tokens(replies) == right and seconds > 0.0
    during = [completion for completion, _ in running.captured()]
    spanning = [completion for completion in during if "swap" in completion.header.flags]
    assert spanning and all(np.isnan(completion.served()).all() and completion.learnable for completion in spanning)
    assert len(spanning) < len(during) and {completion.header.seq for completion in during} == {1}
    after, answered = served(running, texts, second)
    assert answered == right and after.keys() == before.keys() and after != before
    running.do(running.engine.swap(first, newer=False))
    again, answered = served(running, texts, first)
    assert answered == right and again == before


def without(name):
    """All tensors but one."""
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def shaped(tensors):
    """One tensor turned round."""
    return {**tensors, DOWN: np.ascontiguousarray(tensors[DOWN].T)}


def not_finite(tensors):
    """One weight that is none."""
    broken = tensors[DOWN].copy()
    broken[3, 5] = np.nan
    return {**tensors, DOWN: broken}


def larger(tensors):
    """One token more."""
    name = "model.embed_tokens.weight"
    return {**tensors, name: np.concatenate([tensors[name], tensors[name][:1]])}


@pytest.mark.parametrize(
    ("change", "config", "sentence"),
    [
        (without(DOWN), None, f"it lacks {DOWN}"),
        (lambda tensors: {key: value for key, value in tensors.items() if ".1." not in key}, None, "and 6 more"),
        (lambda tensors: {**tensors, "model.extra": tensors[DOWN]}, None, "it has beside what a draft has model.extra"),
        (shaped, None, "has shape"),
        (not_finite, None, f"its {DOWN} has weights that are not finite"),
        (larger, {"vocab_size": 4097}, "vocab_size = 4097"),
        (dict, {"num_hidden_layers": 3}, "num_hidden_layers = 3"),
        (dict, {"model_type": "qwen2"}, "model_type = 'qwen2'"),
    ],
)
def test_what_is_no_draft_of_this_engine_is_refused(running, change, config, sentence):
    """Said with its reason; the engine keeps the draft it has, and takes the next good one at once."""
    first = running.engine.held
    with pytest.raises(SwapRefusedError, match="main.2 is refused") as refused:
        running.do(running.engine.swap(changed(running, 2, change, config)))
    assert sentence in str(refused.value)
    running.engine.check()
    assert running.engine.held == first
    served(running, prompts("chat", 4, start=700), first, most=FEW)
    good = other(running, 3)
    running.do(running.engine.swap(good))
    served(running, prompts("chat", 4, start=700), good, most=FEW)


def cut(path):
    """The file ends early."""
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path):
    """One bit of a weight is another."""
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [cut, flipped, lambda path: path.unlink()])
def test_a_file_that_was_changed_on_the_way_is_refused(running, harm):
    """It is not what its sha256 says, or not there."""
    draft = other(running, 2)
    harm(draft.folder / "model.safetensors")
    with pytest.raises(SwapRefusedError, match=r"cut or changed|cannot be read"):
        running.do(running.engine.swap(draft))
    running.engine.check()


def test_an_older_version_is_refused_unless_the_ledger_goes_back(running):
    """Also the same version once more; a rollback takes it."""
    first, second = running.engine.held, other(running, 2)
    running.do(running.engine.swap(second))
    for draft in (first, second):
        with pytest.raises(SwapRefusedError, match="is not newer than main.2"):
            running.do(running.engine.swap(draft))
    assert running.do(running.engine.swap(first, newer=False)) > 0.0
    assert running.engine.held == first


def test_a_load_that_fails_inside_vllm_goes_back_to_the_last_good_draft(running):
    """By itself vLLM would fail at the next load too; here the draft before is whole again, and the next good one is taken."""
    first, texts = running.engine.held, prompts("chat", 8, start=720)
    before, _ = served(running, texts, first)
    running.do(running.engine.client.collective_rpc("fail_loads", args=(1,)))
    with pytest.raises(SwapRefusedError, match="vLLM does not load it"):
        running.do(running.engine.swap(other(running, 2)))
    running.engine.check()
    assert served(running, texts, first)[0] == before
    running.do(running.engine.swap(other(running, 3)))
    assert served(running, texts, running.engine.held)[0] != before


def test_an_engine_without_a_whole_draft_says_so_until_it_has_one(running):
    """Where going back fails as well: the check raises, and answers are right all the same."""
    running.do(running.engine.client.collective_rpc("fail_loads", args=(2,)))
    with pytest.raises(SwapRefusedError, match="vLLM does not load it"):
        running.do(running.engine.swap(other(running, 2)))
    with pytest.raises(MillraceError, match=r"no whole draft since main.2"):
        running.engine.check()
    texts = prompts("chat", 4, start=740)
    assert tokens(running.ask(asked(texts))) == [answer for _, answer in answers(texts, most=40)]
    running.captured()
    running.do(running.engine.swap(other(running, 3)))
    running.engine.check()
    served(running, texts, running.engine.held)
    assert running.engine.held.identity.seq == 3


def test_what_nobody_foresaw_is_a_refusal_and_the_engine_says_that_it_is_not_sure(running):
    """vLLM hands it on as a bare exception; the next good draft makes the engine whole."""
    running.do(running.engine.client.collective_rpc("raise_at_next_swap"))
    with pytest.raises(SwapRefusedError, match="main.2 is refused"):
        running.do(running.engine.swap(other(running, 2)))
    with pytest.raises(MillraceError, match="Nobody knows which draft"):
        running.engine.check()
    running.do(running.engine.swap(other(running, 3)))
    running.engine.check()


@pytest.mark.parametrize("policy", ["lazy", "reset", "drain"])
def test_what_becomes_of_cached_prompts(running, policy):
    """Left alone they count as cached, and are kept out of served figures; after a reset or a drain counts are the replay's."""
    tap, llm = running.engine.tap, running.engine.tap.llm
    texts = [f"{text} {text} {text}" for text in prompts("chat", 6, start=760)]
    right = [answer for _, answer in answers(texts, most=40)]
    served(running, texts, running.engine.held)
    second, tap.llm = other(running, 2), replace(llm, kv_policy=policy)
    try:
        running.do(running.engine.swap(second))
        if policy != "lazy":
            assert served(running, texts, second, cached=True)[1] == right
            return
        assert tokens(running.ask(asked(texts))) == right
        seen = [completion for completion, _ in running.captured()]
        assert all(completion.header.cached and np.isnan(completion.served()).all() for completion in seen)
    finally:
        tap.llm = llm


def test_a_drain_lets_running_requests_end_first(running):
    """All were answered by the draft that they began with, and new ones wait meanwhile."""
    tap, llm = running.engine.tap, running.engine.tap.llm
    tap.llm = replace(llm, kv_policy="drain")
    texts = prompts("chat", 24, start=800)

    async def swapped():
        work = [asyncio.create_task(running.post("/v1/completions", body)) for body in asked(texts)]
        while not any(task.done() for task in work):
            await asyncio.sleep(0.001)
        await running.engine.swap(other(running, 2))
        return await asyncio.gather(*work)

    try:
        replies = running.do(swapped())
    finally:
        tap.llm = llm
    assert tokens(replies) == [answer for _, answer in answers(texts, most=40)]
    seen = [completion for completion, _ in running.captured()]
    whole = [completion for completion in seen if completion.header.flags == ()]
    assert whole and [tuple(hits for _, hits, _ in each.steps()) for each in whole] == [
        each.steps for each in replayed(whole, begun_draft(pair_folder("draft_chat")))
    ]
    assert {completion.header.seq for completion in seen} == {1}


def test_a_drain_does_not_wait_for_ever(running, caplog):
    """One caller's long answer is swapped under after a while; it is right all the same, and flagged."""
    caplog.set_level("WARNING", logger="millrace")  # vLLM's application raises the root's
    tap, llm, patience_s = running.engine.tap, running.engine.tap.llm, running.engine.drain_s
    tap.llm, running.engine.drain_s = replace(llm, kv_policy="drain"), 0.05
    long = {**asked(prompts("chat", 1, start=840), most=200)[0], "ignore_eos": True}

    async def swapped():
        work = asyncio.create_task(running.post("/v1/completions", long))
        states = running.engine.client.output_processor.request_states
        while not any(not state.is_prefilling for state in states.values()):  # its first token has come
            await asyncio.sleep(0.001)
        await running.engine.swap(other(running, 2))
        assert not work.done()
        return await work

    try:
        reply = running.do(swapped())
    finally:
        tap.llm, running.engine.drain_s = llm, patience_s
    [(completion, _)] = running.captured()
    assert reply.status_code == 200 and "swap" in completion.header.flags and len(completion.output) == 200
    assert "still run after" in caplog.text
