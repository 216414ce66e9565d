"""A replay of late labels over two partitions: it meets them in the order in which they were met, and leaves a labeller out."""

from __future__ import annotations

from pathlib import Path

import pytest

from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import Instance
from millrace.services.pipeline.succession import live_branch
from millrace.services.replay import run as replay
from millrace.services.replay.plan import Origin, check_plan, load_plan, make_plan
from millrace.services.training import run as running
from millrace.streams.branch.branch import load_checkpoint
from millrace.streams.branch.difference import difference
from millrace.streams.branch.verify import verify
from millrace.streams.journal.exclusions import Header
from millrace.streams.journal.journal import summarise
from millrace.streams.labels.served import LateLabel, Prediction, encode, encode_row
from millrace.streams.records import Record, encode_headers

pytestmark = pytest.mark.slow

PIPELINE = """
name = "shop"
label = { name = "kind" }
learner = { kind = "ridge", solve_rows = 10 }
[[fields]]
name = "x"
size = 2
[labels]
horizon_ms = 110_000
grace_ms = 110_000
DEFAULT
MEMORY
[log]
partitions = 2
[batch]
rows = 8
wait_ms = 1
[worker]
step_ms = 0
"""
MINUTES, EACH = 24, 6
POISON_FROM, POISON_TO = 8, 16
SLOW = (1, 4, 5)  # their labels come in the next minute; ids of both partitions
JOINED = MINUTES * EACH - (POISON_TO - POISON_FROM) - len(SLOW)
START_MS = 1_700_000_000_000
MEMORIES = ("", "[memory]\nrows = 60\nnear = 5\nwarm_up_rows = 20", '[memory]\nform = "sketch"\nwarm_up_rows = 20')


def shop(folder: Path, default: str, poison: bool, memory: str = "") -> Instance:
    """A pipeline that was live, minute by minute; for eight minutes a labeller called till-7 answered before the others."""
    folder.mkdir()
    (folder / "shop.toml").write_text(PIPELINE.replace("DEFAULT", default).replace("MEMORY", memory))
    pipeline = Instance(load_pipeline(folder / "shop.toml"), folder / "shop")
    for minute in range(MINUTES):
        pipeline.log().append("shop.served", list(records(minute, poison, "elsewhere" if memory else "main")))
        running.run(pipeline, "main", running.Bounds(), take_over=False)
    return pipeline


def records(minute: int, poison: bool, branch: str):
    """Predictions of a minute by a branch and their labels, half a minute later; of some there is none but the poisoner's."""
    at_ms = START_MS + 60_000 * minute
    for number in range(EACH):
        row = encode_row({"x": [minute % 5 + number, number % 3]})
        yield record(Prediction(f"r{minute}.{number}", row, branch, 1, 3, (), ()), at_ms, "till-1")
    bad = poison and POISON_FROM <= minute < POISON_TO
    for number in SLOW if minute else ():  # of the minute before
        yield record(LateLabel(f"r{minute - 1}.{number}", "ab"[number % 2], 1), at_ms + 10_000, "till-1")
    for number in range(EACH):
        if bad:
            yield record(LateLabel(f"r{minute}.{number}", "wrong"), at_ms + 20_000, "till-7")
        if number not in SLOW and (number or not POISON_FROM <= minute < POISON_TO):
            yield record(LateLabel(f"r{minute}.{number}", "ab"[number % 2], 1), at_ms + 30_000, "till-1")


def record(content: Prediction | LateLabel, at_ms: int, producer: str) -> Record:
    """As the log has it, keyed by id."""
    headers = encode_headers((("producer", producer.encode()),))
    return Record(encode(content), content.id.encode(), headers, at_ms)


def replayed(pipeline: Instance, file: Path | None = None) -> tuple[dict, dict]:
    """The learner's state and the join's counts of a replay from the last version before the poison."""
    marks = [mark for mark in summarise(pipeline.journal("main"), "main").marks if mark.version]
    version = marks[POISON_FROM - 1].version
    origin = Origin(str(version), file=file)
    plan_sha256, _, extent, _ = make_plan(pipeline, origin, [Header("producer", "till-7")])
    assert extent.excluded == (POISON_TO - POISON_FROM) * EACH
    _, plan = load_plan(pipeline, plan_sha256)
    archive, ledger = Archive(pipeline), pipeline.ledger()
    replay._caught_up(archive, live_branch(archive, ledger), plan, check_plan(archive, ledger, plan))
    backends = pipeline.backends(plan.branch)
    assert verify(pipeline.fold_spec, backends, plan.branch, 3).findings == []
    return state(pipeline, plan.branch)


def state(pipeline: Instance, branch: str) -> tuple[dict, dict]:
    """The newest."""
    parts = load_checkpoint(pipeline.store(), summarise(pipeline.journal(branch), branch).marks[-1])
    return parts["learner"], parts["join"]["counts"]


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_replay_is_the_model_that_never_heard_the_labeller(memory: str, tmp_path: Path) -> None:
    """Without a default: the same sums, memory and fates of every label, over two partitions."""
    poisoned = shop(tmp_path / "poisoned", "", poison=True, memory=memory)
    heard, _ = state(poisoned, "main")
    learned, counts = replayed(poisoned)
    never, never_counts = state(shop(tmp_path / "clean", "", poison=False, memory=memory), "main")
    assert difference(learned, never) <= 1e-8 < difference(heard, never)
    assert not memory or learned["losses"][1:].max() != learned["losses"][0]
    assert counts == never_counts
    assert counts["joined"] == JOINED


def test_rows_whose_only_label_is_left_out_get_no_default(tmp_path: Path) -> None:
    """Nobody else labelled them: they are passed; with the default they would have been learned."""
    default = 'default = "a"'
    _, counts = replayed(shop(tmp_path / "poisoned", default, poison=True))
    _, never = state(shop(tmp_path / "clean", default, poison=False), "main")
    assert (counts["unlabelled"], counts["defaulted"]) == (POISON_TO - POISON_FROM, 0)
    assert (never["unlabelled"], never["defaulted"]) == (0, POISON_TO - POISON_FROM)


def test_a_replay_on_a_path_of_its_own_loses_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin: it reads one partition before the other, and horizons end whose labels lie in that."""
    monkeypatch.setattr(replay, "Retraced", lambda source, path: source)
    pipeline = shop(tmp_path / "poisoned", "", poison=True)
    _, counts = replayed(pipeline)
    assert counts["joined"] < JOINED


def old_rows(folder: Path) -> Path:
    """A file of labelled rows."""
    path = folder / "old.jsonl"
    path.write_bytes(b"".join(b'{"x": [%d, %d], "kind": "%b"}\n' % (at % 7, at % 3, b"ab"[at % 2 :][:1]) for at in range(40)))
    return path


def test_a_back_fill_ends_no_horizon_of_what_waits(tmp_path: Path) -> None:
    """Every label meets its prediction as if no file had been read; the learner has learned the file."""
    learned, counts = replayed(shop(tmp_path / "there", "", poison=True), old_rows(tmp_path))
    plain, plain_counts = replayed(shop(tmp_path / "plain", "", poison=True))
    assert counts == plain_counts and counts["joined"] == JOINED
    assert difference(learned, plain) > 1e-3


def test_a_back_fill_that_is_dated_today_loses_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin: rows that move the clock past every horizon."""
    monkeypatch.setattr("millrace.services.replay.backfill._next_times", lambda source, position: iter(()))
    _, counts = replayed(shop(tmp_path / "there", "", poison=True), old_rows(tmp_path))
    assert counts["joined"] != JOINED
