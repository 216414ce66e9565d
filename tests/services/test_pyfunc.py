"""What an exported version answers where MLflow loads it: what a record means, and what is far outside everything learned."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kinds import START_H, a_row, asked, exported, learned

from millrace.learners.errors import BadInputError
from millrace.services.api import Pipeline
from millrace.services.pyfunc import Model, _load_pyfunc


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """One that has learned rows with every kind of value."""
    return learned(tmp_path_factory.mktemp("kinds"))


@pytest.fixture(scope="module")
def folder(pipeline: Pipeline) -> Path:
    """Its newest version as a folder."""
    return exported(pipeline.folder.parent)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    """What MLflow would load."""
    return _load_pyfunc(str(folder))


def test_far_out_is_named_by_row_and_by_field(model: Model, pipeline: Pipeline) -> None:
    """As `predict` and the parameter of an endpoint's answer name it for all rows; a plain row has an empty text."""
    rows = [a_row(1), a_row(2) | {"n": 1e30}, a_row(3) | {"n": -1e30, "pair": [0.0, 1e9]}, a_row(4) | {"seen": 0}]
    answers = model.predict(asked(rows))
    assert answers["far_out"].tolist() == ["", "n", "n,pair", "seen"]
    predicted = pipeline.predict(rows)
    assert predicted.far_out == ("n", "pair", "seen") and predicted.scores.tobytes() == answers["scores"].tobytes()
    assert model.predict(asked(rows[:1]))["far_out"].tolist() == [""]


def test_values_mean_what_they_mean_in_records(model: Model, pipeline: Pipeline) -> None:
    """Booleans, integers, times in every form that data frames have, and what is missing in pandas."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    hours = [START_H + 5, START_H + 6]
    rows = [a_row(1) | {"seen": hours[0], "n": True}, a_row(2) | {"seen": hours[1], "n": 3}]
    due = pipeline.predict(rows).scores.tobytes()
    utc = [datetime.fromtimestamp(hour * 3600, UTC) for hour in hours]
    local = [datetime.fromtimestamp((hour + 2) * 3600, UTC).replace(tzinfo=None) for hour in hours]
    for times in (
        hours,
        utc,
        local,
        [moment.isoformat() for moment in utc],
        np.array(local, "datetime64[ns]"),
        np.array(local, "datetime64[s]"),
        pandas.Series(utc),
        pandas.Series(local),
    ):
        assert model.predict(asked(rows, seen=times))["scores"].tobytes() == due
    frame = pandas.DataFrame(
        asked(rows, seen=utc, n=pandas.array([1, 3], "Int64"), kind=pandas.Series([7, True], dtype=object))
    )
    assert model.predict(frame)["scores"].tobytes() == due
    gone = [row | {"n": None, "kind": None, "seen": None} for row in rows]
    missing = pipeline.predict(gone).scores.tobytes()
    for absent in ([None, np.nan], pandas.array([pandas.NA, pandas.NA], "Int64")):
        columns = asked(rows, n=absent, kind=absent, seen=[None, pandas.NaT])
        assert model.predict(columns)["scores"].tobytes() == missing
    assert (
        model.predict(asked(rows, n=[None, None], kind=[None] * 2, seen=np.array(["NaT"] * 2, "datetime64[ns]")))[
            "scores"
        ].tobytes()
        == missing
    )


@pytest.mark.parametrize(
    ("name", "cells", "why"),
    [
        ("n", [1.5, "2"], "Row 1 (counted from 0), column n: Expected `bool | float | null`, got `str` (wrong-type). Convert"),
        ("n", [Decimal("1.5"), 2], "Row 0 (counted from 0), column n: a value of type Decimal has no meaning"),
        ("n", np.array(["2026-01-01"] * 2, "datetime64[ns]"), "column n: a value of type datetime64 has no meaning"),
        ("n", [1, np.datetime64("2026-01-01", "ns")], "Row 1 (counted from 0), column n: a value of type datetime64"),
        ("n", [1.0, 1 << 63], "Row 1 (counted from 0): n is an integer beyond int64"),
        ("n", np.array([1, 1 << 63], np.uint64), "Row 1 (counted from 0): n is an integer beyond int64"),
        ("n", np.array([1.0, np.inf]), "Row 1 (counted from 0), column n: the number is not finite"),
        ("pair", [[1.0, 2.0], [1.0]], "Row 1 (counted from 0), column pair: Expected `array` of length"),
        ("pair", [[1.0, 2.0], None], "Row 1 (counted from 0), column pair: Expected `array`, got `null` (missing-field). Fill"),
        ("pair", np.array([[1.0, 2.0], [np.nan, 1.0]]), "Row 1 (counted from 0), column pair[0]: Expected"),
        ("kind", ["ant", 2.5], "Row 1 (counted from 0), column kind: Expected `bool | int | str | null`, got `float`"),
        ("kind", ["ant", "\ud800"], "Row 1 (counted from 0), column kind: the text is not Unicode"),
        ("kind", ["ant", {"a": 1}], "Row 1 (counted from 0), column kind: a value of type dict has no meaning"),
        ("seen", [START_H, "today"], "Row 1 (counted from 0): seen: 'today' is not a date and time of ISO 8601"),
        ("seen", [START_H, True], "Row 1 (counted from 0), column seen: Expected `float | str | null`, got `bool`"),
    ],
)
def test_what_no_record_may_hold_is_refused_by_its_column(model: Model, name: str, cells: Any, why: str) -> None:
    """And its row: numbers in text, decimals, times where numbers are due, integers beyond int64, half a character."""
    with pytest.raises(BadInputError, match=re.escape(why)):
        model.predict(asked([a_row(1), a_row(2)], **{name: cells}))
