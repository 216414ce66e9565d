"""What an exported version answers where MLflow loads it: what a record means, and what is far outside everything learned."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from millrace.learners.errors import BadInputError
from millrace.services.api import Pipeline
from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.instance import Instance
from millrace.services.pyfunc import Model, _load_pyfunc
from millrace.services.registry.export import export

TEXT = """name = "kinds"
fields = [
    { name = "n", missing = "mean" },
    { name = "pair", size = 2 },
    { name = "kind", type = "categorical", categories = "grow", max = 4, missing = "category" },
    { name = "seen", type = "time", unit = "h", zone = "+02:00", missing = "mean" },
]
label = { name = "y", type = "number" }
learner = { kind = "ridge" }
"""
START_H = 490_000


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline's."""
    file = tmp_path_factory.mktemp("kinds") / "kinds.toml"
    file.write_text(TEXT)
    return file


@pytest.fixture(scope="module")
def pipeline(file: Path) -> Pipeline:
    """One that has learned rows with every kind of value."""
    pipeline = Pipeline.load(file, home=file.parent)
    rng = np.random.default_rng(3)
    pipeline.append([row | {"y": float(rng.standard_normal())} for row in map(a_row, range(200))])
    pipeline.learn()
    return pipeline


@pytest.fixture(scope="module")
def exported(pipeline: Pipeline, file: Path) -> Path:
    """Its newest version as a folder."""
    export(Instance(load_pipeline(file), file.parent / "kinds"), "newest", file.parent / "exported")
    return file.parent / "exported"


@pytest.fixture(scope="module")
def model(exported: Path) -> Model:
    """What MLflow would load."""
    return _load_pyfunc(str(exported))


def a_row(at: int) -> dict[str, Any]:
    """Plain values."""
    return {"n": float(at % 7), "pair": [at % 2, at % 3], "kind": ("ant", 7, True)[at % 3], "seen": START_H + at}


def asked(rows: list[dict[str, Any]], **columns: Any) -> dict[str, Any]:
    """Rows as columns, some of them given otherwise."""
    return {name: [row[name] for row in rows] for name in ("n", "pair", "kind", "seen")} | columns


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
        ("n", ["1.5", "2"], "n: expected numbers, the same count in every row (str is not a number)"),
        ("n", [Decimal("1.5"), 2], "Decimal is not a number"),
        ("n", np.array(["2026-01-01"] * 2, "datetime64[ns]"), "datetime64 is not a number"),
        ("n", [1 << 63, 1.0], "an integer is beyond int64"),
        ("n", np.array([1 << 63, 1], np.uint64), "an integer is beyond int64"),
        ("pair", [[1.0], [1.0, 2.0]], "the same count in every row"),
        ("kind", [1.5, 2.5], "kind: expected names, one a row (float is no text, boolean or integer)"),
        ("seen", ["yesterday", "today"], "seen: 'yesterday' is not a date and time of ISO 8601"),
        ("seen", [True, False], "a boolean is no time"),
    ],
)
def test_what_no_record_may_hold_is_refused_by_its_column(model: Model, name: str, cells: Any, why: str) -> None:
    """Numbers in text, decimals, times where numbers are due, integers beyond int64."""
    with pytest.raises(BadInputError, match=re.escape(why)):
        model.predict(asked([a_row(1), a_row(2)], **{name: cells}))


def test_the_folder_says_what_it_answers(exported: Path) -> None:
    """Every output stands in MLflow's description of it."""
    text = (exported / "MLmodel").read_text()
    assert all(f'\\"name\\": \\"{name}\\"' in text for name in ("scores", "far_out"))
