"""Rows as frames, mappings, tables and arrays hold them: by `predict`, in MLflow and in its scoring they mean one thing."""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kinds import FIELDS, START_H, a_row, asked, exported, learned
from pictures import drawn

from millrace.learners.errors import BadInputError
from millrace.services.api import Field, Label, Pipeline
from millrace.services.pyfunc import Model, _load_pyfunc
from millrace.services.python.tables import answerable, table_of
from millrace.streams.schema import Schema

pandas = pytest.importorskip("pandas", reason="pandas is not installed")
pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")

ROWS = [a_row(1), a_row(3)]  # whose kinds are 7 and "ant"
NOON = datetime.datetime(2026, 5, 1, 12)
NOON_H = NOON.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=2))).timestamp() / 3600


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """One that tells roses from lilies."""
    return learned(tmp_path_factory.mktemp("kinds"), "string")


@pytest.fixture(scope="module")
def folder(pipeline: Pipeline) -> Path:
    """Its newest version as a folder."""
    return exported(pipeline.folder.parent)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    """What MLflow calls."""
    return _load_pyfunc(str(folder))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    """What MLflow gives, which checks rows against the signature first."""
    pyfunc = pytest.importorskip("mlflow.pyfunc", reason="MLflow is not installed, the extra `mlflow`")
    return pyfunc.load_model(str(folder))


def of_arrow(cells: list[Any], kind: Any) -> Any:
    """A column that pandas keeps as Arrow does."""
    return pandas.Series(cells, dtype=pandas.ArrowDtype(kind))


def objects(*cells: Any) -> Any:
    """A column of Python's values, as they are."""
    return pandas.Series(list(cells), dtype=object)


