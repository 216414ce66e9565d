"""docs/how-to/kubernetes.md: its value files render, and what its commands name is what they make."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from charts import CHART, ROOT, docs, of_kind, run, template

PAGE = (ROOT / "docs" / "how-to" / "kubernetes.md").read_text(encoding="utf-8")
VALUES = dict(re.findall(r"^```yaml\n# (\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
EXTERNAL = ("spam-tokens", "spam-backup-now")  # made by commands of the page


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The value files, written as a reader does."""
    for name, text in VALUES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return {name: tmp_path / name for name in VALUES}


def test_each_value_file_of_the_page_renders(helm: Path, files: dict[str, Path]) -> None:
    """By both Helms; each is named in its first line."""
    assert len(files) == PAGE.count("```yaml") == 3
    for file in files.values():
        assert of_kind(tuple(docs(template(helm, file))), "StatefulSet")


def test_what_the_commands_name_is_made(helm: Path, files: dict[str, Path]) -> None:
    """Pod, claim, StatefulSet and CronJob, by the release's name on the page."""
    done = run(helm, "template", "spam", "CHART", "--values", str(files["with-backup-values.yaml"]))
    names = {doc["metadata"]["name"] for doc in docs(done.stdout)}
    names |= {"spam-millrace-0", "state-spam-millrace-0"}  # of the StatefulSet and its template "state"
    stateful = of_kind(tuple(docs(done.stdout)), "StatefulSet")
    assert (stateful["metadata"]["name"], stateful["spec"]["volumeClaimTemplates"][0]["metadata"]["name"]) == (
        "spam-millrace",
        "state",
    )
    commands = "\n".join(re.findall(r"^\$ (kubectl .*)$", PAGE, re.MULTILINE))
    named = set(re.findall(r"\b(?:state-)?spam-[a-z0-9-]+\b", commands))
    assert named - set(EXTERNAL) <= names and len(named) > 4


def test_what_the_page_cites_of_helm_is_what_it_says(helm: Path, files: dict[str, Path]) -> None:
    """The refusal of a key that is misspelt."""
    done = run(
        helm, "template", "spam", "CHART", "--values", str(files["spam-values.yaml"]), "--set", "pipeline.learner.gama=1"
    )
    cited = re.search(r"key: `(at '/pipeline.*?)`", PAGE, re.DOTALL)
    assert cited and " ".join(cited[1].split()) in done.stderr


def test_the_bounds_on_the_page_are_those_of_the_check() -> None:
    """Of memory, and of what lies in shared memory."""
    checks = (CHART / "templates" / "_checks.tpl").read_text(encoding="utf-8")
    base, each = re.search(r"refuses less than (\d+) MiB and (\d+) MiB for each", " ".join(PAGE.split())).groups()
    assert f"add {base} (mul {each} .Values.serving.replicas)" in checks
