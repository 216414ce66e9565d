"""The pipeline file, the environment and the flags: who wins, and what is said to who is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipelines import PIPELINE, pipeline_in

from millrace.learners.errors import ConfigError
from millrace.learners.protocol import Batch
from millrace.learners.table import algorithm_of
from millrace.services.config.config import Loaded, build_pipeline, data_folder, home_folder, load_pipeline, settings


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MILLRACE_HOME", "MILLRACE_DATA", "MILLRACE__LEARNER__GAMMA"):
        monkeypatch.delenv(name, raising=False)


def loaded(folder: Path, text: str = PIPELINE, *flags: str) -> Loaded:
    """What a pipeline file and flags say."""
    return load_pipeline(pipeline_in(folder, rows=0, text=text), flags)


def refused(folder: Path, text: str = PIPELINE, *flags: str) -> str:
    """The sentence with which a pipeline is refused; it must name the file."""
    with pytest.raises(ConfigError) as error:
        loaded(folder, text, *flags)
    return str(error.value)


def origins(config: Loaded) -> dict[str, tuple[object, str]]:
    """Every key with its value and where it came from."""
    return {key: (value, origin) for key, value, origin in settings(config)}


def test_a_flag_wins_over_the_environment_and_the_environment_over_the_file(tmp_path, monkeypatch) -> None:
    """And `config show` names which of them it was."""
    monkeypatch.setenv("MILLRACE__LEARNER__GAMMA", "2")
    monkeypatch.setenv("MILLRACE__BATCH__ROWS", "30")
    shown = origins(loaded(tmp_path, PIPELINE, "batch.rows=40", "worker.keep=5"))
    assert shown["learner.gamma"] == (2.0, "environment MILLRACE__LEARNER__GAMMA")
    assert shown["batch.rows"] == (40, "flag --set") and shown["worker.keep"] == (5, "flag --set")
    assert shown["batch.wait_ms"] == (50, "digits.toml") and shown["threads"] == (1, "default")
    assert shown["fields[1].name"] == ("site", "digits.toml") and shown["learner.task"] == ("classify", "default")


def test_every_key_that_can_be_set_is_shown(tmp_path: Path) -> None:
    """Once each, with the learner's own."""
    keys = [key for key, _, _ in settings(loaded(tmp_path))]
    assert len(keys) == len(set(keys)) and {"log.topic", "worker.stop_share", "learner.decay", "label.type"} <= set(keys)


def test_a_table_in_a_flag_is_shown_as_set_by_the_flag(tmp_path: Path) -> None:
    """Each of its keys, and none that the table has thrown out."""
    shown = origins(loaded(tmp_path, PIPELINE, "batch={rows = 3}", 'fields=[{name = "z"}]'))
    assert shown["batch.rows"] == (3, "flag --set") and shown["batch.wait_ms"] == (1000, "default")
    assert shown["fields[0].name"] == ("z", "flag --set") and shown["fields[0].size"] == (1, "default")


