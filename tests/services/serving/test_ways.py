"""The other two ways to a replica: ports that replicas share where no front is installed, and Serve's own proxies."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from pipelines import millrace, pipeline_in
from served_pipeline import NO_FRONT, PROXIES, served, until

from millrace.services.endpoint.grpc import calling
from millrace.services.protocol import inference_pb2 as pb

pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ways")]


@pytest.mark.parametrize(("way", "words"), [(NO_FRONT, "they share the ports"), (PROXIES, "Serve's own proxies")])
def test_both_protocols_answer_and_a_replica_may_die(tmp_path: Path, way: list[str], words: str) -> None:
    """`up` says which way it is; what a kill cuts is asked again here, since nobody else does."""
    pipeline_in(tmp_path, rows=100)
    for command in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert millrace(*command, cwd=tmp_path).returncode == 0
    with served(tmp_path, millrace=way) as up:
        assert words in (tmp_path / "up.log").read_text()
        assert up.answered()["model_name"] == "digits"
        with calling(f"127.0.0.1:{up.grpc_port}") as client:
            assert client._call("/inference.GRPCInferenceService/ServerReady", pb.ServerReadyRequest(), 60).ready
        before = up.pids(":Predictor")
        os.kill(before[0], signal.SIGKILL)
        until(lambda: before[0] not in up.pids(":Predictor") and len(up.pids(":Predictor")) == len(before))
        assert [up.answered()["status"] for _ in range(20)] == [200] * 20
