"""Pipelines with an entity, on both logs: what is learned is what a slow writing-down of the log says."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from broker_topics import forgotten, on
from doomed import Doomed, die_often
from either_log import LOGS
from entity_cards import (
    LATE,
    RECORDED,
    instance,
    learned,
    payments,
    read_order,
    same,
    slow_of,
    slow_windows,
    text,
    unclocked,
    value_of,
    windows_of,
)
from pipelines import MILLRACE, facts, here, json_lines
from poisoned import versions

from millrace.services.metrics.learning import Learning
from millrace.services.pipeline.instance import Instance
from millrace.streams.branch.branch import load_checkpoint
from millrace.streams.journal.journal import summarise
from millrace.streams.kafka.client import Link
from millrace.streams.kafka.cluster import Cluster, Secrets
from millrace.streams.labels.served import LateLabel, Prediction, encode, encode_row
from millrace.streams.records import Record, encode_headers
from millrace.streams.schema import LARGEST

ROWS = 400


@pytest.fixture(params=LOGS)
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """What a pipeline file says of its log."""
    if request.param == "sqlite":
        yield ""
        return
    broker = request.getfixturevalue("broker")
    with forgotten(broker, tmp_path):
        yield on(broker)


def begun(folder: Path, pipeline: str) -> Instance:
    """A pipeline of this file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "digits.toml").write_text(pipeline, encoding="utf-8")
    return instance(folder)


def append(pipeline: Instance, rows: list[dict], producer: str = "till-1") -> None:
    """Rows into the log, each at its own time."""
    headers = encode_headers((("producer", producer.encode()),))
    records = [Record(value_of(row), None, headers, row["t"]) for row in rows]
    pipeline.log().append(pipeline.loaded.pipeline.topic, records)


def ran(folder: Path, *words: str) -> None:
    """`millrace run`, or another command."""
    done = here(*(words or ("run", "digits.toml")), cwd=folder)
    assert done.exit_code == 0, done.output


def proved(folder: Path, *branches: str) -> None:
    """`millrace verify` of each, in a process of its own."""
    for branch in branches:
        ran(folder, "verify", "digits.toml", "--branch", branch)


def state(pipeline: Instance, branch: str = "main") -> tuple[str, dict]:
    """Hash and parts of the newest marked state."""
    mark = summarise(pipeline.journal(branch), branch).marks[-1]
    return mark.state_sha256, load_checkpoint(pipeline.store(), mark)


def test_what_is_learned_is_what_the_log_says_and_the_state_is_proved(table: str, tmp_path: Path) -> None:
    """Every field of every row, the windows and the counts, on either log."""
    pipeline = begun(tmp_path, text(more=table))
    append(pipeline, payments(ROWS))
    ran(tmp_path)
    rows = read_order(pipeline)
    expected, slow = slow_of(rows)
    assert len(rows) == ROWS and len(expected) > 200 and same(learned(pipeline), expected)
    assert windows_of(state(pipeline)[1]) == slow_windows(slow)
    shown = facts(tmp_path)
    events = {f"entity_events_{name}": slow.counts[name] for name in ("repeated", "older", "ahead", "outside")}
    events["entity_events_moved"] = slow.counts["events"]
    gone = {f"entities_let_go_{name}": slow.counts[name] for name in ("idle", "crowded")}
    assert {name: shown[name] for name in shown if name.startswith(("entity_events_", "entities_let_go_"))} == events | gone
    assert sum(events.values()) == ROWS, "every row of the stream is an event, of which one thing became"
    samples = [sample for sample in Learning(pipeline, "main")().samples if sample.name.startswith("millrace_entit")]
    measured = {(sample.name, *sample.labels[1:]): sample.value for sample in samples}
    named = {("millrace_entity_events_total", name.removeprefix("entity_events_")): count for name, count in events.items()}
    named |= {("millrace_entities_let_go_total", name.removeprefix("entities_let_go_")): count for name, count in gone.items()}
    assert measured == named | {("millrace_entities",): len(slow.held)}
    assert shown["entities_kept"] == len(slow.held) and min(slow.counts[name] for name in ("older", "ahead", "idle")) > 0
    proved(tmp_path, "main")


