"""What the page on topics and files says, compared with what real pipelines leave behind, in files and on Kafka."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import apsw
import pytest
from either_log import swept
from house_rules import ROOT
from pipelines import PIPELINE, json_lines, millrace, pipeline_in
from reference_pages import TEXTS, lines_of

from millrace.services.config.config import load_pipeline
from millrace.services.pipeline import backends as logs
from millrace.streams.branch.outputs import Output
from millrace.streams.kafka.client import Link
from millrace.streams.kafka.cluster import Cluster, Secrets
from millrace.streams.labels.served import LateLabel, Prediction
from millrace.streams.records import decode_headers
from millrace.streams.sqlite.log import SqliteLog

FILES = ("file", "there", "what it holds")
TOPICS = ("topic", "partitions", "there", "what it holds")
ELSEWHERE = ("millrace up", "make run", "[mlflow]", "log.registry")  # what these leave behind is looked for in the source
LATE = "\n[labels]\nhorizon_ms = 600000\n"
SHARDED = PIPELINE.replace("seed = 7", "seed = 7\nshards = 2") + "\n[log]\npartitions = 2\n"
PLACES = {"NAME": "digits", "BRANCH": r"[\w-]+", "SHA256": "[0-9a-f]{64}", "NUMBER": r"\d+", "KofN": r"\d+of\d+"}


def pattern(listed: str) -> re.Pattern[str]:
    """What a name on the page stands for."""
    parts = re.split(f"({'|'.join(PLACES)})", listed)
    return re.compile("".join(PLACES.get(part, re.escape(part)) for part in parts))


def unknown(names: Iterable[str], page: Iterable[str]) -> list[str]:
    """Names that nothing on the page stands for."""
    patterns = [pattern(listed) for listed in page]
    return sorted(name for name in names if not any(compiled.fullmatch(name) for compiled in patterns))


def unseen(names: Iterable[str], page: Iterable[str]) -> set[str]:
    """What the page has and nothing that was found is."""
    existing = list(names)
    return {listed for listed in page if not any(pattern(listed).fullmatch(name) for name in existing)}


def done(folder: Path, *words: str) -> str:
    """What a command that succeeds prints."""
    ran = millrace(*words, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def lived(folder: Path, more: str) -> Path:
    """A pipeline that has learned, refused a record, promoted, planned, replayed after a file, and exported a version."""
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = pipeline_in(folder, rows=120, text=PIPELINE + LATE + more)
    done(folder, "send", "digits.toml", "rows.jsonl")
    (folder / "bad.jsonl").write_text(json.dumps({"nothing": "of ours"}) + "\n", encoding="utf-8")
    done(folder, "send", "digits.toml", "bad.jsonl")
    done(folder, "run", "digits.toml")
    done(folder, "promote", "digits.toml", "newest", "--reason", "good", "--yes")
    words = ("--from-start", "--backfill", "rows.jsonl", "--reason", "anew", "--output", "json")
    plan = {line["what"]: line["value"] for line in json_lines(done(folder, "replay", "plan", "digits.toml", *words))}
    done(folder, "replay", "run", "digits.toml", str(plan["plan"]))
    done(folder, "export", "digits.toml", "newest", "exported")
    return pipeline


def files_under(folder: Path) -> set[str]:
    """Every file of a pipeline's folder, without what SQLite and drafts leave beside it."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if not name.endswith(("-wal", "-shm"))}


