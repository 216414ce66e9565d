"""A client predicts, labels later, and the next answers know it; through kill -9 no label is lost and none learned twice."""

from __future__ import annotations

import http.client
import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from pipelines import PIPELINE, TIMEOUT_S, facts, fill, millrace, pipeline_in, small_disk
from served_pipeline import Up, is_ready, post, served, until

pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")
import grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse
from label_calls import all_answer, asking, called, label, settled

from millrace.services.protocol import inference_pb2 as pb
from millrace.services.protocol import labels_pb2
from millrace.streams.sqlite.log import SqliteLog

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("labels")]
NAMES = ("rose", "tulip", "daisy")
LATE = """
[labels]
horizon_ms = 600000
grace_ms = 60000
"""


@contextmanager
def labelled(folder: Path, *options: str) -> Iterator[Up]:
    """An instance that learned 60 rows and takes labels."""
    pipeline_in(folder, rows=60, text=PIPELINE + LATE)
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert millrace(*words, cwd=folder).returncode == 0
    with served(folder, *options) as running:
        yield running


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One instance for all of these tests but the last. Its disk is large: a client sends for as long as deaths take."""
    with labelled(tmp_path_factory.mktemp("labelled")) as running:
        yield running


def question(ids: Sequence[str], kind: int, seed: int) -> dict:
    """Rows of one kind, under ids of their own."""
    chance = random.Random(seed)
    x = [[chance.randrange(17) + 5 * kind for _ in range(4)] for _ in ids]
    return asking(ids, x)


def labels_of(ids: Sequence[str], kind: str, revision: int = 0) -> dict:
    """One label for all of them."""
    return {"labels": [{"id": identity, "label": kind, "revision": revision} for identity in ids]}


def named(up: Up) -> set[str]:
    """The ids of predictions and labels in the log."""
    log = SqliteLog(up.folder / ".millrace" / "digits" / "log.sqlite")
    events, _ = log.fetch("digits.served:0", 0, None, 1 << 20)
    log.close()
    return {str((event.key or b"").decode()) for event in events}


def status(up: Up) -> dict:
    """What `millrace status` says."""
    return facts(up.folder)


def test_a_class_that_only_labels_over_http_and_grpc_name_is_in_the_next_answers(up: Up) -> None:
    """Predicted over both protocols, labelled later over both; each row is learned once and scored as it was served."""
    before = status(up)
    ids = [f"first/{at}" for at in range(40)]
    code, _, body = called(up, "infer", question(ids, 4, 1))
    assert code == 200 and "lily" not in body["outputs"][1]["data"]
    code, _, stored = called(up, "labels", labels_of(ids[:20], "lily"))
    assert code == 202 and stored["accepted"] == 20 and all(at.startswith("digits.served-0-") for at in stored["offsets"])
    with grpc.insecure_channel(f"127.0.0.1:{up.grpc_port}") as channel:
        tell = channel.unary_unary(
            "/millrace.v1.Labels/Label",
            request_serializer=labels_pb2.LabelRequest.SerializeToString,
            response_deserializer=labels_pb2.LabelResponse.FromString,
        )
        told = tell(labels_pb2.LabelRequest(labels=[labels_pb2.OneLabel(id=identity, text="lily") for identity in ids[20:]]))
        assert told.accepted == 20
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        request = pb.ModelInferRequest(model_name="digits", id="by grpc")
        x = request.inputs.add(name="x", datatype="FP64", shape=[1, 4])
        x.contents.fp64_contents.extend([21.0, 24.0, 28.0, 30.0])
        site = request.inputs.add(name="site", datatype="BYTES", shape=[1])
        site.contents.bytes_contents.append(b"north")
        until(lambda: b"lily" in infer(request).raw_output_contents[1])
    after = settled(up, labels_joined=40)
    assert after["scored_as_served"] - before.get("scored_as_served", 0) == 40
    assert after["learned"] + after["passed"] + after["rejected"] + after["waiting"] + after["labels"] == after["records"]


def test_labels_sent_twice_early_conflicting_and_corrected_do_what_the_design_says(up: Up) -> None:
    """Each fate is counted, and the row is learned once."""
    before = status(up)
    label(up, {"id": "second/0", "label": "rose"})  # before its prediction
    assert called(up, "infer", question(["second/0", "second/1"], 0, 2))[0] == 200
    label(up, labels_of(["second/1"], "rose"))
    settled(up, labels_joined=before["labels_joined"] + 2)
    for kind, revision in (("rose", 0), ("tulip", 0), ("tulip", 1)):  # again, another value, a correction
        label(up, labels_of(["second/1"], kind, revision))
    wanted = {"labels_repeated": 1, "labels_conflicts": 1, "labels_corrections": 1}
    after = settled(up, **{name: before[name] + count for name, count in wanted.items()})
    assert after["labels_joined"] == before["labels_joined"] + 2


def test_a_label_that_cannot_be_taken_is_refused_with_its_reason_and_nothing_is_appended(up: Up) -> None:
    """400 over HTTP, INVALID_ARGUMENT over gRPC."""
    code, _, body = called(up, "labels", {"labels": [{"id": "a", "label": "rose"}, {"id": "b", "label": 3.5}]})
    assert code == 400 and "labels[1].label" in body["error"]
    with grpc.insecure_channel(f"127.0.0.1:{up.grpc_port}") as channel:
        tell = channel.unary_unary("/millrace.v1.Labels/Label", request_serializer=labels_pb2.LabelRequest.SerializeToString)
        with pytest.raises(grpc.RpcError) as refused:
            tell(labels_pb2.LabelRequest(labels=[labels_pb2.OneLabel(id="a")]))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    code, _, body = called(up, "infer", question(["x" * 600], 0, 3))
    assert code == 400 and "1 to 512 characters" in body["error"]
    assert called(up, "infer", question(["after them"], 0, 3))[0] == 200
    until(lambda: "after them" in named(up))
    assert not {"a", "b", "x" * 600} & named(up)


def test_status_shows_trainer_replicas_what_they_serve_and_what_they_recorded(up: Up) -> None:
    """Without Ray in the command; each replica says what it was told and what it answers."""
    until(lambda: all("told to serve the newest of main" in status(up).get(f"replica_{at}", "") for at in (1, 2)))
    lines = status(up)
    assert lines["endpoint"].startswith(f"http://127.0.0.1:{up.port}") and "HAProxy" in lines["endpoint"]
    assert lines["trainer"].startswith("branch main, epoch ")
    assert all("0 dropped" in lines[f"replica_{at}"] for at in (1, 2))


def test_kill_9_of_replicas_trainer_and_current_loses_no_label_and_learns_none_twice(up: Up) -> None:
    """Every label that was answered 202 is joined once; those sent again are counted as repeated."""
    before, killed = status(up), threading.Event()
    before_pids = {title: up.pids(title) for title in (":Predictor", ":Trainer", ":NewestWeights")}
    accepted: list[str] = []

    def client() -> None:
        while not killed.wait(0.01) or len(accepted) % 100:
            at = len(accepted)
            some = [f"killed/{at + row}" for row in range(10)]
            assert called(up, "infer", question(some, at % 3, at))[0] == 200
            label(up, labels_of(some, NAMES[at % 3]))
            accepted.extend(some)

    with ThreadPoolExecutor(1) as pool:
        calling = pool.submit(client)
        try:
            for title in (":Predictor", ":Trainer", ":NewestWeights", ":Predictor"):
                sent = len(accepted)
                until(lambda sent=sent: calling.done() or len(accepted) > sent + 30)
                assert not calling.done(), calling.result()
                dead = up.kill(title)
                number = len(before_pids[title])
                until(
                    lambda title=title, dead=dead, number=number: dead not in (pids := up.pids(title)) and len(pids) == number
                )
                until(lambda: calling.done() or all_answer(up))
        finally:
            killed.set()
        calling.result(TIMEOUT_S)
    assert len(accepted) >= 120
    # A prediction may be lost with its replica before it is appended: its label then waits for it. Sent again, both are joined.
    for at in range(0, len(accepted), 100):
        some = accepted[at : at + 100]
        assert called(up, "infer", question(some, 0, 1))[0] == 200
        again = [{"id": identity, "label": NAMES[int(identity.partition("/")[2]) // 10 * 10 % 3]} for identity in some]
        label(up, {"labels": again})
    after = settled(up, labels_joined=before["labels_joined"] + len(accepted))
    assert after["labels_conflicts"] == before["labels_conflicts"]
    assert after["learned"] + after["passed"] + after["rejected"] + after["waiting"] + after["labels"] == after["records"]
    assert millrace("verify", "digits.toml", cwd=up.folder).returncode == 0


def test_while_the_log_is_down_answers_go_on_and_labels_are_refused_until_it_is_back(tmp_path: Path) -> None:
    """503 with Retry-After; answers' records wait and come into the log afterwards."""
    with small_disk(tmp_path / ".millrace" / "digits", 64 << 10), labelled(tmp_path) as up:
        refuse_and_return(up)


