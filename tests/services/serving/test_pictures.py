"""A pipeline of pictures from end to end: sent, learned, proved, and answered over HTTP and gRPC with the trainer's bits."""

from __future__ import annotations

import base64
import json
import shutil

import numpy as np
import pytest
from grpc_calls import asked, call
from pictures import NETWORK, photos
from pipelines import events, facts, here
from served_bundles import HttpApp, endpoint_of, infer, tensor

from millrace.services.config.config import load_pipeline
from millrace.services.decisions.versions import resolved
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.bundle import open_parts
from millrace.services.pipeline.instance import Instance
from millrace.services.protocol.cells import binary_texts
from millrace.services.pyfunc import _load_pyfunc
from millrace.services.registry.export import export, opened
from millrace.streams.errors import DamageError
from millrace.streams.features.columns import Features
from millrace.streams.formats.contents import Contents

PIPELINE = """name = "digits"
label = { name = "y", type = "integer" }
learner = { kind = "ridge", gamma = 10.0, solve_rows = 100 }
batch = { rows = 50 }

[[fields]]
name = "photo"
type = "image"
backbone = "network.onnx"
shape = [128, 128]
features = 256
center = 128.0
scale = 128.0
"""
TAUGHT, HELD = 1000, 200


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A folder in which a pipeline learned photographs, one row a message and then in Arrow batches."""
    pictures, y = photos("train", 0, TAUGHT)
    folder = tmp_path_factory.mktemp("pictures")
    shutil.copy(NETWORK, folder / "network.onnx")
    (folder / "digits.toml").write_text(PIPELINE)
    rows = [
        json.dumps({"photo": base64.b64encode(raw).decode(), "y": int(label)}) for raw, label in zip(pictures, y, strict=True)
    ]
    (folder / "one.jsonl").write_text("\n".join(rows[: TAUGHT // 2]))
    (folder / "two.jsonl").write_text("\n".join([*rows[TAUGHT // 2 :], json.dumps({"photo": "AAAA", "y": 1})]))
    for words in (["one.jsonl"], ["two.jsonl", "--format", "arrow", "--rows-per-message", "70"]):
        assert here("send", "digits.toml", *words, cwd=folder).exit_code == 0
    assert here("run", "digits.toml", cwd=folder).exit_code == 0
    return folder


def bundle_in(folder):
    """The newest version's, and the instance."""
    instance = Instance(load_pipeline(folder / "digits.toml"), folder / ".millrace" / "digits")
    archive = Archive(instance)
    return open_parts(archive.parts(archive.mark(resolved(instance, "newest"))), instance.loaded.pipeline.schema), instance


def test_pictures_are_learned_and_proved(learned) -> None:
    """All but the one that is none; `verify` makes every feature again from the log."""
    status = facts(learned)
    assert (status["learned"], status["rejected"]) == (TAUGHT, 1) and float(str(status["accuracy"])) > 0.3
    assert here("verify", "digits.toml", cwd=learned).exit_code == 0


def test_answers_over_http_and_grpc_are_the_trainers_to_the_bit(learned) -> None:
    """As base64 in JSON, as bytes behind it, as raw and as typed contents; and far better than chance on new pictures."""
    pictures, y = photos("test", 0, HELD)
    bundle, instance = bundle_in(learned)
    schema = instance.loaded.pipeline.schema
    rows = [json.dumps({"photo": base64.b64encode(raw).decode()}).encode() for raw in pictures]
    decoded, _ = Contents(schema, 1 << 20).decode(events(rows))
    expected = bundle._servable.predict_many(Features(schema).encode(decoded))
    endpoint = endpoint_of(bundle, schema, max_bytes=8 << 20)
    assert endpoint.inline_bytes == 0, "no picture holds the event loop up"
    texts, raw = [base64.b64encode(picture).decode() for picture in pictures], binary_texts(pictures)
    by_json = infer(HttpApp(endpoint), {"inputs": [tensor("photo", "BYTES", [HELD], texts)]})
    by_bytes = infer(HttpApp(endpoint), {"inputs": [tensor("photo", "BYTES", [HELD], size=len(raw))]}, raw)
    for heard in (by_json, by_bytes):
        assert heard.status == 200, heard.body
        assert np.array(heard.json["outputs"][0]["data"]).tobytes() == expected.tobytes()
    labels = by_json.json["outputs"][1]["data"]
    assert np.mean([int(mine) == theirs for mine, theirs in zip(labels, y, strict=True)]) > 0.4
    request = asked(("photo", "BYTES", [HELD], raw))
    context, answer = call(endpoint, "ModelInfer", request)
    assert context.code == "OK" and answer.raw_output_contents[0] == expected.tobytes()
    typed = asked(("photo", "BYTES", [HELD], None))
    typed.inputs[0].contents.bytes_contents.extend(pictures)
    context, answer = call(endpoint, "ModelInfer", typed)
    assert context.code == "OK" and answer.raw_output_contents[0] == expected.tobytes()


def test_a_bad_picture_in_a_request_is_named(learned) -> None:
    """400, with field and row."""
    bundle, instance = bundle_in(learned)
    to = HttpApp(endpoint_of(bundle, instance.loaded.pipeline.schema))
    for data in (["AAAA"], ["*"], [None], ["AAAA"] * 1025):
        heard = infer(to, {"inputs": [tensor("photo", "BYTES", [len(data)], data)]})
        assert heard.status == 400 and heard.json["error"].startswith("photo: ")


def test_an_exported_version_brings_its_network(learned, tmp_path) -> None:
    """And answers the same without the pipeline's folder; another network in its place is refused."""
    pictures, _ = photos("test", 0, 5)
    bundle, instance = bundle_in(learned)
    export(instance, "newest", tmp_path / "out")
    column = np.array(pictures, dtype=object)
    expected = bundle.predict([column]).scores
    assert opened(tmp_path / "out").predict([column]).scores.tobytes() == expected.tobytes()
    assert _load_pyfunc(str(tmp_path / "out")).predict({"photo": pictures})["scores"].tobytes() == expected.tobytes()
    next((tmp_path / "out").glob("backbone-*.onnx")).write_bytes(b"another")
    with pytest.raises(DamageError, match="Export it again"):
        opened(tmp_path / "out")
