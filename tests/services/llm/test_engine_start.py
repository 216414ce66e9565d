"""An engine that cannot start says in one sentence what is wrong."""

import asyncio
import os
import shutil
from dataclasses import replace

import pytest
from answered import pair_folder
from llm_engine import EAGER, SETTINGS, begun_draft, pair, written

from millrace.learners.errors import ConfigError, MillraceError
from millrace.services.llm.capture import ENVIRONMENT

pytestmark = [pytest.mark.llm, pytest.mark.slow]


def start(llm, draft):
    """An engine with this table and draft."""
    os.environ.update(ENVIRONMENT | SETTINGS)
    from millrace.services.llm.engine import Engine

    return asyncio.run(Engine.start(llm, "millrace-test", draft, lambda completion, tenant: None))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--dtype", "float99"), "float99"),
        (("--no-such-option",), "no-such-option"),
        (("--model", "another"), "model is not to be written"),
        (("--speculative-config.num_speculative_tokens", "8"), "speculative_config is not to be written"),
        (("-sc", '{"method": "ngram", "num_speculative_tokens": 2}'), "speculative_config is not to be written"),
        (("--max-logprob", "1"), "max_logprobs is not to be written"),
        (("--logprobs-mode", "processed_logprobs"), "logprobs_mode is not to be written"),
        (("--api-key", "secret"), "api_key is not to be written"),
    ],
)
def test_options_that_vllm_does_not_take_are_named(tmp_path, options, sentence):
    """By the word that is wrong, and the key it stands in."""
    with pytest.raises(ConfigError, match="llm.options") as refused:
        start(pair(options=options), written(begun_draft(), tmp_path / "draft", 1))
    assert sentence in str(refused.value)


def test_a_target_that_is_none_is_named(tmp_path):
    """Its folder has a config that vLLM cannot read."""
    shutil.copytree(pair_folder("target"), tmp_path / "target")
    (tmp_path / "target" / "config.json").chmod(0o644)
    (tmp_path / "target" / "config.json").write_text("{}")
    draft = written(begun_draft(), tmp_path / "draft", 1)
    with pytest.raises(MillraceError, match="vLLM does not start with target"):
        start(replace(pair(options=EAGER), target=str(tmp_path / "target")), draft)
