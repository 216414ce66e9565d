"""docs/design/journal.md, test 2, on Kafka: real kill -9 of the worker and of the broker, and a writer frozen and replaced."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from doomed import die_often
from either_log import KAFKA, swept
from exactly_once import (
    ALL_HOLDS,
    KILLS,
    ROWS,
    append,
    command,
    die_at_phase,
    doomed_on,
    instance_of,
    records,
    verify,
    what_was_learned,
)
from pipelines import TIMEOUT_S

from millrace.services.config.config import load_pipeline
from millrace.services.pipeline import backends as logs
from millrace.streams.branch.outputs import last_output
from millrace.streams.errors import StorageError
from millrace.streams.journal.entries import Mark, Step
from millrace.streams.journal.journal import Cursor, Summary, checked_entry, extend, summarise

pytestmark = KAFKA

POINTS = [3, pytest.param(20, marks=pytest.mark.faults)]


@pytest.fixture
def pipeline(tmp_path, broker):
    """A pipeline file in a folder of its own, on topics of its own."""
    path = tmp_path / "kills.toml"
    name = f"kills{time.monotonic_ns()}"
    text = KILLS.replace('name = "kills"', f'name = "{name}"', 1)
    path.write_text(
        f'{text}[log]\nkind = "kafka"\ntopic = "{name}"\n[log.kafka]\nbootstrap = "{broker.bootstrap}"\npatience_s = 300\n'
    )
    with swept():
        yield path
        logs.OnKafka(load_pipeline(path).pipeline)._readers.link.close()
        logs._connected.cache_clear()


def prove(pipeline: Path) -> None:
    """Every row was learned once, and a fresh process that folds the surviving journal gets the same state, bit for bit."""
    assert what_was_learned(pipeline) == ALL_HOLDS
    proof = verify(pipeline)
    assert proof.returncode == 0, proof.stderr
    assert json.loads(proof.stdout)["records"] == ROWS


@pytest.mark.parametrize("points", POINTS)
def test_deaths_of_the_worker_between_phases_lose_nothing_and_learn_nothing_twice(pipeline, points: int) -> None:
    """At seeded points between the phases of a step, with everything in the log before the first of them."""
    append(pipeline)
    chance = random.Random(7)
    for _ in range(points):
        die_at_phase(pipeline, chance.randint(1, 45))
    die_at_phase(pipeline, 0)
    prove(pipeline)


@pytest.mark.parametrize("points", [4, pytest.param(20, marks=pytest.mark.faults)])
def test_deaths_of_the_worker_at_any_phase_lose_nothing_and_learn_nothing_twice(pipeline, points: int) -> None:
    """In a start, after it, while rows are read and while a checkpoint is marked; rows keep coming all the while."""
    pipeline.write_text(pipeline.read_text().replace("checkpoint_rows = 500", "checkpoint_rows = 150"))
    took = die_often(doomed_on(pipeline), points, ROWS, random.Random(11))
    die_at_phase(pipeline, 0)
    prove(pipeline)
    epochs = summarise(instance_of(pipeline).journal("main"), "main").end.epoch
    assert took == points * 3 // 4 and epochs > took, "each of them had the branch when it died, and then the last"


@pytest.mark.parametrize("points", POINTS)
def test_deaths_of_the_broker_lose_nothing_and_the_worker_goes_on_by_itself(pipeline, broker, points: int) -> None:
    """At seeded rows of those that keep coming and are learned: one worker lives through all of them."""
    chance, spread = random.Random(13), ROWS // points
    producer = threading.Thread(target=send, args=(pipeline,))
    worker = subprocess.Popen(command("run", pipeline, "--follow"), stdout=subprocess.DEVNULL)
    producer.start()
    for at in range(points):
        wait_for(pipeline, chance.randrange(at * spread, (at + 1) * spread))  # clients have found it again since the last
        broker.kill()
        time.sleep(chance.uniform(0.0, 0.5))  # it is away for so long
        broker.start()
    producer.join()
    wait_learned(pipeline)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=TIMEOUT_S) == 0
    prove(pipeline)
    assert summarise(instance_of(pipeline).journal("main"), "main").end.epoch == 1


def send(pipeline: Path) -> None:
    """All rows, a hundred as soon as the hundred before the last were read: a worker never has all that come."""
    instance = instance_of(pipeline)
    rows, log = records(), instance.log()
    for at in range(0, ROWS, 100):
        wait_for(pipeline, at - 200)
        log.append(instance.loaded.pipeline.topic, rows[at : at + 100])


def wait_for(pipeline: Path, records: int) -> None:
    """Until the journal says that so many were read; the broker may be away meanwhile."""
    stream, summary, until_s = instance_of(pipeline).journal("main"), Summary(), time.monotonic() + TIMEOUT_S
    while sum(summary.position.values()) < records:
        assert time.monotonic() < until_s, "the worker does not go on"
        with suppress(StorageError):
            extend(summary, stream, "main")
        time.sleep(0.02)


def wait_learned(pipeline: Path) -> None:
    """Until every row was read, and none of them waits for the rest of its batch any more."""
    wait_for(pipeline, ROWS)
    instance, until_s = instance_of(pipeline), time.monotonic() + TIMEOUT_S
    producer, name = instance.backends("main").producer, instance.loaded.pipeline.name
    while (output := last_output(producer, name, "main")) is None or (output.records, output.waiting) != (ROWS, 0):
        assert time.monotonic() < until_s, "rows wait for their batch"
        time.sleep(0.02)


def test_a_frozen_worker_that_was_replaced_lets_nothing_more_out(pipeline) -> None:
    """It appends what it had on its way, a step or a mark: dead for every reader, as its next acknowledgement tells it."""
    feed = threading.Thread(target=send, args=(pipeline,))
    follow = command("run", pipeline, "--follow")
    zombie = subprocess.Popen(follow, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    feed.start()
    wait_for(pipeline, ROWS // 6)
    zombie.send_signal(signal.SIGSTOP)
    heir = subprocess.Popen([*follow, "--take-over"], stdout=subprocess.DEVNULL)
    wait_for(pipeline, ROWS // 2)
    zombie.send_signal(signal.SIGCONT)
    stderr = zombie.communicate(timeout=TIMEOUT_S)[1]
    assert zombie.returncode == 1 and "the branch is at seq" in stderr and "of epoch 2" in stderr, stderr
    feed.join()
    wait_learned(pipeline)
    heir.send_signal(signal.SIGTERM)
    assert heir.wait(timeout=TIMEOUT_S) == 0
    prove(pipeline)
    cursor, dead = Cursor(), []
    for offset, raw in instance_of(pipeline).journal("main").read(0):
        entry = checked_entry(raw, "main", offset, cursor)
        dead += [] if cursor.take(entry) else [entry]
    assert all(isinstance(entry, Step | Mark) and entry.epoch == 1 for entry in dead) and cursor.epoch == 2
