"""Each network in a pipeline on the embedded log: learn, serve, version, roll back, verify; and one run of the real command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from pipelines import clean_environment, event, flower_rows, json_lines, millrace

from millrace.learners.distribution import how_to_get, requirement
from millrace.learners.errors import ConfigError
from millrace.learners.protocol import Batch
from millrace.learners.table import LEARNERS
from millrace.services.config.config import load_pipeline
from millrace.services.decisions import decide as deciding
from millrace.services.decisions import rollback
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.bundle import bundle_bytes, open_bundle
from millrace.services.pipeline.instance import ENDPOINT, Instance
from millrace.services.proof import verify as proving
from millrace.services.proof.certify import prove_version
from millrace.services.registry import export
from millrace.services.training import run as running
from millrace.streams.errors import DamageError
from millrace.streams.journal.entries import Open
from millrace.streams.journal.journal import Cursor, counted
from millrace.streams.journal.ledger import Target
from millrace.streams.parts import sha256
from millrace.streams.records import Record

KINDS = [kind for kind, algorithm in LEARNERS.items() if algorithm.needs == "torch"]
PIPELINE = """name = "digits"
seed = 7
label = {{ name = "label" }}
learner = {{ kind = "{kind}", warm_up_rows = 25, {more} }}
[[fields]]
name = "x"
size = 4
[[fields]]
name = "site"
type = "categorical"
categories = ["north", "south"]
[batch]
rows = 32
wait_ms = 1
[worker]
step_rows = 40
step_ms = 0
checkpoint_rows = 60
version_rows = 100
"""
SMALL = "hidden = [8], buffer_rows = 40"
MORE = {
    "er": 'image = [1, 2, 3], network = "resnet18", channels = 2, ema = 0.9, momentum = 0.9, rate = 0.01',
    "hpcr": SMALL + ", distil_rows = 50, pair_rows = 8",
    "pec": "units = 5, teacher_units = 20, outputs = 6",
}


def instance(folder: Path, kind: str) -> Instance:
    """A pipeline whose learner is a network, with its state beside its file."""
    (folder / "digits.toml").write_text(PIPELINE.format(kind=kind, more=MORE.get(kind, SMALL)))
    return Instance(load_pipeline(folder / "digits.toml"), folder / "digits")


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_learns_is_served_is_a_version_is_rolled_back_and_is_verified(kind: str, tmp_path: Path) -> None:
    """Two runs over 320 records, the second going on from the first's checkpoint; folded again bit for bit."""
    pipeline = instance(tmp_path, kind)
    records = [Record(row, timestamp_ms=at + 1) for at, row in enumerate(flower_rows(320))]
    pipeline.log().append("digits", records)
    running.run(pipeline, "main", running.Bounds(rows=150), take_over=False)
    done = running.run(pipeline, "main", running.Bounds(), take_over=False)
    opened = [entry for entry in counted(pipeline.journal("main"), "main", Cursor()) if isinstance(entry, Open)]
    assert len(opened) == 2 and all(entry.host.torch for entry in opened)  # numerics depend on it
    archive = Archive(pipeline)
    versions = [mark.version for mark in archive.marks("main") if mark.version]
    assert done.version == versions[-1] and len(versions) >= 3
    bundle = archive.version(str(done.version))
    rows, refused = pipeline.fold_spec.codec.decode([event(row, at) for at, row in enumerate(flower_rows(12, seed=9))])
    answer = bundle.predict(rows.columns)
    assert not refused and set(bundle.classes) == {"rose", "tulip", "daisy"} and len(answer.labels) == 12
    assert np.isfinite(answer.scores).all()
    change = rollback.plan_rollback(pipeline, None)
    deciding.decide(pipeline, change, "it looks wrong")
    assert pipeline.ledger().serving[ENDPOINT] == Target(version=versions[-1]) != change.before
    report = proving.prove(pipeline, "main")
    assert len(report.proved) > len(versions) and not report.unproved and report.difference == 0.0
    assert prove_version(pipeline, str(versions[1]), nearest=False).proved
    export.export(pipeline, str(done.version), tmp_path / "out")
    exported = export.opened(tmp_path / "out")
    assert (tmp_path / "out" / "requirements.txt").read_text() == requirement("mlflow,torch")
    assert np.array_equal(exported.predict(rows.columns).scores, answer.scores)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    x = exported._features.answer(exported._features.encode(rows)).x
    scores, label = session.run(["scores", "label"], {"x": x})
    assert np.abs(scores - exported._servable.predict_many(Batch(x))).max() < 1e-5
    assert tuple(label.tolist()) == answer.labels