@pytest.mark.slow
def test_topics_of_several_partitions_are_refused_where_they_are_seen(broker, tmp_path: Path) -> None:
    """Before anything is read: also where the topic was there before the pipeline, and where partitions are added meanwhile."""
    with forgotten(broker, tmp_path):
        link = Link(Cluster(broker.bootstrap), Secrets(), 1 << 20)
        link.create("digits-of-many", 2, {})
        pipeline = begun(tmp_path, text(more=on(broker).replace('kind = "kafka"', 'kind = "kafka"\ntopic = "digits-of-many"')))
        done = here("run", "digits.toml", cwd=tmp_path)
        assert done.exit_code != 0 and "Topic digits-of-many has 2 partitions, and [entity] needs topics of one" in done.stderr
        assert not pipeline.branches() or not summarise(pipeline.journal("main"), "main").marks
        link.close()


def test_however_rows_are_cut_into_steps_the_state_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    """One row a step, or all of them."""
    hashes = set()
    for step_rows in (1, 7, 64, 4096):
        pipeline = begun(tmp_path / str(step_rows), text(step_rows))
        append(pipeline, payments(ROWS))
        ran(tmp_path / str(step_rows))
        parts = state(pipeline)[1]
        hashes.add((_packed(parts["entities.0"]), json.dumps(parts["entities"]), _packed(parts["learner"])))
    assert len(hashes) == 1


def _packed(part: dict) -> bytes:
    return b"".join(name.encode() + np.asarray(value).tobytes() for name, value in sorted(part.items()))


@pytest.mark.parametrize("scale", ["", "scale = 0.5\n"])
def test_the_largest_values_stop_no_branch(scale: str, tmp_path: Path) -> None:
    """What windows make of them is learned as the end of its field's range, and the state is proved."""
    softmax = text().replace('kind = "ridge", gamma = 0.5, solve_rows = 25', 'kind = "softmax"')
    pipeline = begun(tmp_path, softmax.replace("over = 4\n", f"over = 4\n{scale}"))
    signs = random.Random(3)
    rows = [row | {"amount": signs.choice([-LARGEST, LARGEST]), "fraud": "yes"} for row in payments(80)]
    append(pipeline, rows)
    ran(tmp_path)
    assert int(facts(tmp_path)["learned"]) == 80
    proved(tmp_path, "main")


@pytest.mark.slow
def test_through_kill_nine_each_event_moves_its_window_once(tmp_path: Path) -> None:
    """Killed at phases while records keep coming."""
    pipeline = begun(tmp_path, text())
    rows = payments(1200)
    records = [Record(value_of(row), None, b"", row["t"]) for row in rows]
    command = [*MILLRACE, "run", "digits.toml", "--follow"]
    doomed = Doomed(pipeline, ["sh", "-c", 'cd "$0" && exec "$@"', str(tmp_path), *command], "digits", records)
    assert die_often(doomed, 6, len(rows), random.Random(5)) >= 3
    ran(tmp_path)
    expected, slow = slow_of(read_order(pipeline))
    assert same(learned(pipeline), expected) and unclocked(windows_of(state(pipeline)[1])) == unclocked(slow_windows(slow))
    proved(tmp_path, "main")


@pytest.mark.slow
def test_a_replay_without_the_poison_has_windows_that_never_saw_it(tmp_path: Path) -> None:
    """Nor does any field that it learns from."""
    pipeline = begun(tmp_path, text())
    good, poison, later = payments(150), payments(80, seed=2, first=1), payments(12, seed=3, first=2)
    append(pipeline, good)
    ran(tmp_path)
    append(pipeline, poison, "till-7")
    append(pipeline, later)
    ran(tmp_path)
    plan = ["replay", "plan", "digits.toml", "--from", versions(tmp_path)[0], "--exclude-header", "producer=till-7"]
    done = here(*plan, "--reason", "poison", "--output", "json", cwd=tmp_path)
    assert done.exit_code == 0, done.stderr
    hashed = str({line["what"]: line["value"] for line in json_lines(done.stdout)}["plan"])
    ran(tmp_path, "replay", "run", "digits.toml", hashed)
    ran(tmp_path, "replay", "take-over", "digits.toml", "--reason", "mended", "--yes")
    proved(tmp_path, "main", "replay-1")
    _, clean = slow_of([*good, *later])
    _, poisoned = slow_of([*good, *poison, *later])
    replayed = windows_of(state(pipeline, "replay-1")[1])
    assert unclocked(replayed) == unclocked(slow_windows(clean)) != unclocked(slow_windows(poisoned))
    assert unclocked(windows_of(state(pipeline)[1])) == unclocked(slow_windows(poisoned))


