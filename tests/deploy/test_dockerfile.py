"""deploy/Dockerfile, by hadolint: a wheel that holds the program itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HADOLINT = Path(sys.executable).with_name("hadolint")


def complaints(text: str) -> str:
    """What it says of a Dockerfile; nothing, where it finds nothing."""
    done = subprocess.run([HADOLINT, "--no-color", "-"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (done.stdout == ""), done.stderr
    return done.stdout


def test_the_dockerfile_has_no_complaint() -> None:
    """Of any level, and without a rule that is silenced for the whole file."""
    text = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    assert complaints(text) == ""
    assert "hadolint global" not in text


@pytest.mark.parametrize(
    ("step", "rule"), [("RUN apt-get install -y curl", "DL3008"), ("RUN cd /tmp", "DL3003"), ("USER root", "DL3002")]
)
def test_a_step_that_is_not_sound_is_found(step: str, rule: str) -> None:
    """So that the test above says something."""
    assert rule in complaints(f"FROM python:3.11-slim-bookworm\n{step}\n")
