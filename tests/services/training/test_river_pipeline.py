"""A pipeline whose learner is one of river's: the file, the run, the proof, the answer; and the refusal of another."""

from __future__ import annotations

import json

from pipelines import PIPELINE, facts, here, pipeline_in
from served_bundles import HttpApp, endpoint_of, infer, tensor

from millrace.services.config.config import load_pipeline
from millrace.services.decisions.versions import resolved
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.bundle import open_parts
from millrace.services.pipeline.instance import Instance

LEARNER = (
    'learner = { kind = "river", model = "linear_model.LogisticRegression", learning_rate = 0.05, params = { l2 = 0.001 } }'
)
OTHER = 'learner = { kind = "river", model = "naive_bayes.GaussianNB" }'
TEXT = PIPELINE.replace('learner = { kind = "ridge", gamma = 0.5 }', LEARNER)


def test_a_model_of_rivers_is_learned_proved_and_served(tmp_path) -> None:
    """With checkpoints and a remainder of a batch in them; the run that goes on in a new process is proved too."""
    pipeline_in(tmp_path, rows=400, text=TEXT.replace(LEARNER, OTHER))
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml", "--rows", "150"], ["run", "digits.toml"]):
        assert here(*words, cwd=tmp_path).exit_code == 0
    status = facts(tmp_path)
    assert status["learned"] == 400 and float(str(status["accuracy"])) > 0.6
    assert here("verify", "digits.toml", cwd=tmp_path).exit_code == 0
    instance = Instance(load_pipeline(tmp_path / "digits.toml"), tmp_path / ".millrace" / "digits")
    archive, schema = Archive(instance), instance.loaded.pipeline.schema
    bundle = open_parts(archive.parts(archive.mark(resolved(instance, "newest"))), schema)
    inputs = [tensor("x", "FP64", [1, 4], [24.0, 22.0, 23.0, 25.0]), tensor("site", "BYTES", [1], ["north"])]
    heard = infer(HttpApp(endpoint_of(bundle, schema)), {"inputs": inputs})
    assert heard.status == 200 and heard.json["outputs"][1]["data"] == ["daisy"], json.dumps(heard.json)
    exported = here("export", "digits.toml", "newest", "out", cwd=tmp_path)
    assert exported.exit_code == 0 and not (tmp_path / "out" / "model.onnx").exists()
    assert "model.onnx: a learner of kind river has no form as ONNX" in exported.stdout


def test_parameters_are_read_from_the_file(tmp_path) -> None:
    """river's own, and the rate of its steps."""
    config = load_pipeline(pipeline_in(tmp_path, text=TEXT)).learner
    assert (config.params, config.learning_rate, config.task) == ({"l2": 0.001}, 0.05, "classify")
    assert here("send", "digits.toml", "rows.jsonl", cwd=tmp_path).exit_code == 0
    assert here("run", "digits.toml", cwd=tmp_path).exit_code == 0 and facts(tmp_path)["learned"] == 200


def test_a_model_that_cannot_be_saved_is_refused_in_the_file(tmp_path) -> None:
    """Naming those that can."""
    pipeline_in(tmp_path, text=TEXT.replace("linear_model.LogisticRegression", "tree.HoeffdingTreeClassifier"))
    done = here("run", "digits.toml", cwd=tmp_path)
    assert done.exit_code == 2 and "there are" in done.stderr and "naive_bayes.GaussianNB" in done.stderr
