"""A real MLflow server on SQLite: versions, tags and aliases arrive, are caught up with and answered from, without pickle."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from mlflow_server import SAFE, Server, asked, environment, listening
from pages import blocks, reading
from pipelines import (
    MILLRACE,
    PIPELINE,
    TIMEOUT_S,
    clean_environment,
    flower_rows,
    json_lines,
    millrace,
    pipeline_in,
)
from served_pipeline import Up, command_of, descendants, own_port, served, until

from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import Instance
from millrace.services.registry.export import opened

pytest.importorskip("sqlalchemy", reason="the server needs MLflow with all that belongs to it: uv pip install mlflow")
pytest.importorskip("mlflow.version", reason="MLflow is not installed, the extra `mlflow`")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("mlflow")]

STEPS = "step_rows = 50\nversion_rows = 100\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that is down."""
    with ExitStack() as running:
        yield Server(tmp_path_factory.mktemp("server"), own_port(), running)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a pipeline with three versions."""
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline_in(folder, rows=300, text=PIPELINE + STEPS)
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert millrace(*words, cwd=folder).returncode == 0
    return folder


def listed(folder: Path) -> list[str]:
    """Our versions, oldest first."""
    return [line["version"] for line in json_lines(millrace("versions", "digits.toml", "--output", "json", cwd=folder).stdout)]


def promote(folder: Path, version: str, alias: str = "champion") -> None:
    """Decide here."""
    words = ["promote", "digits.toml", version, "--alias", alias, "--reason", "test", "--yes"]
    assert millrace(*words, cwd=folder).returncode == 0


def mirror_once(folder: Path, server: Server, *more: str) -> subprocess.CompletedProcess[str]:
    """One look."""
    return millrace("mirror", "digits.toml", "--once", "--set", f"mlflow.uri={server.uri}", *more, cwd=folder)


def test_what_was_decided_while_mlflow_was_down_is_there_once_it_is_up(folder: Path, server: Server) -> None:
    """Versions, tags, aliases; one that was moved by hand is set back, or adopted where asked; `status` says how far."""
    versions = listed(folder)
    promote(folder, versions[0])
    down = mirror_once(folder, server)
    assert down.returncode == 1 and "MLflow at" in down.stderr and "Traceback" not in down.stderr
    live = [*MILLRACE, "mirror", "digits.toml", "--set", f"mlflow.uri={server.uri}"]
    with (folder / "mirror.log").open("wb") as stderr:
        running = subprocess.Popen(live, cwd=folder, env=clean_environment(), stdout=stderr, stderr=stderr)
    try:
        until(lambda: b"It is tried again" in (folder / "mirror.log").read_bytes())
        assert "Another process mirrors this pipeline" in mirror_once(folder, server).stderr
        server.start()
        until(lambda: server.aliases() == {"champion": versions[0]})
        tags = server.versions()
        assert list(tags) == versions
        assert [tagged.get("millrace.parent") for tagged in tags.values()] == [None, *versions[:-1]]
        promote(folder, versions[1])
        promote(folder, versions[0], "last-good")
        until(lambda: server.aliases() == {"champion": versions[1], "last-good": versions[0]})
        server.move("champion", versions[2])
        until(lambda: server.aliases().get("champion") == versions[1])
    finally:
        running.terminate()
        assert running.wait(timeout=TIMEOUT_S) == 0
    server.move("champion", versions[2])
    adopted = mirror_once(folder, server, "--set", "mlflow.moved_by_hand=adopt")
    assert adopted.returncode == 0 and "the ledger has it now" in adopted.stderr
    ledger = json_lines(millrace("log", "digits.toml", "--ledger", "--output", "json", cwd=folder).stdout)
    assert (ledger[-1]["kind"], ledger[-1]["to"], ledger[-1]["why"]) == ("alias", versions[2], "moved by hand in MLflow")
    status = millrace("status", "digits.toml", "--set", f"mlflow.uri={server.uri}", cwd=folder).stdout
    assert f"{len(versions)} versions at {server.uri}" in status


LOAD = """
import json, sys
import mlflow, numpy as np, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
rows = [json.loads(line) for line in sys.stdin]
table = pd.DataFrame({name: [row[name] for row in rows] for name in ("x", "site")})
print(json.dumps({name: value.tolist() for name, value in model.predict(table).items()}))
"""


def answers(folder: Path, rows: list[dict]) -> dict[str, list]:
    """What a replica of ours answers to rows from the newest version."""
    instance = Instance(load_pipeline(folder / "digits.toml"), folder / ".millrace" / "digits")
    bundle = Archive(instance).version(listed(folder)[-1])
    site = np.array([row["site"] for row in rows], dtype=object)
    answer = bundle.predict([np.array([row["x"] for row in rows], dtype=float), site])
    of_classes = {"label": list(answer.labels), "classes": list(bundle.classes)}
    return {"scores": answer.scores.tolist()} | of_classes | {"far_out": [""] * len(rows)}


def test_mlflow_loads_a_version_by_alias_and_from_a_folder_and_answers_as_we_do(folder: Path, server: Server) -> None:
    """Bit for bit, with pickle forbidden; `mlflow models serve --env-manager local` too, over HTTP."""
    rows = [{name: value for name, value in json.loads(row).items() if name != "label"} for row in flower_rows(20, seed=9)]
    expected, exported = answers(folder, rows), folder / "exported"
    assert millrace("export", "digits.toml", "newest", exported, cwd=folder).returncode == 0
    promote(folder, "newest")
    server.start()
    assert mirror_once(folder, server).returncode == 0
    for place in ("models:/digits@champion", str(exported)):
        command = [sys.executable, "-c", LOAD, server.uri, place]
        stdin = "\n".join(map(json.dumps, rows))
        done = subprocess.run(
            command, env=environment(), input=stdin, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        assert done.returncode == 0 and json.loads(done.stdout) == expected, done.stderr
    port = own_port()
    with listening(["models", "serve", "--model-uri", str(exported), "--env-manager", "local"], port, "/ping"):
        columns = ["x", "site"]
        table = {"columns": columns, "data": [[row[name] for name in columns] for row in rows]}
        for body in ({"dataframe_split": table}, {"inputs": {name: [row[name] for row in rows] for name in columns}}):
            answer = json.loads(asked(f"http://127.0.0.1:{port}/invocations", body))
            assert answer["predictions"] == expected


def test_an_exported_folder_holds_data_alone_and_says_which_version(folder: Path) -> None:
    """The same bytes twice; no code, no pickle; a changed byte is refused; a folder that holds something is not written to."""
    for name in ("one", "two"):
        assert millrace("export", "digits.toml", "newest", folder / name, cwd=folder).returncode == 0
    files = {path.name: path.read_bytes() for path in (folder / "one").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (folder / "two").iterdir()}
    assert set(files) >= {
        "MLmodel",
        "weights.safetensors",
        "schema.json",
        "manifest.json",
        "requirements.txt",
        "python_env.yaml",
    }
    assert opened(folder / "one").identity.version == listed(folder)[-1]
    assert millrace("export", "digits.toml", "newest", folder / "one", cwd=folder).returncode == 2
    (folder / "one" / "weights.safetensors").write_bytes(files["weights.safetensors"][:-1] + b"?")
    with pytest.raises(Exception, match="sha256"):
        opened(folder / "one")


def test_what_is_served_is_verified_and_mirrored_beside_it_and_nothing_is_left_when_it_ends(
    folder: Path, server: Server
) -> None:
    """By processes of `millrace up`; with MLflow at a dead address answers come all the same."""
    pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")
    with served(folder, "--set", f"mlflow.uri=http://127.0.0.1:{own_port()}") as up:
        assert up.ask()["status"] == 200
        until(lambda: "is tried again" in (folder / "up.log").read_text())
        assert up.ask()["status"] == 200 and "WARNING mirror: " in (folder / "up.log").read_text()
    server.start()
    known = set(listed(folder))
    with served(folder, "--set", f"mlflow.uri={server.uri}") as up:
        assert millrace("send", "digits.toml", "rows.jsonl", cwd=folder).returncode == 0
        until(lambda: set(server.versions()) - known)
        until(lambda: {tags["millrace.verified"].partition(",")[0] for tags in server.versions().values()} == {"equal"})
        until(lambda: len(companions(up)) == 2)
        beside = companions(up)
    until(lambda: not any(map(command_of, beside)))


def companions(up: Up) -> list[int]:
    """The processes that `millrace up` keeps beside it."""
    return [pid for pid in descendants(up.process.pid) if "--parent" in command_of(pid)]


def test_the_page_of_mlflow_holds(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of docs/how-to/mlflow.md, against this server."""
    for name, value in SAFE.items():
        monkeypatch.setenv(name, value)
    server.start()
    with reading(tmp_path, {"http://127.0.0.1:5000": server.uri}) as reader:
        reader.read(blocks("docs/how-to/mlflow.md"))
    assert "model.onnx" in reader.printed[-2] and "MLmodel" in reader.printed[-2]
    by_alias, from_folder = reader.printed[-1].splitlines()
    assert by_alias == from_folder and "'label'" in by_alias
