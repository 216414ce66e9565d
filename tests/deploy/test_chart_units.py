"""The chart's own suites, run by helm-unittest: snapshots of every template, and what `helm install` looks up in a cluster."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from charts import CHART, program


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    """A copy, since a run may write snapshots beside the suites."""
    return Path(shutil.copytree(CHART, tmp_path / "millrace"))


def units(chart: Path) -> subprocess.CompletedProcess[str]:
    """A run of all suites."""
    command = [str(program("helm-unittest")), "--strict", str(chart)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_suite_passes(chart: Path) -> None:
    """And every snapshot is that of the file: none is new, none is left over."""
    snapshots = chart / "tests" / "__snapshot__" / "snapshots_test.yaml.snap"
    before = snapshots.read_bytes()
    done = units(chart)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed, 3 total" in done.stdout
    assert snapshots.read_bytes() == before, "run `helm-unittest -u` on the chart and look at what changed"


def test_a_change_of_a_template_is_seen(chart: Path) -> None:
    """So that the test above says something."""
    template = chart / "templates" / "service.yaml"
    template.write_text(
        template.read_text(encoding="utf-8").replace("appProtocol: http", "appProtocol: https"), encoding="utf-8"
    )
    done = units(chart)
    assert done.returncode != 0 and "service.yaml" in done.stdout


def test_a_check_that_is_gone_is_seen(chart: Path) -> None:
    """The suite about the cluster fails where two releases may share a claim."""
    checks = chart / "templates" / "_checks.tpl"
    text = checks.read_text(encoding="utf-8")
    assert '{{- include "millrace.checks.alone" . -}}' in text
    checks.write_text(text.replace('{{- include "millrace.checks.alone" . -}}', ""), encoding="utf-8")
    done = units(chart)
    assert done.returncode != 0 and "refuses a claim that another release uses" in done.stdout
