"""values.schema.json is what the code gives now, takes every pipeline of ours, and refuses what `config show` would."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml
from charts import CHART, ROOT
from declarations import Key, Range, keys
from pipeline_schema import SERVED
from reference_pages import config_records, learner_like
from refused import PIPELINE, REFUSED
from values_schema import PATH, own_values, text, values_schema

from millrace.learners.errors import ConfigError
from millrace.learners.table import LEARNERS
from millrace.services.config.config import build_pipeline

SCHEMA = values_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
PAGES = [
    "README.md",
    "docs/tutorial.md",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs" / "how-to").glob("*.md"))),
]


def wrong(pipeline: Any) -> list[str]:
    """Where the schema refuses a pipeline, as paths below it."""
    errors = VALIDATOR.iter_errors({"pipeline": pipeline})
    return [f"{error.json_path.removeprefix('$.pipeline')}.{error.schema_path[-1]} {error.message}" for error in errors]


def pipelines() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pipeline file of the examples and of the pages, but for a learner that the reader adds and a language model."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "examples").glob("*.toml"))}
    for page in PAGES:
        for block in re.findall(r"^```toml\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            name = f"{page}-{block.partition(chr(10))[0].rpartition(' ')[2]}"  # the file that its first line names
            texts[name] = texts.get(name, "") + block if block.startswith("# at the end of") else block
    for name, whole in texts.items():
        if (raw := tomllib.loads(whole)).get("learner", {}).get("kind") in LEARNERS and "llm" not in raw:
            yield name, raw


KNOWN = list(pipelines())


def test_the_file_is_what_is_made_from_the_code() -> None:
    """Who changes a key of a pipeline file runs `make reference`."""
    assert PATH.read_text(encoding="utf-8") == text()


def test_the_schema_is_a_schema() -> None:
    """By the definition of schemas itself."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("raw", [raw for _, raw in KNOWN], ids=[name for name, _ in KNOWN])
def test_every_pipeline_of_ours_is_taken(raw: dict[str, Any]) -> None:
    """Those of examples, README, tutorial and how-to pages; but for a name that no cluster can have."""
    assert wrong(raw | {"name": raw["name"].lower().replace("_", "-")}) == []


def test_there_are_pipelines_to_be_taken() -> None:
    """So that the test above says something: every kind of table stands in one of them."""
    assert len(KNOWN) >= 20
    tables = {table for _, raw in KNOWN for table in raw}
    assert tables >= {"labels", "log", "drift", "memory", "batch", "worker", "versions", "mlflow", "evaluate"}


def places() -> Iterator[tuple[str, str, Key]]:
    """Every key of a pipeline file that is served: its table, the kind of the learner, and itself."""
    for table, record in config_records():
        yield from ((table, "ridge", key) for key in keys(record) if "llm" not in (table, key.name))
    for kind, algorithm in SERVED.items():
        yield from (("learner", kind, key) for key in keys(algorithm.config, learner_like(algorithm.config)))


def with_value(table: str, kind: str, key: Key, value: Any) -> dict[str, Any]:
    """A pipeline in which only this value can be wrong; a field is of the type that has the key."""
    raw: dict[str, Any] = json.loads(json.dumps(PIPELINE)) | {"learner": {"kind": kind}}
    if kind == "river":
        raw["learner"]["model"] = "linear_model.LogisticRegression"
    if table == "fields" and key.name in ("max", "features", "shape"):
        more = {
            "max": {"type": "categorical", "categories": "grow"},
            "features": {"type": "image", "backbone": "n", "shape": [2, 2]},
        }
        raw["fields"][0] |= more.get(key.name, {"type": "image", "backbone": "n", "features": 1})
    if table == "entity":
        raw["entity"] = {"key": "card"}
    place = raw["fields"][0] if table == "fields" else raw
    for step in table.split(".") if table not in ("", "fields") else ():
        place = place.setdefault(step, {})
    place[key.name] = value
    return raw


