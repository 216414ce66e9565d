"""Topics of Kafka that the release before wrote (``recorded/before/broker.tar.gz``) are opened by this one, on a real broker.

The file is what that broker had on its disk, so topics keep the ids that journals name; a broker starts on a copy of it.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from either_log import KAFKA, swept
from pipelines import json_lines, lacks, millrace
from release_before import BEFORE, flowers

from millrace.services.demo.broker import Broker, tables
from millrace.streams.errors import StorageError

pytestmark = KAFKA
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The pipeline in a folder, its log, journals and ledger on a broker that has what was left."""
    home = os.environ.get("KAFKA_HOME")
    with tarfile.open(BEFORE / "broker.tar.gz") as packed:
        packed.extractall(tmp_path / "broker", filter="data")
    try:
        broker = Broker(tmp_path / "broker", Path(home) / "libs" if home else ROOT / ".kafka" / "jars")
    except StorageError as error:
        lacks(f"no Kafka: {error}")
    broker.start()
    (tmp_path / "till.toml").write_text((BEFORE / "till.toml").read_text() + tables(broker))
    shutil.copytree(BEFORE / "home", tmp_path / ".millrace")
    with swept():
        yield tmp_path
    broker.stop()
    shutil.rmtree(tmp_path / "broker")


def told(folder: Path, *words: str) -> list[dict[str, object]]:
    """What a command of its own process that succeeds prints."""
    done = millrace(*words, "--output", "json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return json_lines(done.stdout)


def test_topics_of_the_release_before_are_gone_on_with(folder: Path) -> None:
    """What they said is proved, more rows are learned and proved, and the endpoint goes back to an old version."""
    facts = {line["what"]: line["value"] for line in told(folder, "status", "till.toml", "--branch", "main")}
    assert (facts["learned"], facts["passed"], facts["rejected"], facts["successor"]) == (318, 22, 1, "replay-1")
    (folder / "now.jsonl").write_bytes(flowers(40))
    assert millrace("send", "till.toml", "now.jsonl", cwd=folder).returncode == 0
    (done,) = told(folder, "run", "till.toml", "--branch", "replay-1")
    assert done["read"] == 40
    (proof,) = told(folder, "verify", "till.toml", "--branch", "replay-1")
    assert done["version"] in proof["proved"] and (proof["unproved"], proof["findings"]) == (0, 0)
    told(folder, "rollback", "till.toml", "main.9", "--reason", "to the first", "--yes")
