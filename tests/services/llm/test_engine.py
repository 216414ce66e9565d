"""A real engine of vLLM: what it answers is what it would without us, and is captured by one method, whoever asks and how."""

from contextvars import ContextVar
from dataclasses import replace

import numpy as np
import pytest
from answered import TOP, K, answers, model, pair_folder, prompts
from llm_engine import ALLOWED, begun_draft, events, replayed

from millrace.learners.draft.completion import pack
from millrace.services.llm.capture import Asked

pytestmark = [pytest.mark.llm, pytest.mark.slow]

UNSEEN = replace(ALLOWED, capture=False)
GREEDY = {"max_tokens": 24, "temperature": 0}
CHAT = [{"role": "user", "content": "how do i install a package on ubuntu"}]


@pytest.fixture(autouse=True)
def nothing_before(running):
    """What tests before captured is not looked at."""
    running.captured()


def choices(replies):
    """The choices of answers that went well."""
    assert {reply.status_code for reply in replies} == {200}, [reply.text for reply in replies]
    return [choice for reply in replies for choice in reply.json()["choices"]]


def test_sixteen_prompts_at_once_are_answered_as_transformers_decodes(running):
    """In float32 at temperature 0: the target's own greedy answers, while they are captured."""
    texts = prompts("chat", 16)
    asked = [{"prompt": text, **GREEDY, "return_token_ids": True} for text in texts]
    answered = answers(texts, most=24)
    assert [choice["token_ids"] for choice in choices(running.ask(asked))] == [answer for _, answer in answered]
    seen = {tuple(completion.prompt.tolist()): completion.output.tolist() for completion, _ in running.captured()}
    assert seen == {tuple(prompt): answer for prompt, answer in answered}


def test_log_probabilities_are_those_of_the_target(running):
    """Of each position the likeliest tokens, and what one pass of transformers over the answer says of them."""
    import torch

    running.ask([{"prompt": text, **GREEDY} for text in prompts("chat", 6, start=50)])
    for completion, _ in running.captured():
        tokens = [*completion.prompt.tolist(), *completion.output.tolist()]
        own = torch.log_softmax(model("target").logits(tokens[:-1])[len(completion.prompt) - 1 :], dim=1).numpy()
        captured = completion.log_probabilities.astype(np.float64)
        taken = np.take_along_axis(own, completion.ids.astype(np.int64), axis=1)
        assert np.abs(captured - taken).max() < 0.01  # of float16, whose step is 1/128 from 8 on
        assert np.abs(np.sort(own, axis=1)[:, ::-1][:, :TOP] - captured).max() < 0.01


@pytest.mark.parametrize("asked", [None, 0, 2])
def test_a_caller_gets_the_log_probabilities_that_were_asked_for(running, asked):
    """Of /v1/completions, captured or not: the same answer to the letter, and as many entries a token as were asked for."""
    bodies = [{"prompt": text, **GREEDY, "logprobs": asked} for text in prompts("chat", 4, start=70)]
    bodies[0] |= {"prompt_logprobs": 2}
    captured, opted_out = (choices(running.ask(bodies, asked=who)) for who in (ALLOWED, UNSEEN))
    assert captured == opted_out and len(running.captured()) == len(bodies)
    if asked is not None:
        rows = [row for choice in captured for row in choice["logprobs"]["top_logprobs"]]
        assert {len(row) for row in rows} <= {max(asked, 1), asked + 1}


@pytest.mark.parametrize("asked", [{}, {"logprobs": True, "top_logprobs": 3}])
def test_chat_is_captured_too(running, asked):
    """The same of /v1/chat/completions."""
    body = {"messages": CHAT, **GREEDY, **asked}
    captured, opted_out = (choices(running.ask([body], "/v1/chat/completions", who)) for who in (ALLOWED, UNSEEN))
    assert captured == opted_out
    [(completion, tenant)] = running.captured()
    assert tenant == b"tenant" and completion.header.domain == "chat"
    text = model("target").tokenizer.decode(completion.output.tolist(), skip_special_tokens=True)
    assert text == captured[0]["message"]["content"]


def test_a_stream_is_captured_as_the_whole_answer(running):
    """Of completions and chat: what the pieces say together is the answer, and the record is the same."""
    whole = {"prompt": prompts("chat", 1, start=80)[0], **GREEDY}
    [choice] = choices(running.ask([whole]))
    [(first, _)] = running.captured()
    running.do(running.engine.client.reset_prefix_cache())
    [reply] = running.ask([{**whole, "stream": True, "logprobs": 2}])
    pieces = [piece for event in events(reply.text) for piece in event["choices"]]
    assert "".join(piece["text"] for piece in pieces) == choice["text"] and len(pieces) > 1
    assert {len(row) for piece in pieces for row in piece["logprobs"]["top_logprobs"]} <= {2, 3}
    [(second, _)] = running.captured()
    assert pack(replace(second, header=replace(second.header, id=first.header.id))) == pack(first)
    running.ask([{"messages": CHAT, **GREEDY, "stream": True}], "/v1/chat/completions")
    assert len(running.captured()) == 1


