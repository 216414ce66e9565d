"""Solutions that follow behind: which one answers is a matter of rows, and learning does not do the solving."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from family import NAMES, made
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.learners.analytic.exact import forget, merge, relabel
from millrace.learners.analytic.normal_equations import Solution
from millrace.learners.analytic.ridge import Ridge
from millrace.learners.analytic.solver import Statistics
from millrace.learners.errors import LearnerError
from millrace.learners.protocol import Batch, State

KINDS = ["aef-ocl", "air"]
D, PERIOD, ROWS = 4, 10, 95


def behind(kind: str, **config: Any) -> Ridge:
    """An untaught learner whose solutions follow behind."""
    return made(kind, D, solve_rows=PERIOD, solve_behind=True, **config)


def rows(seed: int = 0) -> Batch:
    """Of three rare and common classes, the first three rows one of each; whole numbers, so that no sum is rounded."""
    rng = np.random.default_rng(seed)
    label = np.concatenate([[0, 1, 2], rng.choice(3, ROWS - 3, p=[0.7, 0.2, 0.1])])
    return Batch(rng.integers(-4, 5, (ROWS, D)) + 3.0 * np.eye(3, D)[label], NAMES[label])


def learned(learner: Ridge, stop: int, start: int = 0) -> Ridge:
    """``learner`` after some of the rows in one batch each three, so that the first one brings all classes."""
    for at in range(start, stop, 3):
        learner.learn_many(rows().rows(at, min(at + 3, stop)))
    return learner


def same_bits(learner: Ridge, other: Ridge) -> bool:
    """Whether both answer alike now, and will answer alike by what is under way."""
    ours, theirs = learner.state_dict(), other.state_dict()
    return all(
        mine.keys() == yours.keys() and all(np.array_equal(mine[key], yours[key]) for key in mine)
        for mine, yours in ((ours.truth, theirs.truth), (ours.derived, theirs.derived))
    )


# --- which solution answers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "config"), [("aef-ocl", {}), ("aef-ocl", {"pseudo_rows": 5, "expand": 9}), ("air", {}), ("air", {"expand": 9})]
)
def test_a_solution_answers_one_period_after_its_rows(kind: str, config: dict[str, Any]) -> None:
    """From row 20 that of 10 rows, from row 30 that of 20; and it is the one that a learner who waits would have given."""
    learner = behind(kind, **config)
    seen = []
    for at in range(0, ROWS, 3):
        learner.learn_many(rows().rows(at, at + 3))
        seen.append(learner.solved_rows)
    assert seen == [3] * 6 + [(3 * at // PERIOD - 1) * PERIOD for at in range(7, len(seen))] + [80]
    waiting = made(kind, D, solve_rows=PERIOD, **config)
    waiting.learn_many(rows().rows(0, 80))
    assert waiting.solved_rows == learner.solved_rows == 80
    assert np.allclose(waiting.servable().weights, learner.servable().weights, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(4, ROWS), max_size=12))
def test_rows_cut_in_any_way_give_the_same_solutions(kind: str, cuts: list[int]) -> None:
    """Batches shorter and longer than a period, after one that brings the classes.

    To the bit, but for aef-ocl, whose running moments of a class are rounded by how its rows were cut, solved behind or not.
    """
    whole, cut = behind(kind), behind(kind)
    edges = [3, *sorted({*cuts} - {ROWS}), ROWS]
    for learner in (whole, cut):
        learner.learn_many(rows().rows(0, 3))
    for start, stop in pairwise(edges):
        cut.learn_many(rows().rows(start, stop))
    whole.learn_many(rows().rows(3, ROWS))
    ours, theirs = whole.state_dict().derived, cut.state_dict().derived
    assert ours["solved_rows"] == theirs["solved_rows"] == 80 and ours["next_solved_rows"] == theirs["next_solved_rows"] == 90
    for weights in ("weights", "next_weights"):
        assert np.allclose(ours[weights], theirs[weights], rtol=0.0, atol=1e-12)
    assert kind == "aef-ocl" or same_bits(whole, cut)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_class_is_answered_at_once_and_what_was_under_way_is_not(kind: str) -> None:
    """By all rows of the batch that brings it; the next solution is begun at the next due row."""
    learner = learned(behind(kind), 24)  # that of 20 rows is under way
    learner.learn_many(Batch(np.ones((2, D)), NAMES[[0, 3]]))
    assert learner.solved_rows == 26 and learner.servable().classes == ("ant", "bee", "cat", "dog")
    learner.learn_many(rows().rows(0, 10))
    assert learner.rows == 36 and learner.solved_rows == 26
    learner.learn_many(rows().rows(10, 15))
    assert learner.rows == 41 and learner.solved_rows == 30


# --- state ------------------------------------------------------------------------------------------------------------


class LosesWhatIsUnderWay(Ridge):
    """The broken twin: its state has only what answers now."""

    def state_dict(self) -> State:
        """All but the solution under way."""
        state = super().state_dict()
        return replace(state, derived={key: value for key, value in state.derived.items() if not key.startswith("next_")})


def resumes(learner: Ridge, at: int) -> bool:
    """Whether one made from the state after ``at`` rows answers by the same bits then and at every row after it."""
    again = Ridge(learner.config, D, 3, learner.head)
    again.load_state_dict(learned(learner, at).state_dict())
    equal = []
    for start in range(at, ROWS):
        equal.append(np.array_equal(again.servable().weights, learner.servable().weights))
        for model in (learner, again):
            model.learn_many(rows().rows(start, start + 1))
    return all(equal)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [2, 9, 10, 19, 20, 37])
def test_learning_goes_on_from_a_state_with_a_solution_under_way(kind: str, at: int) -> None:
    """Before the first is begun, in the row that begins one, and in between; a twin whose state lacks it is found out."""
    whole = behind(kind)
    assert resumes(whole, at)
    twin = LosesWhatIsUnderWay(whole.config, D, 3, whole.head)
    assert resumes(twin, at) == (at < PERIOD)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_with_nothing_under_way_ends_what_was(kind: str) -> None:
    """A learner that is given an older state does not answer by what it had begun; a state is a copy both ways."""
    young, learner = learned(behind(kind), 6), learned(behind(kind), 35)
    state = learner.state_dict()
    learner.load_state_dict(young.state_dict())
    assert same_bits(learned(learner, 15, 6), learned(young, 15, 6))
    as_saved = learned(behind(kind), 35)
    restored = behind(kind)
    restored.load_state_dict(state)
    state.derived["next_weights"][:] = 7.0
    assert same_bits(restored, as_saved)


# --- what takes effect at once ----------------------------------------------------------------------------------------


class KeepsWhatIsUnderWay(Ridge):
    """The broken twin: solves at once, and lets what was begun before answer later."""

    def solve_now(self) -> None:
        """Without dropping it."""
        coming = self._behind._coming
        super().solve_now()
        self._behind._coming = coming


ACTS: dict[str, Callable[[Ridge], object]] = {
    "discount": lambda learner: learner.discount(0.5),
    "solve": lambda learner: learner.solve_now(),
    "forget": lambda learner: forget(learner, rows().rows(4, 5)),
    "relabel": lambda learner: relabel(learner, rows().rows(4, 5), np.array(["cat"], dtype=object)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("act", ACTS)
def test_an_act_takes_effect_at_once_and_nothing_older_answers_after_it(kind: str, act: str) -> None:
    """At the next due row the answer of the act stands, where a twin would go back to that of twenty rows."""
    learner = learned(behind(kind), 24)
    twin = learned(KeepsWhatIsUnderWay(learner.config, D, 3, learner.head), 24)
    for model in (learner, twin):
        ACTS[act](model)
    at, missing = learner.solved_rows, 24 - learner.rows
    assert at == learner.rows and missing == (act == "forget")
    for model in (learner, twin):
        model.learn_many(rows().rows(24, 31 + missing))
    assert (learner.solved_rows, twin.solved_rows) == (at, 20)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_workers_answer_by_all_their_rows(kind: str) -> None:
    """Whatever each has under way; and they go on with it."""
    x = rows()
    shards = {"a": behind(kind), "b": behind(kind)}
    shards["a"].learn_many(x.rows(0, 45))
    shards["b"].learn_many(x.rows(45, 90))
    merged, certificate = merge(shards)
    assert merged.solved_rows == 90 and certificate.holds
    shards["a"].learn_many(x.rows(90, 95))
    assert shards["a"].solved_rows == 45  # the batch that brought its classes


# --- threads ----------------------------------------------------------------------------------------------------------


def heard(learner: Ridge, before: Callable[[], None]) -> Ridge:
    """A learner of the same make that calls ``before`` in the thread in which a solution is computed behind."""
    begin = learner.head.begin
    assert begin is not None

    def begun(config: Any, known: Statistics) -> Callable[[], Solution]:
        rest = begin(config, known)

        def answer() -> Solution:
            before()
            return rest()

        return answer

    return Ridge(learner.config, D, 3, replace(learner.head, begin=begun))


@pytest.mark.parametrize("kind", KINDS)
def test_the_learning_thread_does_not_solve_what_falls_due(kind: str) -> None:
    """Every solution is computed in another thread, and none of these outlives its solution."""
    threads: list[threading.Thread] = []
    learner = learned(heard(behind(kind), lambda: threads.append(threading.current_thread())), ROWS)
    learner.state_dict()  # waits for the last
    assert len(threads) == ROWS // PERIOD and threading.current_thread() not in threads
    for thread in threads:
        thread.join(60.0)
    assert not any(thread.is_alive() for thread in threads)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What solutions wait for; open at the end, or the process would not end."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("kind", KINDS)
def test_learning_goes_on_meanwhile_and_waits_where_it_takes_effect(kind: str, gate: threading.Event) -> None:
    """Nineteen rows are learned while that of ten is not there; the twentieth waits, and what comes is the same bits."""
    slow, control = heard(behind(kind), lambda: gate.wait() and None), behind(kind)
    learned(slow, 19)
    assert slow.rows == 19 and not gate.is_set() and slow.solved_rows == 3
    threading.Timer(0.05, gate.set).start()
    learned(slow, 24, 19)
    assert gate.is_set() and slow.solved_rows == 10
    learned(learned(control, 19), 24, 19)
    assert same_bits(slow, control)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_learned_meanwhile_does_not_reach_the_solution(kind: str, gate: threading.Event) -> None:
    """Its statistics are its own: rows, forgotten rows and faded ones change nothing of it."""
    slow = heard(behind(kind), lambda: gate.wait() and None)
    learned(slow, 10)
    coming = slow._behind._coming
    assert coming is not None
    slow.learn_many(Batch(1e6 * np.ones((3, D)), NAMES[[0, 1, 2]]))
    forget(slow, rows().rows(4, 6))
    slow.discount(0.25)
    gate.set()
    expected = learned(behind(kind), 10).state_dict().derived["next_weights"]
    assert np.array_equal(coming.result().weights, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_behind_is_raised_in_learning_where_it_would_have_taken_effect(kind: str) -> None:
    """Not before, so that the same rows fail at the same row; a state of it cannot be had."""
    learner = learned(behind(kind), 9)
    learner.known().sums.features[0] = np.nan
    if kind == "air":
        learner.known().sums.cross[0, 0] = np.nan
    for start in range(9, 19):
        learner.learn_many(rows().rows(start, start + 1))
    with pytest.raises(LearnerError, match="not finite"):
        learner.state_dict()
    with pytest.raises(LearnerError, match="not finite"):
        learner.learn_many(rows().rows(19, 20))
    assert learner.solved_rows == 3
