"""What an answer says of its entity's past: how old the windows are, and nothing of what is in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from entity_cards import START_MS, instance, payments, text, value_of
from pipelines import facts, here

from millrace.services.config.sections import ServingConfig
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.bundle import Bundle
from millrace.services.pipeline.instance import Instance
from millrace.services.protocol import inference_pb2 as pb
from millrace.services.protocol.inference import HttpRequest, infer
from millrace.services.protocol.messages import infer_message
from millrace.streams.records import Record

RICH = {"card": "rich", "row": 1.0, "amount": 1e9}


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Instance]:
    """A pipeline that has learned, and then seen payments of one card that are far beyond all of that; those have no label."""
    folder = tmp_path_factory.mktemp("answers")
    (folder / "digits.toml").write_text(text(), encoding="utf-8")
    pipeline, rows = instance(folder), payments(400)
    last = rows[-1]["t"]
    rows += [RICH | {"fraud": None, "t": last + 100 * number} for number in range(1, 7)]
    pipeline.log().append("digits", [Record(value_of(row), None, b"", row["t"]) for row in rows])
    assert here("run", "digits.toml", cwd=folder).exit_code == 0
    return folder, pipeline


def asked(bundle: Bundle, card: str, amount: float, now_ms: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters of the answer to one row, over HTTP and over gRPC."""
    row = [("card", "BYTES", card), ("row", "FP64", 1.0), ("amount", "FP64", amount)]
    body = {"inputs": [{"name": name, "datatype": kind, "shape": [1], "data": [cell]} for name, kind, cell in row]}
    reply = infer("digits", bundle, HttpRequest(json.dumps(body).encode()), now_ms, ServingConfig())
    message = pb.ModelInferRequest(model_name="digits")
    for name, kind, cell in row:
        contents = message.inputs.add(name=name, datatype=kind, shape=[1]).contents
        if isinstance(cell, str):
            contents.bytes_contents.append(cell.encode())
        else:
            contents.fp64_contents.append(cell)
    response = infer_message("digits", bundle, message, now_ms, ServingConfig()).response
    by_grpc = {name: getattr(value, str(value.WhichOneof("parameter_choice"))) for name, value in response.parameters.items()}
    return json.loads(reply.body)["parameters"], by_grpc


def newest(pipeline: Instance) -> Bundle:
    """The newest checkpoint's."""
    bundle = Archive(pipeline).newest("main")
    assert bundle is not None
    return bundle


def test_answers_say_how_old_their_windows_are(learned: tuple[Path, Instance]) -> None:
    """By both protocols; that the log has had nothing since makes an answer no staler, and its windows no younger."""
    bundle = newest(learned[1])
    clock_ms = bundle.as_of_ms
    assert clock_ms > START_MS
    for held, stale_ms in ((bundle, 5000), (bundle.confirmed(clock_ms + 4000), 1000)):
        for parameters in asked(held, "card 1", 50.0, clock_ms + 5000):
            assert (parameters["state_age_ms"], parameters["staleness_ms"]) == (5000, stale_ms)


def test_what_is_far_out_says_nothing_of_anybodys_past(learned: tuple[Path, Instance]) -> None:
    """Whoever names a card learns what is extreme in the row that was sent, and not whether that card's history is."""
    bundle = newest(learned[1])
    for card in ("rich", "card 1", "never seen"):
        assert all("far_out" not in parameters for parameters in asked(bundle, card, 50.0, bundle.as_of_ms))
        assert all(parameters["far_out"] == "amount" for parameters in asked(bundle, card, 1e9, bundle.as_of_ms))


def test_a_version_that_is_served_says_that_its_windows_stand_still(learned: tuple[Path, Instance]) -> None:
    """In `status`, with what moves them again; and no longer once that was done."""
    folder, _ = learned
    assert "windows_default" not in facts(folder)
    assert here("serve", "digits.toml", "newest", "--reason", "pin", "--yes", cwd=folder).exit_code == 0
    told = [value for name, value in facts(folder).items() if name.startswith("windows_")]
    assert len(told) == 1 and "stand still" in str(told[0]) and "millrace serve --follow" in str(told[0])
    assert here("serve", "digits.toml", "--follow", "main", "--reason", "on", "--yes", cwd=folder).exit_code == 0
    assert not [name for name in facts(folder) if name.startswith("windows_")]
