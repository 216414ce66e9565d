"""What ``tests/recorded/before/`` was written with: two pipelines, versions as folders and Kafka topics, as
the release before the sub-rooms left them.

It was run once, with the code of commit 26fe0de installed, and is kept to say what was done there. It uses the command line
alone, and the one module whose name never changes. From a checkout of that commit with its test environment::

    .venv-test/bin/python WHERE/write_folder.py OUT                     # flowers and mail: OUT/home, OUT/exported
    .venv-test/bin/python WHERE/write_folder.py OUT --kafka HOST:PORT   # till, on a broker of that commit, new
    .venv-test/bin/python WHERE/write_folder.py OUT --pack DATA         # OUT/broker.tar.gz, once that broker has ended

Numbers are small integers and weights 1 or 4, so that sums are exact on any processor. A later run writes other times and other
ids into the files; nothing that is compared depends on them.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

import apsw

from millrace.services.pyfunc import _load_pyfunc

FLOWERS = """name = "flowers"
seed = 7
weight = "w"
label = { name = "kind" }

[[fields]]
name = "x"
size = 4
center = 8.0
scale = 4.0

[[fields]]
name = "age"
missing = "indicator"

[[fields]]
name = "site"
type = "categorical"
categories = ["north", "south"]

[[fields]]
name = "town"
type = "categorical"
categories = "grow"
max = 3
missing = "category"

[learner]
kind = "ridge"
gamma = 0.5
solve_rows = 50

[batch]
rows = 20
wait_ms = 50

[worker]
step_rows = 20
step_ms = 0
checkpoint_rows = 100000
version_rows = 100000

[drift]
false_alarm_rows = 5000
per_class = false

[evaluate]
share = 0.05
rows = 20
every_rows = 50
"""

MAIL = """name = "mail"
label = { name = "spam", type = "boolean" }

[[fields]]
name = "links"

[[fields]]
name = "from"
type = "categorical"
categories = "hash"
max = 4
missing = "category"

[learner]
kind = "river"
model = "naive_bayes.GaussianNB"

[batch]
rows = 8
wait_ms = 1

[labels]
horizon_ms = 86400000
grace_ms = 60000
default = false

