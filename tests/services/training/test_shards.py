"""Several shards learn what one would have learned, are served as one, and are proved."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
from pipelines import PIPELINE, facts, flower_rows, here, json_lines, late_rows, millrace, pipeline_in
from served_pipeline import Up, post, question, served, until

from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import Instance
from millrace.streams.branch.branch import load_part
from millrace.streams.journal.entries import Merge
from millrace.streams.journal.journal import Cursor, counted
from millrace.streams.labels.served import LateLabel, encode
from millrace.streams.records import Record

PARTED = PIPELINE.replace("gamma = 0.5", "gamma = 0.5, solve_rows = 20") + "[log]\npartitions = 4\n"
SHARDED = PARTED.replace("seed = 7", "seed = 7\nshards = 3")


def instance_in(folder) -> Instance:
    """The pipeline of a test's folder."""
    return Instance(load_pipeline(folder / "digits.toml"), folder / ".millrace" / "digits")


def learned(folder, text, rows=600) -> Instance:
    """A pipeline that has learned all its rows, by `millrace run`."""
    pipeline_in(folder, rows, text)
    for words in (("send", "digits.toml", "rows.jsonl"), ("run", "digits.toml")):
        done = millrace(*words, cwd=folder)
        assert done.returncode == 0, done.stderr
    return instance_in(folder)


def weights(instance: Instance) -> tuple[dict[str, np.ndarray], dict]:
    """What the newest version answers with, by class, and its counts."""
    mark = Archive(instance).marks("main")[-1]
    parts = Archive(instance).parts(mark)
    serve = parts.serve
    columns = np.vstack([serve["weights"], serve["intercept"]])
    return {name: columns[:, at] for at, name in enumerate(serve["classes"])}, serve


def assert_answers_alike(three: Instance, single: Instance) -> None:
    """The newest merge has the weights of one learner, to rounding."""
    (merged, _), (whole, _) = weights(three), weights(single)
    assert set(merged) == set(whole)
    for name in whole:
        np.testing.assert_allclose(merged[name], whole[name], rtol=0, atol=1e-10)


def test_three_shards_learn_what_one_learns(tmp_path) -> None:
    """The merge is exact: its answers are those of one learner over all partitions, to rounding."""
    for name in ("one", "three"):
        (tmp_path / name).mkdir()
    three = learned(tmp_path / "three", SHARDED)
    assert_answers_alike(three, learned(tmp_path / "one", PARTED))
    assert three.branches() == ["main", "main-1of3", "main-2of3", "main-3of3"]


def test_every_row_is_learned_by_one_shard(tmp_path) -> None:
    """Learned rows add up over the shards, and each shard has read its own partitions alone."""
    instance = learned(tmp_path, SHARDED)
    shards = [facts(tmp_path, "--branch", shard) for shard in instance.shards("main")]
    assert sum(shard["learned"] for shard in shards) == sum(shard["records"] for shard in shards) == 600
    assert [shard["lag_rows"] for shard in shards] == [0, 0, 0]
    assert facts(tmp_path)["records"] == 600


def test_merged_versions_are_proved_from_their_shards(tmp_path) -> None:
    """`verify` folds every shard again and merges them again, and certifies the version."""
    instance = learned(tmp_path, SHARDED)
    done = here("verify", "digits.toml", "--output", "json", cwd=tmp_path)
    assert done.exit_code == 0, done.stderr
    proved = [name for line in json_lines(done.stdout) for name in line["proved"]]
    version = Archive(instance).marks("main")[-1].version
    assert version in proved
    assert instance.ledger().certificates[str(version)].holds


def test_a_version_that_merges_something_else_is_found(tmp_path) -> None:
    """A shard's stored state that was altered makes the merge not provable, and `verify` says so."""
    instance = learned(tmp_path, SHARDED)
    for path in (instance.folder / "store" / "main-2of3").iterdir():
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
    done = here("verify", "digits.toml", cwd=tmp_path)
    assert done.exit_code == 1


