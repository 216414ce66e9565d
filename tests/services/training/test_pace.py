"""How often weights leave, by a clock that stands unless it is moved."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from pipelines import PIPELINE, here, pipeline_in
from shelf import SOON_S, Shelf, soon

from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.instance import Instance
from millrace.services.training import merger as merging
from millrace.services.training import trainer as training
from millrace.services.training.current import Blob, Publication
from millrace.services.training.pace import EARLIEST_S, STORE_BYTES_S, Pace

NEVER_S = 1e9  # a look that does not come while a test runs: what leaves, leaves because it has changed


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        """What it shows."""
        return self.s


@pytest.mark.parametrize(
    ("cost_s", "size", "rest_s"),
    [(0.0, 0, EARLIEST_S), (0.02, 1000, 0.18), (0.02, STORE_BYTES_S // 2, 0.5), (3.0, 1 << 20, 27.0)],
)
def test_weights_rest_by_what_they_cost_and_by_their_bytes(cost_s: float, size: int, rest_s: float) -> None:
    """A tenth of the time at most goes into them, and a store full of bytes a second; the first may leave at once."""
    clock = Hand()
    pace = Pace(0.1, clock)
    assert pace.allows and pace.left_s == 0
    pace.spent(cost_s, size)
    assert not pace.allows and pace.left_s == pytest.approx(rest_s)
    clock.s += 0.999 * rest_s
    assert not pace.allows
    clock.s += 0.002 * rest_s
    assert pace.allows and pace.left_s == 0


class Gate(Shelf):
    """A shelf that takes nothing while its gate is closed."""

    def __init__(self, instance: Instance) -> None:
        super().__init__(instance)
        self.gate = threading.Event()
        self.asked = 0

    def __call__(self, publication: Publication, blob: Blob | None) -> bool:
        """As a shelf, once the gate is open."""
        self.asked += 1
        self.gate.wait()
        return super().__call__(publication, blob)


def instance_in(folder: Path, text: str) -> Instance:
    """A pipeline of 400 rows, none of them sent yet."""
    text = text.replace("gamma = 0.5", "gamma = 0.5, solve_rows = 20")
    return Instance(load_pipeline(pipeline_in(folder, rows=400, text=text)), folder / ".millrace" / "digits")


def test_weights_leave_once_they_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has to look for it again and again."""
    monkeypatch.setattr(training, "LOOK_S", NEVER_S)
    instance = instance_in(tmp_path, PIPELINE)
    shelf = Shelf(instance)
    trainer = training.Trainer(instance, "main", shelf)
    soon(lambda: shelf.bundles)
    assert not shelf.bundles[0].outputs
    assert here("send", "digits.toml", "rows.jsonl", cwd=tmp_path).exit_code == 0
    soon(lambda: shelf.bundles[-1].outputs == 3)
    assert not trainer.stop(SOON_S).said


def test_nothing_leaves_before_the_last_has_arrived(tmp_path: Path) -> None:
    """While one is on its way learning goes on, and what leaves after it is the newest."""
    instance = instance_in(tmp_path, PIPELINE)
    shelf = Gate(instance)
    trainer = training.Trainer(instance, "main", shelf)
    soon(lambda: shelf.asked)
    assert here("send", "digits.toml", "rows.jsonl", cwd=tmp_path).exit_code == 0
    soon(lambda: trainer.state().records == 400)
    assert shelf.asked == 1 and not shelf.bundles
    shelf.gate.set()
    soon(lambda: len(shelf.bundles) > 1)
    assert shelf.bundles[1].outputs == 3 and shelf.bundles[1].identity.place > shelf.bundles[0].identity.place
    trainer.stop(SOON_S)


def test_a_merge_leaves_once_a_shard_has_let_something_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither trainers nor merger look for it again and again."""
    for module in (training, merging):
        monkeypatch.setattr(module, "LOOK_S", NEVER_S)
    text = PIPELINE.replace("seed = 7", "seed = 7\nshards = 2") + "[log]\npartitions = 2\n"
    instance = instance_in(tmp_path, text)
    shelf = Shelf(instance)
    merger = merging.Merger(instance, "main", shelf)

    def publish(publication: Publication, blob: Blob | None) -> bool:
        return merger.beat(publication) if blob is None else merger.publish(publication, blob)

    trainers = [training.Trainer(instance, shard, publish) for shard in instance.shards("main")]
    soon(lambda: shelf.bundles)
    assert here("send", "digits.toml", "rows.jsonl", cwd=tmp_path).exit_code == 0
    soon(lambda: shelf.bundles[-1].outputs == 3)
    for learner in (*trainers, merger):
        assert not learner.stop(SOON_S).said
