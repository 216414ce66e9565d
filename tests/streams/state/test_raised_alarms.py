"""Alarms in the detectors' part of the state: each under its id, at most so many, and none where none was raised."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from branches import SteppedClock, run_to_end
from flipped import ROWS, STEPS, entries, flipped, rooms, watching, worker_in

from millrace.learners.drift.alarms import DriftConfig
from millrace.learners.protocol import Value
from millrace.streams.branch.branch import FoldSpec
from millrace.streams.branch.host import this_host
from millrace.streams.branch.verify import verify
from millrace.streams.features.columns import Features
from millrace.streams.journal.entries import Act
from millrace.streams.state import drift as drift_state
from millrace.streams.state.drift import MOST_KEPT, Drift, raised_alarms
from millrace.streams.state.stages import Stages
from millrace.streams.worker.worker import Worker, WorkerIdentity

CONFIG = DriftConfig(false_alarm_rows=2000, per_class=False)


class DriftWithoutIds(Drift):
    """As an earlier release had it."""

    def state(self) -> dict[str, Value]:
        """The newest alarm alone."""
        return {name: value for name, value in super().state().items() if name != "alarms"}


class Earlier(FoldSpec):
    """Folds as an earlier release did."""

    def stages(self, features: Features, excludes: bool = False) -> Stages:
        """With its detectors."""
        assert self.drift is not None
        return replace(super().stages(features, excludes), drift=DriftWithoutIds(self.drift, self.seed))


def earlier(how: FoldSpec) -> FoldSpec:
    """The same pipeline in that release's hands."""
    return Earlier(*(getattr(how, field.name) for field in fields(how)))


def test_an_alarm_has_the_id_of_its_step_and_goes_on_in_the_state() -> None:
    """The act's evidence is the same step."""
    storage = rooms()
    worker = worker_in(storage)
    run_to_end(worker, ROWS)
    (act,) = entries(storage, Act)
    (raised,) = worker.fold.drift.raised
    assert raised.id == f"{act.evidence}.1" and raised_alarms(worker.fold.drift.state()) == [raised]
    again = Drift(worker.fold.drift.config, worker.fold.drift.state()["seed"])
    again.load(worker.fold.drift.state())
    assert again.raised == [raised] and again.newest == raised.alarm


def test_without_an_alarm_the_state_is_what_it_was() -> None:
    """No key is added: the bytes of pipelines that were never alarmed are those of the release before."""
    storage = rooms(flipped(flip=ROWS))
    worker = worker_in(storage)
    run_to_end(worker, ROWS)
    assert "alarms" not in worker.fold.drift.state() and worker.fold.drift.raised == []


def test_of_very_many_alarms_the_oldest_become_one_from_the_earliest_onset_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that goes up and down for ever, as of a stream that never settles: no onset is forgotten, the state stays small.

    What they become has another id each time, so that it is open, whatever of them was closed.
    """
    assert MOST_KEPT >= 512
    monkeypatch.setattr(drift_state, "MOST_KEPT", 8)
    drift, losses, onsets, merged = Drift(CONFIG, 0), np.repeat(np.tile([0.0, 1.0], 20), 400), [], []
    for seq, start in enumerate(range(0, len(losses), 400), 1):
        drift.begin_step("main", seq)
        drift.feed(losses[start : start + 400], None, start)
        onsets += [alarm.onset_rows for alarm in drift.worse]
        merged += [drift.raised[0].id] if drift.worse and drift.raised[0].number == 0 else []
        assert min(alarm.alarm.onset_rows for alarm in drift.raised) == min(onsets) if onsets else not drift.raised
        assert [alarm.alarm.onset_rows for alarm in drift.raised[-7:]] == onsets[-7:]
    assert len(drift.raised) == 8 and len(onsets) > 16 and drift.raised[0].alarm.onset_rows == onsets[0]
    assert len(set(merged)) == len(merged) == len(onsets) - 8
    again = Drift(CONFIG, 0)
    again.load(drift.state())
    assert again.raised == drift.raised
    assert drift.raised[-1].alarm == drift.newest


def test_a_branch_that_an_earlier_release_alarmed_goes_on_and_is_proved() -> None:
    """Its states do not list what it raised then; folding it again from the start does, and that is no difference."""
    storage = rooms()
    how = watching()
    identity = WorkerIdentity("main", this_host(1), SteppedClock())
    before = Worker(earlier(how), storage.backends(), STEPS, identity)
    run_to_end(before, 1000)
    before.close()
    worker = Worker(how, storage.backends(), STEPS, identity)
    assert worker.fold.drift.newest is not None and worker.fold.drift.raised == []
    run_to_end(worker, ROWS)
    worker.close()
    report = verify(how, storage.backends(), "main", STEPS.keep)
    assert report.findings == [] and report.proved
