"""Versions are folded again in another process; one that is not what its log says is never promoted."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import msgspec
import pytest
from apsw_rows import change
from pipelines import MILLRACE, PIPELINE, TIMEOUT_S, clean_environment, facts, here, json_lines, millrace, pipeline_in

from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import Instance
from millrace.services.proof.certify import newest, prove_version
from millrace.streams.branch.branch import load_checkpoint, save_checkpoint
from millrace.streams.checksummed import seal
from millrace.streams.errors import FoldTimeoutError
from millrace.streams.journal.entries import Mark

STEPS = "step_rows = 50\nversion_rows = 100\ncheckpoint_rows = 50\n"


@pytest.fixture
def learned(tmp_path: Path) -> Instance:
    """A pipeline with three versions, each with a checkpoint before it."""
    pipeline_in(tmp_path, rows=300, text=PIPELINE.replace("checkpoint_rows = 100\n", STEPS))
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert here(*words, cwd=tmp_path).exit_code == 0
    return Instance(load_pipeline(tmp_path / "digits.toml"), tmp_path / ".millrace" / "digits")


def marks(instance: Instance) -> list[Mark]:
    """Of versions, oldest first."""
    return [mark for mark in Archive(instance).marks("main") if mark.version is not None]


def forge(instance: Instance, mark: Mark) -> None:
    """Put a version into journal and store that the log never made, whole in itself."""
    parts = load_checkpoint(instance.store(), mark)
    parts["learner"] |= {"gram": parts["learner"]["gram"] * 1.5}
    name, manifest = save_checkpoint(instance.store(), "main", mark.state_seq, parts)
    forged = msgspec.structs.replace(mark, state_sha256=manifest.state_sha256, checkpoint=name)
    offset = next(at for at, raw in instance.journal("main").read(0) if raw == seal(mark))
    change(
        instance.folder / "journal" / "main.sqlite",
        f"update entries set value = x'{seal(forged).hex()}' where offset = {offset}",
    )


def verified(folder: Path) -> dict[str, str]:
    """Version -> what its certificate says."""
    done = here("versions", "digits.toml", "--output", "json", cwd=folder)
    return {str(line["version"]): str(line["verified"]) for line in json_lines(done.stdout)}


def test_one_version_is_proved_from_its_parent_or_the_nearest_checkpoint(learned: Instance, tmp_path: Path) -> None:
    """Its certificate names that base; proved again it is not written again."""
    first, second, third = marks(learned)
    prove_version(learned, first.version, nearest=False)
    prove_version(learned, second.version, nearest=False)
    proved = here("verify", "digits.toml", "--version", "newest", "--output", "json", cwd=tmp_path)
    assert proved.exit_code == 0 and json_lines(proved.stdout)[0]["proved"] == [third.version]
    proofs = verified(tmp_path)
    assert proofs[first.version] == "equal, from fork" and proofs[second.version] == f"equal, from version {first.version}"
    assert proofs[third.version].startswith("equal, from ")
    before = len(learned.ledger().counted)
    assert here("verify", "digits.toml", "--version", third.version, cwd=tmp_path).exit_code == 0
    assert len(learned.ledger().counted) == before
    assert here("verify", "digits.toml", "--version", "main.999", cwd=tmp_path).exit_code == 1


def test_a_version_that_differs_is_certified_so_never_promoted_and_passed_by_in_a_rollback(
    learned: Instance, tmp_path: Path
) -> None:
    """`status` and `versions` say so; the others are proved all the same; put right, it is certified anew."""
    sound, bad, last = marks(learned)
    original = next(raw for _, raw in learned.journal("main").read(0) if raw == seal(bad))
    forge(learned, bad)
    done = here("verify", "digits.toml", "--version", bad.version, cwd=tmp_path)
    assert done.exit_code == 1 and "gives another state (in learner)" in done.stderr
    assert verified(tmp_path)[bad.version].startswith("differs: Folding the log again gives another state")
    assert str(facts(tmp_path)[f"differs_{bad.version}"]).startswith("differs")
    refused = here("promote", "digits.toml", bad.version, "--reason", "r", "--yes", cwd=tmp_path)
    assert refused.exit_code == 1 and "It is not promoted." in refused.stderr
    for seen, expected in (("main", last), (last.version, sound)):
        assert here("rollback", "digits.toml", "--while", seen, "--reason", "r", "--yes", cwd=tmp_path).exit_code == 0
        assert learned.ledger().serving["default"].version == expected.version
    offset = next(at for at, raw in learned.journal("main").read(0) if f'"version":"{bad.version}"'.encode() in raw)
    change(
        learned.folder / "journal" / "main.sqlite", f"update entries set value = x'{original.hex()}' where offset = {offset}"
    )
    assert here("verify", "digits.toml", "--version", bad.version, cwd=tmp_path).exit_code == 0
    assert verified(tmp_path)[bad.version].startswith("equal")


def test_a_version_that_takes_longer_than_its_budget_stays_pending(learned: Instance, tmp_path: Path) -> None:
    """Nothing is certified by what was not folded to its end."""
    with pytest.raises(FoldTimeoutError):
        prove_version(learned, marks(learned)[-1].version, budget_s=0.0)
    assert set(verified(tmp_path).values()) == {"pending"}


def test_the_newest_version_comes_first_and_each_once(learned: Instance) -> None:
    """Whatever order they are found in."""
    all_marks, tried = marks(learned), set()
    for expected in reversed(all_marks):
        assert newest(all_marks, tried) == expected.version
        tried.add(str(expected.version))
    assert newest(all_marks, tried) is None


@pytest.mark.slow
def test_versions_are_verified_beside_a_run_that_goes_on_by_another_process(tmp_path: Path) -> None:
    """Old ones and new ones, until it is told to stop; a bounded run does it with --verify."""
    pipeline_in(tmp_path, rows=300, text=PIPELINE + STEPS.replace("checkpoint_rows = 50\n", ""))
    assert here("send", "digits.toml", "rows.jsonl", cwd=tmp_path).exit_code == 0
    done = millrace("run", "digits.toml", "--verify", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [proof == "pending" for proof in verified(tmp_path).values()] == [True, True, False]
    watching = subprocess.Popen([*MILLRACE, "verify", "digits.toml", "--watch"], cwd=tmp_path, env=clean_environment())
    try:
        assert here("send", "digits.toml", "rows.jsonl", cwd=tmp_path).exit_code == 0
        assert millrace("run", "digits.toml", cwd=tmp_path).returncode == 0
        until_s = time.monotonic() + TIMEOUT_S
        while "pending" in verified(tmp_path).values() or len(verified(tmp_path)) < 6:
            assert time.monotonic() < until_s and watching.poll() is None
            time.sleep(0.2)
    finally:
        watching.send_signal(signal.SIGTERM)
        assert watching.wait(timeout=TIMEOUT_S) == 0
    assert {proof.partition(",")[0] for proof in verified(tmp_path).values()} == {"equal"}
