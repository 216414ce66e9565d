"""Rows that are never learned: which they are, what is seen on them, and that crash, refold and replay change none of it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from branches import SMALL, START_MS, Rooms, everything, fold_spec, make_events, run_to_end
from forks import Forked, phases_to, poisoned
from late_labels import late_fold_spec, make_late_events

from millrace.learners.protocol import Array, Batch, Floats
from millrace.streams.branch.branch import FoldSpec
from millrace.streams.branch.outputs import scores_topic
from millrace.streams.branch.verify import verify
from millrace.streams.parts import pack, unpack
from millrace.streams.records import Event
from millrace.streams.state.held_out import HeldOut, HeldOutConfig, hashes

ROWS = 400
CONFIG = HeldOutConfig(share=0.2, rows=20, every_rows=7, window=3)


def holding(config: HeldOutConfig = CONFIG) -> FoldSpec:
    """The small pipeline with rows held out."""
    return replace(fold_spec(), held_out=config)


class Always:
    """Answers with one class, always."""

    def __init__(self, name: str, classes: tuple[str, ...] = ("a", "b")) -> None:
        self.classes, self._name = classes, name

    def __call__(self, batch: Batch) -> tuple[tuple[str, ...], Floats]:
        """1 for it, 0 for the others."""
        return self.classes, np.tile(np.array([float(name == self._name) for name in self.classes]), (len(batch), 1))


def rows(count: int, seed: int = 0, share_a: float = 0.7) -> Batch:
    """Labelled rows."""
    rng = np.random.default_rng(seed)
    y = np.array(["b", "a"], dtype=object)[(rng.random(count) < share_a).astype(int)]
    return Batch(rng.normal(size=(count, 3)), y, None, np.arange(count, dtype=np.int64))


def held(config: HeldOutConfig, batch: Batch, pieces: int) -> tuple[HeldOut, Array]:
    """What holds rows of ``batch`` out when it comes in so many pieces; which stayed."""
    held_out = HeldOut(config, seed=5)
    edges = np.linspace(0, len(batch), pieces + 1).astype(int)
    stay: list[Array] = []
    for start, stop in zip(edges, edges[1:], strict=False):
        stay.append(held_out.take(batch.rows(start, stop), sum(int(piece.sum()) for piece in stay)))
    return held_out, np.concatenate(stay)


ALL = 10**9  # more learned rows than any test has: everything held out is offered to the reservoir


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5])
def test_the_share_of_rows_held_out_is_the_one_asked_for(share: float) -> None:
    """Within four standard deviations of 20,000 rows; and it is the row that decides, wherever it stands."""
    batch = rows(20_000)
    _, stay = held(HeldOutConfig(share=share), batch, 3)
    assert abs((~stay).mean() - share) < 4 * np.sqrt(share * (1 - share) / 20_000)
    order = np.random.default_rng(1).permutation(len(batch))
    shuffled = Batch(batch.x[order], batch.y[order], None, batch.t[order])  # type: ignore[index]
    assert np.array_equal(hashes(shuffled), hashes(batch)[order]) and len(set(hashes(batch).tolist())) == 20_000


@pytest.mark.parametrize("pieces", [1, 7, 1000])
def test_how_rows_are_cut_changes_nothing(pieces: int) -> None:
    """Neither which are held out nor which of them the reservoir has, bit for bit."""
    whole, stay = held(CONFIG, rows(1000), 2)
    cut, stay_cut = held(CONFIG, rows(1000), pieces)
    for learned in (300, ALL):
        whole.look(Always("a"), learned)
        cut.look(Always("a"), learned)
        assert np.array_equal(stay, stay_cut) and pack(whole.state()) == pack(cut.state())


def test_a_row_waits_until_one_after_it_has_been_learned() -> None:
    """Rows that were read early are not asked about early: the first evaluation sees those before the 300th row alone."""
    held_out, stay = held(HeldOutConfig(share=0.2, rows=ALL, every_rows=300), rows(1000), 1)
    held_out.look(Always("a"), 300)
    place = int(np.flatnonzero(np.cumsum(stay) == 300)[0])
    assert held_out.figures()["kept"] == (~stay[:place]).sum() < held_out.figures()["rows"] == (~stay).sum()


def test_the_reservoir_is_an_even_sample_and_does_not_grow() -> None:
    """Of rows held out early and late alike: 400 reservoirs of 20 among about 200 hold each third a third of the time."""
    thirds = np.zeros(3)
    for seed in range(400):
        batch = rows(400, seed)
        held_out = HeldOut(HeldOutConfig(share=0.5, rows=20), seed)
        stay = held_out.take(batch, 0)
        held_out.look(Always("a"), ALL)
        kept = held_out.state()["x"]
        assert len(kept) == 20 and held_out.rows == (~stay).sum()
        out = batch.x[~stay]
        places = [int(np.flatnonzero((out == row).all(axis=1))[0]) for row in kept]
        thirds += np.bincount(np.array(places) * 3 // len(out), minlength=3)
    assert np.abs(thirds / thirds.sum() - 1 / 3).max() < 0.03


def test_figures_stand_beside_two_answers_without_a_model() -> None:
    """A learner that always says a is right as often as the majority, and its recall is 1 and 0."""
    held_out, stay = held(HeldOutConfig(share=0.2, rows=10_000, every_rows=2000), rows(2000), 1)
    assert held_out.figures() == {}
    held_out.look(Always("a"), 1999)
    assert held_out.figures() == {}
    held_out.look(Always("a"), 2000)
    held_out.look(Always("b"), 2500)  # not due
    figures = held_out.figures()
    out = rows(2000).y[~stay]  # type: ignore[index]
    before = np.array([None, *rows(2000).y[:-1]], dtype=object)[~stay]  # type: ignore[index]
    assert figures["accuracy"] == figures["accuracy_majority"] == (out == "a").mean()
    assert figures["accuracy_last"] == (out == before).mean()
    assert figures["recall"] == {"a": 1.0, "b": 0.0} or figures["recall"] == {"b": 0.0, "a": 1.0}
    assert (figures["evaluations"], figures["rows"], figures["mean_class_accuracy"]) == (1, (~stay).sum(), 0.5)


def test_forgetting_is_seen_between_two_evaluations() -> None:
    """A class that was right, then wrong, then right again: forgetting is 0 at the end, min-ACC remembers."""
    held_out, _ = held(HeldOutConfig(share=0.2, every_rows=1000, window=2), rows(500), 1)
    for learned, answer in ((1000, "a"), (2000, "b"), (3000, "a")):
        held_out.look(Always(answer), learned)
    figures = held_out.figures()
    assert figures["windowed_forgetting"] == 1.0 and figures["forgetting"] in (0.0, 0.5) and figures["evaluations"] == 3
    held_out.look(Always("x", ()), 4000)
    assert held_out.figures()["accuracy"] == 0.0  # a learner without classes answers nothing right


def test_state_comes_back_from_its_bytes() -> None:
    """Before the first row, too; and what goes on from it goes on alike."""
    for count in (0, 3, 900):
        held_out, _ = held(CONFIG, rows(count), 1)
        if count:
            held_out.look(Always("a"), 50)
        again = HeldOut(CONFIG, seed=5)
        again.load(unpack(pack(held_out.state()), "here"))
        held_out.take(rows(300, 9), count)
        again.take(rows(300, 9), count)
        held_out.look(Always("b"), 300)
        again.look(Always("b"), 300)
        assert pack(held_out.state()) == pack(again.state()) and held_out.figures() == again.figures()


@pytest.mark.parametrize("key", ["share", "rows", "every_rows", "window"])
def test_what_cannot_be_meant_is_refused_by_key(key: str) -> None:
    """Zero is none of them."""
    with pytest.raises(ValueError, match=f"{key} = 0"):
        HeldOutConfig(**{key: 0})


# --- in a branch ------------------------------------------------------------------------------------------------------


def test_held_out_rows_are_never_learned_and_everything_adds_up() -> None:
    """They are passed; learned + passed + rejected + waiting = records at every step, and the learner has not one of them."""
    plain, holds = Rooms(make_events(ROWS)), Rooms(make_events(ROWS))
    worker, control = holds.worker(how=holding()), plain.worker()
    while sum(worker.fold.position.values()) < ROWS:
        for _ in worker.step():
            pass
        counts = worker.fold.counts
        assert counts.learned + counts.passed + counts.rejected + worker.fold.waiting == worker.fold.records
    run_to_end(control, ROWS)
    fold = worker.fold
    assert fold.held_out is not None and fold.held_out.rows > 40
    assert fold.counts.passed - control.fold.counts.passed == fold.held_out.rows
    total = fold.counts.learned + fold.batches.waiting + fold.held_out.rows
    assert total == control.fold.counts.learned + control.fold.batches.waiting
    assert sum(fold.learner.state_dict().truth["counts"].tolist()) == fold.counts.learned
    learned = fold.learner.state_dict().truth["rows"]
    assert learned == fold.counts.learned and fold.held_out.scores.evaluations >= learned // 7 - 7


@pytest.mark.parametrize("stop", [1, 63, 200, 399])
@pytest.mark.parametrize("read_rows", [5, 64])
def test_a_crash_a_refold_and_other_reads_change_no_bit(stop: int, read_rows: int) -> None:
    """Reservoir, figures, learner: all parts equal the uninterrupted run's, and every mark is proved."""
    steady = Rooms(make_events(ROWS), read_rows=read_rows)
    whole = steady.worker(config=replace(SMALL, step_rows=read_rows), how=holding())
    run_to_end(whole, ROWS)
    rooms = Rooms(make_events(ROWS), read_rows=read_rows)
    run_to_end(rooms.worker(config=replace(SMALL, step_rows=read_rows), how=holding()), stop)
    again = rooms.worker(config=replace(SMALL, step_rows=read_rows), how=holding())
    run_to_end(again, ROWS)
    assert everything(again) == everything(whole)
    report = verify(holding(), steady.backends(), "main", SMALL.keep)
    assert report.proved and not report.findings


