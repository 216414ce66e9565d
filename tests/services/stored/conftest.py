"""A copy of the folder that the release before wrote."""

import shutil
from pathlib import Path

import pytest
from release_before import BEFORE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy to do things to."""
    for file in BEFORE.glob("*.toml"):
        shutil.copy(file, tmp_path)
    shutil.copytree(BEFORE / "home", tmp_path / ".millrace")
    return tmp_path
