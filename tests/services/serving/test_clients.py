"""Clients that others wrote, as they are, against a pipeline that is served by Ray; test_pages.py has our own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipelines import PIPELINE, TIMEOUT_S, clean_environment, millrace, pipeline_in
from served_pipeline import Up, served

pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("served")]  # two cores serve one instance at a time

SUPPORT = Path(__file__).resolve().parents[1] / "support"
WAYS = ["http", "grpc"]


@pytest.fixture(scope="module")
def up(clients: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Numbers and a category go in, scores and labels come out."""
    folder = tmp_path_factory.mktemp("clients")
    pipeline_in(folder, rows=200, text=PIPELINE + "version_rows = 100\n")
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert millrace(*words, cwd=folder).returncode == 0
    with served(folder) as running:
        yield running


def address(up: Up, way: str) -> str:
    """Where it listens, as the libraries want it."""
    return f"127.0.0.1:{up.port if way == 'http' else up.grpc_port}"


def said_by(clients: Path, script: str, up: Up, way: str) -> dict:
    """What a client script prints, run in the clients' environment."""
    command = [clients, SUPPORT / script, way, address(up, way)]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def expected(clients: Path, up: Up) -> dict:
    """The same two rows, asked for in plain JSON over HTTP by tritonclient."""
    return said_by(clients, "client_triton.py", up, "http")["json"]


@pytest.mark.parametrize("way", WAYS)
def test_tritonclient_is_answered(clients: Path, up: Up, way: str) -> None:
    """Health, metadata and the same scores bit for bit in every form; what is not there is refused in words."""
    answered = said_by(clients, "client_triton.py", up, way)
    assert (answered["live"], answered["ready"], answered["model_ready"]) == (True, True, True)
    assert answered["server"]["name"] == "millrace"
    model = answered["model"]
    assert (model["name"], model["platform"], len(model["versions"])) == ("digits", "millrace", 1)
    shapes = {tensor["name"]: (tensor["datatype"], [int(side) for side in tensor["shape"]]) for tensor in model["inputs"]}
    assert shapes == {"x": ("FP64", [-1, 4]), "site": ("BYTES", [-1])}
    assert [tensor["name"] for tensor in model["outputs"]] == ["scores", "label"]
    answers = [answered[form] for form in ("default", "binary", "json") if form in answered]
    assert all(answer == expected(clients, up) for answer in answers)
    assert len(answers[0]["label"]) == 2
    assert "There is no model nobody here" in answered["refused"]
    names = [json.loads(names) for names in answered["classes"].values()]
    assert all(name == names[0] for name in names) and set(answers[0]["label"]) <= set(names[0])
    assert [names[0][row.index(max(row))] for row in answers[0]["scores"]] == answers[0]["label"]
    assert "x: row 1 has no number" in answered["nan"]["binary"]
    assert way == "grpc" or "inputs[0].data[4] is NaN, which JSON does not have" in answered["nan"]["json"]


@pytest.mark.parametrize("way", WAYS)
def test_kserves_client_is_answered(clients: Path, up: Up, way: str) -> None:
    """Health, and the same scores as tritonclient's from JSON or typed contents and from raw bytes."""
    answered = said_by(clients, "client_kserve.py", up, way)
    assert (answered["live"], answered["ready"], answered["model_ready"]) == (True, True, True)
    for form in ("json", "binary"):
        assert {name: answered[form][name] for name in ("scores", "label")} == expected(clients, up)
