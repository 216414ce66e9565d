"""What only some learners can do: each ability's promises, kept by every learner that has it and broken by a twin each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from broken import ABLE_TWINS, Fades, Steps
from cases import CASES, ROWS, Lessons, Make, Promise, asked, classes

from millrace.learners.errors import BadInputError
from millrace.learners.protocol import Array, Discounts, Learner, RaisesRate
from millrace.learners.table import WITH_MEMORY, algorithm_of

LONG = 9 * ROWS


def history(make: Make, lessons: Lessons, *did: int | tuple[float, ...]) -> Learner:
    """A learner after lessons by their seed, discounts (keep,) and raised rates (factor, rows)."""
    learner = make()
    for act in did:
        if isinstance(act, int):
            learner.learn_many(lessons(act))
        elif len(act) == 1:
            assert isinstance(learner, Discounts)
            learner.discount(*act)
        else:
            assert isinstance(learner, RaisesRate)
            learner.raise_rate(act[0], int(act[1]))
    return learner


def near(value: Array, other: Array, share: float) -> bool:
    """Whether answers differ by less than this share of the largest."""
    return bool(np.abs(value - other).max() <= share * np.abs(other).max())


def a_discount_is_kept(make: Make, lessons: Lessons) -> None:
    """What was learned before counts less than what comes, and a restored learner goes on with it."""
    learner, restored = history(make, lessons, 0, (0.1,)), make()
    restored.load_state_dict(learner.state_dict())
    for model in (learner, restored):
        model.learn_many(lessons(1))
    assert np.array_equal(asked(learner), asked(restored))
    faded, plain = history(make, lessons, 0, (0.1,), 1, (1.0,)), history(make, lessons, 0, 1, (1.0,))
    assert not near(asked(faded), asked(plain), 1e-6)


def after_a_discount_every_row_is_answered_from(make: Make, lessons: Lessons) -> None:
    """Also by 1, which lets everything count as before: so a learner that solves now and then answers from the newest rows."""
    rows = make()
    for at in range(ROWS):
        rows.learn_many(lessons(0).rows(at, at + 1))
    assert isinstance(rows, Discounts)
    rows.discount(1.0)
    assert near(asked(rows), asked(history(make, lessons, 0, (1.0,))), 1e-9)


def a_raised_rate_moves_answers_farther(make: Make, lessons: Lessons) -> None:
    """By the next lesson; nothing before it."""
    before, after = asked(history(make, lessons, 0, 1, 2)), asked(history(make, lessons, 0, 1, 2, 3))
    assert np.array_equal(asked(history(make, lessons, 0, 1, 2, (10.0, LONG))), before)
    raised = asked(history(make, lessons, 0, 1, 2, (10.0, LONG), 3))
    assert np.linalg.norm(raised - before) > 1.5 * np.linalg.norm(after - before)


def a_raised_rate_is_kept(make: Make, lessons: Lessons) -> None:
    """What is left of it, and the factor, are in the state."""
    learner, restored = history(make, lessons, 0, 1, 2, (4.0, 2 * ROWS), 3), make()
    restored.load_state_dict(learner.state_dict())
    for seed in (4, 5):
        for model in (learner, restored):
            model.learn_many(lessons(seed))
        assert np.array_equal(asked(learner), asked(restored))


def a_raised_rate_ends_after_its_rows(make: Make, lessons: Lessons) -> None:
    """Then every step is as before, to the bit."""
    first = 0, 1, 2, (4.0, ROWS), 3, 4
    assert np.array_equal(asked(history(make, lessons, *first, 5)), asked(history(make, lessons, *first, (1.0, LONG), 5)))
    assert not np.array_equal(asked(history(make, lessons, *first)), asked(history(make, lessons, 0, 1, 2, (4.0, LONG), 3, 4)))


def a_rate_raised_again_is_not_raised_twice(make: Make, lessons: Lessons) -> None:
    """The second call takes the place of what is left of the first."""
    twice = history(make, lessons, 0, 1, 2, (4.0, LONG), (2.0, LONG), 3)
    assert np.array_equal(asked(twice), asked(history(make, lessons, 0, 1, 2, (2.0, LONG), 3)))


ABLE: dict[str, tuple[Promise, ...]] = {
    "discount": (a_discount_is_kept, after_a_discount_every_row_is_answered_from),
    "raise_rate": (
        a_raised_rate_moves_answers_farther,
        a_raised_rate_is_kept,
        a_raised_rate_ends_after_its_rows,
        a_rate_raised_again_is_not_raised_twice,
    ),
}
SOUND = {"discount": Fades, "raise_rate": Steps}
PROMISED = [(ability, promise) for ability, promises in ABLE.items() for promise in promises]
NAMED = [promise.__name__ for _, promise in PROMISED]


BY_MUCH = {a_raised_rate_moves_answers_farther}  # of a learner alone: a memory may undo it; see test_memory.py


@pytest.mark.parametrize(
    ("case", "promise"),
    [
        (case, promise)
        for case in CASES
        for able in algorithm_of(case.split(",")[0]).abilities
        for promise in ABLE[able]
        if WITH_MEMORY not in case or promise not in BY_MUCH
    ],
)
def test_every_learner_that_has_an_ability_keeps_its_promises(case: str, promise: Promise) -> None:
    """Each variant of each learner that the table says has it."""
    promise(*CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_the_table_says_what_a_learner_can(case: str) -> None:
    """No more and no less, so a pipeline is refused before it has begun, and nothing must be imported for it."""
    learner = CASES[case][0]()
    assert {ability for ability in ABLE if hasattr(learner, ability)} == set(algorithm_of(case.split(",")[0]).abilities)


@pytest.mark.parametrize(("ability", "promise"), PROMISED, ids=NAMED)
def test_a_broken_learner_fails_its_promise_and_no_other(ability: str, promise: Promise) -> None:
    """The sound one keeps all; each promise has a twin."""
    promise(SOUND[ability], classes)
    twins: list[Any] = [twin for twin in ABLE_TWINS if issubclass(twin, SOUND[ability])]
    assert promise.__name__ in {twin.breaks for twin in twins}
    for twin in twins:
        if twin.breaks == promise.__name__:
            with pytest.raises(AssertionError):
                promise(twin, classes)
        else:
            promise(twin, classes)


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_meant_is_refused_and_changes_nothing(case: str) -> None:
    """A factor of nothing, rows that are none, a weight above 1."""
    learner = history(*CASES[case], 0, 1, 2)
    before = asked(learner)
    calls = [("discount", (0.0,)), ("discount", (1.5,)), ("discount", (float("nan"),))]
    calls += [("raise_rate", args) for args in ((0.0, 5), (-1.0, 5), (float("inf"), 5), (float("nan"), 5), (2.0, 0))]
    for ability, args in calls:
        if hasattr(learner, ability):
            with pytest.raises(BadInputError):
                getattr(learner, ability)(*args)
    assert np.array_equal(asked(learner), before)
