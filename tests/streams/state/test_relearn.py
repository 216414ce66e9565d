"""An alarm that leads to `relearn`: a fresh learner learns exactly the rows since the onset, through any crash and read."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from branches import HOST, SMALL, Rooms, SteppedClock, dies, everything, mark_at_once, run_to_end, without_seqs
from flipped import FLIP, ROWS, STEPS, alarms, entries, flipped, rooms, watching, worker_in
from late_labels import late_fold_spec
from lossy import LossyWorker

from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.learners.drift.alarms import DriftConfig
from millrace.learners.errors import LearnerError
from millrace.learners.protocol import Batch
from millrace.streams.branch.branch import refold
from millrace.streams.branch.host import this_host
from millrace.streams.branch.verify import verify
from millrace.streams.journal.entries import Act, Mark, decode_entry
from millrace.streams.journal.journal import Cursor, counted, summarise
from millrace.streams.journal.store import read_checkpoint
from millrace.streams.labels.served import LateLabel, Prediction, encode, encode_row
from millrace.streams.records import Event
from millrace.streams.source import CrashError
from millrace.streams.stream import ListStream, Stored
from millrace.streams.worker.worker import Worker, WorkerIdentity


def relearned(seed: int, **keys) -> tuple[Worker, Act, list[Event]]:
    """A worker that has just relearned, what it journaled, and the log."""
    events = flipped(seed=seed)
    storage = rooms(events)
    worker = storage.worker(config=STEPS, how=watching("relearn", **keys))
    while not entries(storage, Act):
        list(worker.step())
    return worker, entries(storage, Act)[0], events


def learned_of(worker: Worker, events: list[Event], rows: int) -> Batch:
    """The last rows that a worker has learned, read again."""
    last = worker.fold.counts.learned
    decoded, refused = watching().codec.decode(events[last - rows : last], "list-0")
    assert refused == []
    return worker.fold.features.answer(worker.fold.features.encode(decoded))


@pytest.mark.parametrize("relearn_rows", [1, 30, 2000])
@pytest.mark.parametrize("seed", range(4))
def test_after_the_act_the_ridge_is_that_of_the_last_rows_alone(seed: int, relearn_rows: int) -> None:
    """To 1e-10, those since the onset, as far as they are kept; the counts and the scores do not know of it."""
    worker, act, events = relearned(seed, relearn_rows=relearn_rows)
    rows, (alarm,) = act.args["rows"], worker.fold.drift.worse
    assert rows == min(relearn_rows, worker.fold.counts.learned - alarm.onset_rows) and rows >= 1
    last = learned_of(worker, events, rows)
    alone = Ridge(RidgeConfig(solve_rows=rows), last.x.shape[1], 0)
    alone.learn_many(last)
    actual, expected = worker.fold.learner.state_dict().truth, alone.state_dict().truth
    assert (actual["rows"], actual["classes"]) == (rows, expected["classes"])
    assert np.abs(actual["gram"] - expected["gram"]).max() <= 1e-10 * np.abs(expected["gram"]).max()
    asked = Batch(np.random.default_rng(seed).normal(size=(50, last.x.shape[1])))
    assert np.abs(worker.fold.learner.predict_many(asked) - alone.predict_many(asked)).max() <= 1e-10
    assert worker.fold.scores.totals.rows == worker.fold.counts.learned == worker.fold.records - worker.fold.waiting


def test_what_is_relearned_began_at_the_flip() -> None:
    """Nearly every row is from after it, and nearly all of those are there."""
    worker, act, _ = relearned(seed=4, relearn_rows=2000)
    assert abs(worker.fold.counts.learned - act.args["rows"] - FLIP) <= 16


def late_events(rows: int, flip: int) -> list[Event]:
    """The same stream with each label 40 ms after its prediction, as the pipeline serves them."""
    rng, events = np.random.default_rng(4), []
    for at in range(rows):
        x = rng.integers(-9, 10, 3)
        kind, scores = "ab"[int((x[0] > 0) != (at >= flip))], (float(x[0] <= 0), float(x[0] > 0))
        answer = Prediction(f"r{at}", encode_row({"x": x.tolist()}), "main", 1, 3, ("a", "b"), scores)
        events += [encode(answer), encode(LateLabel(f"r{at}", kind, 0))]
    return [Event(at, 1_700_000_000_000 + 40 * at, None, b"", value) for at, value in enumerate(events)]


def test_rows_whose_labels_came_late_are_relearned_too_through_any_crash() -> None:
    """The window holds what was learned, wherever it came from."""
    how = replace(late_fold_spec(), drift=DriftConfig(false_alarm_rows=2000, per_class=False, act="relearn", relearn_rows=60))
    events, config = late_events(500, 300), replace(SMALL, step_rows=50, checkpoint_rows=170, version_rows=0)
    whole = Rooms(events, read_rows=50)
    worker = whole.worker(config=config, how=how)
    run_to_end(worker, len(events))
    acts = entries(whole, Act)
    assert acts and all(1 <= act.args["rows"] <= 60 for act in acts)
    for count in range(100, 200, 7):
        storage, phases = Rooms(events, read_rows=50), itertools.count(1)
        worker_again = storage.worker(config=config, how=how)
        while not dies(worker_again, phases, count):
            pass
        worker_again = storage.worker(config=config, how=how)
        run_to_end(worker_again, len(events))
        assert without_seqs(worker_again) == without_seqs(worker), f"after phase {count}"


def acted_at(act: str) -> tuple[int, dict[str, bytes]]:
    """The phase in which the act of an uninterrupted run is done, and the run's last state."""
    worker, count, at = worker_in(rooms(), act), 0, 0
    while sum(worker.fold.position.values()) < ROWS:
        for phase in worker.step():
            count += 1
            at = count if phase == "acted" else at
        mark_at_once(worker)
        count += 1
    return at, without_seqs(worker)


