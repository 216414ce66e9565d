"""The mirror's own decisions, against a registry in memory that can fail at any call and be moved by hand."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from list_registry import ListRegistry
from pipelines import PIPELINE, here, json_lines, pipeline_in

from millrace.services.config.config import load_pipeline
from millrace.services.decisions.decide import Naming, decide
from millrace.services.errors import MirrorError
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import Instance
from millrace.services.registry.lineage import VERSION, Listed
from millrace.services.registry.mirror import Mirror, mirror_state
from millrace.streams.journal.store import read_checkpoint


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Instance:
    """A pipeline with a handful of versions."""
    folder = tmp_path_factory.mktemp("learned")
    pipeline_in(folder, rows=300, text=PIPELINE + "step_rows = 50\nversion_rows = 100\n")
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert here(*words, cwd=folder).exit_code == 0
    return Instance(load_pipeline(folder / "digits.toml"), folder / ".millrace" / "digits")


@pytest.fixture
def pipeline(learned: Instance) -> Instance:
    """The same with no alias and no mirror yet."""
    (learned.folder / "mlflow.json").unlink(missing_ok=True)
    for alias in list(learned.ledger().aliases):
        move(learned, alias, None)
    return learned


def move(instance: Instance, alias: str, to: str | None) -> None:
    """An operator's decision."""
    decide(instance, Naming(alias, instance.ledger().aliases.get(alias), to), "test")


def versions(instance: Instance) -> list[str]:
    """All, oldest first."""
    lines = here("versions", "digits.toml", "--output", "json", cwd=instance.loaded.path.parent).stdout
    return [line["version"] for line in json_lines(lines)]


def adopting(instance: Instance, how: str) -> Instance:
    """The same pipeline, which adopts what was moved by hand or sets it back."""
    to = replace(instance.loaded.pipeline.mlflow, moved_by_hand=how)
    return replace(instance, loaded=replace(instance.loaded, pipeline=replace(instance.loaded.pipeline, mlflow=to)))


def test_every_version_is_registered_once_with_where_it_stands_and_what_it_descends_from(pipeline: Instance) -> None:
    """Oldest first; the offsets of one begin where those of its parent end; a second look writes nothing."""
    registry = ListRegistry()
    Mirror(pipeline, registry).once()
    assert [version.tags[VERSION] for version in registry.listed] == versions(pipeline)
    tags = [{name.removeprefix("millrace."): value for name, value in version.tags.items()} for version in registry.listed]
    assert [tagged.get("parent") for tagged in tags] == [None, *versions(pipeline)[:-1]]
    assert tags[0]["offsets"] == '{"digits:0": [0, 100]}' and tags[-1]["offsets"].endswith("300]}")
    assert all(
        tagged["verified"] == "pending" and len(tagged["state_sha256"]) == len(tagged["weights_sha256"]) == 64
        for tagged in tags
    )
    assert all(0.2 < scores["accuracy"] <= 1.0 for scores in registry.scores)
    registry.down_after, before = 2, list(registry.listed)
    Mirror(pipeline, registry).once()
    assert registry.listed == before


def test_a_certificate_that_comes_later_is_told(pipeline: Instance) -> None:
    """Only the tag that has changed is set again."""
    registry = ListRegistry()
    mirror = Mirror(pipeline, registry)
    mirror.once()
    assert here("verify", "digits.toml", cwd=pipeline.loaded.path.parent).exit_code == 0
    mirror.once()
    assert {version.tags["millrace.verified"] for version in registry.listed} == {"equal, from fork"}


PICKS = st.integers(0, 9)
ONE = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def begun(pipeline: Instance, how: str) -> tuple[Instance, ListRegistry, list[str | None]]:
    """A pipeline and its registry, in step; and what an alias can name there."""
    (pipeline.folder / "mlflow.json").unlink(missing_ok=True)
    instance, registry = adopting(pipeline, how), ListRegistry()
    Mirror(instance, registry).once()
    return instance, registry, [None, *versions(pipeline)]


@ONE
@given(
    st.lists(st.tuples(st.sampled_from(["ledger", "hand", "mirror"]), PICKS), max_size=8),
    st.sampled_from(["set-back", "adopt"]),
)
def test_an_alias_that_a_hand_alone_moved_is_set_back_or_adopted_and_else_the_ledger_wins(
    pipeline: Instance, hands: list[tuple], how: str
) -> None:
    """Each mirror is a new process; an alias taken away by hand names no version of ours, so it is always set back."""
    instance, registry, choices = begun(pipeline, how)
    numbers = {version.tags[VERSION]: version.number for version in registry.listed}
    agreed = ledger = held = instance.ledger().aliases.get("champion")
    for what, pick in [*hands, ("mirror", 0)]:
        choice = choices[pick % len(choices)]
        if what == "ledger":
            move(instance, "champion", choice)
            ledger = choice
        elif what == "hand":
            registry.named.pop("champion", None)
            registry.named |= {} if choice is None else {"champion": numbers[choice]}
            held = choice
        else:
            Mirror(instance, registry).once()
            if how == "adopt" and ledger == agreed and held is not None:
                ledger = held
            agreed = held = ledger
            assert instance.ledger().aliases.get("champion") == registry.by_hand("champion") == ledger


