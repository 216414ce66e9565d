"""The promises of every learner, and for each promise a broken learner that must fail it and no other.

Answers are compared, never states: a learner that forgets something in its state forgets it twice in the same way.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from broken import TWINS, D, Means

from millrace.learners.errors import BadInputError
from millrace.learners.protocol import Array, Batch, Learner, State
from millrace.learners.river_adapter import MODELS, WEIGHED, RiverConfig
from millrace.learners.table import LEARNERS

ROWS = 48  # rows of a lesson in the suite
SOLVE_ROWS = 20  # falls inside lessons, and on the end of every fifth
SLACK_BYTES = (
    40_000  # of allocator noise, free lists of small objects among it; 40 hoarded batches are 92,160 bytes of features
)

Make = Callable[[], Learner]
Lessons = Callable[[int], Batch]  # seed -> the same labelled batch whenever it is called, in arrays of its own
Promise = Callable[[Make, Lessons], None]


def ridge(kind: str = "ridge", **config: Any) -> Make:
    """Makes a learner of the analytic family with this config."""
    algorithm = LEARNERS[kind]
    return lambda: algorithm.learner(algorithm.config(solve_rows=SOLVE_ROWS, **config), D, 3)


def stepping(**config: Any) -> Make:
    """Makes a softmax regression of the table with this config; its steps fit neither lessons nor batches."""
    algorithm = LEARNERS["softmax"]
    return lambda: algorithm.learner(algorithm.config(step_rows=7, warm_up_rows=100, **config), D, 3)


def network(kind: str, **config: Any) -> Make:
    """Makes a small network of the table with this config."""
    algorithm = LEARNERS[kind]
    small = {"warm_up_rows": 30, "step_rows": 13}
    small |= {"units": 5, "teacher_units": 9, "outputs": 4} if kind == "pec" else {"hidden": (8,), "buffer_rows": 25}
    return lambda: algorithm.learner(algorithm.config(**small | config), D, 3)


def as_it_comes(kind: str) -> Make:
    """Makes a learner of the table with the defaults of its config."""
    return lambda: LEARNERS[kind].learner(LEARNERS[kind].config(), D, 3)


def classes(seed: int) -> Batch:
    """Rows of four classes with weights; the fourth is first seen in the batch of seed 1."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4 if seed else 3, ROWS)
    x = rng.normal(size=(ROWS, D)) + 3.0 * np.eye(4, D)[label]
    return Batch(x, np.array(["a", "b", "c", "d"], dtype=object)[label], weight=rng.uniform(0.5, 2.0, ROWS))


def values(seed: int) -> Batch:
    """Rows with two outputs."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, D))
    return Batch(x, x[:, :2] * 3.0 + rng.normal(size=(ROWS, 2)))


def unweighed(seed: int) -> Batch:
    """The classes without weights."""
    return replace(classes(seed), weight=None)


def river(name: str) -> Make:
    """Makes one of river's models."""
    config = RiverConfig(name, task="regress" if MODELS[name] == "number" else "classify")
    return lambda: LEARNERS["river"].learner(config, D, 3)


def lessons_of(name: str) -> Lessons:
    """What such a model can be taught."""
    return values if MODELS[name] == "number" else classes if name in WEIGHED else unweighed


CASES: dict[str, tuple[Make, Lessons]] = {
    "ridge": (ridge(), classes),
    "ridge, forgetting": (ridge(decay=0.99), classes),
    "ridge, expanded": (ridge(expand=20), classes),
    "ridge, regression": (ridge(task="regress"), values),
    "ridge, expanded regression that forgets": (ridge(task="regress", decay=0.98, expand=20), values),
    "softmax": (stepping(), classes),
    "softmax, penalised": (stepping(l2=0.01, rate=0.5), classes),
    "aef-ocl": (ridge("aef-ocl"), classes),
    "aef-ocl, expanded, forgetting, towards a prior": (ridge("aef-ocl", expand=20, decay=0.99, prior={"a": 0.7}), classes),
    "air": (ridge("air"), classes),
    "air, expanded, forgetting, towards a prior": (ridge("air", expand=20, decay=0.99, prior={"a": 0.7}), classes),
    "aef-ocl, solved behind": (ridge("aef-ocl", solve_behind=True, expand=20, decay=0.99), classes),
    "air, solved behind": (ridge("air", solve_behind=True, expand=20, decay=0.99), classes),
    "slda": (ridge("slda"), classes),
    "slda, expanded, forgetting": (ridge("slda", expand=20, decay=0.99, prior="as-seen"), classes),
    "ncm": (ridge("ncm"), classes),
    "ncm, by angle, forgetting": (ridge("ncm", distance="cosine", decay=0.99), classes),
    "er": (network("er"), classes),
    "er, averaged": (network("er", ema=0.9, momentum=0.9, weight_decay=1e-3), classes),
    "er, convolutions": (network("er", network="convnet", image=(1, 2, 3), channels=2), classes),
    "er, residual": (network("er", network="resnet18", image=(1, 2, 3), channels=2, step_rows=24, ema=0.9), classes),
    "er-ace": (network("er-ace", rate=0.02), classes),
    "derpp": (network("derpp"), classes),
    "uer": (network("uer", classes=("d", "c", "b", "a", "never seen")), classes),
    "pcr": (network("pcr", optimiser="adam", rate=0.01), classes),
    "hpcr": (network("hpcr", pair_rows=8, distil_rows=40, period_steps=10), classes),
    "onpro": (network("onpro", image=(1, 2, 3), replay_rows=9, projection=6), classes),
    "pec": (network("pec"), classes),
}
CASES |= {f"river, {name.partition('.')[2]}": (river(name), lessons_of(name)) for name in MODELS}
VARIED = {case.partition(",")[0] for case in CASES}
CASES |= {kind: (as_it_comes(kind), classes) for kind in LEARNERS if kind not in VARIED}  # a learner that was just added
QUESTIONS = np.random.default_rng(99).normal(size=(17, D))


def asked(learner: Any) -> Array:
    """The answers to the suite's questions."""
    return np.array(learner.predict_many(Batch(QUESTIONS.copy())))


def taught(make: Make, lessons: Lessons, *seeds: int) -> Learner:
    """A learner after some lessons."""
    learner = make()
    for seed in seeds:
        learner.learn_many(lessons(seed))
    return learner


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
    scores, names = learner.predict_many(Batch(QUESTIONS)), learner.servable().classes
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
        assert tracemalloc.get_traced_memory()[0] - before < SLACK_BYTES
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


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
@pytest.mark.parametrize("case", CASES)
def test_every_learner_keeps_every_promise(case: str, promise: Promise) -> None:
    """Each variant of each learner in the table keeps each promise."""
    promise(*CASES[case])


def test_every_learner_of_the_table_is_in_the_suite() -> None:
    """Each under its own name, if only as its config comes; and no case is of a learner that the table does not have."""
    assert {case.split(",")[0] for case in CASES} == set(LEARNERS)


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
    again = LEARNERS[case.split(",")[0]].servable(stored)
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
