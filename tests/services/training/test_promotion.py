"""`[llm] promote_rows = n`: what is newest is served, again and again, but where an operator has decided otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from draft_pipelines import put, tiny, tiny_values
from served_pipeline import until

from millrace.learners.errors import ConfigError
from millrace.services.decisions.decide import decide, plan, target
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import ENDPOINT, Instance
from millrace.services.training.current import Blob, Publication
from millrace.services.training.promotion import WHO, Promotion
from millrace.services.training.run import Bounds, run
from millrace.services.training.trainer import Trainer
from millrace.streams.journal.ledger import Serve

pytest.importorskip("torch", reason="a draft is torch's, the extra `llm`")
ROWS = 16


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Instance:
    """A pipeline whose every sixteenth completion promotes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = tiny(tmp_path).loaded.path.read_text().replace('capture = "all"', f'capture = "all"\npromote_rows = {ROWS}')
    (tmp_path / "answers.toml").write_text(text)
    from millrace.services.config.config import load_pipeline

    return Instance(load_pipeline(tmp_path / "answers.toml"), tmp_path / "home" / "answers")


@contextmanager
def training(instance: Instance) -> Iterator[list[Publication]]:
    """A trainer at work for as long as the block runs; what it published."""
    published: list[Publication] = []

    def publish(publication: Publication, _: Blob | None) -> bool:
        published.append(publication)
        return True

    trainer = Trainer(instance, "main", publish)
    try:
        yield published
    finally:
        assert not trainer.stop(60.0).said


def served(instance: Instance) -> str | None:
    """The version that the ledger says."""
    return instance.ledger().serving[ENDPOINT].version if ENDPOINT in instance.ledger().serving else None


def newest(instance: Instance) -> str:
    """Version of the branch."""
    return [mark.version for mark in Archive(instance).marks("main") if mark.version is not None][-1]


def learn(instance: Instance, seed: int, then: Callable[[], bool]) -> None:
    """Sixteen more completions, and what follows."""
    before = newest(instance)
    put(instance, tiny_values(ROWS, seed))
    until(lambda: newest(instance) != before)
    until(then)


def test_what_is_newest_is_served_until_an_operator_decides(instance: Instance) -> None:
    """After a rollback nothing is promoted; once the newest is served by hand, promotion goes on. No draft is published."""
    assert instance.loaded.pipeline.worker.version_rows == ROWS
    with training(instance) as published:
        until(lambda: served(instance) is not None)
        first = served(instance)
        learn(instance, 1, lambda: served(instance) == newest(instance))
        assert instance.ledger().counted[-1].who == WHO and served(instance) != first
        decide(instance, plan(instance, target(first, None)), "worse")
        learn(instance, 2, lambda: True)
        learn(instance, 3, lambda: True)
        assert served(instance) == first
        decide(instance, plan(instance, target("newest", None)), "better")
        learn(instance, 4, lambda: served(instance) == newest(instance))
        assert not published
    versions = [mark.version for mark in Archive(instance).marks("main") if mark.version is not None]
    promoted = [decision.to.version for decision in instance.ledger().counted if decision.who == WHO]
    assert promoted == [versions[1], versions[4]]


@dataclass
class Interrupted(Promotion):
    """Promotes, and somebody decides right after each look at the ledger."""

    instance: Instance
    acts: list[Callable[[], Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.instance)

    def _last(self) -> Serve | None:
        last = super()._last()
        if self.acts:
            self.acts.pop()()
        return last


def test_an_operator_who_decides_meanwhile_is_not_passed_over(instance: Instance) -> None:
    """A rollback between the look at the ledger and the decision: the promotion does not count, and is not made again."""
    promotion = Interrupted(instance)

    def learn_and_look(seed: int) -> None:
        put(instance, tiny_values(ROWS, seed))
        run(instance, "main", Bounds(), take_over=False)
        promotion.look(SimpleNamespace(newest_version=newest(instance)))

    learn_and_look(0)
    first = Archive(instance).marks("main")[0].version
    assert served(instance) == newest(instance) != first
    promotion.acts.append(lambda: decide(instance, plan(instance, target(first, None)), "worse"))
    learn_and_look(1)
    assert served(instance) == first
    assert [each.who for each in instance.ledger().counted].count(WHO) == 1


@pytest.mark.parametrize(("of_the_new", "goes_on"), [(0, True), (1, True), (None, False)])
def test_what_was_newest_between_two_looks_was_the_newest(instance: Instance, of_the_new: int | None, goes_on: bool) -> None:
    """A trainer looks four times a second, and may make two versions meanwhile: who served either had no newer one to serve."""
    promotion = Promotion(instance)

    def learn(seed: int) -> str:
        put(instance, tiny_values(ROWS, seed))
        run(instance, "main", Bounds(), take_over=False)
        return newest(instance)

    old = learn(0)
    promotion.look(SimpleNamespace(newest_version=learn(1)))
    made = []
    for seed in (2, 3):
        made.append(learn(seed))
        if of_the_new is None and seed == 2:
            decide(instance, plan(instance, target(old, None)), "worse")
        if of_the_new == seed - 2:
            decide(instance, plan(instance, target("newest", None)), "better")
    promotion.look(SimpleNamespace(newest_version=made[-1]))
    assert served(instance) == (made[-1] if goes_on else old)
    promotion.look(SimpleNamespace(newest_version=learn(4)))
    assert (served(instance) == newest(instance)) == goes_on


def test_a_trainer_that_is_started_again_goes_on_promoting(instance: Instance) -> None:
    """The last decision was its own, so no operator is passed over."""
    with training(instance):
        until(lambda: served(instance) is not None)
        learn(instance, 1, lambda: served(instance) == newest(instance))
    with training(instance):
        learn(instance, 2, lambda: served(instance) == newest(instance))
    assert [decision.who for decision in instance.ledger().counted if decision.who == WHO]


def test_versions_come_as_often_as_they_are_promoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two numbers that contradict each other are refused by both their names."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    instance = tiny(tmp_path)
    assert (instance.loaded.pipeline.worker.version_rows, instance.loaded.pipeline.worker.checkpoint_rows) == (256, 32)
    text = instance.loaded.path.read_text().replace("step_rows = 16", "step_rows = 16\nversion_rows = 8")
    (tmp_path / "answers.toml").write_text(text.replace('capture = "all"', 'capture = "all"\npromote_rows = 4'))
    from millrace.services.config.config import load_pipeline

    with pytest.raises(ConfigError, match=r"llm.promote_rows = 4 and worker.version_rows = 8"):
        load_pipeline(tmp_path / "answers.toml")
