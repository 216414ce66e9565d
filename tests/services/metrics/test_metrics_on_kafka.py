"""The metrics of a branch whose log, journal and ledger lie on a real broker, read again and again by one process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker_topics import forgotten, on
from either_log import KAFKA
from pipelines import PIPELINE, facts, flower_rows, millrace, pipeline_in

from millrace.services.config.config import load_pipeline
from millrace.services.data.send import send
from millrace.services.metrics.definitions import Sample
from millrace.services.metrics.learning import Learning
from millrace.services.pipeline.instance import Instance
from millrace.streams.records import Record

pytestmark = KAFKA


@pytest.fixture
def tables(broker, tmp_path: Path) -> Iterator[str]:
    """Where to put a pipeline called digits, of which the broker knows nothing afterwards."""
    with forgotten(broker, tmp_path):
        yield on(broker)


def test_lag_and_counts_on_kafka_are_what_status_shows(tables: str, tmp_path: Path) -> None:
    """Also after more was learned, by a reader that goes on where it was."""
    instance = Instance(load_pipeline(pipeline_in(tmp_path, rows=1, text=PIPELINE + tables)), tmp_path / ".millrace" / "digits")
    send(instance, flower_rows(60), 0.0, False)
    learning, now_ms = Learning(instance, "main"), time.time_ns() // 1_000_000
    for rows in (60, 61):
        assert millrace("run", "digits.toml", cwd=tmp_path).returncode == 0
        values = {sample.name: sample.value for sample in learning().samples if isinstance(sample, Sample)}
        status = facts(tmp_path)
        assert (values["millrace_records_total"], values["millrace_lag_rows"], values["millrace_lag_seconds"]) == (rows, 0, 0)
        assert values["millrace_seq"] == status["seq"] and status["records"] == rows
        instance.log().append("digits", [Record(flower_rows(1)[0], timestamp_ms=now_ms - 300_000)])
        values = {sample.name: sample.value for sample in learning().samples if isinstance(sample, Sample)}
        assert values["millrace_lag_rows"] == 1 and values["millrace_lag_seconds"] >= 300
