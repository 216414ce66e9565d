"""Rows that a program hands over: of every kind they are the same rows, and what has no meaning is refused by its column."""

from __future__ import annotations

import base64
import datetime
import decimal
import enum
import json
from pathlib import Path

import numpy as np
import pytest
from pictures import drawn
from pipelines import PIPELINE, flower_rows, pipeline_in

from millrace.services.api import BadInputError, Field, Label, LateLabel, Pipeline, Prediction, encode_row
from millrace.services.python.frames import events_of
from millrace.streams.records import Event
from millrace.streams.schema import Schema

ROW = {"x": [1.0, 2.0, 3.0, 4.0], "site": "north", "label": "rose"}
QUESTION = {"x": [1.0, 2.0, 3.0, 4.0], "site": "north"}


def flowers(folder: Path) -> Pipeline:
    """The pipeline of a file whose rows ``rows_of`` gives."""
    return Pipeline.load(pipeline_in(folder), home=folder / ".millrace")


def rows_of(count: int) -> list[dict]:
    """Good rows of ``PIPELINE`` as a program has them."""
    return [json.loads(line) for line in flower_rows(count)]


def values_in(pipeline: Pipeline) -> list[bytes | None]:
    """Every value in the pipeline's log, in order."""
    instance = pipeline._instance
    source = instance.source([instance.loaded.pipeline.topic])
    ends = source.bounds()
    return [event.value for tp, (low, high) in ends.items() for event in source.read(tp, low, high).events]


class Exported:
    """A table that only exports the Arrow C stream, as a polars frame does."""

    def __init__(self, table: object) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


class Convertible:
    """A table that can only be made an Arrow table of."""

    def __init__(self, table: object) -> None:
        self._table = table

    def to_arrow(self) -> object:
        return self._table


def pandas_of(rows: list[dict]) -> object:
    """A DataFrame whose column of texts is a categorical one."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(rows)
    frame["site"] = frame["site"].astype("category")
    frame["x"] = [np.array(cell, dtype=np.float32) for cell in frame["x"]]
    return frame


def arrow_of(rows: list[dict]) -> object:
    """An Arrow table whose column of texts is a dictionary."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    table = pyarrow.Table.from_pylist(rows)
    return table.set_column(table.column_names.index("site"), "site", table["site"].dictionary_encode())


