"""The linear servable as an ONNX model."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

import numpy as np
import pytest

from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.learners.distribution import how_to_get
from millrace.learners.errors import BadInputError, LearnerError, MillraceError
from millrace.learners.linear.servable import LinearServable, softmax, to_onnx
from millrace.learners.protocol import Batch


def taught(**config: object) -> Ridge:
    """A ridge over four features that has learned 300 rows."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 4))
    ridge = Ridge(RidgeConfig(**config), 4, seed=2)  # type: ignore[arg-type]
    names = np.array(["Zürich", "b", "c"], dtype=object)[np.argmax(x[:, :3], axis=1)]
    ridge.learn_many(Batch(x, x[:, :2] * 2.0 if config.get("task") == "regress" else names))
    return ridge


@pytest.mark.parametrize(
    "config", [{}, {"expand": 25}, {"task": "regress"}, {"task": "regress", "expand": 25}, {"softmax": True}]
)
def test_the_onnx_model_answers_as_the_servable(config: dict[str, object]) -> None:
    """Scores to 1e-10 and the same labels, in another runtime, for any number of rows."""
    runtime = pytest.importorskip("onnxruntime", reason="the ONNX export is checked in onnxruntime, which is not here")
    pytest.importorskip("onnx", reason="the ONNX export is written by the package onnx, which is not here")
    served = replace(taught().servable(), softmax=True) if "softmax" in config else taught(**config).servable()
    session = runtime.InferenceSession(to_onnx(served), providers=["CPUExecutionProvider"])
    for rows in (1, 50):
        x = np.random.default_rng(3).normal(size=(rows, 4))
        answers = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"x": x}), strict=True))
        scores = served.predict_many(Batch(x))
        assert answers["scores"].dtype == np.float64 and answers["scores"].shape == scores.shape
        assert np.abs(answers["scores"] - scores).max() <= 1e-10
        assert answers.get("label", np.array([])).tolist() == [
            served.classes[column] for column in scores.argmax(axis=1) if served.classes
        ]


def test_a_model_without_a_class_is_not_exported() -> None:
    """There is nothing to answer with yet."""
    with pytest.raises(LearnerError, match="no class has been learned yet"):
        to_onnx(Ridge(RidgeConfig(), 4, seed=0).servable())


def test_without_the_package_the_export_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of millrace runs without onnx."""
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MillraceError, match=re.escape(how_to_get("onnx"))):
        to_onnx(taught().servable())


def test_a_servable_refuses_rows_of_another_width() -> None:
    """Also where it expands them."""
    for config in ({}, {"expand": 25}):
        served = taught(**config).servable()
        assert served.d == 4
        with pytest.raises(BadInputError, match=r"column x: expected numbers \(n, 4\)"):
            served.predict_many(Batch(np.ones((2, 25))))


def test_a_softmax_is_the_share_of_powers_and_never_overflows() -> None:
    """By hand; for scores whose powers no float holds; and of no class at all."""
    shares = softmax(np.array([[0.0, np.log(3.0)], [1e300, -1e300], [-1e5, -1e5]]))
    assert np.allclose(shares, [[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]], rtol=0.0, atol=1e-15)
    assert softmax(np.zeros((3, 0))).shape == (3, 0) and softmax(np.zeros((0, 2))).shape == (0, 2)


def test_changing_the_arrays_a_servable_came_from_does_not_change_it() -> None:
    """It was made on copies."""
    weights = np.ones((2, 1))
    arrays = {"classes": ["a"], "weights": weights, "intercept": np.zeros(1), "projection": None}
    served = LinearServable.from_arrays(arrays)
    weights[:] = 9.0
    assert served.predict_many(Batch(np.ones((1, 2)))).tolist() == [[2.0]]
