"""What a pipeline file may say of entities, and what is refused with a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from entity_cards import LATE, RECORDED, instance, text

from millrace.learners.errors import BadInputError, ConfigError
from millrace.services.config.config import build_pipeline, load_pipeline, settings
from millrace.services.registry.export import export
from millrace.services.replay.backfill import backfill_of

REFUSED: list[tuple[Sequence[str], str]] = [
    (["entity.key="], "key = ''"),
    (["entity.time=card"], "time be another key"),
    (["entity.key=amount"], 'must be type = "categorical"'),
    (["entity.time=amount"], 'must be type = "time"'),
    (["entity.window=3"], "entity.window = 3 are kept"),
    (["entity.window=257"], "window = 257: must be from 1 to 256"),
    (["entity.max=0"], "max = 0: must be at least 1"),
    (["entity.max=600000"], "windows of 68 MiB, and at most 32 MiB are published"),
    (["entity.events=requests"], "only with a table [labels]"),
    (["entity.events=requests", "labels={}", "serving.record=off"], 'serving.record = "before-reply"'),
    (["entity.events=requests", "labels={}"], 'serving.record = "before-reply"'),
    (["entity.events=both"], "would count twice"),
    (["entity.events=both", "labels={}", "serving.record=before-reply"], "that is not there yet"),
    (["log.partitions=2"], "log.partitions = 2 does not stand beside [entity]: that is not there yet"),
    (["memory={}"], "memory does not stand beside [entity]"),
    (["mlflow.uri=http://127.0.0.1:5000"], "mlflow.uri does not stand beside [entity]"),
]
FIELDS: list[tuple[dict[str, object], str]] = [
    ({"of": "amount", "as": "lag", "over": "1h"}, "a span of time is not there yet"),
    ({"of": "amount", "as": "lag", "over": 0}, "must be how many events"),
    ({"of": "amount", "as": "lag", "over": "few"}, "must be how many events"),
    ({"of": "amount", "as": "lag", "over": 17}, "needs 17 events, and entity.window = 16"),
    ({"of": "amount", "as": "change", "over": 16}, "needs 17 events, and entity.window = 16"),
    ({"of": "amount", "as": "median", "over": 3}, "fields[1].as = 'median'"),
    ({"of": "amount", "as_": "median", "over": 3}, "fields[1].as_ = 'median': there is no such key. Did you mean as?"),
    ({"of": "amount", "as_": "lag", "over": 3}, "fields[1].as_ = 'lag': there is no such key. Did you mean as?"),
    ({"of": "amount", "as": "sum", "as_": "lag", "over": 3}, "there is no such key. Did you mean as?"),
    ({"of": "amount", "az": "lag", "over": 3}, "fields[1].az = 'lag': there is no such key. Did you mean as?"),
    ({"as": "count", "over": 3}, "fields[1]: as and over say what is made of another field's past; name that field with of"),
    ({"over": 3}, "name that field with of"),
    ({"of": "amount", "over": 3}, "say as what"),
    ({"name": "z", "as": "lag", "over": "3"}, "name that field with of"),
    ({"of": "fraud", "as": "mean", "over": 3}, "what is made of past labels is not there yet"),
    ({"of": "card", "as": "lag", "over": 3}, "must be a field of one number"),
    ({"of": "nothing", "as": "lag", "over": 3}, "must be a field of one number"),
    ({"of": "amount", "as": "lag", "over": 3, "missing": "reject"}, 'missing must be "mean" or "indicator"'),
    ({"of": "amount", "as": "sum", "over": 3, "missing": "mean"}, "is never missing"),
    ({"of": "amount", "as": "sum", "over": 3, "low": 0.0}, "leave type, size, low and high out"),
    ({"of": "amount", "as": "sum", "over": 3, "name": "amount"}, "stand twice"),
]


def written(field: dict[str, object], **more: object) -> dict[str, object]:
    """A pipeline with one field of the past, as TOML would be read."""
    base = {"name": "p", "label": {"name": "fraud"}, "learner": {"kind": "ridge"}, "entity": {"key": "card"}}
    return base | {"fields": [{"name": "amount"}, field]} | more


@pytest.mark.parametrize(("flags", "sentence"), REFUSED, ids=lambda case: " ".join(case) if isinstance(case, list) else "")
def test_what_does_not_go_with_entities_is_refused(flags: Sequence[str], sentence: str, tmp_path: Path) -> None:
    """Each says which key, its value, and what to do."""
    (tmp_path / "digits.toml").write_text(text(), encoding="utf-8")
    load_pipeline(tmp_path / "digits.toml")
    with pytest.raises(ConfigError) as refusal:
        load_pipeline(tmp_path / "digits.toml", flags)
    assert sentence in str(refusal.value)


@pytest.mark.parametrize(("field", "sentence"), FIELDS)
def test_a_field_that_cannot_be_made_is_refused(field: dict[str, object], sentence: str) -> None:
    """With the field, and what it must be."""
    with pytest.raises(ConfigError) as refusal:
        build_pipeline(written(field))
    assert sentence in str(refusal.value)


def test_fields_and_entity_need_each_other() -> None:
    """And with late labels it must be said which rows are events."""
    lag = {"of": "amount", "as": "lag", "over": 3}
    with pytest.raises(ConfigError, match=r"say whose, with a table \[entity\]"):
        build_pipeline({key: value for key, value in written(lag).items() if key != "entity"})
    with pytest.raises(ConfigError, match="no field is made of its past"):
        build_pipeline(written({"name": "other"}))
    with pytest.raises(ConfigError, match=r"entity\.events is missing"):
        build_pipeline(written(lag, labels={}))
    with pytest.raises(ConfigError, match=r"shards does not stand beside \[entity\]"):
        build_pipeline(written(lag, shards=2, log={"partitions": 2}))
    recorded = {"labels": {}, "serving": {"record": "before-reply"}}
    build_pipeline(written(lag, **recorded, entity={"key": "card", "events": "requests"}))
    build_pipeline(written(lag, labels={}, entity={"key": "card", "events": "stream"}))


def test_a_declaration_goes_on_saying_the_same() -> None:
    """As a number or as text, named or not, the same is declared; another key of the entity declares another stage."""
    one, other = ({"of": "amount", "as": "lag", "over": over} for over in (3, "3"))
    named = one | {"name": "amount_lag_3", "missing": "indicator"}
    stages = {build_pipeline(written(field)).pipeline.schema.declared for field in (dict(one), dict(other), dict(named))}
    assert len(stages) == 1
    entities = [{"key": "card"}, {"key": "card", "window": 8}, {"key": "card", "max": 9}, {"key": "link"}]
    assert len({build_pipeline(written(dict(one), entity=entity)).pipeline.schema.declared for entity in entities}) == 4


def test_no_other_key_is_shown_by_another_name() -> None:
    """One that ends in an underscore keeps it."""
    loaded = build_pipeline(written({"of": "amount", "as": "lag", "over": 3}))
    shown = {key for key, _, _ in settings(loaded)}
    assert "fields[1].as" in shown and "fields[1].as_" not in shown
    with pytest.raises(ConfigError, match="amount_ = 1: there is no such key"):
        build_pipeline(written({"of": "amount", "as": "lag", "over": 3, "amount_": 1}))
    with pytest.raises(ConfigError, match=r"fields\[1\]\.as = 'median': .*Did you mean mean"):
        build_pipeline(written({"of": "amount", "as": "median", "over": 3}))
    mangled = replace(loaded, pipeline=replace(loaded.pipeline, learner={"kind": "ridge", "gamma_": 1.0}))
    assert "learner.gamma_" in {key for key, _, _ in settings(mangled)}


def test_exports_and_back_fills_are_refused_in_one_sentence(tmp_path: Path) -> None:
    """They would answer, or learn, without windows."""
    (tmp_path / "digits.toml").write_text(text(events='events = "requests"', more=LATE + RECORDED), encoding="utf-8")
    pipeline = instance(tmp_path)
    for refused in (lambda: export(pipeline, "main.1", tmp_path / "out"), lambda: backfill_of(pipeline, tmp_path / "x", {})):
        with pytest.raises(BadInputError, match=r"is not there yet for a pipeline with \[entity\]"):
            refused()
