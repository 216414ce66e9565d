"""An error memory and what it cannot take: numbers that are not finite, one class or row only, too many classes, bad shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from broken import D
from cases import QUESTIONS, ROWS, classes, config_of, remembering, taught, values
from still import NAMES, Still, labelled, memory_around, weights

from millrace.learners.errors import BadInputError
from millrace.learners.memory.asked import Asked, as_text
from millrace.learners.memory.config import MemoryConfig, Remembering
from millrace.learners.memory.scaled import keys_of
from millrace.learners.protocol import Batch, Floats
from millrace.learners.table import LEARNERS, algorithm_of


def test_rows_of_a_class_that_was_not_declared_are_not_remembered() -> None:
    """As the base leaves them out."""
    learner: Any = remembering("er", {}, classes=("a", "b", "c"))()
    for seed in range(4):
        learner.learn_many(classes(seed))
    assert learner.servable().classes == ("a", "b", "c")
    assert "d" not in learner.state_dict().truth["names"]


@pytest.mark.parametrize("form", ["exact", "sketch"])
def test_rows_whose_answer_is_not_finite_are_not_remembered_and_counted(form: str) -> None:
    """A base that turns NaN answers NaN, as it would alone; what is remembered and lambda stay finite."""

    class Turns(Still):
        def predict_many(self, batch: Batch) -> Floats:
            return np.where(batch.x[:, :1] > 0.0, super().predict_many(batch), np.nan)

    learner, rows = memory_around(Turns(weights(3)), {"form": form, "strength": 0.9}), replace(labelled(400), weight=None)
    learner.learn_many(rows)
    bad = int((rows.x[:, 0] <= 0.0).sum())
    assert learner.noticed() == {"unremembered": bad} and 0 < bad < 400
    answers = learner.predict_many(Batch(QUESTIONS))
    assert np.array_equal(np.isnan(answers).any(axis=1), QUESTIONS[:, 0] <= 0.0)
    truth = learner.state_dict().truth
    assert all(
        np.isfinite(array).all() for array in truth.values() if isinstance(array, np.ndarray) and array.dtype.kind == "f"
    )


@pytest.mark.parametrize("form", ["exact", "sketch"])
def test_a_row_that_was_not_answered_finitely_when_it_was_asked_is_not_remembered_and_counted(form: str) -> None:
    """As text its answer is null: JSON has no other name for it."""
    learner, rows = memory_around(Still(weights(3)), {"form": form}), replace(labelled(80), weight=None)
    told = [Asked(NAMES, (0.5, float("nan") if row % 4 == 0 else 0.25, 0.25), (0.0, 0.0, 0.0)) for row in range(80)]
    learner.learn_many(replace(rows, asked=np.array([as_text(row) for row in told], dtype=object)))
    assert learner.noticed() == {"unremembered": 20}
    assert np.isfinite(learner.predict_many(Batch(QUESTIONS))).all()


@pytest.mark.parametrize("form", ["exact", "sketch"])
def test_a_learner_that_begins_afresh_takes_rows_that_another_was_asked(form: str) -> None:
    """It knows no class yet, as after a reset, and the rows that wait were answered with some."""
    learner: Any = remembering("ridge", {"form": form})()
    told = np.array([as_text(Asked(("a", "b"), (0.5, 0.25), (0.1, -0.1)))] * ROWS, dtype=object)
    learner.learn_many(replace(classes(0), asked=told))
    truth = learner.state_dict().truth
    assert set(truth["names"]) == set("abc") and learner.figures()["squared_error"] > 0.0
    assert np.isfinite(learner.predict_many(Batch(QUESTIONS))).all()


def test_what_fell_into_cells_long_ago_is_as_if_it_never_had() -> None:
    """Sums would get too small for float64 to hold their digits: either nothing is near, or the means are those they were."""
    learner: Any = memory_around(Still(weights(3)), {"form": "sketch", "half_life_rows": 1, "step_rows": 1})
    rows, elsewhere = labelled(80), Batch(np.full((1200, D), -5.0), np.array(["a"] * 1200, dtype=object))
    learner.learn_many(replace(rows, weight=None))
    keys, counts = keys_of(rows.x, *learner._memory.scale), set[bool]()
    for start in range(0, 1200, 8):
        learner.learn_many(elsewhere.rows(start, start + 8))
        labels, _, known = learner._memory.now().near(keys)
        assert known is not None
        assert np.allclose(labels.sum(axis=1)[known], 1.0, rtol=0.0, atol=1e-9)
        counts |= set(known.tolist())
    assert counts == {True, False}


@pytest.mark.parametrize("form", ["exact", "sketch"])
def test_one_feature_all_keys_equal_and_one_class_only(form: str) -> None:
    """Each is answered by what is known: far rows apart, the mean of the newest, no error."""
    one = memory_around(
        Still(np.zeros((1, 2)), ("a", "b")), {"form": form, "strength": 0.9, "near": 5, "bits": 12, "rows": 100}, d=1
    )
    x = np.random.default_rng(0).permutation(np.linspace(0.0, 1.0, 200))[:, None]
    one.learn_many(Batch(x, np.where(x[:, 0] < 0.75, "a", "b").astype(object)))
    assert one.predict_many(Batch(np.array([[0.6], [0.95]]))).argmax(axis=1).tolist() == [0, 1]
    equal = memory_around(
        Still(np.zeros((D, 2)), ("a", "b")), {"form": form, "strength": 0.9, "near": 50, "half_life_rows": 10}
    )
    equal.learn_many(Batch(np.ones((400, D)), np.array(["a"] * 320 + ["b"] * 80, dtype=object)))
    assert np.allclose(equal.predict_many(Batch(np.ones((1, D)))), [[0.0, 0.9]], rtol=0.0, atol=0.01)
    only = memory_around(Still(np.ones((D, 1)) / 8.0, ("a",)), {"form": form})
    only.learn_many(Batch(np.ones((96, D)), np.array(["a"] * 96, dtype=object)))
    assert abs(only.predict_many(Batch(np.ones((1, D)))).item() - (0.1 * D / 8.0 + 0.9)) < 1e-12


def test_a_class_too_many_to_publish_is_answered_by_the_learner_alone() -> None:
    """Room for so many as 8 MiB hold; labels of others are remembered as none of those."""
    config = MemoryConfig(form="sketch", bits=14, arrays=12, strength=0.9, warm_up_rows=40)
    assert config.most_outputs(D) == 2
    learner: Any = algorithm_of("ridge+memory").learner(Remembering(config_of("ridge"), config), D, 3)
    for seed in range(4):
        learner.learn_many(classes(seed))
    served = learner.servable()
    errors = served.corrected(Batch(QUESTIONS)).errors
    known = learner.state_dict().truth["names"]
    assert len(known) == 2 and len(served.classes) == 4
    assert {name for name, column in zip(served.classes, errors.T, strict=True) if column.any()} == set(known)


@pytest.mark.parametrize(
    ("d", "outputs", "shards", "keys", "named"),
    [
        (10, 2, 2, {}, "shards = 2"),
        (3000, 2, 1, {}, "memory.rows = 2000"),
        (10, 2, 1, {"form": "sketch", "bits": 16}, "memory.bits = 16"),
        (10, 400, 1, {}, "memory.rows = 2000"),
    ],
)
def test_what_could_not_be_published_is_refused_by_name(
    d: int, outputs: int, shards: int, keys: dict[str, Any], named: str
) -> None:
    """Before a branch begins."""
    with pytest.raises(ValueError, match=named):
        MemoryConfig(**keys).refuse_unservable(d, outputs, shards)


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    """Labels of another kind, weights below 0, another number of outputs; the next rows are learned as if it had not come."""
    learner, rows = memory_around(Still(weights(3)), {}), labelled(90)
    learner.learn_many(rows)
    before = learner.state_dict().truth
    for bad in (
        replace(rows, y=np.arange(90.0)),
        replace(rows, weight=-np.ones(90)),
        replace(rows, y=rows.x),
        replace(rows, weight=np.ones(3)),
    ):
        with pytest.raises(BadInputError):
            learner.learn_many(bad)
    numbers = memory_around(Still(weights(2), ()), {}, "regress")
    with pytest.raises(BadInputError):
        numbers.learn_many(replace(values(0), y=np.full((48, 3), np.nan)))  # which says nothing of how many outputs there are
    numbers.learn_many(values(0))
    with pytest.raises(BadInputError):
        numbers.learn_many(replace(values(0), y=values(0).x[:, 0]))
    after = learner.state_dict().truth
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", [kind for kind, algorithm in LEARNERS.items() if algorithm.unbounded])
@pytest.mark.parametrize("form", ["exact", "sketch"])
def test_scores_that_are_no_shares_are_corrected_as_their_softmax_and_not_made_worse(kind: str, form: str) -> None:
    """Of three blobs, on a stream that does not turn: as many right as alone, but for one in fifty; lambda 0 is their own."""
    rng, names = np.random.default_rng(0), np.array(["a", "b", "c"], dtype=object)
    label = rng.integers(0, 3, 4000)
    rows = Batch(rng.normal(size=(4000, D)) + 2.0 * np.eye(3, D)[label], names[label])
    make, alone = remembering(kind, {"form": form, "rows": 1000, "near": 70}), LEARNERS[kind].learner(config_of(kind), D, 3)
    learner: Any = make()
    for start in range(0, 3200, 32):
        learner.learn_many(rows.rows(start, start + 32))
        alone.learn_many(rows.rows(start, start + 32))
    asked_rows = rows.rows(3200, 4000)
    right = []
    for answering in (learner.servable(), alone.servable()):
        best = answering.predict_many(Batch(asked_rows.x)).argmax(axis=1)
        right.append(float((np.array(answering.classes, dtype=object)[best] == asked_rows.y).mean()))
    assert right[0] > right[1] - 0.02 and right[1] > 0.6
    parts = learner.servable().corrected(Batch(asked_rows.x))
    assert np.allclose(parts.answers.sum(axis=1), 1.0) and parts.answers.min() >= 0.0
    off: Any = taught(remembering(kind, {"form": form, "strength": 0.0}), classes, 0, 1, 2, 3)
    assert np.array_equal(off.predict_many(Batch(QUESTIONS)), off.base.predict_many(Batch(QUESTIONS)))


@pytest.mark.parametrize("form", ["exact", "sketch"])
def test_numbers_far_from_zero_are_corrected_from_the_first_row_that_had_an_answer(form: str) -> None:
    """Targets of 1e12 and some: what an untaught ridge would have answered, 0, is not remembered as an error of 1e12."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, D))
    y = 1e12 + 3.0 * np.sign(x[:, 0] * x[:, 1]) + 0.1 * rng.normal(size=4000)
    learner: Any = remembering("ridge", {"form": form, "rows": 1000}, task="regress")()
    for start in range(0, 4000, 40):
        learner.learn_many(Batch(x[start : start + 40], y[start : start + 40]))
    figures = learner.figures()
    assert figures["strength"] > 0.0
    assert figures["squared_error"] < 0.9 * figures["squared_error_uncorrected"] < 20.0


def test_rows_of_a_class_without_room_are_counted() -> None:
    """Where the user looks first."""
    config = MemoryConfig(form="sketch", bits=14, arrays=12, warm_up_rows=40)
    learner: Any = algorithm_of("ridge+memory").learner(Remembering(config_of("ridge"), config), D, 3)
    for seed in range(3):
        learner.learn_many(classes(seed))
    labels = np.concatenate([classes(seed).y for seed in range(3)])
    known = learner.state_dict().truth["names"]
    assert learner.noticed()["memory_full"] == sum(name not in known for name in labels.tolist()) > 0
