"""`millrace status` and /metrics while the pipeline learns: what they say belongs together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from pipelines import PIPELINE, here, pipeline_in

from millrace.services.config.config import load_pipeline
from millrace.services.decisions import status as looking
from millrace.services.metrics import learning
from millrace.services.metrics.definitions import Sample
from millrace.services.pipeline.instance import Instance


def by_status(instance: Instance) -> tuple[float, float, float]:
    """Records, seq and lag as `millrace status` has them."""
    facts = looking.status(instance, "main")
    return facts["records"], facts["seq"], facts["lag_rows"]


def by_metrics(instance: Instance) -> tuple[float, float, float]:
    """The same of a scrape."""
    values = {
        sample.name: sample.value for sample in learning.Learning(instance, "main")().samples if isinstance(sample, Sample)
    }
    return values["millrace_records_total"], values["millrace_seq"], values["millrace_lag_rows"]


@pytest.mark.parametrize(("module", "told"), [(looking, by_status), (learning, by_metrics)], ids=["status", "metrics"])
def test_a_seq_is_no_older_than_the_counts_beside_it(
    module: ModuleType, told: Callable[[Instance], tuple[float, float, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that ends meanwhile is in both or in seq alone: whoever waits for that seq finds what was counted."""
    pipeline_in(tmp_path, rows=200, text=PIPELINE + "step_rows = 25\n")
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml", "--rows", "50"]):
        assert here(*words, cwd=tmp_path).exit_code == 0
    instance = Instance(load_pipeline(tmp_path / "digits.toml"), tmp_path / ".millrace" / "digits")
    read_output, counted_at = module.last_output, []

    def after_a_step(*arguments: object) -> object:
        """Someone learns just before the counts are read."""
        assert here("run", "digits.toml", "--rows", "25", cwd=tmp_path).exit_code == 0
        output = read_output(*arguments)
        counted_at.append(output.seq)
        return output

    monkeypatch.setattr(module, "last_output", after_a_step)
    records, seq, lag = told(instance)
    assert records == 75 and seq >= counted_at[0] and lag >= 0
