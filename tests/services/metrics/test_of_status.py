"""The metrics of a branch are what `millrace status` shows: every count, under a name that the definition says."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import msgspec
import pytest
from pipelines import PIPELINE, facts, flower_rows, here, late_rows, pipeline_in

from millrace.services.config.config import load_pipeline
from millrace.services.data.send import send
from millrace.services.metrics.answering import of_replicas, of_trainers
from millrace.services.metrics.definitions import DEFINED, METRICS, Metric, Sample, Samples
from millrace.services.metrics.learning import Learning
from millrace.services.pipeline.instance import Instance
from millrace.services.training.current import Presence
from millrace.services.training.trainer import TrainerStatus
from millrace.streams.labels.join import JoinCounts
from millrace.streams.records import Record
from millrace.streams.state.fates import Counts

SEEN = """
[labels]
horizon_ms = 600000
grace_ms = 60000

[drift]
false_alarm_rows = 1000

[memory]
rows = 64

[evaluate]
share = 0.2
rows = 20
every_rows = 50
"""
ROOT = Path(__file__).resolve().parents[3]
ELSEWHERE = ("recall_", "held_out_recall_", "window_bytes")  # classes are no labels of a metric; a size of each checkpoint


def instance_in(folder: Path, text: str) -> Instance:
    """A pipeline with nothing in its log."""
    return Instance(load_pipeline(pipeline_in(folder, rows=1, text=text)), folder / ".millrace" / "digits")


def ran(folder: Path) -> None:
    """All of the log was learned."""
    done = here("run", "digits.toml", cwd=folder)
    assert done.exit_code == 0, done.output


def shown_as(sample: Sample) -> str:
    """What `status` calls a sample; nothing where it does not show it."""
    metric = DEFINED[sample.name]
    return metric.shown.format(**dict(zip(metric.labels, sample.labels, strict=True))).removesuffix("_")


def missing(status: dict[str, object], samples: Samples) -> list[str]:
    """The numbers of a status that no sample has."""
    told = {shown_as(sample): sample.value for sample in samples if isinstance(sample, Sample)}
    numbers = {name: value for name, value in status.items() if isinstance(value, (int, float))}
    return [name for name, value in numbers.items() if told.get(name) != value and not name.startswith(ELSEWHERE)]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Instance]:
    """Rows, late labels and garbage, of which some was refused and some learned otherwise than it came."""
    folder = tmp_path_factory.mktemp("seen")
    instance = instance_in(folder, PIPELINE.replace("size = 4", 'size = 4\nlow = 0\nhigh = 24\noutside = "clip"', 1) + SEEN)
    rows = [json.loads(row) for row in flower_rows(300)]
    rows[100]["x"] = [1e9, 0, 0, 0]
    del rows[101]["site"], rows[102]["x"]
    send(instance, [json.dumps(row).encode() for row in rows], 0.0, False)
    send(instance, late_rows(80), 0.0, True)
    ran(folder)
    return folder, instance


def test_every_count_of_a_status_is_a_metric(seen: tuple[Path, Instance]) -> None:
    """Of a branch with late labels, drift, memory, held-out and refused rows; without one metric its count is missed."""
    folder, instance = seen
    status, samples = facts(folder), Learning(instance, "main")().samples
    assert {"rejected", "outside_x", "labels_joined", "scored_as_served", "held_out_rows", "memory_strength"} <= {*status}
    assert missing(status, samples) == []
    for name in (
        "rows_total",
        "noticed_total",
        "labels_total",
        "labels_waiting",
        "records_total",
        "waiting",
        "scored_rows_total",
    ):
        assert missing(status, [sample for sample in samples if sample.name != f"millrace_{name}"]) != [], name


def test_every_count_of_the_code_is_a_metric(seen: tuple[Path, Instance]) -> None:
    """Whatever the join and the fold count is there, also where it is 0."""
    samples = Learning(seen[1], "main")().samples
    told = {sample.labels[1] for sample in samples if sample.name in ("millrace_rows_total", "millrace_labels_total")}
    assert told == {*msgspec.structs.asdict(Counts()), *msgspec.structs.asdict(JoinCounts()), "labels"}


def test_shards_add_up_to_what_status_shows(tmp_path: Path) -> None:
    """Each shard is a branch of its own; the branch that merges them has versions alone."""
    text = "shards = 2\n" + PIPELINE.replace("size = 4", "size = 4\ncenter = 8\nscale = 4", 1) + "[log]\npartitions = 2\n"
    instance = instance_in(tmp_path, text)
    send(instance, flower_rows(200), 0.0, False)
    ran(tmp_path)
    status, samples = facts(tmp_path), Learning(instance, "main")().samples
    for name, shown in (("millrace_records_total", "records"), ("millrace_lag_rows", "lag_rows")):
        values = [sample.value for sample in samples if sample.name == name]
        assert len(values) == 2 and sum(values) == status[shown], name
    versions = {sample.labels[0]: sample.value for sample in samples if sample.name == "millrace_versions"}
    assert versions["main"] == 1 and len(versions) == 3


def value_of(samples: Samples, name: str) -> float:
    """Of the one sample of a metric."""
    (value,) = [sample.value for sample in samples if isinstance(sample, Sample) and sample.name == name]
    return value


def test_lag_is_counted_in_rows_and_in_seconds_of_the_oldest_that_is_not_read(tmp_path: Path) -> None:
    """And is nothing again once all is learned; the same reader reads on."""
    instance = instance_in(tmp_path, PIPELINE)
    learning = Learning(instance, "main")
    assert learning().samples == [], "a branch that nobody has begun has nothing to say"
    send(instance, flower_rows(40), 0.0, False)
    ran(tmp_path)
    now_ms = time.time_ns() // 1_000_000
    late = [
        Record(row, timestamp_ms=now_ms - age_s * 1000) for age_s, row in ((500, flower_rows(1)[0]), (7, flower_rows(1)[0]))
    ]
    instance.log().append("digits", late)
    samples = learning().samples
    assert value_of(samples, "millrace_lag_rows") == 2
    assert 500 <= value_of(samples, "millrace_lag_seconds") < 500 + (time.time_ns() // 1_000_000 - now_ms) / 1000 + 1
    ran(tmp_path)
    samples = learning().samples
    assert (value_of(samples, "millrace_lag_rows"), value_of(samples, "millrace_lag_seconds")) == (0, 0)
    assert value_of(samples, "millrace_records_total") == 42
    assert value_of(samples, "millrace_versions") == value_of(samples, "millrace_versions_uncertified") == 2


def numbers(samples: Samples) -> set[float]:
    """All that samples say."""
    return {
        number
        for sample in samples
        for number in ([sample.value] if isinstance(sample, Sample) else [*sample.counts, sample.sum_s])
    }


PRESENCE = Presence(
    "r1",
    7,
    "version main.3",
    "main.1.3",
    4500,
    11,
    12,
    13,
    14,
    (("http", "infer", "200", 15),),
    (("http", (16, 17), 18_000_000_000),),
    (("captured", 19), ("opted_out", 20)),
    (("done", 21), ("refused", 22)),
    "why it has another draft than the ledger says",
    "# TYPE vllm:waiting gauge\nvllm:waiting 23.0\n",
)


def test_every_number_of_a_replica_is_a_metric() -> None:
    """But its process; its engine's own series come as they are, and status alone has a sentence."""
    assert numbers(of_replicas([PRESENCE])) == {4.5, 11, 12, 13, 14, 15, 16, 17, 18.0, 19, 20, 21, 22, 1}
    held = [sample for sample in of_replicas([PRESENCE]) if sample.name == "millrace_replica_draft"]
    assert [sample.labels for sample in held] == [("r1", "main.1.3")]
    silent = Presence("r2", 8, "nothing", "", None, 0, 0, 0)
    assert "millrace_replica_staleness_seconds" not in {sample.name for sample in of_replicas([silent])}
    assert len(fields(Presence)) == 15, "a new field is a metric, too, or stands here"