@pytest.mark.parametrize("kind", ["er", "pcr", "pec"])
def test_changed_bytes_of_a_network_are_refused_with_words_or_harmless(kind: str, tmp_path: Path) -> None:
    """Even where their sha256 is right: a DamageError, or a network that answers in finite numbers."""
    pipeline, rng = instance(tmp_path, kind), np.random.default_rng(0)
    records = [Record(row, timestamp_ms=at + 1) for at, row in enumerate(flower_rows(120))]
    pipeline.log().append("digits", records)
    running.run(pipeline, "main", running.Bounds(), take_over=False)
    archive, schema = Archive(pipeline), pipeline.loaded.pipeline.schema
    blob = bundle_bytes(archive.parts(archive.marks("main")[-1]), schema)
    refused = 0
    for _ in range(150):
        changed = bytearray(blob)
        for at in rng.integers(0, len(blob) if rng.random() < 0.3 else min(3000, len(blob)), rng.integers(1, 4)):
            changed[at] = rng.integers(0, 256) if rng.random() < 0.5 else ord("0123456789"[rng.integers(0, 10)])
        raw = bytes(changed)
        try:
            bundle = open_bundle(raw, sha256(raw), schema)
        except DamageError:
            refused += 1
            continue
        rows, _ = pipeline.fold_spec.codec.decode([event(row, at) for at, row in enumerate(flower_rows(3, seed=9))])
        assert np.isfinite(bundle.predict(rows.columns).scores).all()
    assert refused > 50


@pytest.mark.slow
def test_the_command_line_runs_a_network_and_rolls_it_back_without_torch(tmp_path: Path) -> None:
    """`send`, `run`, `verify` in processes of their own; `rollback` where torch cannot be imported."""
    instance(tmp_path, "uer")
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(flower_rows(200)) + b"\n")
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        done = millrace(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom millrace.services.cli import main\n"
        "main(['rollback', 'digits.toml', '--reason', 'r', '--yes'], standalone_mode=False)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    verified = millrace("verify", "digits.toml", "--output", "json", cwd=tmp_path)
    assert verified.returncode == 0 and json_lines(verified.stdout), verified.stderr
    without = subprocess.run(
        [sys.executable, "-c", code.replace("'rollback'", "'run'").replace(", '--reason', 'r', '--yes'", "")],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert without.returncode != 0 and how_to_get("torch") in without.stderr


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ("bufer_rows = 5", "Did you mean buffer_rows"),
        ("buffer_rows = 0", "buffer_rows = 0"),
        ('network = "resnet"', "network = 'resnet'"),
        ("hidden = [8.5]", "hidden"),
    ],
)
def test_a_key_that_cannot_be_meant_is_refused_by_name(more: str, sentence: str, tmp_path: Path) -> None:
    """When the pipeline file is read."""
    (tmp_path / "digits.toml").write_text(PIPELINE.format(kind="er", more=more))
    with pytest.raises(ConfigError, match="learner") as refused:
        load_pipeline(tmp_path / "digits.toml")
    assert sentence in str(refused.value)


def test_a_network_does_not_learn_numbers(tmp_path: Path) -> None:
    """A label that is a number is refused when the file is read."""
    text = PIPELINE.format(kind="er", more=SMALL).replace('{ name = "label" }', '{ name = "label", type = "number" }')
    (tmp_path / "digits.toml").write_text(text)
    with pytest.raises(ConfigError, match="task = 'regress': must be \"classify\""):
        load_pipeline(tmp_path / "digits.toml")


def test_reading_a_pipeline_of_a_network_imports_no_torch(tmp_path: Path) -> None:
    """The command line stays quick, and works where torch is not installed."""
    instance(tmp_path, "pcr")
    code = (
        "import sys, json, pathlib\nfrom millrace.services.config.config import load_pipeline\n"
        "load_pipeline(pathlib.Path('digits.toml'))\nprint(json.dumps('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False
