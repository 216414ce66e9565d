"""`millrace up` of a language model, before anything of it starts: how many replicas, and what has to be installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from draft_pipelines import tiny
from pipelines import here, pipeline_in

from millrace.learners.distribution import how_to_get


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests are remembered in the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_rows_need_two_replicas_so_that_one_may_die(tmp_path: Path) -> None:
    """One is refused before anything starts; the words say why."""
    pipeline_in(tmp_path)
    done = here("up", "digits.toml", "--replicas", "1", cwd=tmp_path)
    assert done.exit_code == 2 and "--replicas 1: at least 2, so that one may die" in done.output


def test_without_vllm_a_language_model_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sentence that names both extras, and nothing is started."""
    monkeypatch.setitem(sys.modules, "vllm", None)
    tiny(tmp_path)
    done = here("up", "answers.toml", cwd=tmp_path)
    assert done.exit_code == 1
    assert all(how_to_get(extras) in done.output for extras in ("serve,llm-gpu", "serve,llm-cpu"))
    assert not (tmp_path / ".millrace").exists()