@pytest.mark.slow
def test_a_rollback_of_the_learner_keeps_the_newest_windows(tmp_path: Path) -> None:
    """The learner is of the version, and windows are where the join is."""
    pipeline = begun(tmp_path, text())
    for part in range(2):
        append(pipeline, payments(150, seed=part, first=part))
        ran(tmp_path)
    newest, version = state(pipeline)[1], versions(tmp_path)[0]
    ran(tmp_path, "rollback", "digits.toml", version, "--learner", "--reason", "bad", "--yes")
    (branch,) = [name for name in pipeline.branches() if name != "main"]
    forked = state(pipeline, branch)[1]
    assert _packed(forked["entities.0"]) == _packed(newest["entities.0"])
    assert _packed(forked["learner"]) != _packed(newest["learner"])
    append(pipeline, payments(100, seed=7, first=2))
    ran(tmp_path, "run", "digits.toml", "--branch", branch)
    proved(tmp_path, "main", branch)


def test_an_entity_that_is_not_in_the_file_is_in_no_record_and_no_state(tmp_path: Path) -> None:
    """Without the table no part, no figure and no declaration of it is written."""
    plain = "\n".join(line for line in text().split("[entity]")[0].splitlines())
    file = plain + '\n[[fields]]\nname = "row"\n\n[batch]\nrows = 20\nwait_ms = 2000\n'
    pipeline = begun(tmp_path, file)
    append(pipeline, [{"row": at, "fraud": "yes" if at % 2 else "no", "t": 1000 + at} for at in range(60)])
    ran(tmp_path)
    assert not [name for name in state(pipeline)[1] if name.startswith("entities")]
    assert not [name for name in facts(tmp_path) if name.startswith("entities")]
    assert b"entity" not in pipeline.loaded.pipeline.schema.declared and b"past" not in pipeline.loaded.pipeline.schema.declared


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"card": None}, "missing-field"),
        ({"card": 1.5}, "wrong-type"),
        ({"at": "yesterday"}, "wrong-type"),
        ({"at": 1e17}, "out-of-range"),
        ({"amount": "much"}, "wrong-type"),
    ],
)
def test_a_row_that_says_no_one_or_no_time_is_a_dead_letter(bad: dict, reason: str, tmp_path: Path) -> None:
    """It moves no window."""
    pipeline = begun(tmp_path, text())
    rows = payments(60)
    append(pipeline, [*rows, rows[0] | {"row": 999} | bad])
    ran(tmp_path)
    done = here("dead-letters", "list", "digits.toml", "--output", "json", cwd=tmp_path)
    (letter,) = json_lines(done.stdout)
    assert letter["reason"] == reason
    assert windows_of(state(pipeline)[1]) == slow_windows(slow_of(rows)[1])


def test_config_show_names_fields_of_the_past_by_the_words_of_the_file(tmp_path: Path) -> None:
    """Not by those of the code."""
    begun(tmp_path, text())
    done = here("config", "show", "digits.toml", "--output", "json", cwd=tmp_path)
    shown = {str(line["key"]): line for line in json_lines(done.stdout)}
    named = {name: shown[name]["value"] for name in ("fields[2].as", "fields[2].name", "entity.key")}
    assert named == {"fields[2].as": "lag", "fields[2].name": "amount_lag_1", "entity.key": "card"}


def test_a_past_that_no_window_gave_is_a_dead_letter_and_the_branch_goes_on(tmp_path: Path) -> None:
    """Such a record comes from nobody's endpoint; the learner never sees it."""
    pipeline = begun(tmp_path, text(events='events = "requests"', more=LATE + RECORDED))
    fields = len(pipeline.loaded.pipeline.schema.past)
    rows, records = payments(40), list[Record]()
    for at, row in enumerate(rows):
        past = [None if field.missing != "reject" else 0.0 for field in pipeline.loaded.pipeline.schema.past]
        past = {3: [None] * fields, 4: [1e308] * fields, 5: past[1:]}.get(at, past)
        shown = encode_row({name: row.get(name) for name in ("card", "row", "amount", "at")})
        answer = Prediction(f"r{at}", shown, "main", 1, 2, ("no", "yes"), (0.2, 0.8), past=tuple(past))
        records += [Record(encode(one), f"r{at}".encode(), b"", row["t"]) for one in (answer, LateLabel(f"r{at}", "yes"))]
    pipeline.log().append(pipeline.loaded.pipeline.served_topic, records)
    ran(tmp_path)
    done = here("dead-letters", "list", "digits.toml", "--output", "json", cwd=tmp_path)
    reasons = sorted(letter["reason"] for letter in json_lines(done.stdout) if "past" in str(letter))
    assert reasons == ["missing-field", "out-of-range", "wrong-shape"]
    assert int(facts(tmp_path)["rejected"]) == 3 and int(facts(tmp_path)["learned"]) > 0
    proved(tmp_path, "main")
