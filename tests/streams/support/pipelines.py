"""What the tests of several rooms start from: small schemas, events, pipelines, disks and processes."""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import pytest
from click.testing import CliRunner, Result

from millrace.services.cli import main
from millrace.streams.records import Event
from millrace.streams.schema import Field, Label, Schema

MILLRACE = [sys.executable, "-c", "from millrace.services.cli import main; main()"]
TIMEOUT_S = 600  # a process that takes longer hangs, on a busy machine too; no test passes or fails by how fast it was
ANSWER_S = 120  # the same, for one request: longer than the proxy waits for a replica
REMOUNT_READ_ONLY = ["mount", "-o", "remount,ro"]

MIXED = Schema(
    (
        Field("size"),
        Field("at", center=100.0, scale=4.0),
        Field("heat", missing="mean"),
        Field("wind", missing="indicator", center=1.0, scale=2.0),
        Field("pixels", size=3),
        Field("kind", type="categorical", categories=("ant", "bee", "cow")),
        Field("site", type="categorical", categories="grow", max=2, missing="category"),
        Field("who", type="categorical", categories="hash", max=4, missing="category"),
    ),
    Label("label"),
    weight="weight",
)

ROW: dict[str, object] = {
    "size": 1.5,
    "at": 104,
    "heat": 20.0,
    "wind": 3.0,
    "pixels": [0.0, 0.5, 1.0],
    "kind": "bee",
    "site": "north",
    "who": "carol",
    "label": "yes",
    "weight": 2.0,
}

PIPELINE = """name = "digits"
seed = 7
label = { name = "label" }
learner = { kind = "ridge", gamma = 0.5 }

[[fields]]
name = "x"
size = 4

[[fields]]
name = "site"
type = "categorical"
categories = ["north", "south"]

[batch]
rows = 20
wait_ms = 50

[worker]
checkpoint_rows = 100
"""


def event(value: bytes | None, offset: int = 0, t: int = 1000) -> Event:
    """One event with that value."""
    return Event(offset, t, None, b"", value)


def events(values: Sequence[bytes | None]) -> list[Event]:
    """Events at offsets 0, 1, 2 and so on."""
    return [event(value, offset, 1000 + offset) for offset, value in enumerate(values)]


def encoded(row: Mapping[str, object]) -> bytes:
    """A row as JSON."""
    return json.dumps(row).encode()


def mixed_rows(count: int, seed: int = 1) -> list[dict[str, object]]:
    """Good rows of ``MIXED``: nulls, absent keys and many categories among them."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        row = dict(ROW) | {"size": chance.gauss(0, 9), "at": chance.randrange(-500, 500), "kind": chance.choice(["ant", "cow"])}
        row |= {"heat": chance.choice([None, chance.random()]), "wind": chance.choice([None, -1.5])}
        row |= {"site": chance.choice([None, "north", "east", 'a"b', "ü{:,"]), "who": chance.choice([None, "", "x", "ÿ"])}
        row |= {"label": chance.choice([None, "yes", "no", ""]), "pixels": [chance.random() for _ in range(3)]}
        for name in ("heat", "wind", "site", "who", "label", "weight"):
            if chance.random() < 0.2:
                del row[name]
        rows.append(row)
    return rows


def flower_rows(count: int, seed: int = 3) -> list[bytes]:
    """Good rows of ``PIPELINE``."""
    chance = random.Random(seed)
    names = ("rose", "tulip", "daisy")
    return [
        encoded(
            {
                "x": [chance.randrange(17) + 5 * kind for _ in range(4)],
                "site": chance.choice(["north", "south"]),
                "label": names[kind],
            }
        )
        for kind in (chance.randrange(3) for _ in range(count))
    ]


def late_rows(count: int) -> list[bytes]:
    """Predictions of ``main`` for flower rows and, after forty others, the label of each: lines for `send --served`."""
    told = []
    for at, line in enumerate(flower_rows(count)):
        row = json.loads(line)
        label = row.pop("label")
        asked = {"kind": "prediction", "id": f"request {at}", "row": row, "branch": "main", "epoch": 1, "seq": 2}
        told.append((at, json.dumps(asked | {"classes": ["rose", "tulip"], "scores": [0.5, 0.5]})))
        told.append((at + 40, json.dumps({"kind": "label", "id": f"request {at}", "label": label})))
    return [line.encode() for _, line in sorted(told)]


def pipeline_in(folder: Path, rows: int = 200, text: str = PIPELINE) -> Path:
    """A pipeline file ``digits.toml`` with ``rows.jsonl`` beside it."""
    (folder / "digits.toml").write_text(text, encoding="utf-8")
    (folder / "rows.jsonl").write_bytes(b"\n".join(flower_rows(rows)) + b"\n")
    return folder / "digits.toml"


def millrace(*words: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own and wait for its end."""
    command = [*MILLRACE, *map(str, words)]
    return subprocess.run(
        command, cwd=cwd, env=clean_environment() | (env or {}), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def clean_environment() -> dict[str, str]:
    """This process's environment without what would set a pipeline."""
    return {name: text for name, text in os.environ.items() if not name.startswith("MILLRACE")}


def json_lines(text: str) -> list[dict[str, object]]:
    """What a command printed with ``--output json``; raises where a line is not JSON."""
    return [json.loads(line) for line in text.splitlines()]


def here(*words: str | Path, cwd: Path) -> Result:
    """Run a command that only looks in this process, which is faster; standard output and error apart."""
    with chdir(cwd):
        return CliRunner().invoke(main, list(map(str, words)), catch_exceptions=False)


def facts(folder: Path, *words: str) -> dict[str, object]:
    """``millrace status`` as a dictionary; empty where there is no such branch yet."""
    done = here("status", "digits.toml", "--output", "json", *words, cwd=folder)
    return {str(line["what"]): line["value"] for line in json_lines(done.stdout)} if done.exit_code == 0 else {}


def lacks(why: str) -> NoReturn:
    """Skip the test for want of rights, a command or what `make` fetches; fail it in CI, where all of them are there."""
    if os.environ.get("MILLRACE_CI"):
        pytest.fail(f"not skipped in CI: {why}")
    pytest.skip(why)


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    """A file system of ``kib`` KiB mounted at ``folder``; skips the test where this process may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "millrace-test", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        lacks(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def make_read_only(folder: Path) -> None:
    """Let nothing be written any more to a ``small_disk``, once nobody writes; root passes by permission bits, not by this."""
    until_s = time.monotonic() + TIMEOUT_S
    while (done := subprocess.run([*REMOUNT_READ_ONLY, folder], capture_output=True, text=True, check=False)).returncode:
        assert "busy" in done.stderr and time.monotonic() < until_s, done.stderr
        time.sleep(0.01)


def fill(folder: Path, leave: int = 0) -> None:
    """Fill a ``small_disk`` up to ``leave`` bytes."""
    with (folder / "ballast").open("wb") as file, suppress(OSError):  # it may fill up meanwhile, which is as well
        file.write(bytes(max(0, room(folder) - leave)))


def room(folder: Path) -> int:
    """Bytes left on a ``small_disk``, once what this process has forgotten without closing it takes up none."""
    gc.collect()
    space = os.statvfs(folder)
    return space.f_bavail * space.f_bsize
