"""A pipeline that a producer has poisoned, and the same pipeline where that producer never came."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from pipelines import MILLRACE, PIPELINE, clean_environment, flower_rows, here, json_lines, millrace

from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.instance import Instance
from millrace.streams.branch.branch import load_checkpoint
from millrace.streams.journal.entries import Mark
from millrace.streams.journal.journal import summarise

TEXT = PIPELINE.replace("checkpoint_rows = 100", "checkpoint_rows = 150\nstep_rows = 20\nstep_ms = 0").replace(
    "gamma = 0.5", "gamma = 0.5, solve_rows = 50"
)
GOOD, BAD = 200, 120


def instance(folder: Path) -> Instance:
    """The pipeline in a folder, with its state beside it."""
    return Instance(load_pipeline(folder / "digits.toml"), folder / ".millrace" / "digits")


def send(folder: Path, rows: list[bytes], producer: str) -> None:
    """Append rows in a producer's name."""
    (folder / "now.jsonl").write_bytes(b"\n".join(rows) + b"\n")
    done = here("send", "digits.toml", "now.jsonl", "--header", f"producer={producer}", cwd=folder)
    assert done.exit_code == 0, done.stderr


def mislabelled(rows: list[bytes]) -> list[bytes]:
    """The same rows, all of them called daisies."""
    return [json.dumps(json.loads(row) | {"label": "daisy"}).encode() for row in rows]


def good_rows(part: int, rows: int = GOOD) -> list[bytes]:
    """Rows of one part of the stream."""
    return flower_rows(rows, seed=100 + part)


def begin(folder: Path, with_poison: bool, text: str = TEXT, later: int = GOOD) -> Path:
    """Good rows, learned: the last good version; then, among good rows, poison; all of it learned too."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "digits.toml").write_text(text, encoding="utf-8")
    send(folder, good_rows(1), "till-1")
    assert millrace("run", "digits.toml", cwd=folder).returncode == 0
    if with_poison:
        send(folder, mislabelled(flower_rows(BAD, seed=5)), "till-7")
    send(folder, good_rows(2, later), "till-1")
    assert millrace("run", "digits.toml", cwd=folder).returncode == 0
    return folder


def versions(folder: Path) -> list[str]:
    """Of all branches, each oldest first."""
    return [str(line["version"]) for line in lines(folder, "versions")]


def lines(folder: Path, *words: str) -> list[dict[str, object]]:
    """What a command that succeeds prints."""
    done = here(*words, "digits.toml", "--output", "json", cwd=folder)
    assert done.exit_code == 0, done.stderr
    return json_lines(done.stdout)


def planned(folder: Path, *words: str) -> str:
    """A plan's hash: from the oldest version, without till-7."""
    more = words or ("--exclude-header", "producer=till-7")
    command = ["replay", "plan", "digits.toml", "--from", versions(folder)[0], *more, "--reason", "mislabelled"]
    done = here(*command, "--output", "json", cwd=folder)
    assert done.exit_code == 0, done.stderr
    facts = {line["what"]: line["value"] for line in json_lines(done.stdout)}
    return str(facts["plan"])


def replay(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`millrace replay ...` in a process of its own."""
    return millrace("replay", words[0], "digits.toml", *words[1:], cwd=folder)


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    """The same, not waited for."""
    command = [*MILLRACE, "replay", words[0], "digits.toml", *words[1:]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=clean_environment(), text=True, start_new_session=True, **pipes)


def verified(folder: Path, *branches: str) -> None:
    """Every branch is what its log says."""
    for branch in branches:
        proof = millrace("verify", "digits.toml", "--branch", branch, cwd=folder)
        assert proof.returncode == 0, proof.stderr


def newest(folder: Path, branch: str) -> tuple[Mark, dict]:
    """The newest mark of a branch and its state, part by part."""
    pipeline = instance(folder)
    mark = summarise(pipeline.journal(branch), branch).marks[-1]
    return mark, load_checkpoint(pipeline.store(), mark)


def operation(folder: Path, name: str = "replay-1") -> str:
    """Where a replay stands."""
    return str(instance(folder).ledger().operations[name].state)
