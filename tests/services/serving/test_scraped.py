"""`millrace up` with a port for Prometheus: what was sent is what is counted, through kill -9 of replica and trainer."""

from __future__ import annotations

import http.client
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import grpc
import pytest
from pipelines import ANSWER_S, PIPELINE, flower_rows, json_lines, millrace, pipeline_in
from served_pipeline import Up, own_port, post, question, served, until

pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")
from label_calls import asked_by_grpc, label, labelled_by_grpc
from prometheus_client.parser import text_string_to_metric_families

from millrace.services.config.kernels import FEATURES
from millrace.services.metrics.definitions import DEFINED
from millrace.streams.branch.host import AVX2

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("scraped")]  # one instance serves them all
INFO = Path("/proc/cpuinfo")
PINNED = INFO.exists() and {*INFO.read_text().split()} >= FEATURES  # whether kernels can be
LATE = """
[labels]
horizon_ms = 600000
grace_ms = 60000
"""


class Scraped(Up):
    """The same, with its metrics."""

    metrics_port: int = 0

    def samples(self) -> list[tuple[str, dict[str, str], float]]:
        """Name, labels and value of all."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.metrics_port, timeout=ANSWER_S)) as connection:
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            text = answer.read().decode()
            assert answer.status == 200, text
        return [
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def total(self, name: str, **labels: str) -> float:
        """The sum over all samples of a metric with those labels, and over all replicas."""
        samples = [value for told, has, value in self.samples() if told == name and labels.items() <= has.items()]
        return sum(samples)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """One instance for all of these tests; it has learned 60 rows and takes labels."""
    folder, port = tmp_path_factory.mktemp("scraped"), own_port()
    pipeline_in(folder, rows=60, text=('kernels = "avx2"\n' if PINNED else "") + PIPELINE + LATE)
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert millrace(*words, cwd=folder).returncode == 0
    with served(folder, "--metrics-port", str(port), "--drain-s", "60") as running:
        scraped = Scraped(running.folder, running.port, running.grpc_port, running.process)
        scraped.metrics_port = port
        until(lambda: scraped.total("millrace_source_up") == 4)
        yield scraped


def grown(
    up: Scraped, before: dict[tuple[str, ...], float], names: tuple[str, ...]
) -> Callable[[], dict[tuple[str, ...], float]]:
    """By how much each metric has grown since, summed over replicas; what did not grow is left out."""
    return lambda: {key: now - before.get(key, 0.0) for key, now in summed(up, names).items() if now != before.get(key, 0.0)}


def summed(up: Scraped, names: tuple[str, ...]) -> dict[tuple[str, ...], float]:
    """Values of metrics by name and labels, without the replica."""
    values = Counter[tuple[str, ...]]()
    for name, labels, value in up.samples():
        if name in names:
            values[name, *(text for label, text in sorted(labels.items()) if label != "replica")] += value
    return values


ANSWERS = (
    "millrace_requests_total",
    "millrace_answered_rows_total",
    "millrace_answer_seconds_count",
    "millrace_recorded_total",
)


def test_what_was_sent_over_both_protocols_is_what_is_counted(up: Scraped) -> None:
    """Answers, rows, labels and refusals, each once, by protocol and status; and what was learned from the labels."""
    before = summed(up, ANSWERS)
    learned, joined = (up.total(name, **has) for name, has in ((ROWS, LEARNED), (LABELS, JOINED)))
    http_ids, grpc_ids = [f"http/{at}" for at in range(30)], [f"grpc/{at}" for at in range(20)]
    statuses = [post(up.port, "infer", question([name]))[0] for name in http_ids]
    statuses += [post(up.port, "infer", {"inputs": []})[0] for _ in range(3)]
    for name in grpc_ids:
        asked_by_grpc(up, [name], [[21.0, 24.0, 28.0, 30.0]])
    for _ in range(4):
        with pytest.raises(grpc.RpcError):
            asked_by_grpc(up, [""], [[21.0, 24.0, 28.0, 30.0]])
    label(up, {"labels": [{"id": name, "label": "lily"} for name in http_ids]})
    assert labelled_by_grpc(up, grpc_ids, "lily") == len(grpc_ids)
    assert statuses == [200] * 30 + [400] * 3
    rows, calls = len(http_ids) + len(grpc_ids), "millrace_requests_total"
    told = grown(up, before, ANSWERS)
    until(lambda: told().get(("millrace_recorded_total", "stored")) == 2 * rows)
    found = {key: value for key, value in told().items() if key[1:2] != ("health",)}
    again = {
        key: found.pop(key) for key in list(found) if key[1:3] == ("labels", "503") or key[1:3] == ("labels", "UNAVAILABLE")
    }
    assert set(again) <= {(calls, "labels", "503", "http"), (calls, "labels", "UNAVAILABLE", "grpc")}, (
        "a busy log was asked again"
    )
    assert found == {
        (calls, "infer", "200", "http"): 30,
        (calls, "infer", "400", "http"): 3,
        (calls, "infer", "OK", "grpc"): 20,
        (calls, "infer", "INVALID_ARGUMENT", "grpc"): 4,
        (calls, "labels", "202", "http"): 1,
        (calls, "labels", "OK", "grpc"): 1,
        ("millrace_answered_rows_total",): rows,
        ("millrace_answer_seconds_count", "http"): 30,
        ("millrace_answer_seconds_count", "grpc"): 20,
        ("millrace_recorded_total", "stored"): 2 * rows,
    }
    until(lambda: up.total(ROWS, **LEARNED) == learned + rows)
    until(lambda: up.total(LABELS, **JOINED) == joined + rows)
    until(lambda: up.total("millrace_lag_rows") == 0)
    assert up.total("millrace_lag_seconds") == 0


ROWS, LEARNED = "millrace_rows_total", {"fate": "learned"}
LABELS, JOINED = "millrace_labels_total", {"outcome": "joined"}


def test_records_are_refused_by_reason(up: Scraped) -> None:
    """The trainer says why, the log how many."""
    (up.folder / "bad.jsonl").write_bytes(b'{"x": [1, 2, 3, 4], "label": "rose"}\n' * 3 + b"\n".join(flower_rows(97)))
    assert millrace("send", "digits.toml", "bad.jsonl", cwd=up.folder).returncode == 0
    until(lambda: up.total("millrace_rejected_total", branch="main", reason="missing-field") == 3)
    until(lambda: up.total(ROWS, fate="rejected") == 3)
    assert up.total("millrace_trainer_running") == 1 and up.total("millrace_trainer_failing") == 0


def test_every_metric_that_is_told_is_one_that_is_documented(up: Scraped) -> None:
    """With its labels; the page of the reference is made from these definitions."""
    for name, labels, _ in up.samples():
        metric = DEFINED[re.sub(r"_(bucket|sum|count)$", "", name)]
        assert {*labels} - {"le"} == {*metric.labels}, name


def test_its_port_listens_on_loopback_and_is_named_in_security_md(up: Scraped) -> None:
    """`up` itself holds it."""
    lines = [line.split() for line in (up.folder / "up.log").read_text().splitlines() if line.startswith("listens")]
    names = {(place, name) for _, place, name in lines if place.endswith(f":{up.metrics_port}")}
    table = (Path(__file__).resolve().parents[3] / "SECURITY.md").read_text().partition("| listens |")[2].partition("\n\n")[0]
    (row,) = [row for row in table.splitlines() if "`--metrics-port`" in row]
    assert {place for place, _ in names} == {f"127.0.0.1:{up.metrics_port}"}
    assert all(any(name.startswith(word) for word in re.findall(r"`([^`]+)`", row.split("|")[1])) for _, name in names)


def replicas(up: Scraped) -> set[str]:
    """The names of those that were heard of lately."""
    return {labels["replica"] for name, labels, _ in up.samples() if name == "millrace_answered_rows_total"}


def replaced(up: Up, title: str, dead: int, count: int) -> bool:
    """Whether there are as many processes again, without the dead one."""
    return dead not in up.pids(title) and len(up.pids(title)) == count


def test_kill_9_of_replicas_trainer_and_holder_leaves_the_page_and_counts_that_never_fall(up: Scraped) -> None:
    """A replica that is started anew has another name; what the branch counts goes on where it was."""
    until(lambda: up.total("millrace_lag_rows") == 0)
    before, records = replicas(up), up.total("millrace_records_total")
    for title in (":Predictor", ":Trainer", ":NewestWeights"):
        count = len(up.pids(title))
        dead = up.kill(title)
        assert up.total("millrace_source_up", source="log") == 1 and up.total("millrace_replicas_wanted") == 2
        assert up.total("millrace_records_total") == records
        until(partial(replaced, up, title, dead, count))
    until(lambda: up.total("millrace_source_up") == 4 and up.total("millrace_trainer_running") == 1)
    for at in range(25):
        asked_by_grpc(up, [f"after/{at}"], [[21.0, 24.0, 28.0, float(at)]])
    until(lambda: up.total("millrace_records_total") == records + 25)
    until(lambda: bool(replicas(up) - before))


@pytest.mark.skipif(not PINNED, reason="this processor has no AVX2, or no FMA")
def test_its_trainers_run_the_kernels_that_the_file_pins(up: Scraped) -> None:
    """Each that took the branch, also the one that took a dead one's place."""
    lines = json_lines(millrace("log", "digits.toml", "--output", "json", cwd=up.folder).stdout)
    cpus = [line["said"]["host"]["cpu"] for line in lines if line["kind"] == "open"]
    assert len(cpus) >= 2 and {*cpus} == {AVX2}


def test_draining_is_told(up: Scraped) -> None:
    """From the first signal on; the second, which ends it, is the fixture's."""
    assert up.total("millrace_draining") == 0 and up.total("millrace_build_info") == 1
    up.process.send_signal(signal.SIGINT)
    until(lambda: up.total("millrace_draining") == 1)
