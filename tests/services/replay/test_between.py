"""A state between two versions, as an answer names it, is rebuilt from the version before it, and a replay may begin at it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pipelines import here, json_lines, millrace
from poisoned import TEXT, good_rows, instance, lines, mislabelled, newest, replay, send

from millrace.learners.errors import MillraceError
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.bundle import Identity, Parts, bundle_bytes, open_bundle
from millrace.services.pipeline.instance import Instance
from millrace.services.training.run import identity_of_worker
from millrace.streams.branch.branch import load_checkpoint
from millrace.streams.branch.difference import difference
from millrace.streams.parts import pack, sha256
from millrace.streams.worker.worker import Worker

ASKED = [np.random.default_rng(4).normal(size=(50, 4)), np.array(["north", "south"] * 25, dtype=object)]


class Live:
    """What a worker published after each of its steps, as the trainer does, and the whole state then."""

    def __init__(self, pipeline: Instance, folder: Path) -> None:
        self.folder = folder
        self.published: dict[int, tuple[bytes, Parts]] = {}  # by seq
        self.states: dict[int, dict[str, bytes]] = {}
        self._pipeline = pipeline

    def learn(self) -> None:
        """To the log's end, as `millrace run` does, in this process."""
        instance = self._pipeline
        opening = identity_of_worker(instance, "main")
        worker = Worker(instance.fold_spec, instance.backends("main"), instance.loaded.pipeline.worker, opening)
        worker.run(self._look)

    def _look(self, worker: Worker) -> bool:
        fold = worker.fold
        if fold.records:
            identity = Identity("main", worker.epoch, worker.seq)
            parts = Parts(identity, 1, "ridge", fold.features.state(), fold.learner.servable().arrays())
            self.published[worker.seq] = (bundle_bytes(parts, self._pipeline.loaded.pipeline.schema), parts)
            self.states[worker.seq] = {name: pack(part) for name, part in fold.parts().items()}
        return worker.caught_up()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Live:
    """Good rows, then poison, then good ones, learned in two runs: an `open` and marks stand between the states."""
    folder = tmp_path_factory.mktemp("between") / "there"
    folder.mkdir()
    (folder / "digits.toml").write_text(TEXT, encoding="utf-8")
    live = Live(instance(folder), folder)
    send(folder, good_rows(1), "till-1")
    live.learn()
    send(folder, mislabelled(good_rows(5, 100)), "till-7")
    send(folder, good_rows(2), "till-1")
    live.learn()
    assert here("serve", "digits.toml", "--follow", "main", "--reason", "first", "--yes", cwd=folder).exit_code == 0
    return live


def test_a_rebuilt_state_is_the_one_that_answered_bit_for_bit(live: Live) -> None:
    """Every published state, between checkpoints, at one, before the first: its scores, and each part of the whole state."""
    pipeline = instance(live.folder)
    archive, schema = Archive(pipeline), pipeline.loaded.pipeline.schema
    versions = {mark.version for mark in archive.marks("main")}
    between = [seq for seq in live.published if f"main.{seq}" not in versions]
    assert len(between) > 15 and min(between) < min(mark.state_seq for mark in archive.marks("main"))
    for seq in live.published:
        blob, _ = live.published[seq]
        answered = open_bundle(blob, sha256(blob), schema)
        mark = archive.state(f"main.{seq}")
        rebuilt = archive.bundle(mark)
        assert (rebuilt.identity.branch, *rebuilt.identity.place) == ("main", *answered.identity.place)
        if answered.outputs:
            assert rebuilt.predict(ASKED).scores.tobytes() == answered.predict(ASKED).scores.tobytes()
        stored = load_checkpoint(pipeline.store(), mark)
        assert {name: pack(part) for name, part in stored.items()} == live.states[seq]


def test_under_another_configuration_no_state_is_rebuilt_and_the_version_before_is_asked_for(live: Live) -> None:
    """From a version a replay may begin with it."""
    words = ["--set", "batch.rows=7", "--reason", "r"]
    refused = here("replay", "plan", "digits.toml", "--from", "main.5", *words, cwd=live.folder)
    assert refused.exit_code == 2 and "main.5 lies between versions" in refused.stderr and "batch.rows" in refused.stderr


def test_a_replay_from_an_answers_version_goes_on_from_that_state(live: Live) -> None:
    """Planned, run, compared, proved, taken over; it has learned what had been learned by then and the rest but for till-7."""
    folder = live.folder
    begins = f"main.{next(seq for seq in sorted(live.published) if seq > 8)}"
    assert begins not in [line["version"] for line in lines(folder, "versions")]
    command = ["replay", "plan", "digits.toml", "--from", begins, "--exclude-header", "producer=till-7", "--reason", "r"]
    plan = here(*command, "--output", "json", cwd=folder)
    assert plan.exit_code == 0, plan.stderr
    facts = {line["what"]: line["value"] for line in json_lines(plan.stdout)}
    assert facts["from"] == begins and facts["excluded"] == 100
    done = replay(folder, "run", "replay-1")  # in place of the plan's hash
    assert done.returncode == 0, done.stderr
    assert millrace("verify", "digits.toml", "--branch", "replay-1", cwd=folder).returncode == 0
    compared = {line["what"]: line for line in lines(folder, "replay", "diff")}
    assert compared["prequential_rows"]["replayed"] < compared["prequential_rows"]["served"]
    _, mended = newest(folder, "replay-1")
    assert mended["counts"]["counts"]["learned"] == 400
    taken = replay(folder, "take-over", "--reason", "mended", "--yes")
    assert taken.returncode == 0, taken.stderr
    assert difference(mended["learner"], newest(folder, "main")[1]["learner"]) > 1e-8


def test_what_is_no_state_is_said_with_the_nearest_versions(live: Live) -> None:
    """An entry that is not there yet, a branch that is not; nothing is folded for them."""
    archive = Archive(instance(live.folder))
    end = archive.summary("main").end.seq
    for name, words in (
        (
            f"main.{end + 1}",
            f"the branch ends at main.{end}. main.{archive.marks('main')[-1].state_seq} is the version before",
        ),
        ("other.3", "there is no branch other. There are branches: main"),
        ("main", "it is a branch. The newest of branch main: main."),
    ):
        with pytest.raises(MillraceError, match="There is no version") as refused:
            archive.state(name)
        assert words in str(refused.value)
