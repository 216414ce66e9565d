"""A real engine of vLLM: it answers, and what it answers is captured."""

import pytest
from answered import answers, model, prompts

pytestmark = [pytest.mark.llm, pytest.mark.slow]


def test_a_real_engine_answers_as_transformers_decodes(running):
    """In float32 at temperature 0, sixteen prompts at once: the target's own greedy answers."""
    texts = prompts("chat", 16)
    asked = [{"prompt": text, "max_tokens": 24, "temperature": 0, "return_token_ids": True} for text in texts]
    replies = [reply.json() for reply in running.ask(asked)]
    tokenizer = model("target").tokenizer
    for (_, answer), reply in zip(answers(texts, most=24), replies, strict=True):
        assert reply["choices"][0]["token_ids"] == answer, tokenizer.decode(answer)
