"""Data that went wrong without a word: it is learned right, by an independent computation, and what is odd is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipelines import here, json_lines

from millrace.learners.protocol import Floats
from millrace.services.api import Field, Label, LateLabel, Pipeline, Prediction
from millrace.services.config.config import build_pipeline
from millrace.streams.labels.served import encode_row

FILL = 9.97e36  # what NetCDF writes where there is no value


def numbers(
    folder: Path, kind: str = "ridge", fields: tuple[Field, ...] = (Field("a"), Field("b")), **settings: Any
) -> Pipeline:
    """A regression that answers from every 50 rows."""
    settings |= {"learner__solve_rows": 50} if kind == "ridge" else {}
    return built(folder, kind, fields, Label("y", "number"), settings)


def classes(folder: Path, kind: str, fields: tuple[Field, ...] = (Field("a"), Field("b")), **settings: Any) -> Pipeline:
    """A classification."""
    return built(folder, kind, fields, Label("y"), settings)


def built(folder: Path, kind: str, fields: tuple[Field, ...], label: Label, settings: dict[str, Any]) -> Pipeline:
    """A pipeline in a folder; ``learner__gamma`` is the key ``learner.gamma``."""
    flags = {name.replace("__", "."): value for name, value in settings.items()}
    return Pipeline.build("silent", fields, label, kind, settings=flags, home=folder)


def rows_of(x: Floats, y: Any = None, names: str = "ab") -> list[dict[str, Any]]:
    """Rows of numbers, with a label where there is one; NaN is a missing number."""
    rows: list[dict[str, Any]] = [
        {name: None if np.isnan(value) else value for name, value in zip(names, row, strict=True)} for row in x.tolist()
    ]
    return rows if y is None else [row | {"y": label} for row, label in zip(rows, y.tolist(), strict=True)]


def ridge_of(x: Floats, y: Floats, gamma: float = 1.0) -> tuple[Floats, float]:
    """Weights and intercept of a ridge over standardised features, by NumPy."""
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    z, centred = (x - mean) / deviation, y - y.mean()
    weights = np.linalg.solve(z.T @ z + gamma * np.eye(x.shape[1]), z.T @ centred) / deviation
    return weights, float(y.mean() - mean @ weights)


@pytest.mark.parametrize("how", ["unlabelled", "asked"])
def test_a_value_that_nobody_labelled_changes_nobodys_answer(tmp_path: Path, how: str) -> None:
    """A fill value in a field whose mean stands in for missing numbers: once it moved every score to 1e32, for good."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 2))
    pipeline = numbers(tmp_path, fields=(Field("a", missing="mean"), Field("b")))
    pipeline.append(rows_of(x[:300], x[:300] @ [2.0, -1.0]))
    pipeline.learn()
    questions = rows_of(np.array([[np.nan, 1.0], [0.5, 0.5]]))
    before = pipeline.predict(questions).scores
    if how == "asked":
        assert pipeline.predict(rows_of(np.array([[FILL, 0.0]]))).far_out == ("a",)
    else:
        pipeline.append(rows_of(np.array([[FILL, 0.0]])))
        pipeline.learn()
        assert pipeline.status().passed == 1
    assert pipeline.predict(questions).scores.tobytes() == before.tobytes() and pipeline.predict(questions).far_out == ()
    pipeline.append(rows_of(x[300:], x[300:] @ [2.0, -1.0]))
    pipeline.learn()
    weights, intercept = ridge_of(x, x @ [2.0, -1.0])
    filled = np.array([[x[:, 0].mean(), 1.0], [0.5, 0.5]])
    assert np.allclose(pipeline.predict(questions).scores[:, 0], filled @ weights + intercept, atol=1e-9)


