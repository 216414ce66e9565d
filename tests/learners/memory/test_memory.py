"""An error memory: equal to one that is written down row by row, and the learner's own answers where it is silent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from broken import D
from cases import CASES, OF_ROWS, QUESTIONS, ROWS, asked, classes, config_of, remembering, taught, values
from remembered import SHARES, WrittenDown
from still import MEMORY, NAMES, STEP, Still, labelled, memory_around, weights

from millrace.learners.memory.asked import Asked, as_text
from millrace.learners.memory.config import MemoryConfig
from millrace.learners.protocol import Batch, Discounts, EarlierRevisions, Floats, RaisesRate, Warns, join
from millrace.learners.table import LEARNERS, WITH_MEMORY


@pytest.mark.parametrize(
    "memory",
    [
        {},
        {"form": "sketch"},
        {"gamma": 1.0},
        {"gamma": 0.3, "form": "sketch", "strength": 0.9},
        {"strength": 0.35},
        {"strength": 0.0},
        {"near": 1},
        {"form": "sketch", "bits": 9, "arrays": 1},
        {"rows": 20},
        {"form": "sketch", "half_life_rows": 3},
    ],
)
def test_it_answers_as_one_that_is_written_down_row_by_row(memory: dict[str, Any]) -> None:
    """Answers, errors and lambda, after every step, of rows that bring their label, with weights, 0 among them."""
    learner, rows = memory_around(Still(weights(3)), memory), labelled(600)
    written = WrittenDown(MemoryConfig(**MEMORY | memory), 3)
    assert rows.y is not None and rows.weight is not None
    seen = set[float]()
    for start in range(0, 600, STEP):
        step, answers = rows.rows(start, start + STEP), rows.x[start : start + STEP] @ weights(3)
        errors = np.array([written.error(x, answer) for x, answer in zip(step.x, answers, strict=True)])
        served = learner.servable().corrected(Batch(step.x))
        assert np.allclose(served.answers, answers, rtol=0.0, atol=1e-12)
        assert np.allclose(served.errors, errors, rtol=0.0, atol=1e-9)
        expected = [written.answer(answer, error) for answer, error in zip(answers, errors, strict=True)]
        assert learner.figures()["strength"] == written.share
        assert np.allclose(served.scores, expected, rtol=0.0, atol=1e-9)
        seen.add(written.share)
        learner.learn_many(step)
        for row in range(STEP):
            if rows.weight[start + row] > 0.0:
                one_hot = np.array([name == rows.y[start + row] for name in NAMES], dtype=np.float64)
                written.learn(step.x[row], one_hot, answers[row], errors[row], float(rows.weight[start + row]))
        if written.share in SHARES:
            assert learner.figures() == pytest.approx({"strength": written.share} | written.figures(), rel=1e-9)
    assert len(seen) > 1 or "strength" in memory
    again = memory_around(Still(weights(3)), memory)
    again.load_state_dict(learner.state_dict())
    assert again.figures() == learner.figures()


@pytest.mark.parametrize("form", ["exact", "sketch"])
def test_of_numbers_too(form: str) -> None:
    """Two outputs, nothing clamped."""
    learner, written = (
        memory_around(Still(weights(2), ()), {"form": form}, "regress"),
        WrittenDown(MemoryConfig(**MEMORY | {"form": form}), 3, False),
    )
    for seed in range(10):
        rows = values(seed)
        assert rows.y is not None
        for start in range(0, len(rows), STEP):
            step, answers = rows.rows(start, start + STEP), rows.x[start : start + STEP] @ weights(2)
            errors = np.array([written.error(x, answer) for x, answer in zip(step.x, answers, strict=True)])
            expected = [written.answer(answer, error) for answer, error in zip(answers, errors, strict=True)]
            assert np.allclose(learner.predict_many(Batch(step.x)), expected, rtol=0.0, atol=1e-9)
            learner.learn_many(step)
            if seed or start:  # the first step was answered before the learner had learned any
                for row, (answer, error) in enumerate(zip(answers, errors, strict=True)):
                    written.learn(step.x[row], rows.y[start + row], answer, error)
    assert learner.figures() == pytest.approx({"strength": written.share} | written.figures(), rel=1e-9) and written.share > 0.0


@pytest.mark.parametrize("form", ["exact", "sketch"])
def test_a_row_that_was_asked_before_is_remembered_with_what_it_was_answered_then(form: str) -> None:
    """By the names of then: a class that was unknown counts 0, and one that nobody knows any more is left out."""
    learner, written = memory_around(Still(weights(3)), {"form": form}), WrittenDown(MemoryConfig(**MEMORY | {"form": form}), 3)
    rows, rng = labelled(400), np.random.default_rng(9)
    assert rows.y is not None
    asked = []
    for row in range(400):
        if row % 3 == 0:
            asked.append(None)
            continue
        names = [("a", "b", "c"), ("c", "a"), ("b", "gone", "a"), ()][row % 4]
        answers, errors = rng.uniform(size=(2, len(names)))
        asked.append(Asked(names, tuple(answers.tolist()), tuple(errors.tolist())))
    texts = np.array([None if told is None else as_text(told) for told in asked], dtype=object)
    for start in range(0, 400, STEP):
        for row in range(start, start + STEP):  # of its step the memory knows nothing yet
            told, own = asked[row], rows.x[row] @ weights(3)
            answer = (
                own
                if told is None
                else np.array([dict(zip(told.classes, told.answers, strict=True)).get(name, 0.0) for name in NAMES])
            )
            error = (
                None
                if told is None
                else np.array([dict(zip(told.classes, told.errors, strict=True)).get(name, 0.0) for name in NAMES])
            )
            asked[row] = (answer, written.error(rows.x[row], own) if error is None else error)
        for row in range(start, start + STEP):
            one_hot = np.array([name == rows.y[row] for name in NAMES], dtype=np.float64)
            written.learn(rows.x[row], one_hot, *asked[row])
    learner.learn_many(replace(rows, weight=None, asked=texts))
    questions = np.random.default_rng(2).normal(size=(30, D))
    served = learner.servable().corrected(Batch(questions))
    assert learner.figures()["strength"] == written.share
    assert np.allclose(served.errors, [written.error(x, x @ weights(3)) for x in questions], rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("kind", ["ridge", "softmax", "er"])
def test_a_row_is_remembered_with_what_the_learner_answered_just_before_it_learned_it(kind: str) -> None:
    """That of a lone learner of all steps before the row's; rows that came before it had any answer are not remembered."""
    memory = {"rows": 1000, "warm_up_rows": 2}
    inside: Any = remembering(kind, memory)()
    alone, answers = LEARNERS[kind].learner(config_of(kind), D, 3), []
    for seed in range(4):
        lesson = classes(seed)
        inside.learn_many(lesson)
        for start in range(0, ROWS, STEP):
            step = lesson.rows(start, start + STEP)
            own = dict(zip(alone.servable().classes, alone.predict_many(Batch(step.x)).T, strict=True))
            if own:
                answers.append(np.stack([own.get(name, np.zeros(STEP)) for name in "abcd"], axis=1))
            alone.learn_many(step)
    truth = inside.state_dict().truth
    remembered = truth["memory.answers"][:, [truth["names"].index(name) for name in "abcd"]]
    assert 0 < len(answers) < 4 * ROWS // STEP
    assert np.allclose(remembered, np.concatenate(answers), rtol=0.0, atol=1e-12)