def refuse_and_return(up: Up) -> None:
    """Fill the disk of ``up`` until a label is refused, then free it."""
    before, ids = status(up), [f"down/{at}" for at in range(20)]
    fill(up.folder / ".millrace" / "digits")
    told: list[tuple[int, dict, dict]] = []

    def is_full() -> bool:
        at = len(told)
        assert called(up, "infer", question([f"filler/{at}/{row}" for row in range(50)], 0, at))[0] == 200
        told.append(called(up, "labels", labels_of([f"filler/{at}/0"], "rose")))
        return told[-1][0] == 503 and "Send the request again" in told[-1][2]["error"]

    until(is_full)
    assert told[-1][1]["retry-after"] == "1"
    assert called(up, "infer", question(ids, 0, 5))[0] == 200
    (up.folder / ".millrace" / "digits" / "ballast").unlink()
    label(up, labels_of(ids, "rose"))
    accepted = sum(code == 202 for code, _, _ in told) + len(ids)
    until(lambda: status(up).get("labels_joined", 0) >= before.get("labels_joined", 0) + accepted)


def test_sigterm_under_load_and_every_answered_row_is_in_the_log(tmp_path: Path) -> None:
    """With a time to drain, it says that it is not ready and answers on, until a second signal; nobody let in is cut off."""
    answered: list[str] = []
    with labelled(tmp_path, "--drain-s", "3600") as up, ThreadPoolExecutor(4) as pool:

        def client(caller: int) -> None:
            for at in range(1 << 30):
                try:
                    code, body = post(up.port, "infer", question([f"{caller}/{at}"], at % 3, at))
                except (OSError, http.client.HTTPException):
                    return  # the door is closed
                assert code == 200, body
                answered.append(f"{caller}/{at}")

        clients = [pool.submit(client, caller) for caller in range(4)]
        until(lambda: len(answered) > 400)
        up.process.terminate()
        until(lambda: not is_ready(up.port))
        until(lambda: not is_ready(up.port, "/readyz"))
        draining = len(answered)
        with grpc.insecure_channel(f"127.0.0.1:{up.grpc_port}") as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check", response_deserializer=HealthCheckResponse.FromString)
            assert check(b"").status == HealthCheckResponse.NOT_SERVING
        until(lambda: len(answered) > draining + 100)
        up.process.terminate()
        for done in clients:
            done.result()
        until(lambda: up.process.poll() is not None)
        assert up.process.returncode == 0, (tmp_path / "up.log").read_text()
        assert set(answered) <= named(up)