@pytest.fixture(scope="module")
def on_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pipeline whose log is a file."""
    return lived(tmp_path_factory.mktemp("lived") / "there", "").parent


def rows_in(page_rows: list[list[str]], *kinds: str) -> list[str]:
    """The names of the rows that say nothing of these words."""
    return [row[0] for row in page_rows if not any(kind in row[-2] for kind in kinds)]


@pytest.mark.slow
def test_the_files_of_a_pipeline_are_those_on_the_page(on_sqlite: Path) -> None:
    """None lies there that the page does not know, and each that the page has lies there, but for those of an endpoint."""
    files, page = files_under(on_sqlite / ".millrace" / "digits"), lines_of("topics-and-files.md", *FILES)
    assert unknown(files, [row[0] for row in page]) == []
    assert unseen(files, rows_in(page, *ELSEWHERE)) == set()


@pytest.mark.slow
def test_the_topics_of_a_log_in_a_file_are_those_on_the_page(on_sqlite: Path, tmp_path: Path) -> None:
    """Of a pipeline of one shard, and of one of two, whose outputs have a topic each; completions: test_draft_pipeline.py."""
    pipeline_in(tmp_path, rows=60, text=SHARDED)
    done(tmp_path, "send", "digits.toml", "rows.jsonl")
    done(tmp_path, "run", "digits.toml")
    page = [row for row in lines_of("topics-and-files.md", *TOPICS) if "kafka" not in row[2] and "llm" not in row[2]]
    partitions = topics_in(on_sqlite) | topics_in(tmp_path)
    assert {name: partitions[name] for name in ("digits", "digits.served")} == {"digits": 2, "digits.served": 1}
    alone = [row[0] for row in page if row[1] == "1"]
    assert {count for name, count in partitions.items() if unknown([name], alone) == []} == {1}
    assert unknown(partitions, [row[0] for row in page]) == []
    assert unseen(partitions, [row[0] for row in page]) == set()


def topics_in(folder: Path) -> dict[str, int]:
    """The topics of an embedded log, and how many partitions each has."""
    connection = apsw.Connection(str(folder / ".millrace" / "digits" / "log.sqlite"))
    partitions = dict(connection.execute("select name, partitions from topics"))
    connection.close()
    return partitions


@pytest.fixture
def cluster(broker, tmp_path: Path) -> Iterator[Link]:
    """A broker that knows nothing of a pipeline called digits, before and after."""
    with swept():
        link = Link(Cluster(broker.bootstrap), Secrets(), 1 << 20)
        yield link
        link.delete([name for name in link.names() if name.startswith("digits")])
        link.close()
        logs.OnKafka(load_pipeline(tmp_path / "there" / "digits.toml").pipeline)._readers.link.close()
        logs._connected.cache_clear()


@pytest.mark.slow
def test_the_topics_and_files_on_kafka_are_those_on_the_page(cluster: Link, broker, tmp_path: Path) -> None:
    """Journals and ledger are topics there, and no file of SQLite is left."""
    lived(tmp_path / "there", f'\n[log]\nkind = "kafka"\n[log.kafka]\nbootstrap = "{broker.bootstrap}"\n')
    topics = [name for name in cluster.names() if name.startswith("digits")]
    page = lines_of("topics-and-files.md", *TOPICS)
    assert unknown(topics, [row[0] for row in page]) == []
    assert unseen(topics, [row[0] for row in page if "shards" not in row[2] and "llm" not in row[2]]) == set()
    present, files = files_under(tmp_path / "there" / ".millrace" / "digits"), lines_of("topics-and-files.md", *FILES)
    assert unknown(present, rows_in(files, "sqlite")) == []
    assert unseen(present, rows_in(files, "sqlite", *ELSEWHERE)) == set()


@pytest.mark.slow
def test_an_exported_folder_has_the_files_on_the_page(on_sqlite: Path) -> None:
    """All of them but the network of images, which this pipeline has not."""
    files = [path.name for path in (on_sqlite / "exported").iterdir()]
    page = [row[0] for row in lines_of("topics-and-files.md", "exported file", "what it holds")]
    assert unknown(files, page) == [] and unseen(files, page) == {"backbone-SHA256.onnx"}


@pytest.mark.slow
def test_a_dead_letter_has_the_headers_on_the_page(on_sqlite: Path) -> None:
    """All but the row of a message of many, and what a record that is sent again has."""
    log = SqliteLog(on_sqlite / ".millrace" / "digits" / "log.sqlite")
    [letter] = log.fetch("digits.dead-letters:0", 0, None, 10)[0]
    page = {name for name, _ in lines_of("topics-and-files.md", "header", "what it says")}
    assert {name for name, _ in decode_headers(letter.headers)} == page - {"millrace.row", "millrace.redriven"}


@pytest.mark.parametrize(("head", "record"), [("prediction", Prediction), ("label", LateLabel), ("output", Output)])
def test_the_keys_of_a_record_are_those_on_the_page(head: str, record: type) -> None:
    """In their order."""
    page = [name for name, _ in lines_of("topics-and-files.md", head, "what it is")]
    assert page == list(record.__struct_fields__)


def test_every_file_that_an_endpoint_names_is_on_the_page() -> None:
    """What stands in the source beside an instance's folder has its line, whether or not a test here makes it."""
    sources = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "services").rglob("*.py"))]
    names = {name for text in sources for name in re.findall(r'\binstance\.folder / f?"([^"]+)"', text)}
    assert {"token", "endpoint.json"} <= names
    missing = [
        name for name in names if not re.search(rf"^\| `{re.escape(name)}[/`]", TEXTS["topics-and-files.md"], re.MULTILINE)
    ]
    assert missing == [], "give each a line in docs/reference/topics-and-files.md"
