"""A version answers with the fields that it was learned with, whatever the pipeline file says by now."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import numpy as np
import pytest
from pipelines import TIMEOUT_S, here
from served_bundles import infer, tensor
from sklearn.linear_model import RidgeClassifier

from millrace.services import pyfunc
from millrace.services.api import Pipeline
from millrace.services.config.config import load_pipeline
from millrace.services.endpoint.endpoint import Endpoint, Recording, features_name
from millrace.services.endpoint.http import HttpApp
from millrace.services.endpoint.recording import Recorder
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import Instance
from millrace.services.registry import export as exporting
from millrace.services.serving.follower import Follower
from millrace.streams.errors import DamageError
from millrace.streams.labels.served import Prediction, ServedCodec
from millrace.streams.records import Event
from millrace.streams.sqlite.log import SqliteLog

FIRST = """name = "digits"
label = { name = "y" }
learner = { kind = "ridge" }
fields = [{ name = "a" }, { name = "b" }]
"""
OTHERS = {
    "swapped": FIRST.replace('{ name = "a" }, { name = "b" }', '{ name = "b" }, { name = "a" }'),
    "scaled": FIRST.replace('{ name = "a" }', '{ name = "a", scale = 100.0 }'),
    "missing added": FIRST.replace('{ name = "a" }', '{ name = "a", missing = "indicator" }'),
    "renamed": FIRST.replace('{ name = "a" }', '{ name = "c" }'),
    "another kind": FIRST.replace("ridge", "softmax"),
}
CHANCE = random.Random(5)
ROWS = [{"a": a, "b": CHANCE.gauss(0, 10), "y": "pos" if a > 0 else "neg"} for a in (CHANCE.gauss(0, 2) for _ in range(400))]
ASKED = [{"a": 2.0, "b": -9.0}, {"a": -2.0, "b": 9.0}, {"a": 1.0, "b": 30.0}]


def right() -> list[str]:
    """What another library, which knows the fields by name, answers."""
    x = np.array([[row["a"], row["b"]] for row in ROWS])
    model = RidgeClassifier().fit(x, [row["y"] for row in ROWS])
    return model.predict(np.array([[row["a"], row["b"]] for row in ASKED])).tolist()


@pytest.fixture(params=sorted(OTHERS))
def changed(request: pytest.FixtureRequest, tmp_path: Path) -> Pipeline:
    """A pipeline that has learned a version of main, and whose file says something else since."""
    path = tmp_path / "digits.toml"
    path.write_text(FIRST, encoding="utf-8")
    first = Pipeline.load(path, home=tmp_path / ".millrace")
    first.append(ROWS)
    assert first.learn().learned == 400
    path.write_text(OTHERS[request.param], encoding="utf-8")
    return Pipeline.load(path, home=tmp_path / ".millrace")


def test_python_answers_with_the_versions_own_fields(changed: Pipeline) -> None:
    """The newest of main, which is still served, and the version by name."""
    assert right() == ["pos", "neg", "pos"]
    assert list(changed.predict(ASKED).labels) == right()
    assert list(changed.predict(ASKED, "newest").labels) == right()


def test_a_replica_answers_with_the_versions_own_fields_and_says_so(changed: Pipeline, tmp_path: Path) -> None:
    """Beside a branch of the new file, as `run` advises; metadata, answers and what is recorded are of the old fields."""
    instance = Instance(load_pipeline(tmp_path / "digits.toml"), tmp_path / ".millrace" / "digits")
    here("run", "digits.toml", "--branch", "two", cwd=tmp_path)

    async def nothing(*_: object) -> None:
        await asyncio.sleep(0.01)  # as whoever asks another process waits

    follower = Follower(instance, nothing)

    async def first() -> None:
        following = asyncio.create_task(follower.run())
        while follower.held is None:
            assert not following.done(), following.exception()
            await asyncio.sleep(0.01)
        following.cancel()

    asyncio.run(first())
    log = SqliteLog(tmp_path / "served.sqlite")
    log.create_topic("digits.served")
    recording = Recording(Recorder(lambda: log, "digits.served"), features_name(instance.loaded.pipeline.schema))
    endpoint = Endpoint("digits", instance.loaded.pipeline.schema, lambda: follower.held, recording=recording)
    inputs = [tensor(name, "FP64", [3], [row[name] for row in ASKED]) for name in ("a", "b")]
    heard = infer(HttpApp(endpoint), {"inputs": inputs})
    assert heard.status == 200, heard.body
    assert heard.json["outputs"][1]["data"] == right()
    recording.recorder.close(TIMEOUT_S)
    [first_event, *_] = log.fetch("digits.served:0", 0, None, 10)[0]
    old = follower.held.schema
    event = Event(0, 0, first_event.key, b"", first_event.value)
    [record] = ServedCodec(old, 1 << 20, "digits.served").decode([event], "digits.served:0")[0].records
    assert isinstance(record, Prediction) and json.loads(bytes(record.row)) == ASKED[0]
    assert record.features == features_name(old) and [field.name for field in endpoint.answering.fields] == ["a", "b"]


def test_an_exported_version_has_its_own_fields(changed: Pipeline, tmp_path: Path) -> None:
    """By pyfunc, as MLflow loads it, which is what the mirror uploads."""
    instance = Instance(load_pipeline(tmp_path / "digits.toml"), tmp_path / ".millrace" / "digits")
    exporting.export(instance, "newest", tmp_path / "exported")
    columns = {name: [row[name] for row in ASKED] for name in ("b", "a")}
    assert pyfunc._load_pyfunc(str(tmp_path / "exported")).predict(columns)["label"].tolist() == right()


@pytest.mark.parametrize("changed", ["swapped"], indirect=True)
def test_fields_that_cannot_be_read_are_said(changed: Pipeline, tmp_path: Path) -> None:
    """The stored declaration is gone: no version of the branch is opened with other fields in its place."""
    instance = Instance(load_pipeline(tmp_path / "digits.toml"), tmp_path / ".millrace" / "digits")
    fork = Archive(instance).summary("main").fork
    instance.store().path("main", fork.features_sha256).unlink()
    with pytest.raises(DamageError, match="fields that branch main was begun with cannot be read"):
        Archive(instance).version(changed.versions()[0].version)
