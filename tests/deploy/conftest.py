"""What tests of the chart may ask for."""

from pathlib import Path

import pytest
from charts import program


@pytest.fixture(params=["helm-3", "helm-4"])
def helm(request) -> Path:
    """Each of the two Helms."""
    return program(request.param)
