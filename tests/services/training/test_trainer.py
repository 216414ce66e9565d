"""The trainer without Ray: what it lets out, in which order, and what it leaves when it is stopped."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from pipelines import PIPELINE, facts, here, json_lines, pipeline_in
from shelf import SOON_S, Shelf, soon

from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import Instance
from millrace.services.training.past_rejects import let_past
from millrace.services.training.trainer import Trainer
from millrace.streams.labels.served import LateLabel, Prediction, encode, encode_row


@pytest.mark.slow
def test_it_publishes_what_it_has_acknowledged_refills_current_and_marks_a_version_when_stopped(tmp_path: Path) -> None:
    """In increasing places; while idle it beats, and gives the bytes again to who has lost them."""
    instance = Instance(load_pipeline(pipeline_in(tmp_path, rows=400)), tmp_path / ".millrace" / "digits")
    shelf = Shelf(instance)
    trainer = Trainer(instance, "main", shelf)
    sent_ms = time.time_ns() // 1_000_000
    assert here("send", "digits.toml", "rows.jsonl", cwd=tmp_path).exit_code == 0
    soon(lambda: trainer.state().records == 400 and shelf.bundles and shelf.bundles[-1].outputs == 3)
    assert instance.ledger().serving["default"].follow == "main"
    shelf.held = None
    count = len(shelf.bundles)
    soon(lambda: len(shelf.bundles) > count)
    assert sent_ms <= shelf.bundles[-1].as_of_ms <= time.time_ns() // 1_000_000
    state = trainer.stop(SOON_S)
    assert state.running and not state.said
    places = [bundle.identity.place for bundle in shelf.bundles]
    assert places == sorted(places)
    newest = Archive(instance).newest("main")
    assert newest.identity.version and newest._servable.weights.tobytes() == shelf.bundles[-1]._servable.weights.tobytes()


@pytest.mark.slow
def test_a_trainer_that_rejects_stopped_goes_on_once_they_are_let_past(tmp_path: Path) -> None:
    """It says what stopped it, waits for the ledger's entry, and learns what follows; no restart is needed."""
    text = PIPELINE + "step_rows = 20\nwindow_rows = 20\n"
    instance = Instance(load_pipeline(pipeline_in(tmp_path, rows=30, text=text)), tmp_path / ".millrace" / "digits")
    (tmp_path / "bad.jsonl").write_bytes(b"{\n" * 60)
    for name in ("bad.jsonl", "rows.jsonl"):
        assert here("send", "digits.toml", name, cwd=tmp_path).exit_code == 0
    trainer = Trainer(instance, "main", Shelf(instance))
    soon(lambda: "--past-rejects" in trainer.state().said)
    let_past(instance, "main", "a test's garbage")
    soon(lambda: trainer.state().records == 90)
    assert not trainer.stop(SOON_S).said
    assert facts(tmp_path)["learned"] == 30


def told(rows: int) -> bytes:
    """JSON lines: predictions as they were served, their labels, one of them twice, and one that contradicts another."""
    lines = []
    for at in range(rows):
        row = encode_row({"x": [at % 7, 1, 2, at % 3], "site": "north"})
        lines += [encode(Prediction(f"r{at}", row, "main", 1, 2, ("rose", "tulip"), (0.1, 0.9)))]
        lines += [encode(LateLabel(f"r{at}", ("rose", "tulip")[at % 2]))] * (2 if at == 5 else 1)
    return b"\n".join([*lines, encode(LateLabel("r0", "tulip")), encode(LateLabel("nobody", "rose")), b'{"id": 3}']) + b"\n"


@pytest.mark.slow
def test_a_trainer_learns_served_predictions_with_their_late_labels(tmp_path: Path) -> None:
    """It publishes what it learned from them, its version can be served and proved, and `status` says what became of each."""
    pipeline = pipeline_in(tmp_path, text=PIPELINE + "\n[labels]\nmemory_rows = 1000\n")
    instance = Instance(load_pipeline(pipeline), tmp_path / ".millrace" / "digits")
    (tmp_path / "told.jsonl").write_bytes(told(100))
    shelf = Shelf(instance)
    trainer = Trainer(instance, "main", shelf)
    for words in (["rows.jsonl"], ["told.jsonl", "--served"]):
        assert here("send", "digits.toml", *words, cwd=tmp_path).exit_code == 0
    soon(lambda: trainer.state().records == 200 + 204 and not facts(tmp_path)["lag_rows"])
    soon(lambda: shelf.bundles and shelf.bundles[-1].identity.seq == trainer.state().seq)
    assert not trainer.stop(SOON_S).said
    status = facts(tmp_path)
    counted = {name: status[f"labels_{name}"] for name in ("joined", "repeated", "conflicts", "awaited", "waiting", "late")}
    assert counted == {"joined": 100, "repeated": 1, "conflicts": 1, "awaited": 0, "waiting": 1, "late": 0}
    assert (status["scored_as_served"], status["served_accuracy"], status["scored_by_worker"]) == (100, 0.5, 200)
    assert status["records"] == sum(int(status[name]) for name in ("learned", "passed", "rejected", "labels", "waiting"))
    assert (status["learned"], status["rejected"], status["lag_rows"]) == (300, 2, 0)
    assert isinstance(status["recall_rose"], float) and isinstance(status["recall_tulip"], float)
    newest = Archive(instance).newest("main")
    assert newest.identity.version == status["version"] and set(newest.classes) >= {"rose", "tulip"}
    assert here("verify", "digits.toml", cwd=tmp_path).exit_code == 0
    assert {"labels.horizon_ms", "labels.memory_rows"} <= {setting["key"] for setting in settings(tmp_path)}


def settings(folder: Path) -> list[dict[str, object]]:
    """What `config show` says."""
    return json_lines(here("config", "show", "digits.toml", "--output", "json", cwd=folder).stdout)


def test_served_records_are_refused_where_no_table_labels_says_how_they_are_read(tmp_path: Path) -> None:
    """Nothing would read them."""
    pipeline_in(tmp_path)
    done = here("send", "digits.toml", "rows.jsonl", "--served", cwd=tmp_path)
    assert done.exit_code == 2 and "has no table [labels]" in done.stderr


@pytest.mark.slow
def test_a_trainer_waits_for_a_branch_that_another_process_holds(tmp_path: Path) -> None:
    """It says who holds it, and goes on once it is free."""
    instance = Instance(load_pipeline(pipeline_in(tmp_path)), tmp_path / ".millrace" / "digits")
    with instance.hold("main", take_over=False):
        trainer = Trainer(instance, "main", Shelf(instance))
        soon(lambda: "is being written by" in trainer.state().said)
    soon(lambda: trainer.state().epoch == 1)
    assert trainer.stop(SOON_S).said == ""
