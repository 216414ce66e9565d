"""`millrace status` while the pipeline learns: what it prints belongs together."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipelines import PIPELINE, here, pipeline_in

from millrace.services.config.config import load_pipeline
from millrace.services.decisions import status as looking
from millrace.services.pipeline.instance import Instance


def test_the_seq_of_status_is_no_older_than_its_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that ends meanwhile is in both or in seq alone: whoever waits for that seq finds what was counted."""
    pipeline_in(tmp_path, rows=200, text=PIPELINE + "step_rows = 25\n")
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml", "--rows", "50"]):
        assert here(*words, cwd=tmp_path).exit_code == 0
    instance = Instance(load_pipeline(tmp_path / "digits.toml"), tmp_path / ".millrace" / "digits")
    read_output, counted_at = looking.last_output, []

    def after_a_step(*arguments: object) -> object:
        """Someone learns just before the counts are read."""
        assert here("run", "digits.toml", "--rows", "25", cwd=tmp_path).exit_code == 0
        output = read_output(*arguments)
        counted_at.append(output.seq)
        return output

    monkeypatch.setattr(looking, "last_output", after_a_step)
    facts = looking.status(instance, "main")
    assert facts["records"] == 75 and facts["seq"] >= counted_at[0] and facts["lag_rows"] >= 0
