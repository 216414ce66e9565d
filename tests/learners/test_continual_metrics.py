"""Continual metrics against tables worked by hand, and the running ones against the same curves at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.learners.evaluation.continual import (
    ContinualScores,
    area_under_accuracy,
    average_anytime_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    final_average_accuracy,
    forgetting,
    forward_transfer,
    min_accuracy,
    raptormai_backward_transfer,
    raptormai_forgetting,
    windowed_forgetting,
    windowed_plasticity,
    worst_case_accuracy,
)

NAN = float("nan")
TABLE = np.array([[0.9, 0.1, 0.0], [0.6, 0.8, 0.2], [0.7, 0.5, 0.6]])  # rows: after tasks 1 to 3; columns: tasks
CURVE = np.array(  # six evaluations of three tasks, learned at evaluations 1, 3 and 5 (from 0)
    [[0.5, NAN, NAN], [0.9, NAN, NAN], [0.3, 0.4, NAN], [0.6, 0.8, NAN], [0.2, 0.5, 0.4], [0.7, 0.6, 0.6]]
)


@pytest.mark.parametrize(
    ("metric", "by_hand"),
    [
        (final_average_accuracy, (0.7 + 0.5 + 0.6) / 3),
        (average_incremental_accuracy, (0.9 + 0.7 + 0.6) / 3),
        (forgetting, ((0.9 - 0.7) + (0.8 - 0.5)) / 2),
        (raptormai_forgetting, ((0.9 - 0.7) + (0.8 - 0.5) + 0.0) / 3),
        (backward_transfer, ((0.7 - 0.9) + (0.5 - 0.8)) / 2),
        (raptormai_backward_transfer, 0.0),
        (forward_transfer, (0.1 + 0.0 + 0.2) / 3),
    ],
)
def test_metrics_of_a_table_by_hand(metric, by_hand: float) -> None:
    """Definitions of spec 5.2, one number at a time."""
    assert metric(TABLE) == pytest.approx(by_hand)


def test_the_two_forgettings_differ_by_t_over_t_less_1() -> None:
    """Where no task is at its best at the end; and RaptorMai's cannot see an improvement."""
    assert raptormai_forgetting(TABLE) * 3 / 2 == pytest.approx(forgetting(TABLE))
    better = np.array([[0.5, 0.0], [0.9, 0.8]])
    assert forgetting(better) == pytest.approx(-0.4) and raptormai_forgetting(better) == 0.0
    assert raptormai_backward_transfer(better) == backward_transfer(better) == pytest.approx(0.4)


def test_one_task_can_neither_be_forgotten_nor_transferred() -> None:
    """Nor is there an older one."""
    single = np.array([[0.8]])
    assert (
        forgetting(single)
        == backward_transfer(single)
        == forward_transfer(single)
        == raptormai_backward_transfer(single)
        == 0.0
    )
    assert np.isnan(min_accuracy(single, [0])) and worst_case_accuracy(single, [0]) == 0.8


def test_metrics_of_a_curve_by_hand() -> None:
    """The least accuracy of an older task is seen between two task ends, where a table of task ends does not look."""
    learned_at = [1, 3, 5]
    least = (0.2 + 0.5) / 2
    assert min_accuracy(CURVE, learned_at) == pytest.approx(least)
    assert worst_case_accuracy(CURVE, learned_at) == pytest.approx(0.6 / 3 + (2 / 3) * least)
    means = [0.5, 0.9, 0.35, 0.7, 1.1 / 3, 1.9 / 3]
    assert average_anytime_accuracy(CURVE) == pytest.approx(np.mean(means))
    assert area_under_accuracy(CURVE, [10, 10, 20, 20, 20, 20]) == pytest.approx(np.dot(means, [1, 1, 2, 2, 2, 2]) / 10)
    at_task_ends = CURVE[learned_at]
    assert np.nanmin(at_task_ends[:, 0]) == 0.6 > 0.2  # the stability gap


@pytest.mark.parametrize(
    ("window", "drops", "rises"),
    [(2, (0.6 + 0.3 + 0.0) / 3, (0.5 + 0.4 + 0.2) / 3), (4, (0.7 + 0.3 + 0.0) / 3, (0.5 + 0.4 + 0.2) / 3), (1, 0.0, 0.0)],
)
def test_windowed_metrics_by_hand(window: int, drops: float, rises: float) -> None:
    """A window of four evaluations sees the fall from .9 to .2 that no two neighbours show."""
    assert windowed_forgetting(CURVE, window) == pytest.approx(drops)
    assert windowed_plasticity(CURVE, window) == pytest.approx(rises)


@given(st.integers(1, 25), st.integers(1, 5), st.integers(2, 6), st.integers(0, 10**6))
@settings(max_examples=60)
def test_running_figures_are_those_of_the_whole_curve(steps: int, classes: int, window: int, seed: int) -> None:
    """Classes are met one by one; the state is taken out and put back half-way, bit for bit."""
    rng = np.random.default_rng(seed)
    met = np.sort(rng.integers(0, steps, classes))
    met[0] = 0
    hits = rng.integers(0, 11, (steps, classes))
    curve = np.where(np.arange(steps)[:, None] >= met, hits / 10, np.nan)
    scores = ContinualScores(window)
    for at in range(steps):
        if at == steps // 2:
            restored = ContinualScores(window)
            restored.load(scores.state())
            scores = restored
        scores.update({f"c{c}": (int(hits[at, c]), 10) for c in range(classes) if at >= met[c]})
    figures = scores.figures()
    assert figures["amca"] == pytest.approx(average_anytime_accuracy(curve))
    assert figures["average_anytime_accuracy"] == pytest.approx(average_anytime_accuracy(curve))  # ten rows of each
    assert figures["windowed_forgetting"] == pytest.approx(windowed_forgetting(curve, window))
    assert figures["windowed_plasticity"] == pytest.approx(windowed_plasticity(curve, window))
    assert scores.recall() == {f"c{c}": hits[-1, c] / 10 for c in range(classes)}
    old = met < steps - 1
    if old.any():
        fell = np.nanmax(curve[:-1, old], axis=0) - curve[-1, old]
        assert figures["forgetting"] == pytest.approx(fell.mean())
        gained = curve[-1, old] - curve[met[old], np.flatnonzero(old)]
        assert figures["backward_transfer"] == pytest.approx(gained.mean())
    if classes > 1 and old[:-1].all():
        assert figures["min_accuracy"] == pytest.approx(min_accuracy(curve, met.tolist()))
        assert figures["worst_case_accuracy"] == pytest.approx(worst_case_accuracy(curve, met.tolist()))


def test_a_class_without_rows_in_an_evaluation_keeps_its_last_figure() -> None:
    """As where its last row has left a reservoir."""
    scores = ContinualScores(4)
    scores.update({"a": (4, 4), "b": (1, 2)})
    scores.update({"b": (2, 2)})
    assert scores.recall() == {"a": 1.0, "b": 1.0} and scores.figures()["accuracy"] == 1.0
    assert ContinualScores(4).figures() == {}