def test_a_death_after_any_phase_of_any_step_changes_no_bit() -> None:
    """A new process goes on each time; 60 records, every phase of every step and mark once."""
    steady = Rooms(make_events(60))
    whole = steady.worker(how=holding())
    phases = sum(1 for _ in phases_to(whole, 60))
    assert phases > 60
    for count in range(1, phases):
        rooms = Rooms(make_events(60))
        for at, _ in enumerate(phases_to(rooms.worker(how=holding()), 60), 1):
            if at == count:
                break
        again = rooms.worker(how=holding())
        run_to_end(again, 60)
        assert everything(again) == everything(whole), count


def test_how_much_is_read_at_once_does_not_matter() -> None:
    """The same rows in reads of 5 and of 64 lead to the same reservoir and figures."""
    states = []
    for read_rows in (5, 64):
        rooms = Rooms(make_events(ROWS), read_rows=read_rows)
        worker = rooms.worker(config=replace(SMALL, step_rows=read_rows), how=holding())
        run_to_end(worker, ROWS)
        states.append(everything(worker)["held_out"])
    assert states[0] == states[1]


def test_outputs_carry_the_figures() -> None:
    """From the first evaluation on; without the table there is nothing."""
    for how, holds in ((holding(), True), (fold_spec(), False)):
        rooms = Rooms(make_events(ROWS))
        worker = rooms.worker(how=how)
        run_to_end(worker, ROWS)
        (raw,) = rooms.producer.tail(scores_topic("small", "main"), 1)
        assert raw is not None
        figures = json.loads(raw)["held_out"]
        assert (figures is not None) == holds
        if holds:
            assert figures["evaluations"] > 5 and 0.0 <= figures["accuracy"] <= 1.0 and "forgetting" in figures


