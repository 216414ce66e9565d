"""Prequential scores, by hand, against plain loops, and cut in any way."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.learners.errors import BadInputError
from millrace.learners.evaluation.prequential import PrequentialClasses, PrequentialValues
from millrace.learners.protocol import Array, Floats

NAMES = ("a", "b", "c", "d")


def test_a_stream_of_five_rows_scores_what_the_hand_computes() -> None:
    """The model knows a and b; c comes as a surprise; every number here was worked out on paper."""
    scores = np.array([[0.5, 0.25], [0.5, 0.25], [0.0, 1.0], [0.5, 0.5], [0.0, 0.0]])
    y = np.array(["a", "b", "b", "c", "b"], dtype=object)
    scored = PrequentialClasses(probabilities=True)
    batch = scored.update(scores, ("a", "b"), y)
    assert (batch.rows, batch.correct) == (5, 2)  # rows 0 and 2; row 4 ties, and goes to the first column, a
    assert batch.correct_last == 1  # row 2 repeats b
    assert batch.correct_majority == 1  # guesses: none, a, a (a tie: seen first), b, b
    assert batch.squared_error == 0.3125 + 0.8125 + 0.0 + 1.5 + 1.0
    assert batch.log_loss == pytest.approx(np.log(2) + np.log(4) + 0.0 - 2 * np.log(1e-15))
    assert scored.recall() == {"a": 1.0, "b": 1 / 3, "c": 0.0}
    assert scored.totals == batch


def test_numbers_score_what_the_hand_computes() -> None:
    """Two outputs, answered 1 and 0 throughout."""
    scored = PrequentialValues()
    batch = scored.update(np.array([[1.0, 0.0]] * 3), (), np.array([[2.0, 0.0], [4.0, 1.0], [0.0, 3.0]]))
    assert batch.absolute_error.tolist() == [1 + 3 + 1, 0 + 1 + 3]
    assert batch.squared_error.tolist() == [1 + 9 + 1, 0 + 1 + 9]
    assert batch.absolute_error_last.tolist() == [2 + 2 + 4, 0 + 1 + 2]
    assert batch.squared_error_last.tolist() == [4 + 4 + 16, 0 + 1 + 4]
    assert batch.absolute_error_mean.tolist() == [2 + 2 + 3, 0 + 1 + 2.5]
    assert batch.squared_error_mean.tolist() == [4 + 4 + 9, 0 + 1 + 6.25]


def by_plain_loop(scores: Floats, y: Array) -> tuple[int, int, int]:
    """Correct rows of the model, the last label and the commonest label, one row at a time."""
    counts: dict[str, int] = {}
    correct = last = majority = 0
    for at, name in enumerate(y):
        correct += NAMES[int(np.argmax(scores[at]))] == name
        last += at > 0 and y[at - 1] == name
        majority += bool(counts) and max(counts, key=lambda key: counts[key]) == name  # max: the first one seen wins
        counts[name] = counts.get(name, 0) + 1
    return correct, last, majority


@st.composite
def cut_streams(draw: st.DrawFn) -> tuple[int, int, list[int]]:
    """A seed, a number of rows and where to cut them (also into empty batches)."""
    n = draw(st.integers(1, 60))
    return draw(st.integers(0, 2**32 - 1)), n, [0, *sorted(draw(st.lists(st.integers(0, n), max_size=6))), n]


@settings(max_examples=100, deadline=None)
@given(cut_streams())
def test_class_scores_do_not_depend_on_how_rows_are_cut(stream: tuple[int, int, list[int]]) -> None:
    """Totals bit for bit, the batches' own numbers add up, and counts are those of a plain loop."""
    seed, n, edges = stream
    rng = np.random.default_rng(seed)
    scores, y = rng.uniform(size=(n, 4)), np.array(NAMES, dtype=object)[rng.integers(0, 4, n)]
    whole, parts = PrequentialClasses(probabilities=True), PrequentialClasses(probabilities=True)
    batches = [parts.update(scores[a:b], NAMES, y[a:b]) for a, b in pairwise(edges)]
    single = whole.update(scores, NAMES, y)
    assert whole.state() == parts.state()
    assert (single.correct, single.correct_last, single.correct_majority) == by_plain_loop(scores, y)
    for key, total in asdict(whole.totals).items():
        added = sum(getattr(batch, key) for batch in batches)
        assert added == total if isinstance(total, int) else added == pytest.approx(total, rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(cut_streams(), st.integers(1, 3))
def test_value_scores_do_not_depend_on_how_rows_are_cut(stream: tuple[int, int, list[int]], k: int) -> None:
    """Totals bit for bit, and those of the definition."""
    seed, n, edges = stream
    rng = np.random.default_rng(seed)
    scores, y = rng.normal(size=(n, k)), rng.normal(size=(n, k)) * 100.0
    whole, parts = PrequentialValues(), PrequentialValues()
    whole.update(scores, (), y)
    for a, b in pairwise(edges):
        parts.update(scores[a:b], (), y[a:b])
    means = np.array([y[:at].mean(axis=0) if at else np.zeros(k) for at in range(n)])
    last = np.vstack([np.zeros((1, k)), y[:-1]])
    for name, guess in (("", scores), ("_last", last), ("_mean", means)):
        for kind, expected in (("absolute", np.abs(y - guess)), ("squared", (y - guess) ** 2)):
            total = getattr(whole.totals, f"{kind}_error{name}")
            assert np.array_equal(total, getattr(parts.totals, f"{kind}_error{name}"))
            assert np.allclose(total, expected.sum(axis=0), rtol=1e-12, atol=0.0)
    assert whole.totals.rows == parts.totals.rows == n


def test_class_scores_go_on_from_a_state_that_went_through_json() -> None:
    """With sorted keys too: the order of labels is in a list."""
    rng = np.random.default_rng(4)
    scores, y = rng.uniform(size=(40, 4)), np.array(["d", "c", "b", "a"], dtype=object)[rng.integers(0, 4, 40)]
    first, second = PrequentialClasses(probabilities=False), PrequentialClasses(probabilities=False)
    first.update(scores[:20], NAMES, y[:20])
    second.load(json.loads(json.dumps(first.state(), sort_keys=True)))
    assert first.update(scores[20:], NAMES, y[20:]) == second.update(scores[20:], NAMES, y[20:])
    assert first.state() == second.state() and first.recall() == second.recall()
    assert first.totals.log_loss is None


def test_value_scores_go_on_from_a_state_and_the_state_is_a_copy() -> None:
    """What happens to the state afterwards is of no consequence."""
    first, second, y = PrequentialValues(), PrequentialValues(), np.arange(6.0)
    first.update(np.ones((3, 1)), (), y[:3])
    state = first.state()
    second.load(state)
    state["squared_error"][:] = state["last"][:] = state["sum"][:] = 9.0
    first.update(np.ones((3, 1)), (), y[3:])
    second.update(np.ones((3, 1)), (), y[3:])
    assert str(first.state()) == str(second.state())


def test_a_label_the_model_has_never_seen_counts_as_wrong() -> None:
    """Also where the model has no class at all yet."""
    scored = PrequentialClasses(probabilities=False)
    batch = scored.update(np.zeros((2, 0)), (), np.array(["a", "a"], dtype=object))
    assert (batch.correct, batch.correct_last, batch.correct_majority, batch.squared_error) == (0, 1, 1, 2.0)
    assert scored.update(np.ones((1, 1)), ("a",), np.array(["b"], dtype=object)).squared_error == 2.0


def test_scores_that_do_not_fit_their_labels_are_refused() -> None:
    """Naming both shapes."""
    with pytest.raises(BadInputError, match=r"expected \(1, 2\), got \(1, 3\)"):
        PrequentialClasses(probabilities=False).update(np.ones((1, 3)), ("a", "b"), np.array(["a"], dtype=object))
    with pytest.raises(BadInputError, match=r"expected \(1, 2\) and no classes, got \(1, 3\)"):
        PrequentialValues().update(np.ones((1, 3)), (), np.ones((1, 2)))
    zeros = PrequentialValues().update(np.zeros((1, 1)), (), np.ones((1, 2)))  # k not known to the learner yet
    assert zeros.absolute_error.tolist() == [1.0, 1.0]


def test_scores_are_not_changed_by_scoring_them() -> None:
    """They are also what was answered."""
    scores = np.full((2, 2), 0.5)
    PrequentialClasses(probabilities=True).update(scores, ("a", "b"), np.array(["a", "b"], dtype=object))
    assert scores.tolist() == [[0.5, 0.5], [0.5, 0.5]]
