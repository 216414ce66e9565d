"""An export without `model.onnx` says so where one looks: in what the command prints, in its manifest, in the mirror's log."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
from list_registry import ListRegistry
from pipelines import PIPELINE, here, json_lines, pipeline_in

from millrace.learners.distribution import how_to_get
from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.instance import Instance
from millrace.services.pyfunc import _load_pyfunc
from millrace.services.registry.mirror import Mirror

QUESTION = {"x": [1.0, 2.0, 3.0, 4.0], "site": "north"}
NOT_INSTALLED = "the Python package onnx is not installed"
TOLD = f"model.onnx: {NOT_INSTALLED}. {how_to_get('onnx').rstrip('.')}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a pipeline with several versions."""
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline_in(folder, rows=120, text=PIPELINE + "step_rows = 20\nversion_rows = 40\n")
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert here(*words, cwd=folder).exit_code == 0
    return folder


def exported(folder: Path, name: str) -> tuple[str, dict[str, str], set[str]]:
    """What the command prints as left out, what the manifest has, and the files."""
    done = here("export", "digits.toml", "newest", name, "--output", "json", cwd=folder)
    assert done.exit_code == 0, done.stderr
    [row] = json_lines(done.stdout)
    files = {path.name for path in (folder / name).iterdir()}
    return row["left_out"], json.loads((folder / name / "manifest.json").read_bytes())["left_out"], files


def test_an_export_without_onnx_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And answers all the same; with the package nothing is left out."""
    pytest.importorskip("onnx", reason="ONNX is not installed, the extra `onnx`")
    assert exported(folder, "whole")[:2] == ("", {}) and "model.onnx" in exported(folder, "again")[2]
    monkeypatch.setitem(sys.modules, "onnx", None)  # as where it is not installed
    printed, listed, files = exported(folder, "less")
    assert printed == TOLD and listed == {"model.onnx": NOT_INSTALLED}  # how to get it differs from place to place
    assert "model.onnx" not in files
    whole, less = (_load_pyfunc(str(folder / name)).predict(QUESTION)["scores"] for name in ("whole", "less"))
    assert whole.tobytes() == less.tobytes()


def test_a_mirror_without_onnx_says_so_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For all versions together, as a warning."""
    monkeypatch.setitem(sys.modules, "onnx", None)
    instance, registry = Instance(load_pipeline(folder / "digits.toml"), folder / ".millrace" / "digits"), ListRegistry()
    with caplog.at_level(logging.WARNING, "millrace"):
        Mirror(instance, registry).once()
    assert len(registry.listed) > 1
    assert [record.getMessage() for record in caplog.records if "mirrored without" in record.getMessage()] == [
        f"Versions are mirrored without {TOLD}."
    ]
