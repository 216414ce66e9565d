"""A pipeline whose journal lets go of what versions hold: every command says what it said before."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from pipelines import PIPELINE, here, json_lines, pipeline_in

from millrace.services.config.config import load_pipeline
from millrace.services.decisions.status import status
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import Instance
from millrace.services.registry.export import export
from millrace.services.registry.lineage import Genealogy, metrics
from millrace.streams.branch.branch import manifest_of
from millrace.streams.journal.segments import entries_of
from millrace.streams.parts import sha256

KEPT = PIPELINE + "step_rows = 25\nversion_rows = 50\nkeep = 2\njournal_keep_entries = 2\n[versions]\nkeep = 3\n"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Instance:
    """A pipeline that has run to its log's end, whose journal has lost its beginning."""
    folder = tmp_path_factory.mktemp("pruned")
    pipeline_in(folder, rows=600, text=KEPT)
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml", "--rows", "300"], ["run", "digits.toml"]):
        done = here(*words, cwd=folder)
        assert done.exit_code == 0, done.stderr
    return Instance(load_pipeline(folder / "digits.toml"), folder / ".millrace" / "digits")


def printed(pipeline: Instance, *words: str) -> list[dict]:
    """The JSON lines of a command."""
    done = here(*words, "--output", "json", cwd=pipeline.loaded.path.parent)
    assert done.exit_code == 0, done.stderr
    return json_lines(done.stdout)


def kept(pipeline: Instance) -> list[str]:
    """Versions that were not let go."""
    return [line["version"] for line in printed(pipeline, "versions", "digits.toml") if line["parts"] == "whole"]


def test_the_log_of_a_pruned_journal_has_every_entry(pipeline: Instance) -> None:
    """From the fork on, each with its offset and whether it counts."""
    assert pipeline.journal("main").first() > 10
    lines = printed(pipeline, "log", "digits.toml")
    assert [line["offset"] for line in lines] == list(range(len(lines))) and all(line["counts"] for line in lines)
    assert [line["kind"] for line in lines[:2]] == ["fork", "open"] and lines[-1]["kind"] == "mark"


def test_a_pruned_branch_is_proved_from_the_fork_and_each_kept_version_from_its_parent(pipeline: Instance) -> None:
    """The commands are the same; status knows where the branch stands."""
    assert len(kept(pipeline)) == 3
    assert printed(pipeline, "verify", "digits.toml")[0]["base"] == "fork"
    assert status(pipeline, "main")["lag_rows"] == 0
    for version in kept(pipeline):
        assert printed(pipeline, "verify", "digits.toml", "--version", version)
    again = printed(pipeline, "verify", "digits.toml")[0]  # certificates of versions that were let go stand in the ledger
    assert again["records"] == 600


def test_what_a_version_descends_from_comes_from_its_segment(pipeline: Instance) -> None:
    """Parent, cause, entries, topics and host as tags; scores as its checkpoint has them."""
    archive, genealogy = Archive(pipeline), Genealogy(pipeline)
    whole = list(pipeline.journal("main").read(0))
    for parent, version in zip(kept(pipeline), kept(pipeline)[1:], strict=False):
        mark = archive.mark(version)
        segment = manifest_of(pipeline.store(), mark).segment
        tags = {name.removeprefix("millrace."): value for name, value in genealogy.tags(mark).items()}
        assert (tags["parent"], tags["parent_sha256"]) == (parent, archive.mark(parent).state_sha256)
        assert tags["cause"] in ("worker.version_rows = 50", "run ended") and tags["segment_sha256"] == segment.entries.sha256
        first, stop = segment.entries.first, segment.entries.stop
        assert tags["entries"] == f"{stop - first} at journal offsets {first} to {stop - 1}"
        assert [(first + at, raw) for at, raw in enumerate(entries_of(pipeline.store(), "main", segment.entries))] == whole[
            first:stop
        ]
        assert json.loads(tags["host"])["cpu"] and list(json.loads(tags["topics"])) == ["digits"]
        assert 0.2 < metrics(pipeline, mark)["accuracy"] <= 1.0


def test_an_exported_folder_has_the_journal_since_the_versions_parent(pipeline: Instance, tmp_path: Path) -> None:
    """Line by line as it was written; the manifest names parent and cause."""
    parent, version = kept(pipeline)[-2:]
    manifest = export(pipeline, version, tmp_path / "exported")
    assert (manifest.parent, manifest.parent_sha256) == (parent, Archive(pipeline).mark(parent).state_sha256)
    assert manifest.cause == "worker.version_rows = 50"
    segment = manifest_of(pipeline.store(), Archive(pipeline).mark(version)).segment
    lines = (tmp_path / "exported" / "journal.jsonl").read_bytes().splitlines()
    assert lines == entries_of(pipeline.store(), "main", segment.entries) and manifest.journal_sha256 == segment.entries.sha256
    assert msgspec.json.decode(lines[-1])["seq"] == int(version.rpartition(".")[2])


def test_a_missing_segment_is_said_and_what_it_takes_with_it(pipeline: Instance) -> None:
    """`verify` fails naming the offsets and the file; what comes after is proved all the same, and answers go on."""
    version = kept(pipeline)[-1]
    run = manifest_of(pipeline.store(), Archive(pipeline).mark(version)).segment.before[0]
    path = pipeline.store().path("main", run.sha256)
    blob = path.read_bytes()
    assert sha256(blob) == run.sha256
    path.unlink()
    done = here("verify", "digits.toml", cwd=pipeline.loaded.path.parent)
    assert done.exit_code == 1
    assert f"the journal entries at offsets 0 to {run.stop - 1} (up to seq {run.seq}) cannot be read" in done.stderr
    assert run.sha256 in done.stderr and "Restore it from a copy" in done.stderr
    assert here("versions", "digits.toml", cwd=pipeline.loaded.path.parent).exit_code == 0
    assert printed(pipeline, "verify", "digits.toml", "--version", version)
    path.write_bytes(blob)
    assert here("verify", "digits.toml", cwd=pipeline.loaded.path.parent).exit_code == 0