NUMBERS = [place for place in places() if isinstance(place[2].allowed, Range) and place[2].type in (int, float)]
WORDS = [place for place in places() if isinstance(place[2].allowed, tuple)]


@pytest.mark.parametrize("place", NUMBERS, ids=lambda place: f"{place[0]}[{place[1]}].{place[2].name}")
def test_a_number_out_of_its_range_is_refused_by_name(place: tuple[str, str, Key]) -> None:
    """At each end of the range that the reference page says; what lies within is taken."""
    allowed: Range = place[2].allowed  # type: ignore[assignment]
    for end, closed, step in ((allowed.low, allowed.ends[0] == "[", -1), (allowed.high, allowed.ends[1] == "]", 1)):
        if abs(end) > 2**53:
            continue
        inside, outside = (end, end + step) if closed else (end - step * (1 if place[2].type is int else 1e-9), end)
        as_told = [int(number) if place[2].type is int else number for number in (inside, outside)]
        assert wrong(with_value(*place, as_told[0])) == []
        assert place[2].name in " ".join(wrong(with_value(*place, as_told[1])))


@pytest.mark.parametrize("place", WORDS, ids=lambda place: f"{place[0]}[{place[1]}].{place[2].name}")
def test_a_word_that_is_none_is_refused_by_name(place: tuple[str, str, Key]) -> None:
    """And the message has the key."""
    assert place[2].name in " ".join(wrong(with_value(*place, "no-such-word")))


def test_what_up_does_not_serve_is_refused() -> None:
    """A language model, and the learner of its draft."""
    llm = {"target": "target", "draft": "draft", "capture": "all"}
    assert "llm" in " ".join(wrong(PIPELINE | {"llm": llm})) and "kind" in " ".join(
        wrong(PIPELINE | {"learner": {"kind": "draft"}})
    )


@pytest.mark.parametrize("key", REFUSED)
def test_what_config_show_refuses_helm_refuses(key: str) -> None:
    """A misspelt key, a missing one, one that another asks for. What Helm says of it is in test_chart_denials.py."""
    with pytest.raises(ConfigError, match=key):
        build_pipeline(json.loads(json.dumps(REFUSED[key])))
    assert wrong(REFUSED[key])


def objects(schema: Any, path: str = "$") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of an object, with where it stands."""
    if isinstance(schema, dict):
        kind = schema.get("type")
        if kind == "object" or (isinstance(kind, list) and "object" in kind):
            yield path, schema
        for key, value in schema.items():
            yield from objects(value, f"{path}.{key}")
    elif isinstance(schema, list):
        for at, item in enumerate(schema):
            yield from objects(item, f"{path}[{at}]")


OPEN = {  # where any key may stand, and why
    "$.properties.pipeline": "closed by the definition that it refers to, once it says anything",
    "$.$defs.pipeline.properties.learner": "closed by the definition of its kind",
    "$.properties.extraObjects.items": "whole objects of any kind, which the API server knows",
    "$.properties.global": "Helm's own",
    "$.$defs.io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1": "Kubernetes' own, of metadata that a server writes",
}


def test_it_is_closed_at_every_level() -> None:
    """But where OPEN says why."""
    opened = [path for path, schema in objects(SCHEMA) if "additionalProperties" not in schema]
    assert sorted(opened) == sorted(OPEN)


def leaves(values: Any, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """The paths of the chart's own keys."""
    if not isinstance(values, dict) or not values:
        return {path}
    return set().union(*(leaves(value, (*path, key)) for key, value in values.items()))


def test_values_yaml_has_every_key_and_no_other() -> None:
    """Who opens it sees all that can be set."""
    schema_keys = {key for key in own_values() if key != "global"}
    own = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert schema_keys == set(own)
    for name, schema in own_values().items():
        if "properties" in schema:
            assert set(schema["properties"]) == set(own[name]), name
