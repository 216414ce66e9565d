"""The same pipeline file, commands and endpoint, with log, journals and ledger on a real Kafka broker."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker_topics import forgotten, on
from either_log import KAFKA
from pipelines import PIPELINE, facts, here, json_lines, late_rows, millrace, pipeline_in
from poisoned import BAD, GOOD, TEXT, begin, good_rows, instance, lines, planned, replay, send, versions
from served_pipeline import load, post, question, served, until

from millrace.learners.errors import ConfigError
from millrace.services.config.config import kafka_secrets, load_pipeline
from millrace.services.pipeline import backends as logs
from millrace.streams.kafka.cluster import security
from millrace.streams.labels.served import LateLabel, encode
from millrace.streams.records import Record
from millrace.streams.sharding import by_murmur2

SHARDED = PIPELINE.replace("seed = 7", "seed = 7\nshards = 2").replace("gamma = 0.5", "gamma = 0.5, solve_rows = 20")
LATE = "\n[labels]\nhorizon_ms = 600000\ngrace_ms = 60000\n"


@pytest.fixture
def tables(broker, tmp_path: Path) -> Iterator[str]:
    """Where to put a pipeline called digits, of which the broker knows nothing afterwards."""
    with forgotten(broker, tmp_path):
        yield on(broker)


def told(folder: Path) -> dict[str, object]:
    """What a night call comes to: what went where, what was proved, what the model is."""
    for words in (["run", planned(folder)], ["take-over", "--reason", "mended", "--yes"]):
        done = replay(folder, *words)
        assert done.returncode == 0, done.stderr
    send(folder, [b"{broken", *good_rows(3)], "till-1")
    assert millrace("run", "digits.toml", "--branch", "replay-1", cwd=folder).returncode == 0
    for branch in ("main", "replay-1"):
        proof = millrace("verify", "digits.toml", "--branch", branch, cwd=folder)
        assert proof.returncode == 0, proof.stderr
    (letter,) = lines(folder, "dead-letters", "list")
    assert millrace("dead-letters", "redrive", "digits.toml", "--reason", "again", "--yes", cwd=folder).returncode == 0
    (after,) = lines(folder, "dead-letters", "list")
    status = facts(folder, "--branch", "replay-1")
    names = ("records", "learned", "passed", "rejected", "waiting", "lag_rows", "serves_default")
    return {name: status[name] for name in names} | {
        "branches": instance(folder).branches(),
        "letter": (letter["record"], letter["reason"], letter["redriven"], after["redriven"]),
        "versions": len(versions(folder)) > 3,
    }


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("kafka", marks=KAFKA)])
@pytest.mark.slow
def test_every_command_says_the_same_of_either_log(kind: str, tmp_path: Path, request) -> None:
    """Sent, learned, poisoned, replayed, taken over, refused, redriven and proved, with nothing else in the file changed."""
    text = TEXT + (request.getfixturevalue("tables") if kind == "kafka" else "")
    outcome = told(begin(tmp_path / "there", with_poison=True, text=text))
    assert outcome == {
        "records": 3 * GOOD + BAD + 1,
        "learned": 3 * GOOD,
        "passed": BAD,
        "rejected": 1,
        "waiting": 0,
        "lag_rows": 1,
        "serves_default": "newest of replay-1",
        "branches": ["main", "replay-1"],
        "letter": (f"digits:0 offset {2 * GOOD + BAD}", "unreadable", False, True),
        "versions": True,
    }
    files = {path.name for path in (tmp_path / "there" / ".millrace" / "digits").rglob("*.sqlite")}
    assert (files == set()) is (kind == "kafka")


@pytest.mark.slow
def test_a_pipeline_on_sqlite_never_loads_the_client_of_kafka(tmp_path: Path) -> None:
    """Nor does any command of it; so nobody needs it who does not ask for it."""
    pipeline_in(tmp_path, rows=60)
    program = "import sys; from millrace.services.cli import main; main({words}, standalone_mode=False); print(*sys.modules)"
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"], ["status", "digits.toml"]):
        command = [sys.executable, "-c", program.format(words=words)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
        assert "millrace" in loaded and "kafka" not in loaded and "millrace.streams.kafka.client" not in done.stdout.split()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["log.kind=kafka"], 'kind = "kafka": say where it is with kafka.bootstrap = "host:port"'),
        (["log.kind=kafak"], "log.kind = 'kafak': Invalid enum value 'kafak'. Did you mean kafka?"),
        (["log.kafka.bootstrap=here"], "bootstrap = 'here': must be host:port"),
        (["log.kafka.patience_s=0"], "patience_s = 0.0: at least 0, and above 0"),
        (["log.kafka.replication=-1"], "replication = -1"),
        (["log.kafka.compresion=lz4"], "log.kafka.compresion = 'lz4': there is no such key. Did you mean compression?"),
        (["log.kafka.sasl_password=x"], "log.kafka.sasl_password = 'x': there is no such key"),
    ],
)
def test_what_cannot_be_meant_of_a_cluster_is_refused(flags: list[str], says: str, tmp_path: Path) -> None:
    """Naming key, value and what there is."""
    with pytest.raises(ConfigError) as refused:
        load_pipeline(pipeline_in(tmp_path), flags)
    assert says in str(refused.value)


def test_passwords_come_from_the_environment_and_are_shown_nowhere(tmp_path: Path, monkeypatch) -> None:
    """Neither by `config show` nor in what is printed of them; they reach the client in its own words."""
    monkeypatch.setenv("MILLRACE_KAFKA_PASSWORD", "wise-owl")
    monkeypatch.setenv("MILLRACE_KAFKA_SSL_PASSWORD", "old-moth")
    pipeline_in(tmp_path)
    flags = ["log.kind=kafka", "log.kafka.bootstrap=a:1,b:2", "log.kafka.security_protocol=SASL_SSL"]
    flags += ["log.kafka.sasl_username=millrace", "log.kafka.ssl_cafile=ca.pem"]
    words = [word for flag in flags for word in ("--set", flag)]
    shown = here("config", "show", "digits.toml", *words, cwd=tmp_path)
    assert shown.exit_code == 0 and "SASL_SSL" in shown.output and "owl" not in shown.output and "moth" not in shown.output
    cluster, secrets = load_pipeline(tmp_path / "digits.toml", flags).pipeline.log.kafka, kafka_secrets()
    assert "owl" not in repr((cluster, secrets)) and "moth" not in repr((cluster, secrets))
    login = security(cluster, secrets)
    assert (login["sasl_plain_password"], login["ssl_password"], login["ssl_cafile"]) == ("wise-owl", "old-moth", "ca.pem")
    assert cluster.brokers == ["a:1", "b:2"]


@pytest.mark.parametrize("death", [pytest.param("trainer", marks=KAFKA), pytest.param("broker", marks=KAFKA)])
def test_it_serves_records_learns_late_labels_and_rolls_back(tables: str, broker, tmp_path: Path, death: str) -> None:
    """While callers ask all the time the trainer, or the broker itself, is killed: no request fails, and no label is lost."""
    pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")
    pipeline_in(tmp_path, rows=200, text=PIPELINE + LATE + tables)
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert millrace(*words, cwd=tmp_path).returncode == 0
    with served(tmp_path) as up, load(up) as callers:
        ids = [f"first/{at}" for at in range(40)]
        assert post(up.port, "infer", question(ids))[0] == 200
        until(lambda: facts(tmp_path).get("labels_awaited", 0) >= 40 or facts(tmp_path).get("records", 0) >= 240)
        if death == "broker":
            broker.kill()
            assert post(up.port, "infer", question(["meanwhile"]))[0] == 200
            broker.start()
        else:
            up.kill("Trainer")
        stored = 0
        for identity in ids:
            while (code := post(up.port, "labels", {"labels": [{"id": identity, "label": "lily"}]})[0]) == 503:
                time.sleep(0.2)
            stored += code == 202
        assert stored == 40
        until(lambda: facts(tmp_path).get("labels_joined") == 40)
        seq = int(str(facts(tmp_path)["seq"]))
        until(lambda: up.answered()["parameters"]["seq"] >= seq - 1)
        done = millrace("rollback", "digits.toml", versions(tmp_path)[0], "--reason", "test", "--yes", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        until(lambda: up.answered()["parameters"].get("version") == versions(tmp_path)[0])
    assert callers.failed == []
    for _ in range(2):  # the branch is folded from the log again by a fresh process, as often as one likes
        proof = millrace("verify", "digits.toml", "--output", "json", cwd=tmp_path)
        assert proof.returncode == 0, proof.stderr
    assert json_lines(proof.stdout)[0]["records"] >= 281


@pytest.mark.parametrize("partitions", [pytest.param(4, marks=KAFKA)])
@pytest.mark.slow
def test_shards_find_late_labels_by_kafkas_partitioner_and_refuse_what_another_has_placed(
    tables: str, tmp_path: Path, partitions: int
) -> None:
    """Both are keyed by id, so both lie in one shard; a record elsewhere is a dead letter that says where it belongs."""
    text = SHARDED + LATE + tables.replace("[log]\n", f"[log]\npartitions = {partitions}\n")
    pipeline_in(tmp_path, rows=1, text=text)
    asked = late_rows(120)
    (tmp_path / "served.jsonl").write_bytes(b"\n".join(asked) + b"\n")
    assert millrace("send", "digits.toml", "served.jsonl", "--served", cwd=tmp_path).returncode == 0
    assert millrace("run", "digits.toml", cwd=tmp_path).returncode == 0
    status = facts(tmp_path)
    assert (status["learned"], status["labels_joined"], status["labels_awaited"]) == (120, 120, 0)
    told, right = LateLabel("request 7", "rose", 1), by_murmur2(partitions)([b"request 7"])[0]
    link = logs.OnKafka(load_pipeline(tmp_path / "digits.toml").pipeline)._readers.link
    link.send("digits.served", Record(encode(told), told.id.encode()), int(right + 1) % partitions).place()
    assert millrace("run", "digits.toml", cwd=tmp_path).returncode == 1  # all that it read was refused
    (letter,) = lines(tmp_path, "dead-letters", "list")
    assert letter["reason"] == "other-partition"
    shown = here("dead-letters", "show", "digits.toml", str(letter["letter"]), cwd=tmp_path).output
    assert f"its key belongs in {right}" in shown
    assert (facts(tmp_path)["learned"], facts(tmp_path)["rejected"]) == (120, 1)
    proof = millrace("verify", "digits.toml", cwd=tmp_path)
    assert proof.returncode == 0, proof.stderr