def test_a_labelled_fill_value_is_clipped_and_named(tmp_path: Path) -> None:
    """It is in the log and is learned, but no further out than ten deviations; `status` says of which field."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((600, 2))
    x[500, 0] = FILL
    y = np.where(np.abs(x[:, 0]) < 1e6, x[:, 0], 0.0) * 2.0 - x[:, 1]
    pipeline = numbers(tmp_path)
    pipeline.append(rows_of(x, y))
    pipeline.learn()
    facts = pipeline.status().facts
    assert (facts["clipped_a"], facts["far_out_a"]) == (1, 1) and "clipped_b" not in facts
    first = x[:256]  # at 512 rows the row was there already; its bound is that of the look at 256
    bound = first[:, 0].mean() + 10.0 * first[:, 0].std()
    clipped = np.where(x == FILL, bound, x)
    weights, intercept = ridge_of(clipped, y)
    asked = rng.standard_normal((20, 2))
    assert np.allclose(pipeline.predict(rows_of(asked)).scores[:, 0], asked @ weights + intercept, rtol=1e-7)


def test_heavy_tails_do_not_run_away_with_the_squared_error(tmp_path: Path) -> None:
    """One field whose tails are heavy: the answers stay near what a ridge of the clipped rows answers."""
    rng = np.random.default_rng(2)
    wild = np.where(rng.random(8000) < 0.002, 1e4, 1.0)
    x = np.column_stack([wild * rng.standard_normal(8000), rng.standard_normal(8000)])
    y = np.tanh(x[:, 0]) + x[:, 1] + 0.1 * rng.standard_normal(8000)
    pipeline = numbers(tmp_path)
    pipeline.append(rows_of(x, y))
    pipeline.learn()
    squared = pipeline.scores().values["squared_error"]
    raw, clipped = (squared_error(kept, y) for kept in (x, np.clip(x, -10.0, 10.0)))
    assert raw > 1000.0 * clipped and squared < 2.0 * clipped


def squared_error(x: Floats, y: Floats, every: int = 100) -> float:
    """The mean over rows of the squared error of the ridge of the rows before, refitted now and then."""
    errors = []
    for stop in range(every, len(y), every):
        weights, intercept = ridge_of(x[:stop], y[:stop])
        errors.append((x[stop : stop + every] @ weights + intercept - y[stop : stop + every]) ** 2)
    return float(np.concatenate(errors).mean())


def test_softmax_answers_from_the_same_x_as_it_learns_from(tmp_path: Path) -> None:
    """Rows ten times as far out as the warm-up's: they are clipped in both, so their answers are those of the clipped row."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2000, 2))
    y = np.where(x[:, 0] + 0.5 * rng.standard_normal(2000) > 0, "high", "low")
    pipeline = classes(tmp_path, "softmax", learner__warm_up_rows=500)
    pipeline.append(rows_of(x, y))
    pipeline.learn()
    warm = x[:500]
    edge = warm.mean(axis=0) + 10.0 * warm.std(axis=0)
    far, clipped = pipeline.predict(rows_of(np.array([[300.0, 0.3]]))), pipeline.predict(rows_of(np.array([[edge[0], 0.3]])))
    assert np.allclose(far.scores, clipped.scores, atol=1e-12) and far.far_out == ("a",)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e9])
def test_rivers_linear_models_do_not_depend_on_a_fields_unit(tmp_path: Path, unit: float) -> None:
    """On raw values of 1e9 LinearRegression ended at 9e13, or ran away."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((3000, 2)) + 5.0
    y = x @ [2.0, -1.0]
    pipeline = numbers(tmp_path, "river", learner__model="linear_model.LinearRegression")
    pipeline.append(rows_of(x * [unit, 1.0], y))
    pipeline.learn()
    asked = rng.standard_normal((50, 2)) + 5.0
    answers = pipeline.predict(rows_of(asked * [unit, 1.0])).scores[:, 0]
    assert np.abs(answers - asked @ [2.0, -1.0]).mean() < 0.1
    assert "errors_over_baseline" not in pipeline.status().facts


def test_a_replay_learner_that_skips_steps_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A field that is 0 in the warm-up and 1e5 afterwards: steps without a finite gradient were left out, unseen."""
    rng = np.random.default_rng(5)
    x = np.column_stack([np.where(np.arange(1500) < 100, 0.0, 1e90 * rng.standard_normal(1500)), rng.standard_normal(1500)])
    pipeline = classes(tmp_path, "er", learner__warm_up_rows=100)
    pipeline.append(rows_of(x, np.where(x[:, 1] > 0, "high", "low")))
    with caplog.at_level("WARNING", "millrace"):
        pipeline.learn()
    skipped = pipeline.status().facts["skipped_steps"]
    assert skipped > 10 and f"{skipped} steps were left out" in caplog.text