def test_a_list_can_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written as in the file."""
    monkeypatch.setenv("MILLRACE__FIELDS", '[{name = "a"}, {name = "b", type = "categorical", categories = ["u", "v"]}]')
    assert [field.name for field in loaded(tmp_path).pipeline.fields] == ["a", "b"]


def test_a_value_that_is_no_toml_is_taken_as_text(tmp_path: Path) -> None:
    """So that a topic needs no quotes; and text that means a second key sets only its own."""
    assert loaded(tmp_path, PIPELINE, "log.topic=a-b c").pipeline.topic == "a-b c"
    assert "batch.rows" in refused(tmp_path, PIPELINE, "batch.rows=3\nseed = 9")


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("learner.gama=2", "learner.gama = 2: there is no such key. Did you mean gamma?"),
        ("labels.horizn_ms=2", "labels.horizn_ms = 2: there is no such key. Did you mean horizon_ms?"),
        ("labels.grace_ms=0", "grace_ms = 0: must be at least 1"),
        ("labels.default=3.5", "default = 3.5: the label is not of type string"),
        ("worker.stepp_rows=2", "worker.stepp_rows = 2: there is no such key. Did you mean step_rows?"),
        ("bach.rows=2", "bach = {'rows': 2}: there is no such key. Did you mean batch?"),
        ("xyzzy=1", "xyzzy = 1: there is no such key. There are: name, fields,"),
        ("label.typ=1", "label.typ = 1: there is no such key. Did you mean type?"),
        ("learner.kind=rigde", "learner.kind = 'rigde' is not a learner. Did you mean ridge?"),
        ('learner.kind=["ridge"]', "learner.kind = ['ridge'] is not a learner."),
        ("learner.kind=3", "learner.kind = 3 is not a learner."),
        ("learner.gamma=true", "learner.gamma = True: Expected `float`, got `bool`."),
        ("learner.gamma=two", "learner.gamma = 'two': Expected `float`, got `str`."),
        ("learner.gamma=", "learner.gamma = '': Expected `float`, got `str`."),
        ("learner.gamma=-1", "learner: gamma = -1.0: must be a finite number above 0."),
        ("learner.gamma=nan", "learner: gamma = nan: must be"),
        ("learner.solve_rows=0", "learner: solve_rows = 0: must be a whole number from 1"),
        ("learner.decay=1.5", "learner: decay = 1.5: must be"),
        ("learner.task=regress", "learner.task = 'regress', but the label's type says 'classify'."),
        ("learner=3", "learner = 3: Expected `object`, got `int`."),
        ("seed=-1", "seed = -1, threads = 1: seed is at least 0"),
        ("seed=1.5", "seed = 1.5: Expected `int`, got `float`."),
        ("threads=0", "threads = 0: seed is at least 0, threads at least 1"),
        ("name=a/b", "name = 'a/b': must be letters, digits, - and _"),
        ("name=..", "name = '..': must be letters, digits, - and _"),
        ('name=""', "name = '': must be letters"),
        ("batch.rows=0", "batch: rows = 0: must be at least 1."),
        ("batch.wait_ms=0", "batch: wait_ms = 0: must be at least 1."),
        ("batch.rows=1e3", "batch.rows = 1000.0: Expected `int`, got `float`."),
        ("log.partitions=0", "log: partitions = 0: must be at least 1."),
        ("log.retention_hours=-1", "log: retention_hours = -1.0: must be at least 0."),
        ("log.retention_hours=nan", "log: retention_hours = nan: must be"),
        ("log.retention_hours=inf", "log: retention_hours = inf: must be"),
        ("log.max_bytes=0", "log: max_bytes = 0: must be at least 1."),
        ("worker.step_rows=0", "worker: step_rows = 0: must be at least 1."),
        ("worker.step_ms=-1", "worker: step_ms = -1: must be at least 0."),
        ("worker.keep=1", "worker: keep = 1: must be at least 2."),
        ("worker.stop_share=0", "worker: stop_share = 0.0: must be above 0 and at most 1."),
        ("worker.stop_share=nan", "worker: stop_share = nan: must be"),
        ("worker.window_rows=0", "worker: window_rows = 0: must be at least 1."),
        ("label.type=text", "label.type = 'text': Invalid enum value 'text'. There are: string, integer, boolean, number."),
        ("label.type=strin", "label.type = 'strin': Invalid enum value 'strin'. Did you mean string?"),
        ("label=3", "label = 3: Expected `object`, got `int`."),
        ("fields=[]", "there must be at least one field"),
        ('fields=[{name = "x"}, {name = "x"}]', "field names stand twice: x"),
        ('fields=[{name = "label"}]', "field names stand twice: label"),
        ("weight=x", "field names stand twice: x"),
        ("fields=3", "fields = 3: Expected `array`, got `int`."),
        ("fields=[3]", "fields[0] = 3: Expected `object`, got `int`."),
        ('fields=[{name = "x", siz = 3}]', "fields[0].siz = 3: there is no such key. Did you mean size?"),
        ('fields=[{type = "numeric"}]', "fields[0]: Object missing required field `name`."),
        (
            'fields=[{name = "x", type = "numerical"}]',
            "fields[0].type = 'numerical': Invalid enum value 'numerical'. Did you mean",
        ),
        ('fields=[{name = "x", size = 0}]', "fields[0]: size = 0: must be at least 1."),
        ('fields=[{name = "x", scale = 0}]', "fields[0]: center = 0.0, scale = 0.0: must be finite, scale above 0."),
        (
            'fields=[{name = "x", missing = "drop"}]',
            "fields[0].missing = 'drop': Invalid enum value 'drop'. There are: reject,",
        ),
        ('fields=[{name = "x", size = 3, missing = "mean"}]', 'fields[0]: missing = "mean": an array of 3 numbers'),
        ('fields=[{name = "x", type = "categorical", categories = "grew", max = 2}]', "fields[0].categories = 'grew'"),
        (
            'fields=[{name = "x", type = "categorical", categories = "grow"}]',
            'fields[0]: max = 0: categories = "grow" needs at least',
        ),
        ('fields=[{name = "x", type = "categorical", categories = []}]', "fields[0]: categories = (): must be a list of names"),
        (
            'fields=[{name = "x", type = "categorical", categories = ["a", "a"]}]',
            "fields[0]: categories: a list of names must have no",
        ),
        ('fields=[{name = "x", categories = ["a"]}]', "fields[0]: categories, max and missing"),
        ('log.topic="digits.scores"', "log.topic = 'digits.scores'"),
        ('log.topic="digits.dead-letters"', "log.topic = 'digits.dead-letters'"),
        ("seed=99999999999999999999999", "seed = 99999999999999999999999"),
        ("drift.act=relern", "drift.act = 'relern': Invalid enum value 'relern'. Did you mean relearn?"),
        ("drift={act = 3}", "drift.act = 3: "),
        ("drift={act = 'relearn', relearn_rows = 0}", "drift: relearn_rows = 0: must be a whole number from 1."),
        ("drift.relearn_rows=2.5", "drift.relearn_rows = 2.5: Expected `int`, got `float`."),
        ("drift.rate_factor=1", "drift: rate_factor = 1.0: must be a finite number above 1."),
        ("drift.rate_factor=nan", "drift: rate_factor = nan: must be"),
        ("drift.rate_rows=0", "drift: rate_rows = 0: must be a whole number from 1."),
        (
            "drift.act=raise-rate",
            "drift.act = 'raise-rate': learner ridge cannot do that (raise_rate is none of its abilities). "
            "With it there are: version, discount, reset, relearn.",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_naming_key_value_and_what_there_is(flag: str, says: str, tmp_path: Path) -> None:
    """In one sentence that begins with the file."""
    sentence = refused(tmp_path, PIPELINE, flag)
    assert says in sentence and sentence.startswith(f"{tmp_path / 'digits.toml'}: ")


@pytest.mark.parametrize(
    ("learner", "freeze_rows", "needed"),
    [
        ("softmax", 31, "learner.step_rows = 32"),
        ("er", 99, "learner.warm_up_rows = 100"),
        ("pec", 99, "learner.warm_up_rows = 100"),
    ],
)
def test_a_learner_that_would_be_frozen_before_its_first_answer_is_refused(learner: str, freeze_rows: int, needed: str) -> None:
    """It would never know a class, so nothing could be corrected; one row more is enough."""
    raw: dict[str, Any] = {"name": "t", "fields": [{"name": "x"}], "label": {"name": "y"}, "learner": {"kind": learner}}
    with pytest.raises(
        ConfigError, match=f"memory.freeze_base_rows = {freeze_rows}: {learner} answers nothing before {needed}"
    ):
        build_pipeline(raw | {"memory": {"freeze_base_rows": freeze_rows}})
    loaded = build_pipeline(raw | {"memory": {"freeze_base_rows": freeze_rows + 1, "warm_up_rows": 2}})
    taught = algorithm_of(loaded.pipeline.kind).learner(loaded.learner_config, 1, 0)
    taught.learn_many(Batch(np.arange(200.0)[:, None], np.array(["a", "b"] * 100, dtype=object)))
    assert set(taught.servable().classes) == {"a", "b"}


def test_a_flag_without_a_value_or_below_a_value_is_refused_by_its_own_words(tmp_path: Path) -> None:
    """It has no file to name."""
    assert refused(tmp_path, PIPELINE, "learner.gamma") == "--set learner.gamma: write KEY=VALUE, such as learner.gamma=2."
    assert "seed.x does not name a single value" in refused(tmp_path, PIPELINE, "seed.x=1")
    assert "fields is none or a list" in refused(tmp_path, PIPELINE, "fields.0.name=x")


@pytest.mark.parametrize("name", ["MILLRACE__LEARNER__GAMA", "MILLRACE__LERNER__GAMMA", "MILLRACE__", "MILLRACE__X"])
def test_an_unknown_key_in_the_environment_is_refused_too(name: str, tmp_path: Path, monkeypatch) -> None:
    """A misspelt variable that did nothing would be found at night."""
    monkeypatch.setenv(name, "2")
    assert "there is no such key" in refused(tmp_path)


def test_a_file_that_is_not_toml_names_the_line(tmp_path: Path) -> None:
    """And the column."""
    assert "digits.toml is not TOML: " in (message := refused(tmp_path, 'name = "x"\nseed = = 3\n')) and "line 2" in message
    (tmp_path / "digits.toml").write_bytes(b'name = "\xff"\n')
    with pytest.raises(ConfigError, match="is not TOML"):
        load_pipeline(tmp_path / "digits.toml")


def test_a_mark_before_a_file_is_passed_over(tmp_path: Path) -> None:
    """Editors on Windows write it."""
    path = pipeline_in(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_pipeline(path).pipeline.name == "digits"


def test_a_file_that_is_missing_or_no_file_is_refused(tmp_path: Path) -> None:
    """With what to do."""
    with pytest.raises(ConfigError, match="There is no pipeline file .*README"):
        load_pipeline(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_pipeline(tmp_path)


@pytest.mark.parametrize("key", ["name", "fields", "label", "learner"])
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    """Four keys have no default."""
    lines = {"name": 'name = "d"', "label": 'label = {name = "y"}', "learner": 'learner = {kind = "ridge"}'}
    lines["fields"] = 'fields = [{name = "x"}]'
    assert loaded(tmp_path, "\n".join(lines.values())).pipeline.name == "d"
    del lines[key]
    assert f"missing required field `{key}`" in refused(tmp_path, "\n".join(lines.values()))


def test_a_regression_label_makes_a_regression_learner(tmp_path: Path) -> None:
    """The task is said once, by the label's type."""
    config = loaded(tmp_path, PIPELINE, "label.type=number")
    assert config.learner.task == "regress" and origins(config)["learner.task"][0] == "regress"


