"""A pipeline that has learned poison, for the tests that take the poison out again."""

import shutil
from pathlib import Path

import pytest
from poisoned import begin


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests of a file."""
    return begin(tmp_path_factory.mktemp("poisoned") / "there", with_poison=True)


@pytest.fixture
def folder(poisoned: Path, tmp_path: Path) -> Path:
    """A copy of it to do things to."""
    return shutil.copytree(poisoned, tmp_path / "there")