def test_rows_of_a_class_that_is_not_declared_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They were counted as learned, and that was all."""
    rng = np.random.default_rng(6)
    x = rng.standard_normal((300, 2))
    y = np.array(["a", "b", "stray"])[np.arange(300) % 3]
    pipeline = classes(tmp_path, "er", learner__classes=["a", "b"], learner__warm_up_rows=10)
    pipeline.append(rows_of(x, y))
    with caplog.at_level("WARNING", "millrace"):
        done = pipeline.learn()
    facts = pipeline.status().facts
    assert facts["outside_classes"] == 100 and "100 rows have a label" in caplog.text
    assert (done.learned, facts["learned"], pipeline.status().learned) == (200, 200, 200)
    pipeline.append(rows_of(x[:30], y[:30]))
    again, facts = pipeline.learn(), pipeline.status().facts
    assert (again.read, again.learned) == (30, 20) and (facts["learned"], facts["outside_classes"]) == (220, 110)
    assert facts["learned"] + facts["passed"] + facts["rejected"] + facts["waiting"] + facts["outside_classes"] == 330
    assert pipeline.verify() and pipeline.versions()[-1].learned == 220


@pytest.mark.parametrize("kind", ["rows.jsonl", "rows.csv", "rows.arrow"])
def test_a_value_outside_its_declared_range_is_a_dead_letter_in_every_format(tmp_path: Path, kind: str) -> None:
    """`low` and `high` of a field: rejected with a reason of its own."""
    pipeline = numbers(tmp_path, fields=(Field("a", low=0.0, high=10.0), Field("b")))
    file, flags = tmp_path / "p.toml", ["--home", str(tmp_path)]
    pipeline.save(file)
    lines = [f'{{"a": {value}, "b": 1.0, "y": 2.0}}' for value in (1.0, -0.5, 10.0, 11.0)]
    values = ["1.0", "-0.5", "10.0", "11.0"]
    text = "a,b,y\n" + "".join(f"{value},1.0,2.0\n" for value in values) if kind.endswith("csv") else "\n".join(lines)
    (tmp_path / "rows.csv" if kind.endswith("csv") else tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    sent = "rows.csv" if kind.endswith("csv") else "rows.jsonl"
    words = ["send", str(file), str(tmp_path / sent), *(["--format", "arrow"] if kind.endswith("arrow") else [])]
    assert here(*words, *flags, cwd=tmp_path).exit_code == 0
    assert here("run", str(file), *flags, cwd=tmp_path).exit_code == 0
    letters = json_lines(here("dead-letters", "list", str(file), *flags, "--output", "json", cwd=tmp_path).stdout)
    assert [letter["reason"] for letter in letters] == ["out-of-range"] * 2
    assert pipeline.status().learned == 2


@pytest.mark.parametrize("outside", ["clip", "missing"])
def test_a_value_outside_its_declared_range_is_clipped_or_missing(tmp_path: Path, outside: str) -> None:
    """As the field says, in learning and in answering, against NumPy; and it is counted."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((200, 2))
    x[::20, 0] = 1e30
    y = np.where(x[:, 0] > 1.5, 0.0, x[:, 0]) - x[:, 1]
    pipeline = numbers(tmp_path, fields=(Field("a", missing="mean", low=-1.5, high=1.5, outside=outside), Field("b")))
    pipeline.append(rows_of(x, y))
    pipeline.learn()
    due = x.copy()
    for at in range(len(due)):
        inside = [value for value in x[:at, 0].tolist() if abs(value) <= 1.5]
        if abs(due[at, 0]) > 1.5:
            due[at, 0] = np.clip(due[at, 0], -1.5, 1.5) if outside == "clip" else (np.mean(inside) if inside else 0.0)
    weights, intercept = ridge_of(due, y)
    assert np.allclose(
        pipeline.predict(rows_of(np.array([[0.5, 1.0]]))).scores[0, 0], [0.5, 1.0] @ weights + intercept, atol=1e-9
    )
    assert pipeline.status().facts["outside_a"] == int((np.abs(x[:, 0]) > 1.5).sum())