@pytest.mark.parametrize("act", ["relearn", "raise-rate"])
def test_a_crash_in_every_phase_about_the_act_changes_no_byte(act: str) -> None:
    """The step that raised the alarm, the act, its version, and the step that follows."""
    at, expected = acted_at(act)
    for count in range(at - 7, at + 9):
        storage, phases = rooms(), itertools.count(1)
        worker = worker_in(storage, act)
        while not dies(worker, phases, count):
            pass
        worker = worker_in(storage, act)
        run_to_end(worker, ROWS)
        assert without_seqs(worker) == expected, f"after phase {count}, the act is in phase {at}"


class DiesActing(ListStream):
    """A journal whose process dies when its act is there and nothing of it is done."""

    def send(self, value: bytes) -> Stored:
        """Append; die after an act."""
        stored = super().send(value)
        if isinstance(decode_entry(value, "the journal"), Act):
            raise CrashError
        return stored


@pytest.mark.parametrize("act", ["relearn", "raise-rate"])
def test_a_crash_between_the_journal_and_the_act_changes_no_byte(act: str) -> None:
    """The act counts once it is journaled, and is done by whoever comes next."""
    _, expected = acted_at(act)
    storage = replace(rooms(), journal=DiesActing())
    with pytest.raises(CrashError):
        run_to_end(worker_in(storage, act), ROWS)
    assert len(entries(storage, Act)) == 1
    worker = worker_in(storage, act)
    run_to_end(worker, ROWS)
    assert without_seqs(worker) == expected and len(entries(storage, Act)) == 1


@pytest.mark.parametrize("read_rows", [7, 13, 49])
def test_no_byte_depends_on_the_size_of_reads(read_rows: int) -> None:
    """Steps of fifty rows that were read together or in pieces lead to the same act and the same state."""
    states = []
    for size in (50, read_rows):
        storage = Rooms(flipped(), read_rows=size)
        config = replace(STEPS, step_ms=10_000)  # of a clock that moves as it is waited for
        worker = Worker(watching("relearn"), storage.backends(), config, WorkerIdentity("main", HOST, SteppedClock()))
        run_to_end(worker, ROWS)
        assert len(entries(storage, Act)) == 1
        states.append(without_seqs(worker))
    assert states[0] == states[1]


def test_folding_from_the_fork_gives_the_same_bytes_and_every_mark_is_proved() -> None:
    """Live, refolded and verified are one."""
    storage = rooms()
    worker = Worker(watching("relearn"), storage.backends(), STEPS, WorkerIdentity("main", this_host(1), SteppedClock()))
    run_to_end(worker, ROWS)
    worker.close()
    log = list(counted(storage.journal, "main", Cursor()))
    fold = watching("relearn").fold(log[0])
    list(refold(fold, log, storage.backends().source, watching().codec))
    assert fold.parts().keys() == worker.fold.parts().keys() and "window" in fold.parts()
    worker.fold = fold
    expected = everything(worker)
    assert everything(worker_in(storage, "relearn")) == expected
    report = verify(watching("relearn"), storage.backends(), "main", STEPS.keep)
    assert report.findings == [] and len(report.proved) == len(entries(storage, Mark))


def test_an_unchanged_segment_is_one_blob_of_many_checkpoints() -> None:
    """Closed segments are named by what is in them, and that never changes."""
    storage = Rooms(flipped(), read_rows=50)
    how = watching("relearn", relearn_rows=800)
    run_to_end(storage.worker(config=STEPS, how=how), FLIP)
    marks = summarise(storage.journal, "main").marks[-2:]
    older, newer = (read_checkpoint(storage.store, "main", mark.checkpoint).parts for mark in marks)
    shared = {name for name in older if name.startswith("window.") and newer.get(name) == older[name]}
    assert len(shared) >= 3 and older["window"] != newer["window"]


class WithoutWindow(LossyWorker):
    """Broken: its checkpoints forget the rows to be learned again."""

    @staticmethod
    def lose(parts):
        """All but them."""
        return {name: part for name, part in parts.items() if not name.startswith("window")}


def test_a_worker_whose_checkpoints_lose_the_window_is_caught() -> None:
    """The twin: after a crash before the alarm it relearns other rows."""
    whole = rooms()
    worker = worker_in(whole, "relearn")
    run_to_end(worker, ROWS)
    storage = rooms()
    broken = storage.worker(WithoutWindow, STEPS, watching("relearn"))
    run_to_end(broken, FLIP)
    mark_at_once(broken)
    broken = storage.worker(WithoutWindow, STEPS, watching("relearn"))
    run_to_end(broken, ROWS)
    assert alarms(storage) == alarms(whole) and without_seqs(broken) != without_seqs(worker)


def test_a_state_without_a_window_loads_and_a_window_begins_with_the_next_row() -> None:
    """A branch forked from a version of an older release, or of a pipeline that did not relearn."""
    storage = rooms()
    worker = worker_in(storage, "version")
    run_to_end(worker, 500)
    fold = watching("relearn").fold(next(counted(storage.journal, "main", Cursor())))
    fold.load(worker.fold.parts())
    assert fold.window.held == 0 and fold.parts().keys() == worker.fold.parts().keys()
    act = Act(branch="main", seq=99, epoch=1, op="relearn", args={"rows": 1}, cause="detector", evidence="main.98")
    with pytest.raises(LearnerError, match="1 rows are to be learned again, and 0 are kept"):
        fold.act(act)
    with pytest.raises(LearnerError, match="No rows are kept"):
        worker.fold.act(act)