def test_each_choice_of_an_answer_is_a_record(running):
    """Three choices at temperature 0.7, whole and as a stream; none has counts of its own as served."""
    for more in ({}, {"stream": True}):
        body = {"prompt": prompts("chat", 1, start=81)[0], "max_tokens": 12, "temperature": 0.7, "n": 3, **more}
        [reply] = running.ask([body])
        seen = [completion for completion, _ in running.captured()]
        assert len({completion.header.id for completion in seen}) == 3 and reply.status_code == 200
        assert {completion.header.temperature for completion in seen} == {0.7}
        decode = model("target").tokenizer.decode
        texts = {decode(completion.output.tolist(), skip_special_tokens=True) for completion in seen}
        if not more:
            assert texts == {choice["text"] for choice in reply.json()["choices"]}


def test_tools_are_captured_and_a_grammar_is_flagged(running):
    """A tool that the caller demands binds the answer to a grammar: it is captured, and no draft learns it."""
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    body = {"messages": CHAT, "max_tokens": 60, "temperature": 0, "tools": [tool], "tool_choice": "required"}
    [reply] = running.ask([body], "/v1/chat/completions")
    assert reply.status_code == 200, reply.text
    [(completion, _)] = running.captured()
    assert completion.header.flags == ("grammar",) and not completion.learnable


@pytest.mark.parametrize(
    ("asked", "flags"),
    [
        ({"presence_penalty": 0.5}, ("penalty",)),
        ({"repetition_penalty": 1.2}, ("penalty",)),
        ({"min_tokens": 3}, ("bias",)),
        ({"bad_words": ["sudo"]}, ("bias",)),
        ({"structured_outputs": {"choice": ["yes", "no"]}, "frequency_penalty": 0.1}, ("grammar", "penalty")),
        ({"top_p": 0.9, "top_k": 7, "temperature": 0.8, "stop": ["?"]}, ()),
    ],
)
def test_what_bends_the_distribution_is_flagged(running, asked, flags):
    """Each setting whose tokens a draft cannot learn, and those that it can."""
    running.do(running.engine.client.reset_prefix_cache())
    choices(running.ask([{"prompt": prompts("chat", 1, start=82)[0], **GREEDY, **asked}]))
    [(completion, _)] = running.captured()
    assert completion.header.flags == flags and completion.learnable == (not flags)
    if not flags:
        header = completion.header
        assert (header.temperature, header.top_p, header.top_k, header.ended) == (0.8, 0.9, 7, completion.header.ended)


@pytest.mark.parametrize("asked", [{"min_p": 0.1, "temperature": 0.8}, {"logit_bias": {"5": 2.0}}])
def test_what_vllm_does_not_answer_beside_a_draft_is_counted(running, asked):
    """It is refused with 400, and counted as a choice of which no token came."""
    before = running.engine.counts.dropped["no_tokens"]
    [reply] = running.ask([{"prompt": "a", **GREEDY, **asked}])
    assert reply.status_code == 400 and "speculative" in reply.text
    assert running.engine.counts.dropped["no_tokens"] == before + 1 and running.captured() == []


def test_nothing_is_captured_of_those_who_do_not_want_it(running):
    """Who opted out, who said nothing, and another tenant than those named: each is answered, and counted with the reason."""
    counts = running.engine.counts
    before, dropped = counts.seen, counts.dropped.copy()
    body = {"prompt": prompts("chat", 1)[0], **GREEDY}
    choices(running.ask([body], asked=UNSEEN) + running.ask([body], asked=Asked()))
    tap, llm = running.engine.tap, running.engine.tap.llm
    tap.llm = replace(llm, capture=("acme",))
    try:
        choices(running.ask([body]) + running.ask([body], asked=Asked(b"acme", "", capture=True)))
    finally:
        tap.llm = llm
    assert [tenant for _, tenant in running.captured()] == [b"acme"]
    assert counts.seen == before + 4 and counts.dropped - dropped == {"opted_out": 2, "tenant": 1}


def test_counts_of_steps_stay_here_unless_they_may_be_shown(running):
    """They tell of the text of others. vLLM has a place for them in an answer, which is empty unless show_counts says so."""
    body = {"messages": CHAT, **GREEDY}
    tap, llm = running.engine.tap, running.engine.tap.llm
    [hidden] = running.ask([body], "/v1/chat/completions")
    tap.llm = replace(llm, show_counts=True)
    try:
        [shown] = running.ask([body], "/v1/chat/completions")
    finally:
        tap.llm = llm
    assert "spec" not in hidden.text and "accepted" not in hidden.text
    assert "speculative_decoding" in shown.text
    assert hidden.json()["choices"] == shown.json()["choices"]


