"""The trainer without Ray: what it lets out, in which order, and what it leaves when it is stopped."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from rooms import here, pipeline_in

from millrace.services.bundle import Bundle, open_bundle
from millrace.services.config import load_pipeline
from millrace.services.current import Blob, Publication
from millrace.services.follower import Archive
from millrace.services.instance import Instance
from millrace.services.trainer import Trainer

SOON_S = 30.0


class Shelf:
    """Takes publications as ``Current`` does; forgets everything when it is told to."""

    def __init__(self, instance: Instance) -> None:
        self.bundles: list[Bundle] = []
        self.held: Publication | None = None
        self._schema = instance.loaded.pipeline.schema

    def __call__(self, publication: Publication, blob: Blob | None) -> bool:
        """A beat without a blob; False where the state is not held."""
        if blob is not None:
            self.bundles.append(open_bundle(blob.tobytes(), publication.sha256, self._schema).confirmed(publication.as_of_ms))
            self.held = publication
        return self.held is not None and self.held.identity == publication.identity


def soon(true) -> None:
    """Look again and again."""
    until_s = time.monotonic() + SOON_S
    while not true():
        assert time.monotonic() < until_s
        time.sleep(0.01)


@pytest.mark.slow
def test_it_publishes_what_it_has_acknowledged_refills_current_and_marks_a_version_when_stopped(tmp_path: Path) -> None:
    """In increasing places; while idle it beats, and gives the bytes again to who has lost them."""
    instance = Instance(load_pipeline(pipeline_in(tmp_path, rows=400)), tmp_path / ".millrace" / "digits")
    shelf = Shelf(instance)
    trainer = Trainer(instance, "main", shelf)
    assert here("send", "digits.toml", "rows.jsonl", cwd=tmp_path).exit_code == 0
    soon(lambda: trainer.state().records == 400 and shelf.bundles and shelf.bundles[-1].outputs == 3)
    assert instance.ledger().serving["default"].follow == "main"
    shelf.held = None
    count = len(shelf.bundles)
    soon(lambda: len(shelf.bundles) > count)
    assert time.time_ns() // 1_000_000 - shelf.bundles[-1].as_of_ms < 10_000
    state = trainer.stop(SOON_S)
    assert state.running and not state.said
    places = [bundle.identity.place for bundle in shelf.bundles]
    assert places == sorted(places)
    newest = Archive(instance).newest("main")
    assert newest.identity.version and newest._servable.weights.tobytes() == shelf.bundles[-1]._servable.weights.tobytes()


@pytest.mark.slow
def test_a_trainer_waits_for_a_branch_that_another_process_holds(tmp_path: Path) -> None:
    """It says who holds it, and goes on once it is free."""
    instance = Instance(load_pipeline(pipeline_in(tmp_path)), tmp_path / ".millrace" / "digits")
    with instance.hold("main", take_over=False):
        trainer = Trainer(instance, "main", Shelf(instance))
        soon(lambda: "is being written by" in trainer.state().said)
    soon(lambda: trainer.state().epoch == 1)
    assert trainer.stop(SOON_S).said == ""