def test_what_changes_learning_changes_the_hash_and_what_does_not_does_not(tmp_path: Path) -> None:
    """A branch has one configuration; a longer step or another window is none of it."""
    hashes = {
        flag: loaded(tmp_path, PIPELINE, flag).pipeline.declared for flag in ("seed=7", "learner.gamma=3", "batch.rows=9")
    }
    assert len(set(hashes.values())) == 3
    for flag in ("worker.step_rows=9", "worker.stop_share=0.5", "log.retention_hours=3", "learner.gamma=0.5", "threads=2"):
        assert loaded(tmp_path, PIPELINE, flag).pipeline.declared == hashes["seed=7"]


def test_the_keys_of_an_act_are_declared_with_that_act_alone(tmp_path: Path) -> None:
    """So a branch that was begun before there were such keys goes on, and the hash says what matters."""

    def declared(*flags: str) -> dict[str, object]:
        return json.loads(loaded(tmp_path, PIPELINE, *flags).pipeline.declared)["drift"]

    first = {"act": "version", "detector": "adwin", "false_alarm_rows": 9000, "max_classes": 100, "per_class": True}
    assert declared("drift.false_alarm_rows=9000", "drift.relearn_rows=7", "drift.rate_rows=7") == first
    assert declared("drift.false_alarm_rows=9000", "drift.act=relearn") == first | {"act": "relearn", "relearn_rows": 2000}


