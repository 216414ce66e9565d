"""Pipelines that the release before wrote (``tests/recorded/before/``) are opened by this one: every command goes on with them.

Where one of these tests fails, what is stored has changed its name or its form, and nobody's pipeline would open after the
update: read the old form too. ``tests/recorded/write_folder.py`` says how the folder was written.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pipelines import here, json_lines, millrace
from release_before import BEFORE, flowers, label

from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.instance import Instance
from millrace.services.pyfunc import _load_pyfunc
from millrace.streams.journal.journal import summarise
from millrace.streams.parts import sha256

BRANCHES = [("flowers", "main"), ("flowers", "replay-1"), ("mail", "main")]
ROUNDING = 1e-9  # between processors


def told(folder: Path, *words: str) -> list[dict[str, object]]:
    """What a command that succeeds prints."""
    done = here(*words, "--output", "json", cwd=folder)
    assert done.exit_code == 0, done.stderr
    return json_lines(done.stdout)


def status(folder: Path, pipeline: str, branch: str) -> dict[str, object]:
    """Of a branch."""
    return {str(line["what"]): line["value"] for line in told(folder, "status", f"{pipeline}.toml", "--branch", branch)}


def instance(folder: Path, pipeline: str) -> Instance:
    """The pipeline in a folder."""
    return Instance(load_pipeline(folder / f"{pipeline}.toml"), folder / ".millrace" / pipeline)


def send(folder: Path, pipeline: str, lines: bytes) -> None:
    """Append lines."""
    (folder / "now.jsonl").write_bytes(lines)
    done = here("send", f"{pipeline}.toml", "now.jsonl", cwd=folder)
    assert done.exit_code == 0, done.stderr


def go_on(folder: Path, pipeline: str, branch: str) -> dict[str, object]:
    """Append something, learn it, prove all of it; the status afterwards."""
    if pipeline == "flowers":
        send(folder, pipeline, flowers(40))
    else:
        label(instance(folder, pipeline))
    (done,) = told(folder, "run", f"{pipeline}.toml", "--branch", branch)
    assert done["read"] == (40 if pipeline == "flowers" else 1)
    (proof,) = told(folder, "verify", f"{pipeline}.toml", "--branch", branch)
    assert done["version"] in proof["proved"] and proof["findings"] == 0
    return status(folder, pipeline, branch)


def test_status_and_versions_say_what_they_said(folder: Path) -> None:
    """Counts, what was refused, who goes on for whom, names, and what the endpoint serves."""
    main, replayed = status(folder, "flowers", "main"), status(folder, "flowers", "replay-1")
    assert (main["learned"], main["passed"], main["rejected"], main["ended"]) == (315, 25, 1, "replay")
    assert (main["successor"], main["alias_champion"]) == ("replay-1", "main.9")
    assert (replayed["learned"], replayed["passed"], replayed["rejected"]) == (312, 88, 1)
    assert (replayed["parent"], replayed["excludes"]) == ("main.18", "header producer=till-7")
    assert replayed["serves_default"] == "newest of replay-1"
    mail = status(folder, "mail", "main")
    assert (mail["records"], mail["learned"], mail["labels_joined"], mail["labels_awaited"]) == (445, 205, 205, 35)
    names = ["main.9", "main.18", "main.27", "replay-1.10", "replay-1.16"]
    listed = told(folder, "versions", "flowers.toml")
    assert [line["version"] for line in listed] == names and {line["parts"] for line in listed} == {"whole"}


@pytest.mark.parametrize(("pipeline", "branch"), BRANCHES)
def test_what_the_file_declares_has_the_hash_that_the_fork_names(pipeline: str, branch: str, folder: Path) -> None:
    """Declarations are the same bytes as before, whatever keys have come since."""
    opened = instance(folder, pipeline)
    fork = summarise(opened.journal(branch), branch).fork
    assert fork is not None
    fold_spec = opened.fold_spec
    assert (sha256(fold_spec.config), sha256(fold_spec.schema.declared)) == (fork.config_sha256, fork.features_sha256)


@pytest.mark.parametrize(("pipeline", "branch"), BRANCHES)
def test_every_version_is_proved_and_learning_goes_on(pipeline: str, branch: str, folder: Path) -> None:
    """The log is folded again to the bit; more rows, or a label that comes late, are learned and proved too."""
    (proof,) = told(folder, "verify", f"{pipeline}.toml", "--branch", branch)
    versions = [line["version"] for line in told(folder, "versions", f"{pipeline}.toml") if line["branch"] == branch]
    assert set(versions) <= set(proof["proved"]) and (proof["unproved"], proof["findings"]) == (0, 0)
    if (pipeline, branch) == ("flowers", "main"):  # it has ended
        refused = here("run", "flowers.toml", cwd=folder)
        assert refused.exit_code == 1 and "replay-1" in refused.stderr
        return
    after = go_on(folder, pipeline, branch)
    if pipeline == "mail":
        assert (after["labels_joined"], after["labels_awaited"]) == (206, 34)


@pytest.mark.slow
def test_it_is_proved_on_another_kind_of_processor(folder: Path) -> None:
    """OpenBLAS computes otherwise there, so states are compared by value; residuals, which are rounding alone, may differ."""
    words = ["verify", "flowers.toml", "--branch", "replay-1", "--output", "json"]
    done = millrace(*words, cwd=folder, env={"OPENBLAS_CORETYPE": "Nehalem"})
    assert done.returncode == 0, done.stderr
    (proof,) = json_lines(done.stdout)
    assert (proof["unproved"], proof["findings"]) == (0, 0)


def test_it_is_rolled_back_and_replayed(folder: Path) -> None:
    """To a version of the branch that has ended; and a replay of a replay is planned, without what that one leaves out."""
    told(folder, "rollback", "flowers.toml", "main.9", "--reason", "to the first", "--yes")
    assert status(folder, "flowers", "main")["serves_default"] == "main.9"
    reason = ["--reason", "without the middle", "--output", "json"]
    planned = here(
        "replay", "plan", "flowers.toml", "--from", "replay-1.10", "--exclude-offsets", "flowers:0:350-360", *reason, cwd=folder
    )
    assert planned.exit_code == 0, planned.stderr
    facts = {line["what"]: line["value"] for line in json_lines(planned.stdout)}
    assert (
        facts["excludes"] == "header producer=till-7; flowers:0 offsets 350 to 360"
        and facts["configuration"] == "as the version's"
    )


@pytest.mark.parametrize(
    "exported_before", [pytest.param(path, id=path.name) for path in sorted((BEFORE / "exported").iterdir())]
)
def test_an_exported_version_answers_what_it_answered(exported_before: Path, folder: Path) -> None:
    """Its weights are what replicas load; exported again from the kept store they answer the same."""
    recorded = json.loads((BEFORE / "answers.json").read_text())[exported_before.name]
    pipeline, _, version = exported_before.name.partition("-")
    done = here("export", f"{pipeline}.toml", version, folder / "again", cwd=folder)
    assert done.exit_code == 0, done.stderr
    assert (folder / "again" / "schema.json").read_bytes() == (exported_before / "schema.json").read_bytes()
    for exported in (exported_before, folder / "again"):
        answers = _load_pyfunc(str(exported)).predict(recorded["columns"])
        np.testing.assert_allclose(answers["scores"], recorded["scores"], rtol=0.0, atol=ROUNDING)
        assert answers["label"].tolist() == recorded["label"]