def test_running_on_merges_on(tmp_path) -> None:
    """A second run goes on with every shard and marks a version of the new states; a third without rows marks none."""
    instance = learned(tmp_path, SHARDED)
    first = Archive(instance).marks("main")[-1].version
    (tmp_path / "more.jsonl").write_bytes(b"\n".join(flower_rows(90, seed=8)) + b"\n")
    assert millrace("send", "digits.toml", "more.jsonl", cwd=tmp_path).returncode == 0
    versions = []
    for _ in range(2):
        done = millrace("run", "digits.toml", "--output", "json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        versions.append(json_lines(done.stdout)[0]["version"])
    assert versions[0] != first
    assert versions[1] == versions[0]
    assert facts(tmp_path)["records"] == 690


LATE = "[labels]\nhorizon_ms = 600000\ngrace_ms = 60000\n"


def learned_late(folder, text, rows=300) -> Instance:
    """A pipeline that has learned rows whose labels came late, by `millrace run`."""
    folder.mkdir()
    pipeline_in(folder, 1, text + LATE)
    (folder / "served.jsonl").write_bytes(b"\n".join(late_rows(rows)) + b"\n")
    for words in (("send", "digits.toml", "served.jsonl", "--served"), ("run", "digits.toml")):
        done = millrace(*words, cwd=folder)
        assert done.returncode == 0, done.stderr
    return instance_in(folder)


def test_three_shards_learn_from_late_labels_what_one_learns(tmp_path) -> None:
    """A label lies in its prediction's shard, by the key that both have; nothing is lost, and all of it is proved."""
    three = learned_late(tmp_path / "three", SHARDED)
    assert_answers_alike(three, learned_late(tmp_path / "one", PARTED))
    shown = facts(tmp_path / "three")
    assert (shown["learned"], shown["labels_joined"], shown["labels_awaited"], shown["labels_unmatched"]) == (300, 300, 0, 0)
    each = [facts(tmp_path / "three", "--branch", shard) for shard in three.shards("main")]
    assert min(shard["labels_joined"] for shard in each) > 50
    done = here("verify", "digits.toml", cwd=tmp_path / "three")
    assert done.exit_code == 0, done.stderr


def test_what_was_answered_by_the_merge_is_scored_as_it_was_served(tmp_path) -> None:
    """The branch that shards are merged into answers for all of them, so no shard answers its rows again."""
    instance = learned_late(tmp_path / "there", SHARDED)
    for shard in instance.shards("main"):
        scores = load_part(instance.store(), Archive(instance).marks(shard)[-1], "served_scores")
        rows, roses = sum(scores["label_rows"]), scores["label_rows"][scores["labels"].index("rose")]
        assert rows == facts(tmp_path / "there", "--branch", shard)["learned"] > 0
        assert scores["totals"]["correct"] == roses, "every answer in the log is rose"


def test_shards_that_learned_nothing_merge_into_no_version(tmp_path) -> None:
    """Rows without labels are read and passed; with the first learned row, in one shard of three, there is a merged version."""
    pipeline_in(tmp_path, text=SHARDED)
    rows = [json.loads(line) for line in flower_rows(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row | {"label": None}) + "\n" for row in rows))
    assert here("send", "digits.toml", "rows.jsonl", cwd=tmp_path).exit_code == 0
    [done] = json_lines(here("run", "digits.toml", "--output", "json", cwd=tmp_path).stdout)
    assert (done["read"], done["passed"], done["learned"], done["version"]) == (12, 12, 0, None)
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert here("send", "digits.toml", "rows.jsonl", cwd=tmp_path).exit_code == 0
    [done] = json_lines(here("run", "digits.toml", "--output", "json", cwd=tmp_path).stdout)
    assert (done["read"], done["learned"]) == (1, 1) and done["version"] is not None


