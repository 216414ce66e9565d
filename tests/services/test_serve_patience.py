"""What Serve reads of our settings when it is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pipelines import TIMEOUT_S, clean_environment

pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")

PROGRAM = """
import json
from millrace.services.serving.up import prepare_environment
prepare_environment(16 << 20, 77)
from ray.serve._private import constants
names = ["PROXY_READY_CHECK_TIMEOUT_S", "RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD"]
print(json.dumps([getattr(constants, name) for name in names]))
"""


@pytest.mark.slow
def test_serve_takes_the_settings_that_we_give(tmp_path: Path) -> None:
    """No proxy starts beside our front, and a replica has one loop; a release that renames a setting is noticed."""
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [77, False, False]
