"""A pipeline with an error memory, through everything: poison, both protocols, late labels, kill -9, replay, proof, export."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from either_log import KAFKA
from pipelines import event, facts, flower_rows, millrace
from poisoned import BAD, GOOD, TEXT, begin, instance, newest, planned, replay, verified, versions
from served_pipeline import served, until

pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")
from broker_topics import forgotten, on
from label_calls import all_answer, asked_by_grpc, asking, called, label, labelled_by_grpc, settled

from millrace.services.pipeline.archive import Archive
from millrace.services.registry import export

LEARNERS = {
    "ridge": 'kind = "ridge", gamma = 0.5, solve_rows = 50',
    "softmax": 'kind = "softmax", warm_up_rows = 60, step_rows = 10',
    "er": 'kind = "er", warm_up_rows = 25, hidden = [8], buffer_rows = 40',
}
MEMORY = """
[memory]
rows = 150
near = 20
warm_up_rows = 40
{more}
[labels]
horizon_ms = 600000
grace_ms = 60000
"""
CASES = [("ridge", "", "sqlite"), ("softmax", 'form = "sketch"', "sqlite"), ("er", "strength = 0.6", "sqlite")]
CASES += [("ridge", 'form = "sketch"', "kafka"), ("softmax", "strength = 0.6", "kafka"), ("er", "", "kafka")]
ASKED, LATER = 30, 60  # rows that are asked each way; good ones after the poison


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "more", "log"),
    [pytest.param(*case, marks=KAFKA if case[2] == "kafka" else pytest.mark.xdist_group("memory")) for case in CASES],
)
def test_a_memory_goes_through_everything(kind: str, more: str, log: str, tmp_path: Path, request) -> None:
    """Around each kind, on each log: whoever answers, answers as the trainer, and the log proves every branch."""
    text = TEXT.replace('kind = "ridge", gamma = 0.5, solve_rows = 50', LEARNERS[kind]) + MEMORY.format(more=more)
    if log == "sqlite":
        everything(begin(tmp_path / "digits", with_poison=True, text=text, later=LATER))
        return
    broker = request.getfixturevalue("broker")
    with forgotten(broker, tmp_path):
        everything(begin(tmp_path / "digits", with_poison=True, text=text + on(broker), later=LATER))


def everything(folder: Path) -> None:
    """From two versions with poison between them to a branch that never learned it."""
    before, x = facts(folder), rows_of(1)
    assert before["memory_squared_error"] < before["memory_squared_error_uncorrected"] and len(versions(folder)) >= 2
    assert before.keys() >= {"memory_log_loss", "memory_log_loss_uncorrected"}
    with served(folder) as up:
        ids = [f"http/{row}" for row in range(ASKED)]
        _, _, by_http = called(up, "infer", asking(ids, x))
        by_grpc = asked_by_grpc(up, [f"grpc/{row}" for row in range(ASKED)], x)
        scores = np.array(by_http["outputs"][0]["data"])
        assert np.array_equal(scores, np.frombuffer(by_grpc.raw_output_contents[0], "<f8"))
        label(up, {"labels": [{"id": name, "label": "daisy"} for name in ids]})
        assert labelled_by_grpc(up, [f"grpc/{row}" for row in range(ASKED)], "daisy") == ASKED
        assert called(up, "infer", asking([f"late/{row}" for row in range(ASKED)], x))[0] == 200
        label(up, {"labels": [{"id": f"late/{row}", "label": "rose"} for row in range(ASKED)]}, "till-7")
        seq = settled(up, labels_joined=3 * ASKED, learned=GOOD + BAD + LATER + 3 * ASKED)["seq"]
        between = newest_answer(up, seq, x)
        for title in (":Predictor", ":Trainer"):
            alive, dead = len(up.pids(title)), up.kill(title)
            until(lambda title=title, dead=dead, alive=alive: dead not in (now := up.pids(title)) and len(now) == alive)
            until(lambda: all(code == 200 for code in asked_again(up, x)) and all_answer(up))
            later = [np.abs(newest_answer(up, seq, x) - between).max() for _ in range(20)]
            assert later == [0.0] * 20, (title, later)
        learned = settled(up, labels_joined=3 * ASKED)
        answers = [newest_answer(up, learned["seq"], x) for _ in range(20)]  # of both replicas, one of them a new process
        rolled_back(up, folder, x)
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    pipeline = instance(folder)
    bundle = Archive(pipeline).newest("main")
    assert bundle is not None
    decoded, refused = pipeline.fold_spec.codec.decode([event(row, at) for at, row in enumerate(flower_rows(12, seed=9))])
    assert not refused and np.abs(answered(bundle, x) - answers[0]).max() <= 1e-9 * np.abs(answers[0]).max()
    for words in (["run", planned(folder)], ["take-over", "--reason", "mended", "--yes"]):
        done = replay(folder, *words)
        assert done.returncode == 0, done.stderr
    verified(folder, "main", "replay-1")
    heard, replayed = (counts_of(folder, branch) for branch in ("main", "replay-1"))
    assert heard == (GOOD + BAD + LATER + 3 * ASKED, 3 * ASKED) and replayed == (GOOD + LATER + 2 * ASKED, 2 * ASKED)
    version = versions(folder)[-1]
    export.export(pipeline, version, folder / "out")
    own = Archive(pipeline).version(version).predict(decoded.columns).scores
    assert np.array_equal(export.opened(folder / "out").predict(decoded.columns).scores, own)


def asked_again(up, x: list[list[float]]) -> list[int]:
    """Two codes: with the request for the status the front, which takes replicas in turn, comes to each with both kinds."""
    return [called(up, "infer", asking(["again"], x[:1]))[0] for _ in range(2)]


def rolled_back(up, folder: Path, x: list[list[float]]) -> None:
    """To the oldest version, whose own memory then corrects what it answers; and back again."""
    version = versions(folder)[0]
    done = millrace("rollback", "digits.toml", version, "--reason", "it looks wrong", "--yes", cwd=folder)
    assert done.returncode == 0, done.stderr
    until(lambda: up.all_serve(f"version {version}"))
    answer = newest_answer(up, 0, x)
    own = answered(Archive(instance(folder)).version(version), x)
    assert np.abs(own - answer).max() <= 1e-9 * np.abs(answer).max()
    assert millrace(*done.stderr.splitlines()[-1].split()[2:], cwd=folder).returncode == 0
    until(lambda: up.all_serve("the newest of main"))


def counts_of(folder: Path, branch: str) -> tuple[int, int]:
    """Rows that the newest checkpoint of a branch has learned, and labels that met their row."""
    _, parts = newest(folder, branch)
    return parts["counts"]["counts"]["learned"], parts["join"]["counts"]["joined"]


def rows_of(seed: int) -> list[list[float]]:
    """Rows that look like tulips."""
    chance = random.Random(seed)
    return [[float(chance.randrange(17) + 5) for _ in range(4)] for _ in range(ASKED)]


def newest_answer(up, seq: int, x: list[list[float]]) -> np.ndarray:
    """The scores of whoever answers, once that is the trainer's newest state."""
    heard: dict = {}

    def is_newest() -> bool:
        code, _, answer = called(up, "infer", asking(["newest"] * len(x), x))
        heard.update(answer)
        return code == 200 and answer["parameters"]["seq"] >= seq

    until(is_newest)
    return np.array(heard["outputs"][0]["data"])


def answered(bundle, x: list[list[float]]) -> np.ndarray:
    """A bundle's scores."""
    return bundle.predict([np.array(x), np.array(["north"] * len(x), dtype=object)]).scores.ravel()