[worker]
step_rows = 20
step_ms = 0
checkpoint_rows = 100000
"""

TILL = FLOWERS.replace('name = "flowers"', 'name = "till"', 1)
NAMES = ("rose", "tulip", "daisy")


def flower(chance: random.Random) -> dict[str, object]:
    """A row; some lack their age, their town or their label."""
    kind = chance.randrange(3)
    row = {"x": [chance.randrange(9) + 4 * kind for _ in range(4)], "site": chance.choice(["north", "south"])}
    row |= {"age": chance.choice([None, 1, 2, 4]), "town": chance.choice([None, "Ulm", "Bonn", "Kiel", "Hof"])}
    return row | {"w": chance.choice([1, 4]), "kind": None if chance.random() < 0.05 else NAMES[kind]}


def flowers(count: int, seed: int) -> list[dict[str, object]]:
    """So many rows."""
    chance = random.Random(seed)
    return [flower(chance) for _ in range(count)]


def mails(count: int, first: int) -> list[dict[str, object]]:
    """Predictions, each with its label forty records later; of every seventh the label never comes, so that it waits."""
    told = []
    for at in range(first, first + count):
        row = {"links": at * 7 % 11, "from": f"f{at % 5}"}
        asked = {"kind": "prediction", "id": f"mail {at}", "row": row, "branch": "main", "epoch": 1, "seq": 2}
        told.append((at, asked | {"classes": ["false", "true"], "scores": [0.5, 0.5]}))
        if at % 7:
            told.append((at + 40, {"kind": "label", "id": f"mail {at}", "label": at * 7 % 11 > 5}))
    return [line for _, line in sorted(told, key=lambda moment: moment[0])]


class Folder:
    """A folder in which commands are given."""

    def __init__(self, path: Path) -> None:
        """It and its home are made."""
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def tell(self, *words: str) -> list[dict[str, object]]:
        """What a command prints as JSON, where it does. Raises: CalledProcessError."""
        program = [sys.executable, "-c", "from millrace.services.cli import main; main()"]
        done = subprocess.run([*program, *words, "--home", "home"], cwd=self.path, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"millrace {' '.join(words)}: {done.stderr}")
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    def send(self, pipeline: str, rows: Iterable[dict[str, object]], *words: str) -> None:
        """Append rows."""
        file = self.path / "now.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        self.tell("send", pipeline, "now.jsonl", *words)
        file.unlink()


def history(work: Folder, pipeline: str) -> None:
    """Good rows, a bad one, poison, a name, a rollback, a replay without the poisoner that takes over."""
    for seed in (1, 2):
        work.send(pipeline, flowers(120, seed), "--header", "producer=till-1")
        work.tell("run", pipeline)
    names = [str(version["version"]) for version in work.tell("versions", pipeline, "--output", "json")]
    work.tell("promote", pipeline, names[0], "--alias", "champion", "--reason", "the first", "--yes")
    work.send(pipeline, [{"x": [1], "site": "west"}], "--header", "producer=till-1")
    wrong = [row | {"kind": "daisy"} for row in flowers(60, 3)]
    work.send(pipeline, wrong, "--header", "producer=till-7")
    work.send(pipeline, flowers(40, 4), "--header", "producer=till-1")
    work.tell("run", pipeline)
    work.tell("rollback", pipeline, names[1], "--reason", "till-7 is wrong", "--yes")
    without = ["--exclude-header", "producer=till-7", "--reason", "without till-7", "--output", "json"]
    planned = {fact["what"]: fact["value"] for fact in work.tell("replay", "plan", pipeline, "--from", names[1], *without)}
    work.tell("replay", "run", pipeline, str(planned["plan"]))
    work.tell("replay", "take-over", pipeline, "--reason", "mended", "--yes")
    work.send(pipeline, flowers(60, 5), "--header", "producer=till-1")
    work.tell("run", pipeline, "--branch", "replay-1")


def export(work: Folder, pipeline: str, version: str, columns: dict[str, list[object]]) -> dict[str, object]:
    """A version as a folder, and what it answers."""
    folder = work.path / "exported" / version
    work.tell("export", pipeline, version, str(folder.resolve()))
    answers = _load_pyfunc(str(folder)).predict(columns)
    return {"columns": columns} | {name: value.tolist() for name, value in answers.items()}


def columns_of(rows: list[dict[str, object]], names: Iterable[str]) -> dict[str, list[object]]:
    """Rows as columns."""
    return {name: [row[name] for row in rows] for name in names}


def compact(home: Path) -> None:
    """Leave one file of each database, as small as it can be, and no lock files."""
    for path in home.rglob("*.lock"):
        path.unlink()
    for path in home.rglob("*.sqlite"):
        connection = apsw.Connection(str(path))
        connection.execute("pragma wal_checkpoint(truncate)")
        connection.execute("pragma journal_mode = delete")
        connection.execute("vacuum")
        connection.close()


def write(out: Path) -> None:
    """Everything that lies in files."""
    work = Folder(out)
    for name, text in (("flowers", FLOWERS), ("mail", MAIL), ("till", TILL)):
        (out / f"{name}.toml").write_text(text, encoding="utf-8")
    history(work, "flowers.toml")
    for first in (0, 120):
        work.send("mail.toml", mails(120, first), "--served")
        work.tell("run", "mail.toml")
    answers = {}
    rows = [row | {"age": 2 if row["age"] is None else row["age"]} for row in flowers(5, 99)]
    for pipeline, columns in (
        ("flowers.toml", columns_of(rows, ("x", "age", "site", "town"))),
        ("mail.toml", {"links": [1, 9], "from": ["f1", None]}),
    ):
        version = str(work.tell("versions", pipeline, "--output", "json")[-1]["version"])
        folder = f"{pipeline.removesuffix('.toml')}-{version}"
        shutil.rmtree(out / "exported" / folder, ignore_errors=True)
        answers[folder] = export(work, pipeline, version, columns)
        (out / "exported" / version).rename(out / "exported" / folder)
    (out / "answers.json").write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")
    compact(out / "home")


def write_on_kafka(out: Path, bootstrap: str) -> None:
    """The same history of ``till`` on a broker."""
    work = Folder(out)
    table = f'\n[log]\nkind = "kafka"\n[log.kafka]\nbootstrap = "{bootstrap}"\n'
    (out / "till.toml").write_text(TILL + table, encoding="utf-8")
    history(work, "till.toml")
    (out / "till.toml").write_text(TILL, encoding="utf-8")
    compact(out / "home" / "till")


def pack_broker(out: Path, data: Path) -> None:
    """What a broker that has ended left on its disk: topics keep their ids. Its indexes, which are large, it makes again."""
    with tarfile.open(out / "broker.tar.gz", "w:gz") as packed:
        for path in sorted(data.rglob("*")):
            left_out = path.suffix in (".index", ".timeindex", ".txnindex", ".lock") or path.name == ".kafka_cleanshutdown"
            if path.is_file() and not left_out:
                packed.add(path, f"data/{path.relative_to(data)}", filter=nobody)


def nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without who had the file."""
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kafka", default="")
    parser.add_argument("--pack", type=Path)
    chosen = parser.parse_args()
    if chosen.kafka:
        write_on_kafka(chosen.out, chosen.kafka)
    elif chosen.pack:
        pack_broker(chosen.out, chosen.pack)
    else:
        write(chosen.out)
