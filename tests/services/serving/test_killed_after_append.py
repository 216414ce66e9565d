"""A replica killed once its answer is in the log, before its caller has it: the front asks another, and the row waits once."""

from __future__ import annotations

from pathlib import Path

import pytest
from grpc_calls import asked
from label_calls import called, settled
from pipelines import ANSWER_S, PIPELINE, millrace, pipeline_in
from served_pipeline import ROW, served, until, with_replicas

from millrace.services.endpoint.grpc import calling

pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("starts")]

RECORDED = '\n[labels]\nhorizon_ms = 600000\n[serving]\nrecord = "before-reply"\n'
# Whoever appends while the file "armed" is there takes it away and is killed before it answers.
DEADLY = """
import os, signal
recorder = self._endpoint.recording.recorder
open_log = recorder.open_log
def opened():
    log = open_log()
    append = log.append
    def deadly(topic, records):
        stored = append(topic, records)
        try:
            os.unlink(serving.instance.folder / "armed")
        except FileNotFoundError:
            return stored
        os.kill(os.getpid(), signal.SIGKILL)
    log.append = deadly
    return log
recorder.open_log = opened
"""


def test_a_row_waits_once_though_two_replicas_recorded_it(tmp_path: Path) -> None:
    """Over both protocols; the second record of each is counted."""
    pipeline_in(tmp_path, rows=200, text=PIPELINE + RECORDED)
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert millrace(*words, cwd=tmp_path).returncode == 0
    armed = tmp_path / ".millrace" / "digits" / "armed"
    request = asked(("x", "FP64", [1, 4], bytes(32)), ("site", "BYTES", [1], b"\5\0\0\0north"))
    with served(tmp_path, millrace=with_replicas(DEADLY)) as up:
        before = settled(up, lag_rows=0)["labels_awaited"]
        for protocol in ("http", "grpc"):
            replicas = set(up.pids(":Predictor"))
            armed.touch()
            if protocol == "http":
                assert called(up, "infer", ROW)[0] == 200
            else:
                with calling(f"127.0.0.1:{up.grpc_port}") as client:
                    client.infer(request, ANSWER_S)
            assert not armed.exists()
            until(lambda replicas=replicas: len(set(up.pids(":Predictor")) - replicas) == 1)
            until(lambda: len(up.pids(":Predictor")) == 2 and up.all_serve("the newest of main"))
        told = settled(up, labels_awaited=before + 2)
    assert told["labels_repeated_predictions"] == 2