KINDS = {
    "mappings": lambda rows: rows,
    "a generator": lambda rows: (row for row in rows),
    "NumPy's scalars and arrays": lambda rows: [
        {"x": np.array(row["x"], dtype=np.int32), "site": np.str_(row["site"]), "label": row["label"]} for row in rows
    ],
    "pandas": pandas_of,
    "an Arrow table": arrow_of,
    "an Arrow batch": lambda rows: arrow_of(rows).combine_chunks().to_batches()[0],
    "an exporter": lambda rows: Exported(arrow_of(rows)),
    "to_arrow": lambda rows: Convertible(arrow_of(rows)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_kind_are_the_same_rows(tmp_path: Path, kind: str) -> None:
    """In the log as JSON, equal to the mappings that they were made of."""
    pipeline, rows = flowers(tmp_path), rows_of(30)
    assert pipeline.append(KINDS[kind](rows)) == 30
    assert [json.loads(value) for value in values_in(pipeline)] == rows


def test_wide_floats_and_a_series_are_taken(tmp_path: Path) -> None:
    """A longdouble is a number, alone and in an array; a Series is the column of its name."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    fields = (
        Field("x"),
        Field(
            "pair",
            size=2,
        ),
    )
    pipeline = Pipeline.build("wide", fields, Label("y"), "ridge", home=tmp_path)
    pipeline.append([{"x": np.longdouble(1.5), "pair": np.array([1, 2.5], np.longdouble), "y": "a"}])
    assert [json.loads(value) for value in values_in(pipeline)] == [{"x": 1.5, "pair": [1.0, 2.5], "y": "a"}]
    one = Pipeline.build("one", [Field("x")], Label("y"), "ridge", home=tmp_path)
    assert one.append(pandas.Series([1.5, 2.5], name="x")) == 2
    assert [json.loads(value) for value in values_in(one)] == [{"x": 1.5}, {"x": 2.5}]
    with pytest.raises(BadInputError, match="the column 0 is not named by a text"):
        one.append(pandas.Series([1.5]))


def test_many_rows_travel_in_one_arrow_batch(tmp_path: Path) -> None:
    """And give the same scores as a message a row."""
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    singly, many = flowers(tmp_path / "one"), flowers(tmp_path / "many")
    assert singly.append(rows_of(90)) == many.append(rows_of(90), rows_per_message=40) == 90
    assert (len(values_in(singly)), len(values_in(many))) == (90, 3)
    assert singly.learn().read == 90 and many.learn().version
    assert singly.scores() == many.scores() and many.status().learned == 90


def test_what_is_missing_is_null(tmp_path: Path) -> None:
    """None, NaN, NA and NaT, of a field that may be missing and of the label; labels that pandas made floats are whole."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    fields = [Field("a", missing="mean"), Field("b", type="categorical", categories="grow", max=4, missing="category")]
    pipeline = Pipeline.build("gaps", fields, Label("kind", "integer"), "ridge", settings={"batch.rows": 1}, home=tmp_path)
    frame = pandas.DataFrame({"a": [1, None, 3], "b": pandas.Categorical(["u", None, "v"]), "kind": [1, 2, None]})
    assert frame["kind"].dtype == np.float64
    pipeline.append(frame)
    pipeline.append(frame.astype({"kind": "Int64", "b": "string"}))
    pipeline.append([{"a": pandas.NA, "b": pandas.NaT, "kind": pandas.NA}, {"a": float("nan"), "b": None, "kind": np.int8(7)}])
    twice = [{"a": 1.0, "b": "u", "kind": 1}, {"a": None, "b": None, "kind": 2}, {"a": 3.0, "b": "v", "kind": None}] * 2
    lost = {"a": None, "b": None}
    assert [json.loads(value) for value in values_in(pipeline)] == [*twice, lost | {"kind": None}, lost | {"kind": 7}]
    pipeline.learn()
    status = pipeline.status()
    assert (status.learned, status.passed, status.rejected) == (5, 3, 0)


Level = enum.IntEnum("Level", {"LOW": 1})
REFUSED = {
    "a text for a number": ({"x": ["1", 2, 3, 4]}, r"Row 2 .*column x\[0\]: Expected `bool | float`, got `str`"),
    "too few numbers": ({"x": [1.0, 2.0]}, "Row 2 .*column x: Expected `array` of length"),
    "NaN among numbers": ({"x": [1.0, float("nan"), 3.0, 4.0]}, r"Row 2 .*column x\[1\]: Expected `bool | float`, got `null`"),
    "infinity": ({"x": np.array([1.0, np.inf, 3.0, 4.0])}, "Row 2 .*column x: the number is not finite"),
    "too large": ({"x": [10**200, 2, 3, 4]}, "Row 2 .*column x: the number is not finite, or beyond 1e"),
    "a missing field": ({"site": None}, "Row 2 .*column site: Expected `bool | int | str`, got `null`"),
    "an undeclared category": ({"site": "west"}, "Row 2 .*site has 1 value"),
    "a category that is no text": ({"site": 3.5}, "Row 2 .*column site: Expected `bool | int | str`, got `float`"),
    "bytes that are no text": ({"site": b"n\xfc"}, "Row 2 .*column site: bytes that are not UTF-8"),
    "bytes for a number": ({"x": b"1"}, "Row 2 .*column x: it is bytes, and numeric list takes list"),
    "a time": ({"site": datetime.datetime(2026, 5, 1)}, "Row 2 .*column site: a value of type datetime has no meaning"),
    "a time of NumPy": (
        {"site": np.datetime64("2026-05-01")},
        "Row 2 .*column site: a value of type datetime64 has no meaning",
    ),
    "a time of NumPy in nanoseconds": (
        {"x": [np.datetime64("2026-05-01", "ns"), 2, 3, 4]},
        "Row 2 .*column x: a value of type datetime64 has no meaning",
    ),
    "a span of NumPy": ({"site": np.timedelta64(5, "ns")}, "Row 2 .*column site: a value of type timedelta64 has no meaning"),
    "times of NumPy": (
        {"x": np.array(["2026-05-01"] * 4, "datetime64[ns]")},
        "Row 2 .*column x: a value of type ndarray has no meaning",
    ),
    "wide complex numbers": ({"x": [np.clongdouble(1), 2, 3, 4]}, "Row 2 .*a value of type clongdouble has no meaning"),
    "a decimal": ({"x": [decimal.Decimal(1), 2, 3, 4]}, "Row 2 .*column x: a value of type Decimal has no meaning"),
    "a complex number": ({"x": [1j, 2, 3, 4]}, "Row 2 .*column x: a value of type complex has no meaning"),
    "a mapping": ({"site": {"a": 1}}, "Row 2 .*column site: a value of type dict has no meaning"),
    "half a character": ({"site": "\ud800"}, "Row 2 .*column site: the text is not Unicode"),
    "a label of another type": ({"label": 1.5}, "Row 2 .*column label: Expected `bool | int | str | null`, got `float`"),
    "an unknown column": ({"colour": "red"}, "Row 2 .*unknown field `colour`"),
    "a column without a name": ({3: 1}, "Row 2 .*column 3 is not named by a text"),
}


def test_a_datetime_is_a_time_in_the_unit_of_its_field(tmp_path: Path) -> None:
    """One of Python, NumPy or pandas, or text; what says no offset is in the field's zone."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    field = '{ name = "t", type = "time", unit = "h", zone = "+01:00" }'
    text = f'name = "times"\nfields = [{field}]\nlabel = {{ name = "y" }}\nlearner = {{ kind = "ridge" }}'
    (tmp_path / "times.toml").write_text(text)
    pipeline = Pipeline.load(tmp_path / "times.toml", home=tmp_path)
    naive = datetime.datetime(1970, 1, 1, 3, 30)
    times = [naive, np.datetime64(naive), pandas.Timestamp(naive), "1970-01-01T02:30Z", naive.replace(tzinfo=datetime.UTC), 2.5]
    assert pipeline.append([{"t": moment, "y": "a"} for moment in times]) == 6
    codec = pipeline._instance.fold_spec.codec
    rows, refused = codec.decode([Event(at, 0, None, b"", value) for at, value in enumerate(values_in(pipeline))])
    assert not refused and rows.columns[0].ravel().tolist() == [2.5, 2.5, 2.5, 2.5, 3.5, 2.5]
    with pytest.raises(BadInputError, match="column t: .*ISO 8601|t: 'soon' is not a date and time"):
        pipeline.append([{"t": "soon", "y": "a"}])


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_meaning_is_refused_by_row_and_column(tmp_path: Path, case: str) -> None:
    """Nothing of the call is appended, whatever good rows stand before."""
    pipeline = flowers(tmp_path)
    change, sentence = REFUSED[case]
    with pytest.raises(BadInputError, match=sentence):
        pipeline.append([ROW, ROW, {**ROW, **change}, ROW])
    assert values_in(pipeline) == []


def test_a_missing_column_and_several_bad_rows_are_said(tmp_path: Path) -> None:
    """The first is named, and how many there are."""
    rows = [ROW, {"site": "north"}, {"site": "north"}]
    with pytest.raises(BadInputError, match=r"Row 1 \(counted from 0\): .*required field `x`.* 2 rows cannot be taken"):
        flowers(tmp_path).append(rows)


@pytest.mark.parametrize("rows", [ROW, "rows.jsonl", 7, None, [ROW, "a text"], [[1, 2]]])
def test_what_is_no_rows_is_refused(tmp_path: Path, rows: object) -> None:
    """A single mapping, a file's name, a number, a list of something else: each says what is expected."""
    with pytest.raises(BadInputError, match="a list of mappings, a pandas or polars DataFrame, or an Arrow table"):
        flowers(tmp_path).append(rows)


def test_columns_of_one_name_and_what_arrow_cannot_take_are_refused(tmp_path: Path) -> None:
    """A frame and a table whose columns cannot be told apart, and an exporter that breaks."""
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    pipeline = flowers(tmp_path)
    for twice in (pandas.DataFrame([[1, 2]], columns=["x", "x"]), pyarrow.table([[1], [2]], names=["x", "x"])):
        with pytest.raises(BadInputError, match="the column x stands twice"):
            pipeline.append(twice)
    with pytest.raises(BadInputError, match="pyarrow cannot take the Broken over"):
        pipeline.append(Broken())


class Broken:
    """What it exports is no stream."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return "no capsule"


def test_pictures_are_the_bytes_of_their_files() -> None:
    """As base64 in the log; what is no picture is refused by its row."""
    fields = (Field("photo", type="image", backbone="net.onnx", shape=(8, 8), features=4),)
    schema, good = Schema(fields, Label("y")), drawn((8, 8))
    [event] = events_of([{"photo": good, "y": "cat"}], schema, 1 << 20)
    assert base64.b64decode(json.loads(event.value)["photo"]) == good
    with pytest.raises(BadInputError, match=r"Row 1 \(counted from 0\): photo.*unreadable-image"):
        events_of([{"photo": good}, {"photo": good[:40]}], schema, 1 << 20)
    with pytest.raises(BadInputError, match="Row 0 .*over 100 bytes"):
        events_of([{"photo": good}], schema, 100)


SERVED = {
    "a label of another type": (LateLabel("a", 3.5), "Record 1 .*the label is not of type string"),
    "a label that is none": (LateLabel("a", datetime.date(2026, 5, 1)), "Record 1 .*a value of type date has no meaning"),
    "no id": (LateLabel("", "rose"), "Record 1 .*column id: Expected `str` of length >= 1"),
    "an id that is no text": (LateLabel(7, "rose"), "Record 1 .*column id: Expected `str`, got `int`"),
    "a row that is none": (Prediction("a", encode_row({"y": 1}), "main", 1, 2, ("rose",), (1.0,)), "Record 1 .*unknown field"),
    "scores of no class": (
        Prediction("a", encode_row(QUESTION), "main", 1, 2, (), (1.0,)),
        "Record 1 .*1 scores for 0 classes",
    ),
    "something else": ({"id": "a", "label": "rose"}, "Record 1 .*expected a Prediction or a LateLabel, got dict"),
}


@pytest.mark.parametrize("case", SERVED)
def test_a_served_record_that_would_be_a_dead_letter_is_refused(tmp_path: Path, case: str) -> None:
    """By its number; nothing of the call is appended."""
    path = pipeline_in(tmp_path, text=PIPELINE + "[labels]\n")
    pipeline = Pipeline.load(path, home=tmp_path)
    record, sentence = SERVED[case]
    with pytest.raises(BadInputError, match=sentence):
        pipeline.append_served([LateLabel("before", "rose"), record])
    good = Prediction("a", encode_row({"x": np.arange(4), "site": "north"}), "main", 1, 2, ("rose",), (np.float64(1.0),))
    assert pipeline.append_served([good, LateLabel("a", np.str_("rose"))]) == 2
    assert pipeline.learn().read == 2 and pipeline.status().learned == 1
    with pytest.raises(BadInputError, match="type complex has no place in a row"):
        encode_row({"x": 1j})