def test_rows_that_wait_are_learned_before_the_learner_discounts() -> None:
    """Three of 51 wait for their step; alone the learner has learned them by then."""
    make, lessons = CASES["ridge" + WITH_MEMORY]
    inside, alone = make(), LEARNERS["ridge"].learner(config_of("ridge"), D, 3)
    for learner in (inside, alone):
        learner.learn_many(lessons(1))
        learner.learn_many(lessons(2).rows(0, 3))
        assert isinstance(learner, Discounts)
        learner.discount(0.5)
    answered: Any = inside.servable()
    assert np.allclose(answered.corrected(Batch(QUESTIONS)).answers, asked(alone), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("kind", OF_ROWS)
def test_the_learner_inside_learns_as_it_would_alone(kind: str) -> None:
    """Whatever the memory does: answers before their correction are those of a lone learner of the same rows, to the bit."""
    make, lessons = CASES[kind + WITH_MEMORY]
    inside, alone = make(), LEARNERS[kind].learner(config_of(kind), D, 3)
    for seed in range(4):
        inside.learn_many(lessons(seed))
        for start in range(0, ROWS, STEP):
            alone.learn_many(lessons(seed).rows(start, start + STEP))
        for learner in (inside, alone):
            if isinstance(learner, Discounts):
                learner.discount(0.9)
            if isinstance(learner, RaisesRate):
                learner.raise_rate(2.0, 70)
    answered: Any = inside.servable()
    assert answered.classes == alone.servable().classes
    assert np.array_equal(asked(answered.base), asked(alone))
    if not LEARNERS[kind].unbounded:
        assert np.array_equal(answered.corrected(Batch(QUESTIONS)).answers, asked(alone))
    assert isinstance(inside, Discounts) == isinstance(alone, Discounts)
    assert isinstance(inside, RaisesRate) == isinstance(alone, RaisesRate)
    assert isinstance(inside, Warns) == isinstance(alone, Warns)
    assert isinstance(inside, EarlierRevisions) == isinstance(alone, EarlierRevisions)


@pytest.mark.parametrize("form", ["exact", "sketch"])
def test_without_strength_answers_are_the_learners_own_to_the_bit(form: str) -> None:
    """Unclamped, though ridge answers beyond 1."""
    learner: Any = taught(remembering("ridge", {"form": form, "strength": 0.0}), classes, 0, 1, 2, 3)
    own = learner.base.predict_many(Batch(10.0 * QUESTIONS))
    assert np.array_equal(learner.predict_many(Batch(10.0 * QUESTIONS)), own) and own.max() > 1.0
    corrected: Any = taught(remembering("ridge", {"form": form, "strength": 0.5}), classes, 0, 1, 2, 3)
    assert (
        0.0
        <= corrected.predict_many(Batch(10.0 * QUESTIONS)).min()
        <= corrected.predict_many(Batch(10.0 * QUESTIONS)).max()
        <= 1.0
    )


@pytest.mark.parametrize("form", ["exact", "sketch"])
def test_nothing_is_near_before_the_scale_stands(form: str) -> None:
    """Then all first rows are, but for those of the first step, of which there was no answer."""
    make = remembering("softmax", {"form": form, "strength": 0.9, "warm_up_rows": 32})
    learner: Any = make()
    for start in range(0, 48, 8):
        assert learner.servable().corrected(Batch(QUESTIONS)).errors.any() == (start >= 40)
        learner.learn_many(classes(0).rows(start, start + 8))
    assert learner.servable().corrected(Batch(QUESTIONS)).errors.any()


@pytest.mark.parametrize("form", ["exact", "sketch"])
@pytest.mark.parametrize("rows", [0, 3, 19, 40, 41])
def test_one_that_is_restored_while_its_scale_is_gathered_goes_on_as_the_other(form: str, rows: int) -> None:
    """Rows that wait for the scale, and those that wait for their step, are in its state."""
    make = remembering("ridge", {"form": form, "warm_up_rows": 40, "strength": 0.9})
    learner, restored, lesson = make(), make(), join([classes(seed) for seed in range(3)])
    learner.learn_many(lesson.rows(0, rows))
    restored.load_state_dict(learner.state_dict())
    for each in (learner, restored):
        each.learn_many(lesson.rows(rows, len(lesson)))
    truth, expected = restored.state_dict().truth, learner.state_dict().truth
    assert all(np.array_equal(truth[name], expected[name]) for name in expected)
    assert np.array_equal(restored.predict_many(Batch(QUESTIONS)), learner.predict_many(Batch(QUESTIONS)))


@pytest.mark.parametrize("form", ["exact", "sketch"])
def test_lambda_falls_to_nothing_where_the_learner_is_right_and_rises_where_it_is_not(form: str) -> None:
    """A base that knows the chances, then has them turned round, and knows them again; one row in ten is noise."""

    class Rule(Still):
        def predict_many(self, batch: Batch) -> Floats:
            """Nine to one, by the sign of the first feature."""
            return np.array([[0.9, 0.1], [0.1, 0.9]])[(batch.x[:, 0] > 0.0).astype(np.int64)]

    learner = memory_around(Rule(weights(2), ("a", "b")), {"form": form, "rows": 500, "near": 5})
    rng, shares = np.random.default_rng(0), []
    for turned in (False, True, False):
        x = rng.normal(size=(10_000, D))
        positive = (x[:, 0] > 0.0) != turned
        learner.learn_many(Batch(x, np.where(positive != (rng.random(10_000) < 0.1), "b", "a").astype(object)))
        figures = learner.figures()
        assert figures["squared_error"] <= figures["squared_error_uncorrected"]
        shares.append(figures["strength"])
    assert shares == [0.0, 0.9, 0.0]


@pytest.mark.parametrize("form", ["exact", "sketch"])
def test_a_frozen_base_learns_no_row_more_and_its_memory_knows_new_classes(form: str) -> None:
    """Exactly the first rows, within a step too; a class that only the memory knows is answered where it was seen."""
    make = remembering("ridge", {"form": form, "freeze_base_rows": 44, "strength": 0.9})
    learner: Any = make()
    for seed in range(6):
        learner.learn_many(classes(seed))  # the fourth class comes with the second lesson
    alone = LEARNERS["ridge"].learner(config_of("ridge"), D, 3)
    for start in range(0, 44, STEP):
        alone.learn_many(classes(0).rows(start, min(start + STEP, 44)))
    inside, expected = learner.base.state_dict().truth, alone.state_dict().truth
    assert inside["rows"] == 44 and all(np.array_equal(inside[name], expected[name]) for name in expected)
    assert np.array_equal(asked(alone), learner.base.predict_many(Batch(QUESTIONS)))
    assert set(learner.servable().classes) == set("abcd") and set(alone.servable().classes) == set("abc")
    fourth = 3.0 * np.eye(4, D)[3:]
    scores = dict(zip(learner.servable().classes, learner.predict_many(Batch(fourth))[0].tolist(), strict=True))
    assert max(scores, key=lambda name: scores[name]) == "d"
