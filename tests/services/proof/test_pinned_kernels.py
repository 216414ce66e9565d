"""A branch under two sets of kernels: what was folded under pinned ones is proved to the bit on another processor."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from pipelines import MILLRACE, PIPELINE, TIMEOUT_S, clean_environment, encoded, here, json_lines, millrace, pipeline_in

from millrace.learners.errors import ConfigError
from millrace.services.config.config import load_pipeline
from millrace.services.config.kernels import FEATURES, SETTINGS, pin
from millrace.services.pipeline.instance import Instance
from millrace.streams.branch.host import AVX2

OTHER = {"OPENBLAS_CORETYPE": "Nehalem"}  # kernels that any x86-64 runs, and that add up in another order
ELSEWHERE = "from millrace.streams.branch import host; host._cpu = lambda: 'x86_64 another processor'; "
OWN = ["--set", "kernels=own"]
INFO = Path("/proc/cpuinfo")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not INFO.exists() or not {*INFO.read_text().split()} >= FEATURES, reason="this processor has no AVX2, or no FMA"
    ),
]


def gauss_rows(count: int, seed: int) -> bytes:
    """Rows whose sums depend on the order in which they are added."""
    chance = random.Random(seed)
    return b"\n".join(
        encoded({"x": [chance.gauss(0, 1) for _ in range(4)], "site": chance.choice(["north", "south"]), "label": label})
        for label in chance.choices(["a", "b"], k=count)
    )


def entries(folder: Path, kind: str) -> list[dict]:
    """What the journal says in entries of a kind."""
    told = here("log", "digits.toml", "--output", "json", *OWN, cwd=folder).stdout
    return [{"seq": line["seq"], **line["said"]} for line in json_lines(told) if line["kind"] == kind]


def learned(folder: Path, *words: str, env: Mapping[str, str] | None = None) -> tuple[list[dict], list[dict]]:
    """Its marks with a version and those without, once there are both: a worker that is busy writes few checkpoints."""
    before = len(entries(folder, "mark"))
    marks: list[dict] = []
    while not any(mark["version"] is None for mark in marks):
        (folder / "rows.jsonl").write_bytes(gauss_rows(400, seed=before + len(marks)))
        assert here("send", "digits.toml", "rows.jsonl", *OWN, cwd=folder).exit_code == 0
        done = millrace("run", "digits.toml", *words, cwd=folder, env=env)
        assert done.returncode == 0, done.stderr
        marks = entries(folder, "mark")[before:]
    return [mark for mark in marks if mark["version"] is not None], [mark for mark in marks if mark["version"] is None]


def verified(folder: Path, *words: str, env: Mapping[str, str], processor: str = "") -> dict:
    """What `millrace verify` says; ``processor``: code that makes it another one's."""
    command = [sys.executable, "-c", processor + MILLRACE[-1], "verify", "digits.toml", "--output", "json", *words]
    done = subprocess.run(
        command, cwd=folder, env=clean_environment() | env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    (report,) = json_lines(done.stdout)
    return report


@dataclass(frozen=True)
class Branch:
    """A branch that went on under other kernels than it began with; marks without a version have lost their checkpoints."""

    folder: Path
    pinned: tuple[set[str], set[str]]  # marks under pinned kernels: with a checkpoint, without
    others: tuple[set[str], set[str]]


def named(marks: Sequence[dict]) -> set[str]:
    """As `verify` calls them."""
    return {mark["version"] or f"seq {mark['state_seq']}" for mark in marks}


@pytest.fixture(scope="module")
def branch(tmp_path_factory: pytest.TempPathFactory) -> Branch:
    """Begun under pinned kernels, resumed under others."""
    folder = tmp_path_factory.mktemp("pinned")
    text = 'kernels = "avx2"\n' + PIPELINE.replace("checkpoint_rows = 100", "checkpoint_rows = 40\nstep_rows = 40")
    pipeline_in(folder, rows=1, text=text)
    here("send", "digits.toml", "rows.jsonl", *OWN, cwd=folder)
    assert millrace("run", "digits.toml", cwd=folder).returncode == 0
    pinned, others = learned(folder), learned(folder, *OWN, env=OTHER)
    hosts = [entry["host"]["cpu"] == AVX2 for entry in entries(folder, "open")]
    assert hosts == sorted(hosts, reverse=True) and {*hosts} == {True, False}
    for mark in pinned[1] + others[1]:
        (folder / ".millrace" / "digits" / "store" / "main" / mark["checkpoint"]).unlink()
    first = named(entries(folder, "mark")) - named(pinned[0] + pinned[1] + others[0] + others[1])
    return Branch(folder, (named(pinned[0]) | first, named(pinned[1])), (named(others[0]), named(others[1])))


def test_pinned_marks_are_proved_to_the_bit_on_another_processor(branch: Branch) -> None:
    """Those without a checkpoint, too; of what was folded under others only what has one, within a tolerance."""
    (kept, lost), (others_kept, others_lost) = branch.pinned, branch.others
    report = verified(branch.folder, env=SETTINGS, processor=ELSEWHERE)
    assert {*report["proved"]} == kept | lost | others_kept and lost
    assert report["unproved"] == len(others_lost) > 0
    folded_otherwise = verified(branch.folder, *OWN, env=OTHER)["state_sha256"]
    assert report["state_sha256"] != folded_otherwise, "the other kernels give other bits"


@pytest.mark.parametrize("processor", ["", ELSEWHERE], ids=["the same processor", "another"])
def test_other_kernels_prove_only_what_has_a_checkpoint(branch: Branch, processor: str) -> None:
    """Within a tolerance, also what they folded themselves, as it goes on from what they did not; nothing is called wrong."""
    report = verified(branch.folder, *OWN, env=OTHER, processor=processor)
    assert {*report["proved"]} == branch.pinned[0] | branch.others[0]
    assert report["unproved"] == len(branch.pinned[1] | branch.others[1])


def test_a_version_is_proved_to_the_bit_from_the_one_at_which_its_kernels_began(branch: Branch) -> None:
    """So certificates lose nothing where a branch goes over to other kernels."""
    marks = [mark for mark in entries(branch.folder, "mark") if mark["version"] in branch.others[0]]
    report = verified(branch.folder, "--version", marks[0]["version"], *OWN, env=OTHER)
    assert report["base"].removeprefix("version ") in branch.pinned[0] and report["unproved"] == 0
    assert report["state_sha256"] == marks[0]["state_sha256"] and report["difference"] == 0.0


def test_a_pin_that_cannot_be_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that has NumPy already, and where the environment says otherwise; nothing where none is asked for."""
    path = pipeline_in(tmp_path, rows=1, text='kernels = "avx2"\n' + PIPELINE)
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for refused in (lambda: pin(path, []), lambda: Instance(load_pipeline(path), tmp_path).host):
        with pytest.raises(ConfigError, match="NumPy is loaded already.*env OPENBLAS_CORETYPE='Haswell'"):
            refused()
    pin(path, ["kernels=own"])
    assert load_pipeline(path, ["kernels=own"]).pipeline.kernels == "own"
    done = millrace("run", "digits.toml", cwd=tmp_path, env=OTHER)
    assert done.returncode == 2 and "OPENBLAS_CORETYPE is 'Nehalem' in the environment. Unset it." in done.stderr
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    pin(path, [])


def test_the_pin_reaches_what_is_started_by_file_environment_and_flag(tmp_path: Path) -> None:
    """Before NumPy is loaded, so that the branch's host is the kernels."""
    pipeline_in(tmp_path, rows=1)
    (tmp_path / "digits.toml").write_text('kernels = "avx2"\n' + PIPELINE, encoding="utf-8")
    assert millrace("run", "digits.toml", cwd=tmp_path).returncode == 0
    (tmp_path / "digits.toml").write_text(PIPELINE, encoding="utf-8")
    for words, env in ((["--set", "kernels=avx2"], {}), ([], {"MILLRACE__KERNELS": "avx2"}), ([], {})):
        assert millrace("run", "digits.toml", *words, cwd=tmp_path, env=env).returncode == 0
    assert [entry["host"]["cpu"] == AVX2 for entry in entries(tmp_path, "open")] == [True, True, True, False]
