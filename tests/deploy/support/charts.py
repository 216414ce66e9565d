"""Helm, and what it renders of our chart. Where Helm was not made, `make charts` says how, and the tests are skipped."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pipelines import lacks
from values_schema import CHART

ROOT = CHART.parents[2]
CI = sorted((CHART / "ci").glob("*.yaml"))
KUBE_VERSION = "1.35.0"  # what Helm is to take for the cluster's, where it only renders
NAMESPACE = "models"
Doc = dict[str, Any]


def program(name: str) -> Path:
    """One of `make charts`, such as ``helm-3``. Without it the test is skipped, and fails in CI."""
    [listed] = re.findall(r"^CHART_PROGRAMS := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    [path] = re.findall(rf"{name}[-.\d]+/\S+", listed)
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    binary = cache_folder / "millrace" / "tools" / path
    if not binary.exists():
        lacks(f"no {path} in {binary.parents[1]}: `make charts` makes it, where there is Go")
    return binary


def run(
    helm: Path, *words: str, chart: Path = CHART, values: Mapping[str, Any] | None = None
) -> subprocess.CompletedProcess[str]:
    """A command of Helm on the chart, with further values on standard input."""
    command = [str(helm), *words, "--kube-version", KUBE_VERSION, "--namespace", NAMESPACE, "--values", "-"]
    given = json.dumps(dict(values or {}), ensure_ascii=False).replace("\x7f", "\\x7f")  # as YAML has them
    return subprocess.run(
        [word.replace("CHART", str(chart)) for word in command], input=given, capture_output=True, text=True, check=False
    )


def template(helm: Path, file: Path | None = None, values: Mapping[str, Any] | None = None, chart: Path = CHART) -> str:
    """What it renders. Raises: AssertionError with what it says, where it refuses."""
    files = [] if file is None else ["--values", str(file)]
    done = run(helm, "template", "rel", "CHART", *files, chart=chart, values=values)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(helm: Path, values: Mapping[str, Any], file: Path = CHART / "ci" / "embedded-values.yaml") -> str:
    """The sentence with which `helm template` refuses these values beside those of a file; "" where it takes them."""
    done = run(helm, "template", "rel", "CHART", "--values", str(file), values=values)
    said = [line.strip() for line in done.stderr.splitlines() if line.strip() and not line.startswith("Use --debug flag")]
    return said[-1] if done.returncode else ""


@cache
def rendered(helm: Path, file: Path) -> tuple[Doc, ...]:
    """The objects that the chart comes to with a value file."""
    return tuple(docs(template(helm, file)))


def docs(text: str) -> Iterator[Doc]:
    """The objects in a text of YAML."""
    return (doc for doc in yaml.safe_load_all(text) if doc)


NOTES = """apiVersion: v1
kind: ConfigMap
metadata: { name: notes }
data:
  text: |
    {{- tpl (.Files.Get "notes.txt") . | nindent 4 }}
"""


def with_notes(folder: Path) -> Path:
    """A copy of the chart in a folder that takes any values, for speed, and renders its notes as a ConfigMap."""
    chart = Path(shutil.copytree(CHART, folder / "millrace"))
    (chart / "values.schema.json").unlink()
    (chart / "templates" / "NOTES.txt").rename(chart / "notes.txt")
    (chart / "templates" / "notes.yaml").write_text(NOTES, encoding="utf-8")
    return chart


def of_kind(objects: tuple[Doc, ...], kind: str, ending: str = "") -> Doc:
    """The one object of a kind, with a name that ends so."""
    [found] = [doc for doc in objects if doc["kind"] == kind and doc["metadata"]["name"].endswith(ending)]
    return found
