"""Every learner keeps every promise, and for each promise there is a broken learner that fails it and no other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from broken import TWINS, Means
from cases import CASES, OF_ROWS, Promise, asked, classes, taught
from promises import PROMISES

from millrace.learners.table import LEARNERS, WITH_MEMORY, algorithm_of


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
@pytest.mark.parametrize("case", CASES)
def test_every_learner_keeps_every_promise(case: str, promise: Promise) -> None:
    """Each variant of each learner in the table keeps each promise."""
    promise(*CASES[case])


def test_every_learner_of_the_table_is_in_the_suite() -> None:
    """Each under its own name, if only as its config comes; and no case is of a learner that the table does not have."""
    assert {case.split(",")[0] for case in CASES} == {*LEARNERS, *(kind + WITH_MEMORY for kind in OF_ROWS)}


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_the_sound_learner_keeps_every_promise(promise: Promise) -> None:
    """The learner that the broken ones are made from is not to blame for what they break."""
    promise(Means, classes)


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.__name__)
def test_a_broken_learner_fails_its_promise_and_no_other(twin: Any, promise: Promise) -> None:
    """So every promise is one that can be broken, and each is noticed alone."""
    if twin.breaks == promise.__name__:
        with pytest.raises((AssertionError, RuntimeError)):
            promise(twin, classes)
    else:
        promise(twin, classes)


def test_every_promise_has_a_broken_learner() -> None:
    """No promise is without its proof."""
    assert {twin.breaks for twin in TWINS} == {promise.__name__ for promise in PROMISES}


@pytest.mark.parametrize("case", CASES)
def test_a_servable_made_from_its_arrays_gives_equal_answers(case: str) -> None:
    """What a version stores is enough to serve it, whatever order the store lays arrays out in."""
    make, lessons = CASES[case]
    served = taught(make, lessons, 0, 1).servable()
    stored = {
        key: np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value for key, value in served.arrays().items()
    }
    again = algorithm_of(case.split(",")[0]).servable(stored)
    assert again.classes == served.classes
    assert np.array_equal(asked(again), asked(served))


@pytest.mark.parametrize("case", CASES)
def test_a_served_array_cannot_be_written_to(case: str) -> None:
    """Nobody who holds a servable can change what it answers."""
    make, lessons = CASES[case]
    arrays = [value for value in taught(make, lessons, 0).servable().arrays().values() if isinstance(value, np.ndarray)]
    assert arrays
    for array in arrays:
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0.0