def test_a_caller_who_leaves_is_captured_as_far_as_the_answer_came(running):
    """After two pieces of a stream: a record that ends by abort, whose steps nobody knows, and the engine answers others."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from millrace.services.llm.capture import ASKED

    assert isinstance(ASKED, ContextVar)
    tokens = model("target").tokenizer(prompts("chat", 1, start=90)[0])["input_ids"]

    async def leave() -> int:
        ASKED.set(ALLOWED)
        params = SamplingParams(max_tokens=200, ignore_eos=True, temperature=0, output_kind=RequestOutputKind.DELTA)
        stream = running.engine.client.generate({"type": "token", "prompt_token_ids": tokens}, params, "leaver")
        come = [len((await anext(stream)).outputs[0].token_ids) for _ in range(2)]
        await stream.aclose()
        return sum(come)

    came = running.do(leave())
    [(completion, _)] = running.captured()
    assert completion.header.ended == "abort" and len(completion.output) == came and not completion.aligned
    assert np.isnan(completion.served()).all() and completion.header.id == "leaver"
    choices(running.ask([{"prompt": "still there", **GREEDY}]))


def test_a_request_longer_than_the_draft_takes_is_refused_or_ends_before(running):
    """Beyond its context the draft of every request of the batch would be token 0; so none gets there."""
    most = running.engine.client.most
    assert most == 1024 - 2 * K
    [refused] = running.ask([{"prompt": [5] * most, **GREEDY}])
    assert refused.status_code == 400 and f"take {most}" in refused.text
    words = model("target").tokenizer("".join(prompts("chat", 60, start=900)))["input_ids"]
    body = {"prompt": words[: most - 20], "max_tokens": 100, "temperature": 0, "ignore_eos": True}
    shortened = running.engine.counts.shortened
    [choice] = choices(running.ask([body]))
    [(completion, _)] = running.captured()
    assert choice["finish_reason"] == "length" and completion.tokens == most
    assert running.engine.counts.shortened == shortened + 1
    assert [tuple(hits for _, hits, _ in completion.steps())] == [each.steps for each in replayed([completion], begun_draft())]
    assert set(completion.drafted.tolist()[:-1]) == {K}


@pytest.mark.parametrize("named", [{"request_id": "j" * 6000}, {"request_id": "\ud800\n"}])
def test_an_id_that_the_caller_names_fits_a_record(running, named):
    """However long, and whatever is in it: the log takes the record, or vLLM refuses the request."""
    [reply] = running.ask([{"prompt": "a word", **GREEDY, **named}])
    seen = running.captured()  # each was packed, and unpacked as the log would
    assert len(seen) == (reply.status_code == 200) and all(len(completion.header.id) <= 128 for completion, _ in seen)


def test_a_search_over_beams_gives_no_records(running):
    """It asks for one token again and again: nothing is drafted of such, and each is counted."""
    before = running.engine.counts.dropped["one_token"]
    body = {"prompt": "a word", "max_tokens": 4, "temperature": 0, "use_beam_search": True, "n": 2}
    [reply] = running.ask([body])
    assert reply.status_code == 200 and running.captured() == []
    assert running.engine.counts.dropped["one_token"] > before


def test_vllms_own_series_are_told(running):
    """As Prometheus reads them: those of speculation, too."""
    choices(running.ask([{"prompt": "a word", **GREEDY}]))
    series = running.engine.series()
    assert "vllm:spec_decode_num_accepted_tokens_total" in series and 'model_name="millrace-test"' in series


def test_the_models_place_on_this_machine_is_not_told(running):
    """The list of models names what callers write, and no folder."""

    async def models() -> str:
        import httpx

        async with httpx.AsyncClient(transport=httpx.ASGITransport(running.engine.app), base_url="http://engine") as client:
            return (await client.get("/v1/models")).text

    told = running.do(models())
    assert "millrace-test" in told and str(pair_folder("target")) not in told


def test_steps_are_counted_as_the_replay_counts_them(running):
    """At temperature 0, chat and SQL, up to 64 at once: each step of each answer, ended by stop and by length.

    The replay never saw the engine. It is checked against a loop of transformers' own in the tests of learners.
    """
    running.do(running.engine.client.reset_prefix_cache())
    texts = prompts("chat", 64, start=200) + prompts("sql", 16, start=20)
    choices(running.ask([{"prompt": text, "max_tokens": 40, "temperature": 0} for text in texts]))
    seen = [completion for completion, _ in running.captured()]
    assert len(seen) == len(texts) and all(completion.aligned and not completion.header.cached for completion in seen)
    served = [tuple(hits for _, hits, _ in completion.steps()) for completion in seen]
    assert served == [each.steps for each in replayed(seen, begun_draft())]
    accepted, tested = np.sum([completion.served() for completion in seen], axis=0)
    assert sum(len(completion.output) for completion in seen) >= 2000 and accepted / tested > 0.3
    assert {hits for steps in served for hits in steps} == {*range(K + 1)}
    assert {completion.header.ended for completion in seen} == {"stop", "length"}
    packed = sum(len(pack(completion)) for completion in seen)
    assert packed <= 1.4 * (4 + 6 * TOP) * sum(len(completion.output) for completion in seen)
