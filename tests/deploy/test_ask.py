"""`helm test`: what its script asks of a pipeline that really runs, first an empty one, then one that has learned."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from charts import CHART
from pipelines import PIPELINE, clean_environment, late_rows, millrace, pipeline_in
from served_pipeline import Up, is_ready, own_port, served, until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("served")]  # one `up` for all, and one at a time on two cores

SCRIPT = CHART / "files" / "ask.py"
LABELLED = PIPELINE + "\n[labels]\nhorizon_ms = 60000\n"
COUNTED = "metrics: counted http infer, http labels, grpc infer, grpc labels"


@dataclass(frozen=True)
class Asked:
    """A pipeline that runs, and how a pod of its namespace would find it."""

    up: Up
    metrics_port: int

    def test(self, tokens: str = "tokens", inputs: str = "[]") -> subprocess.CompletedProcess[str]:
        """The script as the test's pod runs it."""
        ports = {"DIGITS_SERVICE_PORT_HTTP": self.up.port, "DIGITS_SERVICE_PORT_GRPC": self.up.grpc_port}
        ports |= {"DIGITS_METRICS_SERVICE_PORT_METRICS": self.metrics_port}
        hosts = dict.fromkeys(("DIGITS_SERVICE_HOST", "DIGITS_METRICS_SERVICE_HOST"), "127.0.0.1")
        env = clean_environment() | hosts | {name: str(port) for name, port in ports.items()}
        command = [sys.executable, str(SCRIPT), "digits.toml", tokens, "digits", inputs]
        return subprocess.run(command, cwd=self.up.folder, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Iterator[Asked]:
    """One that has learned nothing yet."""
    folder = tmp_path_factory.mktemp("asked")
    pipeline_in(folder, text=LABELLED)
    for name, line in (("tokens", "predict,label right"), ("wrong", "predict,label wrong"), ("labels-only", "label right")):
        (folder / name).write_text(f"{line}\n", encoding="utf-8")
        (folder / name).chmod(0o600)
    metrics_port = own_port()
    with served(folder, "--tokens", "tokens", "--metrics-port", str(metrics_port), ready=False) as up:
        yield Asked(up, metrics_port)


def test_it_asks_and_labels_by_both_protocols(asked: Asked) -> None:
    """An empty pipeline says that there is nothing to answer from; one that has learned answers. Both are counted."""
    done = asked.test()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "HTTP infer: 503" in done.stdout and "gRPC infer: UNAVAILABLE" in done.stdout and COUNTED in done.stdout
    (asked.up.folder / "late.jsonl").write_bytes(b"\n".join(late_rows(100)))
    assert millrace("send", "digits.toml", "late.jsonl", "--served", cwd=asked.up.folder).returncode == 0
    until(lambda: is_ready(asked.up.port) and asked.test().stdout.startswith("HTTP infer: 200"))
    done = asked.test()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gRPC infer: OK, version " in done.stdout and "HTTP labels: 202" in done.stdout and COUNTED in done.stdout


def test_it_fails_where_the_service_does(asked: Asked) -> None:
    """Another token, none for questions, a question that does not fit: each with what was said."""
    done = asked.test(tokens="wrong")
    assert done.returncode == 1 and "HTTP: a prediction was refused with 401" in done.stderr
    done = asked.test(tokens="labels-only")
    assert done.returncode == 1 and done.stderr.strip() == "The Secret has no token for predict, so that cannot be tried."
    wrong = [{"name": "x", "datatype": "FP64", "shape": [1, 3], "data": [1, 2, 3]}]
    done = asked.test(inputs=json.dumps(wrong))
    assert done.returncode == 1 and "HTTP: a prediction was refused with 4" in done.stderr


def test_it_fails_where_nothing_is_counted(asked: Asked) -> None:
    """Metrics of another process, which nobody asks: here none at all."""
    done = Asked(asked.up, own_port(asked.metrics_port)).test()
    assert done.returncode == 1 and done.stderr.startswith("The pipeline cannot be asked: ")