def test_late_labels_are_held_out_too() -> None:
    """The rows they complete; everything adds up, and a restart in the middle changes no bit."""
    how = replace(late_fold_spec(), held_out=CONFIG)
    events = make_late_events(ROWS)
    steady, halved = Rooms(events), Rooms(events)
    whole = steady.worker(how=how)
    run_to_end(whole, ROWS)
    run_to_end(halved.worker(how=how), 170)
    again = halved.worker(how=how)
    run_to_end(again, ROWS)
    fold = whole.fold
    assert everything(again) == everything(whole)
    assert fold.held_out is not None and fold.held_out.rows > 10 and fold.held_out.scores.evaluations > 3
    assert fold.records == ROWS and sum(fold.learner.state_dict().truth["counts"].tolist()) == fold.counts.learned
    assert verify(how, steady.backends(), "main", SMALL.keep).findings == []


def test_a_fork_holds_the_same_rows_out_and_is_proved() -> None:
    """A replay begins with its version's reservoir and goes on from there, whatever it leaves out."""
    roomy = holding(replace(CONFIG, rows=100))  # for all of them, so that no draw decides who stays
    rooms = Rooms(poisoned(numeric_events(120)))
    run_to_end(rooms.worker(how=roomy), 120)
    forked = Forked(rooms, roomy)
    mended = forked.worker()
    before = mended.fold.held_out
    assert before is not None and before.rows
    run_to_end(mended, 120)
    plain = Rooms(poisoned(numeric_events(120))).worker(how=roomy)
    run_to_end(plain, 120)
    assert mended.fold.held_out is not None and plain.fold.held_out is not None
    ours, theirs = (held_rows(worker.fold.held_out) for worker in (mended, plain))
    assert ours < theirs  # those of the poisoner are left out, and no others are held out in their place
    assert verify(roomy, forked.backends(), "mended", SMALL.keep).findings == []


def numeric_events(rows: int) -> list[Event]:
    """Rows whose features follow from the row alone."""
    chance = np.random.default_rng(2)
    values = [{"x": chance.integers(-40, 41, 3).tolist(), "kind": "ab"[at % 2], "age": 30, "town": "p"} for at in range(rows)]
    return [Event(at, START_MS + 40 * at, None, b"", json.dumps(value).encode()) for at, value in enumerate(values)]


def held_rows(held_out: HeldOut | None) -> set[bytes]:
    """The features of all rows in a reservoir, or on their way there."""
    assert held_out is not None
    state = held_out.state()
    return {row.tobytes() for row in [*state["x"], *state["pending"]]}
