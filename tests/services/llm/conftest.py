"""One engine for all tests of this folder: its start takes longer than most of them."""

import os
from importlib.util import find_spec

import pytest
from llm_engine import Running, pair


def pytest_collection_modifyitems(items):
    """Without vLLM the tests that need it are skipped, and say which command runs them."""
    reason = "vLLM is not in this environment: `make test-llm` has one that it is in"
    for item in items:
        if item.get_closest_marker("llm") is None:
            continue
        item.add_marker(pytest.mark.filterwarnings("default"))  # torch and vLLM warn of what they do themselves
        if find_spec("vllm") is None and not os.environ.get("MILLRACE_LLM"):  # where it must be, its absence fails
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def running(tmp_path_factory):
    """An engine with the chat draft, whose tests leave it with that draft."""
    started = Running(tmp_path_factory.mktemp("drafts"))
    started.start(pair())
    yield started
    started.close()
