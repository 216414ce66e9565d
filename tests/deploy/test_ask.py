"""`helm test`: what its script asks of a pipeline that really runs, first an empty one, then one that has learned."""

from __future__ import annotations

import base64
import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from charts import CHART
from pictures import NETWORK, photos
from pipelines import PIPELINE, clean_environment, late_rows, millrace, pipeline_in
from served_pipeline import IN_A_ROW, Up, is_ready, own_port, served, until

from millrace.streams.schema import Label

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("served")]  # one `up` for all, and one at a time on two cores

SCRIPT = CHART / "files" / "ask.py"
LABELLED = PIPELINE + "\n[labels]\nhorizon_ms = 60000\n"
COUNTED = "metrics: counted http infer 200 +1, grpc infer OK +1, http labels 202 +1, grpc labels OK +1\n"
PICTURES = """name = "digits"
label = { name = "y", type = "integer" }
learner = { kind = "ridge" }

[[fields]]
name = "photo"
type = "image"
backbone = "network.onnx"
shape = [128, 128]
features = 256
center = 128.0
scale = 128.0
"""


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
    """An empty pipeline fails with what to do. One that has learned answers, and each call is counted once, under its code."""
    done = asked.test()
    assert done.returncode == 1
    assert done.stderr == "Nothing was learned yet, so nothing can be answered: send rows, and run helm test again.\n"
    (asked.up.folder / "late.jsonl").write_bytes(b"\n".join(late_rows(100)))
    assert millrace("send", "digits.toml", "late.jsonl", "--served", cwd=asked.up.folder).returncode == 0
    until(lambda: all(is_ready(asked.up.port) for _ in range(IN_A_ROW)))
    for _ in range(2):  # what the first asked is none of the second's
        done = asked.test()
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.startswith("HTTP infer: 200") and done.stdout.endswith(COUNTED)
        assert "gRPC infer: OK, version " in done.stdout and "HTTP labels: 202" in done.stdout


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


def test_a_pipeline_of_pictures_is_asked_about_a_black_one(tmp_path_factory) -> None:
    """By base64 in JSON and as bytes over gRPC; of one whose pictures it cannot make up, the values may say what to ask."""
    pictures, y = photos("train", 0, 60)
    folder = tmp_path_factory.mktemp("pictures")
    shutil.copy(NETWORK, folder / "network.onnx")
    (folder / "digits.toml").write_text(PICTURES, encoding="utf-8")
    (folder / "tokens").write_text("predict,label right\n", encoding="utf-8")
    (folder / "tokens").chmod(0o600)
    texts = [base64.b64encode(picture).decode() for picture in pictures]
    rows = [json.dumps({"photo": text, "y": int(label)}) for text, label in zip(texts, y, strict=True)]
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert millrace(*words, cwd=folder).returncode == 0
    metrics_port = own_port()
    with served(folder, "--tokens", "tokens", "--metrics-port", str(metrics_port)) as up:
        given = json.dumps([{"name": "photo", "datatype": "BYTES", "shape": [1], "data": texts[:1]}])
        for inputs in ("[]", given):
            done = Asked(up, metrics_port).test(inputs=inputs)
            assert done.returncode == 0, done.stdout + done.stderr
            assert done.stdout.endswith("metrics: counted http infer 200 +1, grpc infer OK +1\n")


WRONG: list[dict[str, tuple[str, list[int], list[object]]]] = [
    {},
    {"scores": ("FP64", [1, 2], [0.5, 0.5])},
    {"scores": ("FP64", [1, 2], [0.5, float("nan")]), "label": ("BYTES", [1], ["a"])},
    {"scores": ("FP64", [2, 1], [0.5, 0.5]), "label": ("BYTES", [1], ["a"])},
    {"scores": ("FP64", [1, 2], [0.5]), "label": ("BYTES", [1], ["a"])},
    {"scores": ("FP64", [1, 0], []), "label": ("BYTES", [1], ["a"])},
    {"scores": ("FP32", [1, 2], [0.5, 0.5]), "label": ("BYTES", [1], ["a"])},
]


@pytest.mark.parametrize("outputs", WRONG)
def test_an_answer_that_is_none_is_refused(outputs: dict[str, tuple[str, list[int], list[object]]]) -> None:
    """No scores, no label, one that is no number, two rows, too few cells, none, another type; a sound one is taken."""
    check = runpy.run_path(str(SCRIPT))["check"]
    check("HTTP", Label("y"), "digits", {"scores": ("FP64", [1, 2], [0.5, 0.5]), "label": ("BYTES", [1], ["a"])})
    check("HTTP", Label("y", "number"), "digits", {"scores": ("FP64", [1, 1], [0.5])})
    with pytest.raises(SystemExit, match="HTTP: digits answers .*, and not one row of"):
        check("HTTP", Label("y"), "digits", outputs)
