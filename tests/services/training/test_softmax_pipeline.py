"""A learner with a rate in a pipeline: learned, scored as probabilities, watched, proved, exported; and what it is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pipelines import PIPELINE, facts, flower_rows, here, json_lines, pipeline_in

from millrace.learners.errors import ConfigError
from millrace.services.config.config import load_pipeline
from millrace.services.registry.export import opened

SOFTMAX = PIPELINE.replace('kind = "ridge", gamma = 0.5', 'kind = "softmax", rate = 0.3, step_rows = 10')
WATCHED = SOFTMAX + '\n[drift]\nfalse_alarm_rows = 2000\nact = "raise-rate"\nrate_rows = 50\n'


def relabelled(rows: list[bytes]) -> list[bytes]:
    """Every rose a tulip, and so on."""
    names = {b"rose": b"tulip", b"tulip": b"daisy", b"daisy": b"rose"}
    return [next(row.replace(old, new) for old, new in names.items() if old in row) for row in rows]


def test_it_learns_is_proved_and_raises_its_rate_after_an_alarm(tmp_path: Path) -> None:
    """Its scores are probabilities, so there is a log loss; the act that followed the flip is shown."""
    pipeline_in(tmp_path, text=WATCHED)
    rows = flower_rows(600, seed=8)
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(rows[:400] + relabelled(rows[400:])))
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"], ["verify", "digits.toml"]):
        done = here(*words, cwd=tmp_path)
        assert done.exit_code == 0, done.stderr
    status = facts(tmp_path)
    assert status["accuracy"] > 0.5 and 0.0 < status["log_loss"] < 2.0
    assert str(status["act"]).startswith("raise-rate (factor = 5.0, rows = 50) at seq ")


def test_an_exported_version_answers_alike_in_onnxruntime(tmp_path: Path) -> None:
    """Probabilities to 1e-10."""
    runtime = pytest.importorskip("onnxruntime", reason="the ONNX export is checked in onnxruntime, which is not here")
    pytest.importorskip("onnx", reason="the ONNX export is written by the package onnx, which is not here")
    pipeline_in(tmp_path, rows=300, text=SOFTMAX)
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert here(*words, cwd=tmp_path).exit_code == 0
    version = json_lines(here("versions", "digits.toml", "--output", "json", cwd=tmp_path).stdout)[0]["version"]
    done = here("export", "digits.toml", str(version), "there", cwd=tmp_path)
    assert done.exit_code == 0, done.stderr
    x = np.random.default_rng(1).integers(0, 20, (40, 4)).astype(np.float64)
    served = opened(tmp_path / "there").predict((x, np.array(["north"] * 40, dtype=object))).scores
    x = np.hstack([x, np.tile([1.0, 0.0], (40, 1))])  # north, south
    session = runtime.InferenceSession(str(tmp_path / "there" / "model.onnx"), providers=["CPUExecutionProvider"])
    assert np.abs(session.run(["scores"], {"x": x})[0] - served).max() <= 1e-10
    assert np.abs(served.sum(axis=1) - 1.0).max() <= 1e-12


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        (
            "drift.act=discount",
            "drift.act = 'discount': learner softmax cannot do that (discount is none of its abilities). "
            "With it there are: version, reset, relearn, raise-rate.",
        ),
        ("learner.rate=0", "learner: rate = 0.0: must be a finite number above 0."),
        ("learner.gamma=1", "learner.gamma = 1: there is no such key."),
        ("label.type=number", "learner: task = 'regress': must be \"classify\"; softmax learns classes"),
    ],
)
def test_what_it_cannot_do_is_refused_when_the_file_is_read(flag: str, says: str, tmp_path: Path) -> None:
    """By key, value and what there is."""
    with pytest.raises(ConfigError) as refused:
        load_pipeline(pipeline_in(tmp_path, rows=0, text=SOFTMAX), [flag])
    assert says in str(refused.value)