def test_a_constant_feature_and_a_coarse_one_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A ridge gives the first no weight; the second came as float32, whose steps are wider than it deviates."""
    rng = np.random.default_rng(8)
    coarse = (1.7e9 + rng.standard_normal(300)).astype(np.float32).astype(float)
    pipeline = numbers(tmp_path)
    pipeline.append(rows_of(np.column_stack([np.full(300, 5.0), coarse]), rng.standard_normal(300)))
    with caplog.at_level("WARNING", "millrace"):
        pipeline.learn()
    facts = pipeline.status().facts
    assert facts["dropped_a"].startswith("constant: ") and facts["dropped_b"].startswith(("float32: ", "constant: "))
    assert "field a: constant" in caplog.text


def test_rows_that_wait_for_their_label_are_completed_when_it_comes(tmp_path: Path) -> None:
    """Means and category columns go by the order in which labels come, not in which rows were answered."""
    rng = np.random.default_rng(9)
    fields = (Field("a", missing="mean"), Field("town", type="categorical", categories="grow", max=2))
    pipeline = numbers(tmp_path, fields=fields, labels__horizon_ms=10**9, labels__grace_ms=10**9)
    towns, order = np.array(["ulm", "bonn", "kiel"])[rng.integers(3, size=150)], rng.permutation(150)
    a = np.where(rng.random(150) < 0.2, np.nan, rng.standard_normal(150) + 40.0)
    y = np.nan_to_num(a, nan=40.0) + (towns == "kiel")
    rows = [{"a": None if np.isnan(value) else value, "town": str(town)} for value, town in zip(a, towns, strict=True)]
    pipeline.append_served([Prediction(f"row {at}", encode_row(row), "main", 1, 1, (), (0.0,)) for at, row in enumerate(rows)])
    pipeline.append_served([LateLabel(f"row {at}", float(y[at])) for at in order.tolist()])
    pipeline.append_served([Prediction("stray", encode_row({"a": FILL, "town": "rome"}), "main", 1, 1, (), (0.0,))])
    pipeline.learn()
    present, slots, due = list[float](), list[str](), []
    for at in order.tolist():
        value = a[at] if not np.isnan(a[at]) else (np.mean(present) if present else 0.0)
        present += [] if np.isnan(a[at]) else [a[at]]
        slots += [towns[at]] if towns[at] not in slots and len(slots) < 2 else []
        due.append(
            [value, *(float(towns[at] == slot) for slot in slots), *[0.0] * (2 - len(slots)), float(towns[at] not in slots)]
        )
    weights, intercept = ridge_of(np.array(due), y[order])
    asked = [[41.0, 1.0, 0.0, 0.0], [41.0, 0.0, 0.0, 1.0]]
    answers = pipeline.predict([{"a": 41.0, "town": slots[0]}, {"a": 41.0, "town": "rome"}]).scores[:, 0]
    assert pipeline.status().facts["labels_joined"] == 150 and np.allclose(answers, asked @ weights + intercept, atol=1e-8)


@pytest.mark.parametrize("kind", ["ridge", "river"])
def test_rows_of_weight_0_move_nothing(tmp_path: Path, kind: str) -> None:
    """Neither means nor scale: the answers are those of the same rows without them."""
    rng = np.random.default_rng(10)
    x, heavy = rng.standard_normal(1000), np.arange(1000) % 20 != 0
    values = np.where(heavy, x, 1e6)
    answers, clipped = [], []
    for name, kept in (("all", np.ones(1000, dtype=bool)), ("heavy", heavy)):
        more = {"learner__model": "linear_model.LinearRegression"} if kind == "river" else {"learner__solve_rows": 50}
        flags = {name.replace("__", "."): value for name, value in more.items()} | {"weight": "w"}
        pipeline = Pipeline.build(name, [Field("a", missing="mean")], Label("y", "number"), kind, settings=flags, home=tmp_path)
        rows = zip(values[kept].tolist(), (3.0 * x[kept]).tolist(), heavy[kept].astype(float).tolist(), strict=True)
        pipeline.append([{"a": a, "y": y, "w": w} for a, y, w in rows])
        pipeline.learn()
        answers.append(pipeline.predict([{"a": 1.0}, {"a": 2.0}, {"a": None}]).scores[:, 0])
        clipped.append({name: count for name, count in pipeline.status().facts.items() if name in ("clipped_a", "far_out_a")})
    assert clipped[0] == clipped[1] and np.allclose(*answers, rtol=1e-9, atol=1e-12) and abs(answers[0][1] - 6.0) < 0.3


@pytest.mark.parametrize(("kind", "far"), [("softmax", 1e6), ("river", 1e6), ("er", 1e6)])
def test_what_a_learner_by_steps_clips_is_named(tmp_path: Path, kind: str, far: float) -> None:
    """Outliers in the first batch too, which the range would else swallow."""
    rng = np.random.default_rng(11)
    x = rng.standard_normal((600, 2))
    x[100:108, 0] = far
    more = {"learner__model": "linear_model.LogisticRegression"} if kind == "river" else {"learner__warm_up_rows": 64}
    pipeline = classes(tmp_path, kind, **more)
    pipeline.append(rows_of(x, np.where(x[:, 1] > 0, "high", "low")))
    pipeline.learn()
    facts = pipeline.status().facts
    assert facts["far_out_a"] == 8 and facts["clipped_a"] >= 8 and "clipped_b" not in facts


@pytest.mark.parametrize(
    ("written", "clipped"),
    [("center = 0.0, scale = 2.0", True), ("center = 0, scale = 1", True), ("scale = 2.0", False)]
    + [("center = 0.0, scale = 2.0, scaled = false", False)],
)
def test_with_shards_what_is_written_out_is_declared(tmp_path: Path, written: str, clipped: bool) -> None:
    """Also a center or a scale that is its default: answers are those of a ridge of the clipped rows, by NumPy."""
    (tmp_path / "p.toml").write_text(
        f'name = "p"\nshards = 2\nfields = [{{ name = "a", {written} }}, {{ name = "b" }}]\n'
        'label = { name = "y", type = "number" }\nlearner = { kind = "ridge", solve_rows = 1 }\nlog = { partitions = 2 }\n'
    )
    rng = np.random.default_rng(12)
    x = rng.standard_normal((400, 2))
    y = x @ [2.0, -1.0]
    x[7, 0] = 1e4
    pipeline = Pipeline.load(tmp_path / "p.toml", home=tmp_path)
    pipeline.append(rows_of(x, y))
    pipeline.learn()
    scale = 1.0 if "scale = 1" in written else 2.0
    due = np.clip(x, [-10.0 * scale, -np.inf], [10.0 * scale, np.inf]) if clipped else x
    weights, intercept = ridge_of(due, y)
    answers = pipeline.predict(rows_of(x[100:200])).scores[:, 0]
    np.testing.assert_allclose(answers, x[100:200] @ weights + intercept, rtol=0, atol=1e-9)
    assert pipeline.status().facts.get("clipped_a", 0) == int(clipped)


def test_scaling_is_what_the_table_says_for_every_kind() -> None:
    """Analytic kinds clip, river's linear models are standardised, shards clip what declares center and scale."""

    def scaling(kind: str, **more: Any) -> str:
        raw = {"name": "p", "fields": [{"name": "a"}], "label": {"name": "y", "type": more.pop("label", "string")}}
        from millrace.services.pipeline.instance import Instance

        return Instance(build_pipeline(raw | {"learner": {"kind": kind, **more}}, []), Path("unused")).fold_spec.scaling

    assert [scaling(kind) for kind in ("ridge", "slda", "ncm", "aef-ocl", "air")] == ["clip"] * 5
    assert [scaling(kind) for kind in ("softmax", "er")] == ["none"] * 2
    assert scaling("river", model="naive_bayes.GaussianNB") == "none"
    assert scaling("river", model="linear_model.LinearRegression", label="number") == "standardise"
