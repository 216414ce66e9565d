"""`millrace drafts` without an engine: what the log has, by draft and domain, and what of it cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from draft_pipelines import put, tiny, tiny_values
from pipelines import here, json_lines, pipeline_in

from millrace.learners.draft.completion import unpack

pytest.importorskip("torch", reason="a draft is torch's, the extra `llm`")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests are remembered in the test's own folder, and pipelines lie there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def told(folder: Path) -> list[dict[str, object]]:
    """What the command prints."""
    done = here("drafts", "answers.toml", "--home", str(folder / "home"), "--output", "json", cwd=folder)
    assert done.exit_code == 0, done.output
    return list(json_lines(done.stdout))


def test_each_draft_has_a_row_for_each_domain(tmp_path: Path) -> None:
    """Its counts are those of the completions, added up by hand."""
    instance = tiny(tmp_path)
    for seed, header in enumerate(({"domain": "sql"}, {"domain": "chat"}, {"domain": "sql", "seq": 9})):
        put(instance, tiny_values(5, seed, **header))
    rows = told(tmp_path)
    assert [(row["domain"], row["requests"], row["left_out"]) for row in rows] == [("chat", 5, 0), ("sql", 5, 0), ("sql", 5, 0)]
    assert rows[2]["version"] == "main.9"
    seen = [unpack(value) for value in tiny_values(5, 1, domain="chat")]
    steps = sum(len(each.accepted) for each in seen)
    accepted, tested = np.sum([each.served() for each in seen], axis=0)
    assert rows[0]["alpha"] == pytest.approx(accepted / tested) and rows[0]["tau"] == pytest.approx(1.0 + accepted / steps)


def test_records_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    """Garbage, a completion that was cut, and an empty record: each is told, and hides nothing of those beside it."""
    instance = tiny(tmp_path)
    good = tiny_values(3)
    put(instance, [good[0], b"garbage", good[1], good[2][:-1], b"", good[2]])
    first, last = told(tmp_path)
    assert (first["requests"], last["version"], last["requests"], last["left_out"]) == (3, "unreadable", 3, 3)
    assert last["alpha"] is None and last["tau"] is None


def test_a_pipeline_of_rows_has_no_drafts(tmp_path: Path) -> None:
    """The words name the command that lists its versions."""
    pipeline_in(tmp_path)
    done = here("drafts", "digits.toml", cwd=tmp_path)
    assert done.exit_code != 0 and "millrace versions" in done.output