def test_a_served_record_that_lies_astray_is_a_dead_letter(tmp_path) -> None:
    """Without its key a label may lie in another shard than its prediction; it is refused with the reason, and counted."""
    instance = learned_late(tmp_path / "there", SHARDED)
    stray = [Record(encode(LateLabel(f"request {at}", "rose", 1))) for at in range(4)]  # they take turns
    instance.log().append("digits.served", stray)
    assert millrace("run", "digits.toml", cwd=tmp_path / "there").returncode == 1  # all that this run read
    letters = here("dead-letters", "list", "digits.toml", "--output", "json", cwd=tmp_path / "there")
    assert [line["reason"] for line in json_lines(letters.stdout)] == ["other-partition"] * 4
    status = facts(tmp_path / "there")
    assert (status["learned"], status["rejected"], status["records"]) == (300, 4, 604)
    done = here("verify", "digits.toml", cwd=tmp_path / "there")
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("partitions = 4", "partitions = 2"), "from 1 to log.partitions, 2"),
        (("shards = 3", "shards = 0"), "from 1 to log.partitions, 4"),
        (('categories = ["north", "south"]', 'categories = "grow"\nmax = 4'), "field site has a table that grows"),
    ],
)
def test_what_does_not_add_up_is_refused(tmp_path, change, sentence) -> None:
    """A pipeline whose shards would not add up to one is refused when its file is read."""
    pipeline_in(tmp_path, 1, SHARDED.replace(*change))
    done = here("status", "digits.toml", cwd=tmp_path)
    assert done.exit_code == 2
    assert sentence in done.stderr


def test_another_number_of_shards_is_another_branch(tmp_path) -> None:
    """Dealing the partitions out anew changes every shard, so it is refused for a branch and offered as a new one."""
    learned(tmp_path, SHARDED)
    (tmp_path / "digits.toml").write_text(SHARDED.replace("shards = 3", "shards = 2"))
    done = millrace("run", "digits.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert "shards = 2 (begun with 3)" in done.stderr
    done = millrace("run", "digits.toml", "--branch", "two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"two", "two-1of2", "two-2of2"} <= set(instance_in(tmp_path).branches())


def test_one_process_follows_one_shard(tmp_path) -> None:
    """`run --follow` would learn the first shard for ever, so it is refused for several, with the way out."""
    pipeline_in(tmp_path, 1, SHARDED)
    done = here("run", "digits.toml", "--follow", cwd=tmp_path)
    assert done.exit_code == 2
    assert "--branch main-1of3" in done.stderr


def killed(up: Up, title: str) -> bool:
    """Whether one was killed: by its name while one of its methods runs, or else one of its class."""
    for name in (title, "Merger" if title.endswith("main") else "Trainer"):
        if pids := up.pids(name):
            os.kill(pids[0], signal.SIGKILL)
            return True
    return False


@pytest.mark.slow
@pytest.mark.xdist_group("shards")
def test_shards_are_served_as_one_and_survive_kills(tmp_path) -> None:
    """Trainers of two shards and the merger are killed under load; every row and late label is learned once, and proved."""
    pipeline_in(tmp_path, 400, SHARDED + LATE)
    assert millrace("send", "digits.toml", "rows.jsonl", cwd=tmp_path).returncode == 0
    with served(tmp_path) as up:
        until(lambda: facts(tmp_path).get("learned") == 400)
        for title in ("trainer-digits-main-1of3", "trainer-digits-main-2of3", "trainer-digits-main"):
            until(lambda title=title: killed(up, title))
            (tmp_path / "more.jsonl").write_bytes(b"\n".join(flower_rows(60, seed=len(title))) + b"\n")
            assert millrace("send", "digits.toml", "more.jsonl", cwd=tmp_path).returncode == 0
            assert up.ask()["status"] == 200
        until(lambda: facts(tmp_path).get("learned") == 580)
        assert up.answered()["model_version"].startswith("main.")
        assert post(up.port, "infer", question(ids := [f"asked/{at}" for at in range(9)]))[0] == 200
        assert post(up.port, "labels", {"labels": [{"id": identity, "label": "lily"} for identity in ids]})[0] == 202
        until(lambda: facts(tmp_path).get("labels_joined") == 9)
    assert json.loads(here("status", "digits.toml", "--output", "json", cwd=tmp_path).stdout.splitlines()[0])
    done = here("verify", "digits.toml", cwd=tmp_path)
    assert done.exit_code == 0, done.stderr
    instance = instance_in(tmp_path)
    merges = [entry for entry in counted(instance.journal("main"), "main", Cursor()) if isinstance(entry, Merge)]
    assert len(merges) >= 2
    assert sum(facts(tmp_path, "--branch", shard)["learned"] for shard in instance.shards("main")) == 589
