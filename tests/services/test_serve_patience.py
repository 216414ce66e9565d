"""What Serve reads of our settings when it is imported: a part of it that is slow to start is not killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pipelines import TIMEOUT_S, clean_environment

from millrace.services.serving.up import SLOW_S

pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")

PROGRAM = """
import json, sys
from pathlib import Path
from millrace.services.serving.up import prepare_environment
prepare_environment(Path(sys.argv[1]), 20000, 16 << 20)
from ray.serve._private import constants
names = ["PROXY_READY_CHECK_TIMEOUT_S", "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S", "PROXY_HEALTH_CHECK_TIMEOUT_S"]
print(json.dumps([getattr(constants, name) for name in names]))
"""


@pytest.mark.slow
def test_serve_gives_its_proxies_the_time_that_we_say(tmp_path: Path) -> None:
    """With its own defaults a proxy is killed after three times five seconds; a release that renames a setting is noticed."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [SLOW_S, SLOW_S, 30]
