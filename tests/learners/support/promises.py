"""What every learner promises: each promise is a function that raises AssertionError on a learner that breaks it.

Answers are compared, never states: a learner that forgets something in its state forgets it twice in the same way.
"""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from cases import QUESTIONS, ROWS, Lessons, Make, Promise, asked, questions, taught

from millrace.learners.errors import BadInputError
from millrace.learners.protocol import State

# Of allocator noise, free lists of small objects among it; 40 hoarded batches are 92,160 bytes of features.
SLACK_BYTES = 40_000
SLACK_OF_COMPLETIONS = 75_000  # what rings hold of them differs by some; 40 hoarded batches are 500,000 bytes


def changed(state: State) -> None:
    """Overwrite every array of a state."""
    for part in (state.truth, state.derived):
        for value in part.values():
            if isinstance(value, np.ndarray):
                value[...] = 7


def resumes_exactly(make: Make, lessons: Lessons) -> None:
    """A learner made from a state answers and goes on as the one that gave it."""
    first = taught(make, lessons, 0, 1)
    second = make()
    second.load_state_dict(first.state_dict())
    assert np.array_equal(asked(first), asked(second))
    for seed in (2, 3):
        first.learn_many(lessons(seed))
        second.learn_many(lessons(seed))
    assert np.array_equal(asked(first), asked(second))


def predicting_changes_nothing(make: Make, lessons: Lessons) -> None:
    """A learner that was asked between lessons answers as one that was not."""
    quiet, busy = taught(make, lessons, 0), taught(make, lessons, 0)
    for _ in range(20):
        asked(busy)
    quiet.learn_many(lessons(1))
    busy.learn_many(lessons(1))
    assert np.array_equal(asked(quiet), asked(busy))


def keeps_no_reference_to_its_input(make: Make, lessons: Lessons) -> None:
    """What the caller does to its arrays after a lesson is of no consequence."""
    learner, batch = make(), lessons(0)
    learner.learn_many(batch)
    for column in (batch.x, batch.y, batch.weight):
        if column is not None:
            column[:] = "a" if column.dtype == object else 1e6
    learner.learn_many(lessons(1))
    assert np.array_equal(asked(learner), asked(taught(make, lessons, 0, 1)))


def state_is_a_copy(make: Make, lessons: Lessons) -> None:
    """Neither does learning change a state that was given away, nor a change to that state the learner."""
    learner, restored, control = taught(make, lessons, 0), make(), make()
    control.load_state_dict(taught(make, lessons, 0).state_dict())
    state = learner.state_dict()
    learner.learn_many(lessons(1))
    restored.load_state_dict(state)
    changed(state)
    changed(learner.state_dict())
    for seed in (1, 2):
        restored.learn_many(lessons(seed))
        control.learn_many(lessons(seed))
    learner.learn_many(lessons(2))
    assert np.array_equal(asked(restored), asked(control))
    assert np.array_equal(asked(learner), asked(taught(make, lessons, 0, 1, 2)))


def answers_before_the_first_lesson(make: Make, lessons: Lessons) -> None:
    """An untaught learner gives a finite row of scores for each row, with a column for each class."""
    learner = make()
    scores, names = learner.predict_many(questions()), learner.servable().classes
    assert scores.shape[0] == len(QUESTIONS) and np.isfinite(scores).all()
    assert scores.shape[1] == len(names) or not names


def a_batch_equals_its_rows(make: Make, lessons: Lessons) -> None:
    """Rows may come one at a time. To 1e-12 and not to the bit: BLAS sums a block in another order than its rows.

    Compared where a solve falls due: a batch that brings a class is solved at its end, single rows at the class's own.
    """
    whole, single = taught(make, lessons, *range(5)), make()
    for seed in range(5):
        for row in range(ROWS):
            single.learn_many(lessons(seed).rows(row, row + 1))
    assert whole.servable().classes == single.servable().classes
    assert np.allclose(asked(whole), asked(single), rtol=0.0, atol=1e-12 * np.abs(asked(whole)).max())


def memory_stays_bounded(make: Make, lessons: Lessons) -> None:
    """Forty more lessons take no more memory."""
    tracemalloc.start()  # before the first lesson: what is replaced by its like must not count as more
    try:
        learner = taught(make, lessons, *range(5))
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for seed in range(5, 45):
            learner.learn_many(lessons(seed))
        gc.collect()
        slack = SLACK_BYTES if lessons(0).sequences is None else SLACK_OF_COMPLETIONS
        assert tracemalloc.get_traced_memory()[0] - before < slack
    finally:
        tracemalloc.stop()


def does_not_touch_its_input(make: Make, lessons: Lessons) -> None:
    """Batches are as they were, after learning and after predicting."""
    learner, batch = make(), lessons(0)
    learner.learn_many(batch)
    learner.predict_many(batch)
    learner.servable().predict_many(batch)
    for column, same in ((batch.x, lessons(0).x), (batch.y, lessons(0).y), (batch.weight, lessons(0).weight)):
        assert (column is None) == (same is None)
        assert column is None or same is None or np.array_equal(column, same)


def servable_gives_equal_answers(make: Make, lessons: Lessons) -> None:
    """What is served answers as the learner does."""
    learner = taught(make, lessons, 0, 1)
    assert np.array_equal(asked(learner.servable()), asked(learner))


def servable_is_immutable(make: Make, lessons: Lessons) -> None:
    """What is served stays what it was while the learner goes on."""
    learner = taught(make, lessons, 0)
    served = learner.servable()
    before = asked(served)
    for seed in (1, 2):
        learner.learn_many(lessons(seed))
        asked(learner)
    assert np.array_equal(asked(served), before)


def a_refused_batch_changes_nothing(make: Make, lessons: Lessons) -> None:
    """Bad input is a BadInputError, and the learner goes on as if it had not come."""
    learner, good = taught(make, lessons, 0), lessons(2)
    poisoned = good.x.copy()
    poisoned[-1, 2] = np.nan
    for bad in (replace(good, x=poisoned), replace(good, x=good.x[:, 1:]), replace(good, y=None)):
        with pytest.raises(BadInputError):
            learner.learn_many(bad)
    learner.learn_many(lessons(1))
    assert np.array_equal(asked(learner), asked(taught(make, lessons, 0, 1)))


PROMISES: tuple[Promise, ...] = (
    resumes_exactly,
    predicting_changes_nothing,
    keeps_no_reference_to_its_input,
    state_is_a_copy,
    answers_before_the_first_lesson,
    a_batch_equals_its_rows,
    memory_stays_bounded,
    does_not_touch_its_input,
    servable_gives_equal_answers,
    servable_is_immutable,
    a_refused_batch_changes_nothing,
)