def test_a_trainer_that_is_silent_does_not_run() -> None:
    """One that answers says why it refused records, and whether it waits; by the branch that it learns by now."""
    told = TrainerStatus(True, 2, 9, 40, "waits", 7, "heir", (("wrong-type", 3),))
    samples = {(sample.name, *sample.labels): sample.value for sample in of_trainers({"main": told, "main.1of2": None})}
    assert samples == {
        ("millrace_trainer_running", "heir"): 1,
        ("millrace_trainer_failing", "heir"): 1,
        ("millrace_rejected_total", "heir", "wrong-type"): 3,
        ("millrace_trainer_running", "main.1of2"): 0,
    }


def against_the_rules(metrics: Sequence[Metric]) -> list[str]:
    """Names against Prometheus' rules: what only grows ends in _total, and nothing else does; and those that stand twice."""
    names = Counter(metric.name for metric in metrics)
    wrong = [metric.name for metric in metrics if (metric.kind == "counter") != metric.name.endswith("_total")]
    return wrong + [name for name, count in names.items() if count > 1]


def test_the_definitions_keep_prometheus_rules() -> None:
    """Each name once, of ours, with a sentence."""
    names = [metric.name for metric in METRICS]
    assert against_the_rules(METRICS) == []
    assert against_the_rules([METRICS[0], replace(METRICS[0], kind="counter")]) == [names[0], names[0]]
    assert all(name.startswith("millrace_") for name in names) and all(metric.meaning.endswith(".") for metric in METRICS)


def test_documents_name_metrics_that_there_are() -> None:
    """In alerts and tables, with what a histogram's samples are called."""
    pages = [ROOT / "docs" / page for page in ("how-to/metrics.md", "reference/metrics.md")]
    named = {name for page in pages for name in re.findall(r"millrace_\w+", page.read_text(encoding="utf-8"))}
    assert len(named) >= len(METRICS)
    assert {name.removesuffix("_bucket") for name in named} == {*DEFINED}
