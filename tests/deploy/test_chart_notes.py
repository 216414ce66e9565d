"""NOTES.txt: its commands are commands, and name what the release makes."""

from __future__ import annotations

import base64
import os
import re
import subprocess
from pathlib import Path

import pytest
from charts import CI, NAMESPACE, docs, of_kind, program, template, with_notes

TOKENS = "# who\nlabel  wrong\npredict,label  right\npredict later\n"
COMMAND = re.compile(r"^  (\S.*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def chart(tmp_path_factory) -> Path:
    """The chart with its notes among what it renders."""
    return with_notes(tmp_path_factory.mktemp("notes"))


def commands(chart: Path, file: Path) -> tuple[list[str], set[str]]:
    """What the notes say to type, and the names of what the release makes."""
    objects = tuple(docs(template(program("helm-4"), file, chart=chart)))
    stateful = of_kind(objects, "StatefulSet")["metadata"]["name"]
    names = {doc["metadata"]["name"] for doc in objects} | {f"{stateful}-0", f"{stateful}-backup-now"}
    return COMMAND.findall(of_kind(objects, "ConfigMap", "notes")["data"]["text"]), names


@pytest.mark.parametrize("file", CI, ids=lambda file: file.stem)
def test_every_command_is_one_and_names_what_there_is(chart: Path, file: Path) -> None:
    """As a shell reads it; in the release's namespace, of objects that it makes, or that its values name."""
    listed, names = commands(chart, file)
    assert len(listed) >= 8
    for command in listed:
        assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0, command
        if "kubectl" in command:
            assert f"kubectl -n {NAMESPACE} " in command
        for kind, name in re.findall(r"\b(statefulset|service|cronjob|secret|pod|exec)[/ ](?:-i )?([\w.-]+)", command):
            assert name in names or f"existingSecret: {name}" in file.read_text(encoding="utf-8"), (kind, name)


def test_the_token_is_the_first_that_may_ask(chart: Path, tmp_path: Path) -> None:
    """Of the lines in the Secret; kubectl is one here that gives it as the real one would."""
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f"#!/bin/sh\nprintf %s {base64.b64encode(TOKENS.encode()).decode()}\n", encoding="utf-8")
    kubectl.chmod(0o755)
    [command] = [line for line in commands(chart, CI[0])[0] if line.startswith("TOKEN=")]
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", f"{command}; echo $TOKEN"], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "right\n"