def test_the_state_folder_is_the_flags_else_the_environments_else_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the data folder is the environment's else the neighbour's."""
    assert (home_folder(None), data_folder()) == (Path(".millrace"), Path("../shared/data"))
    monkeypatch.setenv("MILLRACE_HOME", "/a")
    monkeypatch.setenv("MILLRACE_DATA", "/b")
    assert (home_folder(None), home_folder("/c"), data_folder()) == (Path("/a"), Path("/c"), Path("/b"))


@pytest.mark.parametrize("record", ["after-reply", "before-reply"])
def test_recording_answers_without_late_labels_is_refused(record: str, tmp_path: Path) -> None:
    """It would silently record nothing; with the table, or where nothing is to be recorded, it is taken."""
    assert "without a table [labels]" in refused(tmp_path, PIPELINE, f"serving.record={record}")
    assert loaded(tmp_path, PIPELINE, f"serving.record={record}", "labels.horizon_ms=5").pipeline.serving.record == record
    assert loaded(tmp_path, PIPELINE, "serving.record=off").pipeline.serving.record == "off"


def test_a_key_may_be_spelled_as_before_or_anew(tmp_path: Path) -> None:
    """What a branch is begun with is the same bytes, wherever it is set; both spellings at once are refused by name."""
    text = PIPELINE_OF_AIR
    loaded = []
    for name, extra in (("old", "solve_behind = true\n"), ("new", "solve_in_background = true\n")):
        (tmp_path / f"{name}.toml").write_text(text + extra, encoding="utf-8")
        loaded.append(load_pipeline(tmp_path / f"{name}.toml"))
    (tmp_path / "bare.toml").write_text(text, encoding="utf-8")
    loaded.append(load_pipeline(tmp_path / "bare.toml", ["learner.solve_in_background=true"]))
    assert len({config.pipeline.declared for config in loaded}) == 1 and b'"solve_behind":true' in loaded[0].pipeline.declared
    assert [config.origin["learner.solve_behind"] for config in loaded[:2]] == ["old.toml", "new.toml"]
    with pytest.raises(ConfigError, match="learner.solve_in_background and learner.solve_behind are one key"):
        load_pipeline(tmp_path / "old.toml", ["learner.solve_in_background=false"])
    with pytest.raises(ConfigError, match="solve_behind"):
        load_pipeline(tmp_path / "bare.toml", ["learner.solve_in_background=[1]"])


PIPELINE_OF_AIR = """
name = "air"
fields = [{ name = "x" }]
label = { name = "y", type = "boolean" }
[learner]
kind = "air"
"""
