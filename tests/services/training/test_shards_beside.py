"""A pipeline of several shards beside everything else that a pipeline can do: it works, or it is refused where it is typed."""

from __future__ import annotations

import pytest
from list_registry import ListRegistry
from pipelines import PIPELINE, flower_rows, here, json_lines, pipeline_in

from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import Instance
from millrace.services.registry.mirror import Mirror

SHARDED = (
    PIPELINE.replace("gamma = 0.5", "gamma = 0.5, solve_rows = 20").replace("seed = 7", "seed = 7\nshards = 3")
    + "version_rows = 60\nstep_rows = 10\njournal_keep_entries = 5\n[log]\npartitions = 4\n[versions]\nkeep = 2\n"
)
DRIFT = '[drift]\ndetector = "page-hinkley"\nfalse_alarm_rows = 2000\n'


def ok(folder, *words) -> list[dict[str, object]]:
    """What a command prints that must succeed."""
    done = here(*words, "--output", "json", cwd=folder)
    assert done.exit_code == 0, done.stderr
    return json_lines(done.stdout)


def run(folder, rows: list[bytes]) -> str:
    """Learn more rows; the newest merged version."""
    (folder / "more.jsonl").write_bytes(b"\n".join(rows) + b"\n")
    ok(folder, "send", "digits.toml", "more.jsonl")
    return str(ok(folder, "run", "digits.toml")[0]["version"])


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """Four runs; versions of shards were let go and their journals pruned."""
    folder = tmp_path_factory.mktemp("sharded")
    pipeline_in(folder, 1, SHARDED)
    for seed in range(4):
        run(folder, flower_rows(300, seed))
    return folder


def instance_in(folder) -> Instance:
    """The pipeline of a test's folder."""
    return Instance(load_pipeline(folder / "digits.toml"), folder / ".millrace" / "digits")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("replay plan digits.toml --from-start --reason x", "A replay is for pipelines of one shard, and this one has 3"),
        ("replay plan digits.toml --from newest --reason x", "A replay is for pipelines of one shard"),
        ("rollback digits.toml --learner --reason x --yes", "A rollback of the learner is for pipelines of one shard"),
        ("run digits.toml --branch new --warm-start more.jsonl", "A warm start is for pipelines of one shard"),
        ("run digits.toml --branch main-1of2", "the pipeline has shards = 3: main-1of3, main-2of3, main-3of3"),
        ("run digits.toml --branch main-4of3", "the pipeline has shards = 3"),
        ("run digits.toml --branch main-0of3", "the pipeline has shards = 3"),
        ("up digits.toml --branch main-1of3", "main-1of3 is a shard and has learned a part of the log. Name main"),
        ("serve digits.toml --follow main-1of3 --reason x --yes", "main-1of3 is a shard"),
        ("serve digits.toml --set shards=1 --follow main-1of3 --reason x --yes", "main-1of3 is a shard"),
        ("promote digits.toml main-1of3.9 --reason x --yes", "main-1of3 is a shard"),
        ("rollback digits.toml main-2of3.9 --reason x --yes", "main-2of3 is a shard"),
    ],
)
def test_what_shards_cannot_do_is_refused_where_it_is_typed(sharded, words, sentence) -> None:
    """With the way out, and before anything is begun: no branch, no decision."""
    before = instance_in(sharded).branches(), instance_in(sharded).ledger().counted
    done = here(*words.split(), cwd=sharded)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert (instance_in(sharded).branches(), instance_in(sharded).ledger().counted) == before


def test_a_branch_named_as_a_shard_is_refused_with_one_shard_too(tmp_path) -> None:
    """It would read a part of the log and learn nothing else, and nobody would merge it."""
    pipeline_in(tmp_path, 20)
    ok(tmp_path, "send", "digits.toml", "rows.jsonl")
    done = here("run", "digits.toml", "--branch", "main-1of2", cwd=tmp_path)
    assert done.exit_code == 2
    assert "the pipeline has shards = 1: main" in done.stderr
    assert instance_in(tmp_path).branches() == []


def test_an_act_that_one_shard_would_do_alone_is_refused(tmp_path) -> None:
    """When the file is read: what is merged would be discounted or forgotten by one shard's share."""
    pipeline_in(tmp_path, 1, SHARDED + DRIFT + 'act = "reset"\n')
    done = here("status", "digits.toml", cwd=tmp_path)
    assert done.exit_code == 2
    assert "drift.act = 'reset' would be done to one shard of what is merged; use \"version\"" in done.stderr


def test_merges_of_versions_that_were_let_go_are_said_to_be_unproved(sharded) -> None:
    """What is kept is merged again and proved; of the rest `verify` says that nothing is left to merge."""
    instance = instance_in(sharded)
    kept = [mark.version for mark in Archive(instance).marks("main") if mark.version not in instance.ledger().released]
    lines = ok(sharded, "verify", "digits.toml")
    assert [line["proved"] for line in lines if line["branch"] == "main"] == [[kept[-1]], []]
    assert lines[-1]["unproved"] == 1
    done = here("verify", "digits.toml", "--version", kept[0], cwd=sharded)
    assert done.exit_code == 1
    assert "which is no longer kept, so it cannot be merged again. It is pending." in done.stderr


def test_the_mirror_has_the_merges_alone(sharded) -> None:
    """Each with what it merges; a shard's version answers for a part of the log."""
    registry, instance = ListRegistry(), instance_in(sharded)
    Mirror(instance, registry).once()
    kept = [mark.version for mark in Archive(instance).marks("main") if mark.version not in instance.ledger().released]
    assert [version.tags["millrace.version"] for version in registry.listed] == kept
    assert all(version.tags["millrace.merges"].count("of3.") == 3 for version in registry.listed)


def test_an_alarm_in_one_shard_says_which_merge_was_the_last_good_one(tmp_path) -> None:
    """Alias and plain `rollback` name the newest merge of what every shard was before its alarm."""
    pipeline_in(tmp_path, 1, SHARDED.replace("keep = 2", "keep = 0") + DRIFT)
    good = [run(tmp_path, flower_rows(900, seed)) for seed in range(2)][-1]
    swap = {b'"rose"': b'"tulip"', b'"tulip"': b'"daisy"', b'"daisy"': b'"rose"'}
    wrong = [next(row.replace(name, other) for name, other in swap.items() if name in row) for row in flower_rows(900, 9)]
    worse = run(tmp_path, [*flower_rows(300, 2), *wrong])
    assert worse != good and instance_in(tmp_path).ledger().aliases == {}, "none is verified yet"
    ok(tmp_path, "verify", "digits.toml")
    assert instance_in(tmp_path).ledger().aliases == {"last-good": good}
    assert ok(tmp_path, "rollback", "digits.toml", "--reason", "x")[0]["to"] == f"version {good}"
