"""That `millrace up` answers as a language model: what has to be there, and what its processes' environment has."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from millrace.learners.distribution import how_to_get
from millrace.learners.errors import MillraceError
from millrace.services.config.config import set_environment
from millrace.services.llm.capture import ENVIRONMENT

VISIBLE = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # else Ray hides every GPU from replicas


def language_model() -> type[Any]:
    """The class of its replicas, once Ray's settings are made."""
    from millrace.services.llm.replica import LanguageModel

    return LanguageModel


def prepare() -> None:
    """Raises: MillraceError where vLLM is not installed."""
    if find_spec("vllm") is None:
        raise MillraceError(
            f"A language model answers by vLLM, which is not installed. On a GPU: {how_to_get('serve,llm-gpu')} "
            f"On a processor, with torch's own index of such builds beside the public one: {how_to_get('serve,llm-cpu')}"
        )
    set_environment({**ENVIRONMENT, **VISIBLE})