@ONE
@given(st.lists(st.tuples(st.sampled_from(["ledger", "cut"]), PICKS, st.booleans()), max_size=10))
def test_a_mirror_that_is_cut_off_takes_its_own_hand_for_no_other(pipeline: Instance, hands: list[tuple]) -> None:
    """Before a call reached the registry or after: nobody else moved anything, so nothing is adopted or comes twice."""
    instance, registry, choices = begun(pipeline, "adopt")
    registry.listed.pop()
    last = instance.ledger().aliases.get("champion")
    for what, pick, after in hands:
        if what == "ledger":
            last = choices[pick % len(choices)]
            move(instance, "champion", last)
        else:
            registry.down_after, registry.done_first = pick % 5, after
            with suppress(MirrorError):
                Mirror(instance, registry).once()
            registry.down_after = 10**9
    Mirror(instance, registry).once()
    assert instance.ledger().aliases.get("champion") == registry.by_hand("champion") == last
    assert sorted(version.tags[VERSION] for version in registry.listed) == sorted(filter(None, choices))


def test_a_mirror_cut_off_between_an_alias_and_its_record_does_not_adopt_it_when_the_ledger_has_gone_back(
    pipeline: Instance,
) -> None:
    """The schedule that forces both names into the record while one is being written."""
    instance, registry, choices = begun(pipeline, "adopt")
    move(instance, "champion", choices[1])
    registry.down_after, registry.done_first = 2, True
    with pytest.raises(MirrorError):
        Mirror(instance, registry).once()
    registry.down_after = 10**9
    assert registry.by_hand("champion") == choices[1]
    move(instance, "champion", None)
    Mirror(instance, registry).once()
    assert registry.by_hand("champion") is None and not instance.ledger().aliases


def test_what_was_written_last_can_be_lost(pipeline: Instance) -> None:
    """Then the ledger wins, and it is known again."""
    instance, registry, choices = begun(pipeline, "adopt")
    move(instance, "champion", choices[1])
    Mirror(instance, registry).once()
    (instance.folder / "mlflow.json").write_bytes(b"{")
    registry.named["champion"] = "2"
    Mirror(instance, registry).once()
    assert registry.by_hand("champion") == choices[1] == instance.ledger().aliases["champion"]
    assert mirror_state(instance).aliases["champion"] == [choices[1]]


def test_a_number_that_is_not_ours_is_set_back_and_other_aliases_are_left_alone(pipeline: Instance) -> None:
    """Somebody registered a model of their own under this name."""
    instance, registry, choices = begun(pipeline, "adopt")
    registry.listed.append(Listed(str(len(registry.listed) + 1), {}))
    registry.named |= {"champion": registry.listed[-1].number, "theirs": registry.listed[-1].number}
    Mirror(instance, registry).once()
    assert registry.named == {"theirs": registry.listed[-1].number} and not instance.ledger().aliases


def test_a_version_whose_parts_are_damaged_is_left_out_and_the_others_are_not(
    pipeline: Instance, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once; once it is whole again it is registered."""
    registry, folder = ListRegistry(), pipeline.folder / "store" / "main"
    mark = next(mark for mark in Archive(pipeline).marks("main") if mark.version is not None)
    part = read_checkpoint(pipeline.store(), "main", mark.checkpoint).parts["counts"].sha256
    whole = (folder / part).read_bytes()
    (folder / part).write_bytes(b"?")
    mirror = Mirror(pipeline, registry)
    mirror.once()
    mirror.once()
    assert len(registry.listed) == len(versions(pipeline)) - 1 and caplog.text.count("is not mirrored") == 1
    (folder / part).write_bytes(whole)
    mirror.once()
    assert len(registry.listed) == len(versions(pipeline))


@pytest.mark.parametrize("name", ["a:b", "a/b", " ", "..", ".", "m" * 251, "a\u202eb"])
def test_a_model_that_mlflow_refuses_is_refused_with_the_pipeline_file(tmp_path, name: str) -> None:
    """MLflow would refuse it for ever, with a warning each time; a space within is taken."""
    pipeline_in(tmp_path, rows=1, text=PIPELINE + f'\n[mlflow]\nuri = "http://127.0.0.1:9"\nmodel = {json.dumps(name)}\n')
    done = here("config", "show", "digits.toml", cwd=tmp_path)
    assert done.exit_code == 2 and "mlflow" in done.stderr and "must be a name that MLflow takes" in done.stderr, done.stderr
    pipeline_in(tmp_path, rows=1, text=PIPELINE + '\n[mlflow]\nuri = "http://127.0.0.1:9"\nmodel = "my digits"\n')
    assert here("config", "show", "digits.toml", cwd=tmp_path).exit_code == 0


def test_what_a_mirror_keeps_is_of_one_model(pipeline: Instance) -> None:
    """Of another model, or on another server, nothing is known: an alias there was not moved by a hand."""
    named = versions(pipeline)[-1]
    move(pipeline, "champion", named)
    Mirror(pipeline, ListRegistry()).once()
    assert mirror_state(pipeline).aliases["champion"] == [named]
    for key, value in (("model", "other"), ("uri", "http://elsewhere:5000")):
        to = replace(pipeline.loaded.pipeline.mlflow, **{key: value})
        other = replace(pipeline, loaded=replace(pipeline.loaded, pipeline=replace(pipeline.loaded.pipeline, mlflow=to)))
        assert mirror_state(other).aliases == {} and mirror_state(other).at_ms == 0
        registry = ListRegistry()
        Mirror(other, registry).once()
        assert set(registry.aliases()) == {"champion"}
    Mirror(pipeline, ListRegistry()).once()
