"""Drift of a branch: alarms are taken down while folding, a live worker journals what follows, and a crash changes nothing."""

from __future__ import annotations

import itertools

import pytest
from branches import Rooms, SteppedClock, dies, everything, fold_spec, run_to_end, without_seqs
from flipped import FLIP, ROWS, STEPS, alarms, entries, flipped, rooms, watching, worker_in
from msgspec.structs import replace

from millrace.learners.errors import LearnerError
from millrace.streams.branch.branch import refold
from millrace.streams.branch.host import this_host
from millrace.streams.branch.verify import verify
from millrace.streams.journal.entries import Act, Mark, Step
from millrace.streams.journal.journal import Cursor, counted
from millrace.streams.parts import pack
from millrace.streams.worker.worker import Worker, WorkerIdentity


def test_a_flip_raises_one_alarm_with_its_onset_and_becomes_an_act_and_a_version() -> None:
    """Within a hundred rows, its onset within a few of the flip; the version is of the state right after the act."""
    storage = rooms()
    run_to_end(worker_in(storage), ROWS)
    (alarm,) = [alarm for alarm in alarms(storage) if alarm["direction"] == "worse"]
    assert FLIP < alarm["rows"] < FLIP + 150 and abs(alarm["onset_rows"] - FLIP) <= 16
    assert alarm["before"] < 0.2 < 0.4 < alarm["after"]
    (act,) = entries(storage, Act)
    step = next(step for step in entries(storage, Step) if f"main.{step.seq}" == act.evidence)
    assert (act.op, act.cause, act.seq) == ("version", "detector", step.seq + 1)
    assert [mark.state_seq for mark in entries(storage, Mark) if mark.version][:1] == [act.seq]


def test_without_drift_there_is_no_alarm_and_no_act() -> None:
    """The same rows without the flip."""
    storage = rooms(flipped(flip=ROWS))
    run_to_end(worker_in(storage), ROWS)
    assert entries(storage, Act) == [] and [alarm for alarm in alarms(storage) if alarm["direction"] == "worse"] == []


@pytest.mark.parametrize("act", ["reset", "discount", "relearn"])
def test_an_act_that_changes_the_learner_helps_and_is_proved(act: str) -> None:
    """Right after the flip it answers better than a learner that only carries on; `verify` folds it to the same bytes."""
    right = {}
    for op in ("version", act):
        storage = rooms()
        worker = worker_in(storage, op)
        run_to_end(worker, ROWS)
        worker.close()
        right[op] = worker.fold.scores.totals.correct
        report = verify(watching(op), storage.backends(), "main", STEPS.keep)
        assert report.findings == [] and report.proved
    assert right[act] > right["version"] + 100


@pytest.mark.parametrize(("act", "every"), [("version", 5), ("reset", 3), ("relearn", 7), ("raise-rate", 11)])
def test_a_crash_between_any_two_phases_changes_no_byte_and_no_act(act: str, every: int) -> None:
    """Also between the step that raised the alarm and its act, and between the act and its version."""
    whole = rooms()
    worker, phases = worker_in(whole, act), itertools.count(1)
    while sum(worker.fold.position.values()) < ROWS:
        dies(worker, phases, 0)
    expected, total = without_seqs(worker), next(phases)
    (undisturbed,) = entries(whole, Act)
    for count in range(1, total, every):
        storage = rooms()
        worker, phases = worker_in(storage, act), itertools.count(1)
        while not dies(worker, phases, count):
            pass
        worker = worker_in(storage, act)
        run_to_end(worker, ROWS)
        assert without_seqs(worker) == expected, f"after phase {count}"
        (again,) = entries(storage, Act)
        assert (again.op, again.args) == (undisturbed.op, undisturbed.args) and alarms(storage) == alarms(whole)
        assert [mark.version for mark in entries(storage, Mark) if mark.state_seq >= again.seq and mark.version], "its version"


def test_a_raised_rate_is_journaled_with_its_rows_and_proved() -> None:
    """The act says how much and for how long, the learner's state what is left; every mark is proved to the bit."""
    storage, how = rooms(), watching("raise-rate", rate_factor=3.0, rate_rows=45)
    worker = Worker(how, storage.backends(), STEPS, WorkerIdentity("main", this_host(1), SteppedClock()))
    run_to_end(worker, ROWS)
    worker.close()
    (act,) = entries(storage, Act)
    assert (act.op, act.args) == ("raise-rate", {"factor": 3.0, "rows": 45})
    assert worker.fold.learner.state_dict().truth["factor"] == 3.0
    report = verify(how, storage.backends(), "main", STEPS.keep)
    assert report.findings == [] and len(report.proved) == len(entries(storage, Mark))


@pytest.mark.parametrize(("op", "says"), [("discount", "cannot discount"), ("raise-rate", "has no rate to be raised")])
def test_an_act_that_the_learner_cannot_do_is_refused_when_it_is_folded(op: str, says: str) -> None:
    """It was written by a release whose learner could."""
    fork = next(counted(begun().journal, "main", Cursor()))
    how = fold_spec("chain")
    fold = how.fold(replace(fork, learner_revision=how.make_learner().revision))
    args = {"keep": 0.1} if op == "discount" else {"factor": 2.0, "rows": 3}
    with pytest.raises(LearnerError, match=says):
        fold.act(Act(branch="main", seq=2, epoch=1, op=op, args=args, cause="detector", evidence="main.1"))


def begun() -> Rooms:
    """Rooms with a branch that has learned a little."""
    storage = rooms()
    run_to_end(worker_in(storage), 50)
    return storage


def test_a_fold_that_ignores_acts_is_caught() -> None:
    """The twin: folding without them gives another learner."""
    storage = rooms()
    worker = worker_in(storage, "reset")
    run_to_end(worker, ROWS)
    counts = list(counted(storage.journal, "main", Cursor()))
    fold = watching("reset").fold(counts[0])
    for _ in refold(
        fold, [entry for entry in counts if not isinstance(entry, Act)], storage.backends().source, watching().codec
    ):
        pass
    assert pack(fold.parts()["learner"]) != everything(worker)["learner"]
