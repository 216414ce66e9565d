"""A pipeline with an alarm that stands, for the tests that close it, go back before it, or undo that."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from alarmed import begin


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests of a file."""
    return begin(tmp_path_factory.mktemp("poisoned"))


@pytest.fixture
def copied(poisoned: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return shutil.copytree(poisoned, tmp_path / "copy")
