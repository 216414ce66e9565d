"""Clients that others wrote, as they are, and the README's own, against a pipeline that is served by Ray."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipelines import PIPELINE, clean_environment, millrace, pipeline_in
from served_pipeline import Up, served

pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("served")]  # two cores serve one instance at a time

SUPPORT = Path(__file__).resolve().parents[1] / "support"
ROOT = SUPPORT.parents[2]
CLIENTS = ROOT / ".venv-clients" / "bin" / "python"
TEXTS = (ROOT / "README.md").read_text(encoding="utf-8")
GRPCURL = shutil.which("grpcurl", path=f"{ROOT / '.tools' / 'bin'}:{os.environ['PATH']}")

needs_clients = pytest.mark.skipif(not CLIENTS.exists(), reason="`make clients` could not make .venv-clients here")
needs_grpcurl = pytest.mark.skipif(GRPCURL is None, reason="there is no grpcurl, and `make clients` makes it only where Go is")
WAYS = ["http", "grpc"]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Numbers and a category go in, scores and labels come out."""
    folder = tmp_path_factory.mktemp("clients")
    pipeline_in(folder, rows=200, text=PIPELINE + "version_rows = 100\n")
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert millrace(*words, cwd=folder).returncode == 0
    with served(folder) as running:
        yield running


@pytest.fixture(scope="module")
def readme_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """The README's own pipeline, which has learned the digits."""
    pytest.importorskip("sklearn", reason="scikit-learn, which brings the digits, is not installed")
    folder = tmp_path_factory.mktemp("readme")
    toml = re.findall(r"^```toml\n(.*?)^```", TEXTS, re.MULTILINE | re.DOTALL)[0]
    (folder / "digits.toml").write_text(toml, encoding="utf-8")
    for words in (["send", "digits.toml", "--data", "digits"], ["run", "digits.toml"]):
        assert millrace(*words, cwd=folder).returncode == 0
    with served(folder) as running:
        yield running


@pytest.fixture
def spam_up(tmp_path: Path) -> Iterator[Up]:
    """The README's pipeline with late labels, which has learned one of each class."""
    toml = re.findall(r"^```toml\n(.*?)^```", TEXTS, re.MULTILINE | re.DOTALL)[1]
    (tmp_path / "digits.toml").write_text(toml, encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"links": 9, "spam": true}\n{"links": 0, "spam": false}\n')
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert millrace(*words, cwd=tmp_path).returncode == 0
    with served(tmp_path) as running:
        yield running


def address(up: Up, way: str) -> str:
    """Where it listens, as the libraries want it."""
    return f"127.0.0.1:{up.port if way == 'http' else up.grpc_port}"


def said_by(script: str, up: Up, way: str) -> dict:
    """What a client script prints, run in the clients' environment."""
    command = [CLIENTS, SUPPORT / script, way, address(up, way)]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def expected(up: Up) -> dict:
    """The same two rows, asked for in plain JSON over HTTP by tritonclient."""
    return said_by("client_triton.py", up, "http")["json"]


@needs_clients
@pytest.mark.parametrize("way", WAYS)
def test_tritonclient_is_answered(up: Up, way: str) -> None:
    """Health, metadata and the same scores bit for bit in every form; what is not there is refused in words."""
    said = said_by("client_triton.py", up, way)
    assert (said["live"], said["ready"], said["model_ready"]) == (True, True, True)
    assert said["server"]["name"] == "millrace"
    model = said["model"]
    assert (model["name"], model["platform"], len(model["versions"])) == ("digits", "millrace", 1)
    shapes = {tensor["name"]: (tensor["datatype"], [int(side) for side in tensor["shape"]]) for tensor in model["inputs"]}
    assert shapes == {"x": ("FP64", [-1, 4]), "site": ("BYTES", [-1])}
    assert [tensor["name"] for tensor in model["outputs"]] == ["scores", "label"]
    answers = [said[form] for form in ("default", "binary", "json") if form in said]
    assert all(answer == expected(up) for answer in answers)
    assert len(answers[0]["label"]) == 2
    assert "There is no model nobody here" in said["refused"]


@needs_clients
@pytest.mark.parametrize("way", WAYS)
def test_kserves_client_is_answered(up: Up, way: str) -> None:
    """Health, and the same scores as tritonclient's from JSON or typed contents and from raw bytes."""
    said = said_by("client_kserve.py", up, way)
    assert (said["live"], said["ready"], said["model_ready"]) == (True, True, True)
    for form in ("json", "binary"):
        assert {name: said[form][name] for name in ("scores", "label")} == expected(up)


def example(up: Up, kind: str, word: str) -> str:
    """The README's block of that kind which holds the word, with the addresses of this instance."""
    found = [block for block in re.findall(rf"^```{kind}\n(.*?)^```", TEXTS, re.MULTILINE | re.DOTALL) if word in block]
    assert len(found) == 1, f"{len(found)} {kind} blocks with {word}"
    return found[0].replace("localhost:8000", address(up, "http")).replace("localhost:8001", address(up, "grpc"))


def ran(command: list[str], folder: Path) -> str:
    """What a command printed."""
    path = f"{ROOT / '.venv-test' / 'bin'}:{ROOT / '.tools' / 'bin'}:{os.environ['PATH']}"
    env = clean_environment() | {"PATH": path}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_readmes_curl_is_answered(readme_up: Up) -> None:
    """Ready, the model's description, and an answer that names the state it comes from."""
    text = ran(["bash", "-euo", "pipefail", "-c", example(readme_up, "bash", "health/ready")], readme_up.folder)
    ready, model, answer = (json.loads(line) for line in text.replace("}{", "}\n{").splitlines())
    assert ready == {"ready": True}
    assert model["inputs"] == [{"name": "x", "datatype": "FP64", "shape": [-1, 64]}]
    assert answer["parameters"]["branch"] == "main"
    assert [output["name"] for output in answer["outputs"]] == ["scores", "label"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_readmes_labels_are_taken(spam_up: Up) -> None:
    """A prediction under the client's own id, and its label, which the log then has."""
    text = ran(["bash", "-euo", "pipefail", "-c", example(spam_up, "bash", "/labels")], spam_up.folder)
    answer, told = (json.loads(line) for line in text.replace("}{", "}\n{").splitlines())
    assert answer["outputs"][1]["data"] == ["true"]
    assert told == {"accepted": 1, "offsets": ["spam.served-0-1"]}


@needs_grpcurl
def test_the_readmes_grpcurl_is_answered(readme_up: Up) -> None:
    """The same over gRPC, found by reflection."""
    answer = json.loads(ran(["bash", "-euo", "pipefail", "-c", example(readme_up, "bash", "grpcurl ")], readme_up.folder))
    assert answer["model_name"] == "digits"
    assert {output["name"] for output in answer["outputs"]} == {"scores", "label"}


def test_the_readmes_python_is_answered(readme_up: Up) -> None:
    """A dozen lines of the standard library give two labels and the state that says so."""
    text = ran(["python3", "-c", example(readme_up, "python", "urlopen")], readme_up.folder)
    assert re.match(r"\['\d', '\d'\] \{'branch': 'main', 'epoch': \d+, 'seq': \d+", text), text
