"""A real MLflow server on SQLite, and what stands in its registry."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import ANSWER_S, TIMEOUT_S, clean_environment
from served_pipeline import until

LOOPBACK = "127.0.0.1"
SAFE = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
SAFE |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # seven processes of its own, with which nobody registers a version


def environment() -> dict[str, str]:
    """Of MLflow's processes: its programs are beside our Python."""
    return clean_environment() | SAFE | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@contextmanager
def listening(arguments: Sequence[str], port: int, path: str, host: str = LOOPBACK) -> Iterator[None]:
    """`mlflow ARGUMENTS` for as long as the block runs, once it answers."""
    command = [sys.executable, "-m", "mlflow", *arguments, "--host", host, "--port", str(port)]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, env=environment(), stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        until(lambda: process.poll() is not None or asked(f"http://{host}:{port}{path}") is not None)
        assert process.poll() is None, "MLflow did not start"
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # it would take seconds to end by itself, and its workers are in its group
        process.wait(timeout=TIMEOUT_S)


def asked(url: str, body: object = None) -> Any:
    """What a URL answers, or None where nobody does."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            return answer.read().decode()
    except OSError:
        return None


@dataclass(frozen=True)
class Server:
    """One server's place; it is down until it is started, and up from then on."""

    folder: Path
    port: int
    running: ExitStack
    host: str = LOOPBACK

    @property
    def uri(self) -> str:
        """What clients are told."""
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        """Let it answer, unless it does."""
        if asked(f"{self.uri}/health") is not None:
            return
        at = [
            "--backend-store-uri",
            f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination",
            str(self.folder / "files"),
        ]
        at += ["--workers", "1", "--allowed-hosts", f"{self.host}:{self.port}"]
        self.running.enter_context(listening(["server", *at], self.port, "/health", self.host))

    def api(self, path: str, body: object = None) -> Any:
        """One call of its REST interface."""
        return json.loads(asked(f"{self.uri}/api/2.0/mlflow/{path}", body) or "{}")

    def versions(self, model: str = "digits") -> dict[str, dict[str, str]]:
        """Our versions that are registered, with their tags, oldest first."""
        entries = self.api(f"model-versions/search?filter=name%3D%27{model}%27").get("model_versions", [])
        tagged = [{tag["key"]: tag["value"] for tag in version["tags"]} | {"number": version["version"]} for version in entries]
        return {tags["millrace.version"]: tags for tags in sorted(tagged, key=lambda tags: int(tags["number"]))}

    def aliases(self, model: str = "digits") -> dict[str, str]:
        """Alias -> our version."""
        registered = self.api(f"registered-models/get?name={model}").get("registered_model", {})
        by_number = {tags["number"]: version for version, tags in self.versions(model).items()}  # of before too
        return {alias["alias"]: by_number.get(alias["version"], "") for alias in registered.get("aliases", [])}

    def move(self, alias: str, version: str) -> None:
        """By hand, as in its web page."""
        number = self.versions()[version]["number"]
        self.api("registered-models/alias", {"name": "digits", "alias": alias, "version": number})
