"""Back-ups of a folder that is in use, and what is begun with one: by the script that the chart's CronJob and init step run."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from charts import CHART
from pipelines import MILLRACE, PIPELINE, clean_environment, millrace, pipeline_in
from served_pipeline import until

SCRIPT = CHART / "files" / "backup.py"
ROWS = 1500
BUSY = PIPELINE + "version_rows = 400\nkeep = 2\nstep_rows = 50\n[versions]\nkeep = 3\n"  # [worker] goes on: much is let go


def backup(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """The script as a container runs it."""
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment())


@contextmanager
def learning(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`millrace run --follow` on the pipeline of a folder."""
    with (folder / "run.log").open("wb") as log:
        command = [*MILLRACE, "run", "digits.toml", "--follow", "--home", str(folder / "home")]
        process = subprocess.Popen(command, cwd=folder, env=clean_environment(), stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait()


def learned(folder: Path, home: str) -> int:
    """Rows that a branch has learned."""
    done = millrace("status", "digits.toml", "--home", home, "--output", "json", cwd=folder)
    facts = {fact["what"]: fact["value"] for fact in map(json.loads, done.stdout.splitlines())}
    return int(facts.get("learned") or 0)


@pytest.mark.slow
def test_a_copy_made_while_it_learns_is_proved_and_goes_on(tmp_path: Path) -> None:
    """Several copies while checkpoints and versions come and go; some are restored, proved, and learn the rest."""
    pipeline_in(tmp_path, ROWS, BUSY)
    assert millrace("send", "digits.toml", "rows.jsonl", "--home", "home", cwd=tmp_path).returncode == 0
    backups, names = tmp_path / "backups", []
    backups.mkdir()
    with learning(tmp_path):
        until(lambda: (tmp_path / "home" / "digits" / "store").is_dir())
        while len(names) < 4 or learned(tmp_path, "home") < ROWS:
            done = backup("copy", tmp_path / "home", backups, "100")
            assert done.returncode == 0, done.stderr
            names.append(done.stdout.split(": ")[0])
    assert restored(tmp_path, backups, names[0]) < restored(tmp_path, backups, names[-1])


def restored(folder: Path, backups: Path, name: str) -> int:
    """Begin a home with a copy, prove it, and let it learn the rest; the rows that it knew before."""
    home = folder / f"home-{name}"
    home.mkdir()
    done = backup("restore", backups, home, name)
    assert done.returncode == 0 and f"{name} is restored to" in done.stdout, done.stderr
    rows = learned(folder, str(home))
    for words in (["verify"], ["run"], ["verify"]):
        done = millrace(*words, "digits.toml", "--home", home, cwd=folder)
        assert done.returncode == 0, f"{name} {words}: {done.stderr}"
    assert learned(folder, str(home)) == ROWS
    return rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder whose home has learned."""
    folder = tmp_path_factory.mktemp("trained")
    pipeline_in(folder)
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert millrace(*words, "--home", "home", cwd=folder).returncode == 0
    (folder / "backups").mkdir()
    return folder


@pytest.fixture
def begun(trained: Path, tmp_path: Path) -> Path:
    """One of its own like it, with an empty folder for copies."""
    return Path(shutil.copytree(trained, tmp_path / "begun"))


def test_only_the_newest_copies_are_kept_and_parts_are_shared(begun: Path) -> None:
    """What two copies both have is there once; and neither a token nor where an endpoint listened is in one."""
    (begun / "home" / "digits" / "token").write_text("secret", encoding="utf-8")
    (begun / "home" / "digits" / "endpoint.json").write_text("{}", encoding="utf-8")
    outputs = [backup("copy", begun / "home", begun / "backups", "2").stdout for _ in range(3)]
    copies = sorted(path.name for path in (begun / "backups").iterdir())
    assert copies == [output.split(": ")[0] for output in outputs[1:]]
    parts = [sorted((begun / "backups" / name).rglob("store/main/*")) for name in copies]
    assert parts[0] and [part.stat().st_ino for part in parts[0]] == [part.stat().st_ino for part in parts[1]]
    names = {path.name for path in (begun / "backups").rglob("*")}
    assert "ledger.sqlite" in names or "log.sqlite" in names
    assert not names & {"token", "endpoint.json", "main.lock"} and not any(name.endswith(("-wal", "-shm")) for name in names)


def test_a_copy_that_was_cut_off_is_none(begun: Path) -> None:
    """Its draft is no copy, cannot be restored, and goes with the next one."""
    draft = begun / "backups" / "2026-01-01T00-00-00.000000Z.draft"
    (draft / "digits").mkdir(parents=True)
    (begun / "empty").mkdir()
    assert backup("restore", begun / "backups", begun / "empty", "latest").returncode == 1
    assert backup("copy", begun / "home", begun / "backups", "7").returncode == 0
    assert not draft.exists()


def test_a_folder_that_has_a_pipeline_is_left_as_it_is(begun: Path) -> None:
    """So that `backup.restore` may stay among the values."""
    backup("copy", begun / "home", begun / "backups", "7")
    before = sorted((path, path.stat().st_mtime_ns) for path in (begun / "home").rglob("*"))
    done = backup("restore", begun / "backups", begun / "home", "latest")
    assert done.returncode == 0 and "has digits already: nothing is restored" in done.stdout
    assert sorted((path, path.stat().st_mtime_ns) for path in (begun / "home").rglob("*")) == before


def test_what_cannot_be_done_is_said_in_a_sentence(begun: Path) -> None:
    """A copy that there is not, and a folder without a pipeline."""
    (begun / "empty").mkdir()
    known = backup("copy", begun / "home", begun / "backups", "7").stdout.split(": ")[0]
    done = backup("restore", begun / "backups", begun / "empty", "2020-01-01T00-00-00.000000Z")
    assert done.stderr.strip() == f"backup.restore = 2020-01-01T00-00-00.000000Z: there is no such copy; there are: {known}"
    done = backup("copy", begun / "empty", begun / "backups", "7")
    assert done.returncode == 1 and "there is no pipeline here to copy. Has the pod begun?" in done.stderr
    shutil.rmtree(begun / "backups" / known)
    done = backup("restore", begun / "backups", begun / "empty", "latest")
    assert done.returncode == 1 and done.stderr.strip().endswith("there is no such copy; there are: none")