NA, NAN = pandas.NA, float("nan")
# What two columns hold, and the two values of a record that they mean.
COLUMNS: dict[str, tuple[str, Callable[[], Any], tuple[Any, Any]]] = {
    "Int64": ("n", lambda: pandas.array([3, NA], "Int64"), (3, None)),
    "UInt8": ("n", lambda: pandas.array([3, NA], "UInt8"), (3, None)),
    "Float64": ("n", lambda: pandas.array([1.5, NA], "Float64"), (1.5, None)),
    "boolean": ("n", lambda: pandas.array([True, NA], "boolean"), (True, None)),
    "int64 of Arrow": ("n", lambda: of_arrow([3, None], pyarrow.int64()), (3, None)),
    "double of Arrow": ("n", lambda: of_arrow([1.5, None], pyarrow.float64()), (1.5, None)),
    "bool of Arrow": ("n", lambda: of_arrow([True, None], pyarrow.bool_()), (True, None)),
    "null of Arrow": ("n", lambda: of_arrow([None, None], pyarrow.null()), (None, None)),
    "float32": ("n", lambda: np.array([1.5, NAN], np.float32), (1.5, None)),
    "sparse": ("n", lambda: pandas.arrays.SparseArray([1.5, NAN]), (1.5, None)),
    "integers, NA among them": ("n", lambda: objects(3, NA), (3, None)),
    "integers, None among them": ("n", lambda: objects(3, None), (3, None)),
    "a category of numbers": ("n", lambda: pandas.Series([3, None]).astype("category"), (3, None)),
    "wide floats": ("n", lambda: np.array([1.5, 2.5], np.longdouble), (1.5, 2.5)),
    "texts, NA among them": ("kind", lambda: objects("ant", NA), ("ant", None)),
    "texts, NaN among them": ("kind", lambda: objects("ant", NAN), ("ant", None)),
    "str": ("kind", lambda: pandas.Series(["ant", None], dtype="str"), ("ant", None)),
    "string": ("kind", lambda: pandas.array(["ant", NA], "string"), ("ant", None)),
    "string of Arrow": ("kind", lambda: of_arrow(["ant", None], pyarrow.string()), ("ant", None)),
    "a category of texts": ("kind", lambda: pandas.Series(["ant", None]).astype("category"), ("ant", None)),
    "bytes of Arrow": ("kind", lambda: of_arrow([b"ant", None], pyarrow.binary()), ("ant", None)),
    "names that are Int64": ("kind", lambda: pandas.array([7, NA], "Int64"), (7, None)),
    "names that are boolean": ("kind", lambda: pandas.array([True, NA], "boolean"), (True, None)),
    "names that are bool": ("kind", lambda: np.array([True, False]), (True, False)),
    "names that are int64": ("kind", lambda: np.array([7, 8]), (7, 8)),
    "datetime64": ("seen", lambda: pandas.to_datetime([NOON, None]), (NOON_H, None)),
    "datetime64 in UTC": ("seen", lambda: pandas.to_datetime([NOON, None]).tz_localize("+02:00"), (NOON_H, None)),
    "timestamp of Arrow": ("seen", lambda: of_arrow([NOON, None], pyarrow.timestamp("us")), (NOON_H, None)),
    "texts of times": ("seen", lambda: pandas.array([NOON.isoformat(), NA], "string"), (NOON_H, None)),
    "times in hours": ("seen", lambda: pandas.array([START_H, NA], "Int64"), (START_H, None)),
    "lists": ("pair", lambda: [[1, 2], [0, 1]], ([1, 2], [0, 1])),
    "arrays": ("pair", lambda: [np.array([1, 2]), np.array([0.5, 1])], ([1, 2], [0.5, 1])),
    "lists of Arrow": ("pair", lambda: of_arrow([[1.0, 2.0], [0.0, 1.0]], pyarrow.list_(pyarrow.float64())), ([1, 2], [0, 1])),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_of_a_data_frame_means_what_its_values_mean_in_a_record(
    pipeline: Pipeline, model: Model, loaded: Any, kind: str
) -> None:
    """To the bit, from the Python API, in MLflow behind its signature, and to what MLflow calls; NA and NaN are missing."""
    name, column, (first, second) = COLUMNS[kind]
    expected = pipeline.predict([ROWS[0] | {name: first}, ROWS[1] | {name: second}]).scores
    frame = pandas.DataFrame(asked(ROWS) | {name: column()}, index=None)
    for answer in (pipeline.predict(frame).scores, model.predict(frame)["scores"], loaded.predict(frame)["scores"]):
        assert answer.tobytes() == expected.tobytes()


FRAME = pandas.DataFrame(asked(ROWS))
WHOLE = {
    "another order": lambda: FRAME[list(reversed(FIELDS))],
    "an index that begins elsewhere": lambda: FRAME.set_axis([7, 7], axis=0),
    "a label and an id": lambda: FRAME.assign(y=["rose", None], id=["a", "b"]),
    "a mapping of columns": lambda: asked(ROWS),
    "a mapping of arrays": lambda: asked(ROWS, n=np.array([row["n"] for row in ROWS]), pair=np.array([[1, 1], [1, 0]])),
    "a mapping of a masked array": lambda: asked(ROWS, n=np.ma.array([ROWS[0]["n"], ROWS[1]["n"]], mask=[False, False])),
    "a mapping of Series": lambda: {name: pandas.Series(column, index=[5, 6]) for name, column in asked(ROWS).items()},
    "a list of mappings": lambda: ROWS,
    "an Arrow table": lambda: pyarrow.table(asked(ROWS, kind=["7", "ant"])),
    "an Arrow batch": lambda: pyarrow.table(asked(ROWS, kind=["7", "ant"])).to_batches()[0],
}


@pytest.mark.parametrize("kind", WHOLE)
def test_rows_are_the_same_rows_in_whatever_they_come(pipeline: Pipeline, model: Model, loaded: Any, kind: str) -> None:
    """By `predict` of a version, and of MLflow, which takes neither Arrow nor, for an array, a Series."""
    expected = pipeline.predict(ROWS).scores.tobytes()
    assert model.predict(WHOLE[kind]())["scores"].tobytes() == expected
    if "Arrow" not in kind and "Series" not in kind:
        assert loaded.predict(WHOLE[kind]())["scores"].tobytes() == expected


def test_a_mapping_of_one_rows_values_is_one_row(pipeline: Pipeline, model: Model, loaded: Any) -> None:
    """Scalars of Python and NumPy, what is missing, and a list for a field of several numbers."""
    row = a_row(3) | {"n": np.float64(2.5), "pair": np.array([1.0, 2.0]), "seen": None}
    expected = pipeline.predict([row]).scores
    assert expected.shape == (1, 2)
    for one in (row, row | {"seen": NA}, {name: row[name] for name in ("n", "pair", "kind")}):
        assert model.predict(one)["scores"].tobytes() == loaded.predict(one)["scores"].tobytes() == expected.tobytes()


def test_no_rows_have_no_answers(pipeline: Pipeline, model: Model, loaded: Any) -> None:
    """An empty frame, empty columns, an empty list."""
    columns: dict[str, list[Any]] = {name: [] for name in FIELDS}
    for none in (FRAME.iloc[:0], pandas.DataFrame(columns)):
        assert pipeline.predict(none).scores.shape == model.predict(none)["scores"].shape == (0, 2)
        assert {name: len(answer) for name, answer in loaded.predict(none).items()} == {
            "scores": 0,
            "label": 0,
            "classes": 2,
            "far_out": 0,
        }
    for none in (columns, [], pyarrow.table(FRAME.iloc[:0])):
        assert model.predict(none)["scores"].shape == (0, 2)


def test_what_is_masked_is_missing(pipeline: Pipeline, model: Model) -> None:
    """Whatever number lies under the mask."""
    expected = pipeline.predict([ROWS[0] | {"n": 1.0}, ROWS[1] | {"n": None}]).scores.tobytes()
    assert model.predict(asked(ROWS, n=np.ma.array([1.0, 5.0], mask=[False, True])))["scores"].tobytes() == expected


def test_an_array_has_the_numbers_of_a_row_in_the_order_of_the_fields() -> None:
    """Integers, floats and what is masked; anything else is refused with the shape that there must be."""
    schema = Schema((Field("a", missing="mean"), Field("b", size=2)), Label("y"))
    block = np.arange(6).reshape(2, 3)
    a, b = answerable(table_of(block, schema), schema)
    assert a.tolist() == [[0.0], [3.0]] and b.tolist() == [[1.0, 2.0], [4.0, 5.0]]
    a, b = answerable(table_of(np.ma.array(block, mask=[[True, False, False], [False] * 3]), schema), schema)
    assert np.isnan(a).tolist() == [[True], [False]] and b.tolist() == [[1.0, 2.0], [4.0, 5.0]]
    for wrong in (block[0], block[:, :2], block.reshape(1, 2, 3)):
        with pytest.raises(BadInputError, match=r"must be \[n, 3\]: the numbers of a row in the order of a, b"):
            table_of(wrong, schema)


WRONG = {
    "a column that no field has": (
        lambda: FRAME.assign(colour="red"),
        "colour: this model has no such field. .*Drop the column",
    ),
    "a name that is nearly a field's": (lambda: FRAME.rename(columns={"kind": "kinds"}), "Did you mean kind?"),
    "a column without a name": (lambda: FRAME.rename(columns={"n": 0}), "0: this model has no such field"),
    "a column that stands twice": (lambda: pandas.concat([FRAME, FRAME[["kind"]]], axis=1), "the column kind stands twice"),
    "no column for a required field": (lambda: FRAME.drop(columns="pair"), "pair: this field is required"),
    "a value beside columns": (lambda: asked(ROWS, n=1.0), "n is one row's value and pair is a column"),
    "columns of several lengths": (lambda: asked(ROWS, n=[1.0]), "differ in their number of rows: n 1, pair 2, kind 2, seen 2"),
    "nothing": (lambda: {}, "got a mapping without any field"),
    "a number": (lambda: 7, "expected a data frame, .* got int"),
    "a text": (lambda: "rows.csv", "expected a data frame, .* got str"),
    "rows that are no mappings": (lambda: [ROWS[0], [1, 2]], r"Row 1 \(counted from 0\) is of type list"),
    "an array for fields that are no numbers": (lambda: np.ones((2, 5)), "some fields of this model are not numbers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_answered_is_said(model: Model, case: str) -> None:
    """With the column, and what to do."""
    rows, sentence = WRONG[case]
    with pytest.raises(BadInputError, match=sentence):
        model.predict(rows())


def test_the_classes_name_the_columns_of_the_scores(model: Model, pipeline: Pipeline) -> None:
    """In their order, so that each row's label is the class of its highest score."""
    answers = model.predict(FRAME)
    assert tuple(answers["classes"]) == pipeline.predict(FRAME).classes
    assert answers["classes"][answers["scores"].argmax(axis=1)].tolist() == answers["label"].tolist()


# --- the signature


def test_the_signature_has_every_field_as_mlflow_reads_it(loaded: Any, model: Model) -> None:
    """An array for several numbers; what may be missing is not required; an output for each array of an answer."""
    types = pytest.importorskip("mlflow.types.schema", reason="MLflow is not installed, the extra `mlflow`")
    signature = loaded.metadata.signature
    assert signature.inputs == types.Schema(
        [
            types.ColSpec(types.AnyType(), "n", required=False),
            types.ColSpec(types.Array(types.AnyType()), "pair"),
            types.ColSpec(types.AnyType(), "kind", required=False),
            types.ColSpec(types.AnyType(), "seen", required=False),
        ]
    )
    assert signature.outputs.input_names() == list(model.predict(FRAME)) and signature.params is None


def test_mlflow_names_a_column_that_is_missing(loaded: Any) -> None:
    """Before it calls us."""
    with pytest.raises(Exception, match=r"Model is missing inputs \['pair'\]"):
        loaded.predict(FRAME.drop(columns="pair"))


def scored(loaded: Any, body: object) -> dict[str, Any]:
    """What `mlflow models serve` answers to a JSON body: its own parsing, schema and encoding."""
    server = pytest.importorskip("mlflow.pyfunc.scoring_server", reason="scoring needs MLflow with FastAPI")
    answer = server.invocations(json.dumps(body), "application/json", loaded, loaded.metadata.get_input_schema())
    assert answer.status == 200
    predictions: dict[str, Any] = json.loads(answer.response)["predictions"]
    return predictions


def test_the_scoring_server_of_mlflow_takes_every_form_of_json(pipeline: Pipeline, loaded: Any) -> None:
    """Integers, null, absent columns and texts of times, in every form that it knows; one row's values by themselves."""
    rows = [a_row(3) | {"n": 4, "seen": "2026-05-01T12:00"}, a_row(6) | {"n": None, "kind": None, "seen": None}]
    expected = pipeline.predict(rows)
    bodies: list[dict[str, Any]] = [
        {"dataframe_split": {"columns": list(FIELDS), "data": [[row[name] for name in FIELDS] for row in rows]}},
        {"dataframe_records": rows},
        {"inputs": asked(rows)},
        {"inputs": rows},
        {"instances": rows},
    ]
    for body in bodies:
        answers = scored(loaded, body)
        assert answers["scores"] == expected.scores.tolist() and answers["label"] == list(expected.labels)
        assert answers["classes"] == list(expected.classes)
    row = {"pair": [1, 0], "kind": "ant"}
    one = pipeline.predict([row]).scores.tolist()
    assert scored(loaded, {"inputs": row})["scores"] == scored(loaded, {"dataframe_records": [row]})["scores"] == one


def test_the_scoring_server_says_what_cannot_be_answered(loaded: Any) -> None:
    """Our sentence stands in what it answers."""
    exceptions = pytest.importorskip("mlflow.exceptions")
    with pytest.raises(exceptions.MlflowException) as raised:
        scored(loaded, {"dataframe_records": [a_row(1), a_row(2) | {"n": "many"}]})
    said = json.loads(raised.value.serialize_as_json())
    assert "Row 1 (counted from 0), column n: Expected `bool | float | null`, got `str`" in said["stack_trace"]
    assert raised.value.get_http_status_code() == 400


def test_columns_of_texts_alone_are_columns_in_mlflow(tmp_path: Path) -> None:
    """MLflow makes one row of a mapping whose values are lists of texts."""
    pyfunc = pytest.importorskip("mlflow.pyfunc", reason="MLflow is not installed, the extra `mlflow`")
    from millrace.services.config.config import load_pipeline
    from millrace.services.pipeline.instance import Instance
    from millrace.services.registry.export import export

    field = '{ name = "kind", type = "categorical", categories = ["ant", "bee"] }'
    (tmp_path / "kinds.toml").write_text(
        f'name = "kinds"\nfields = [{field}]\nlabel = {{ name = "y" }}\nlearner = {{ kind = "ridge" }}\n'
    )
    pipeline = Pipeline.load(tmp_path / "kinds.toml", home=tmp_path)
    pipeline.append([{"kind": kind, "y": kind} for kind in ["ant", "bee", "ant"] * 20])
    pipeline.learn()
    export(Instance(load_pipeline(tmp_path / "kinds.toml"), tmp_path / "kinds"), "newest", tmp_path / "exported")
    loaded = pyfunc.load_model(str(tmp_path / "exported"))
    for kinds in (["ant", "bee", "bee"], ["bee"]):
        answers = loaded.predict({"kind": kinds})
        assert answers["scores"].tobytes() == pipeline.predict([{"kind": kind} for kind in kinds]).scores.tobytes()
        assert answers["label"].tolist() == kinds
    assert loaded.predict({"kind": "bee"})["label"].tolist() == ["bee"]


def test_a_picture_may_be_its_bytes_or_base64() -> None:
    """As text, or as the bytes of that text, which MLflow makes of base64 in ``inputs``."""
    schema = Schema((Field("photo", type="image", backbone="net.onnx", shape=(8, 8), features=4),), Label("y"))
    pictures = [drawn((8, 8)), drawn((8, 8))]
    encoded = [base64.b64encode(picture) for picture in pictures]
    for column in (pictures, encoded, [text.decode() for text in encoded], np.array(encoded)):
        [photos] = answerable(table_of({"photo": column}, schema), schema)
        assert photos.tolist() == pictures
    with pytest.raises(BadInputError, match=r"Row 1 \(counted from 0\)"):
        answerable(table_of({"photo": [pictures[0], pictures[1][:40]]}, schema), schema)
