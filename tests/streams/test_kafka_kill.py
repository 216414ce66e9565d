"""docs/design/journal.md, test 2, on Kafka: real kill -9 of the worker and of the broker, and a writer frozen and replaced."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from either_log import KAFKA, swept
from test_kill import (
    ALL_HOLDS,
    PIPELINE,
    ROWS,
    append,
    command,
    die_at_phase,
    instance_of,
    kill_after,
    verify,
    what_was_learned,
)

from millrace.services.config.config import load_pipeline
from millrace.services.pipeline import backends as logs
from millrace.streams.journal.entries import Step
from millrace.streams.journal.journal import Cursor, checked_entry, summarise

pytestmark = KAFKA

POINTS = [3, pytest.param(20, marks=pytest.mark.faults)]
LAST_MS = 90_000  # for the broker's deaths, the worker's reconnecting and the rest of the rows


@pytest.fixture
def pipeline(tmp_path, broker):
    """A pipeline file in a folder of its own, on topics of its own."""
    path = tmp_path / "kills.toml"
    name = f"kills{time.monotonic_ns()}"
    text = PIPELINE.replace('name = "kills"', f'name = "{name}"', 1)
    path.write_text(f'{text}[log]\nkind = "kafka"\ntopic = "{name}"\n[log.kafka]\nbootstrap = "{broker.bootstrap}"\n')
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
    append(pipeline, 1, 0.0)
    chance = random.Random(7)
    for _ in range(points):
        die_at_phase(pipeline, chance.randint(1, 45))
    die_at_phase(pipeline, 0)
    prove(pipeline)


@pytest.mark.parametrize("points", POINTS)
def test_deaths_of_the_worker_at_any_moment_lose_nothing_and_learn_nothing_twice(pipeline, points: int) -> None:
    """At seeded moments while rows keep coming: start-up, appends, snapshots, wherever the process happens to be."""
    chance = random.Random(11)
    producer = threading.Thread(target=append, args=(pipeline, 60, points / 40))
    producer.start()
    for _ in range(points):
        kill_after(pipeline, chance.uniform(1.5, 5.0))
    producer.join()
    die_at_phase(pipeline, 0)
    prove(pipeline)
    epochs = summarise(instance_of(pipeline).journal("main"), "main").end.epoch
    assert epochs > points // 3, "too few of the processes came as far as taking the branch before they died"


@pytest.mark.parametrize("points", POINTS)
def test_deaths_of_the_broker_lose_nothing_and_the_worker_goes_on_by_itself(pipeline, broker, points: int) -> None:
    """At seeded moments while rows keep coming and are learned: one worker lives through all of them."""
    chance = random.Random(13)
    producer = threading.Thread(target=append, args=(pipeline, 60, points * 0.12))
    worker = subprocess.Popen(command("run", pipeline, "--follow"), stdout=subprocess.DEVNULL)
    producer.start()
    for _ in range(points):
        time.sleep(chance.uniform(3.0, 8.0))  # long enough for clients to find it again now and then
        broker.kill()
        time.sleep(chance.uniform(0.0, 0.5))
        broker.start()
    producer.join()
    wait_for(pipeline, ROWS)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=60) == 0
    prove(pipeline)
    assert summarise(instance_of(pipeline).journal("main"), "main").end.epoch == 1


def wait_for(pipeline: Path, records: int) -> None:
    """Until the journal says that so many were read."""
    instance, until_s = instance_of(pipeline), time.monotonic() + LAST_MS / 1000
    stream = instance.journal("main")
    while sum(summarise(stream, "main").position.values()) < records:
        assert time.monotonic() < until_s, "the worker does not go on"
        time.sleep(0.2)


def test_a_frozen_worker_that_was_replaced_lets_nothing_more_out(pipeline) -> None:
    """It appends what it had read; that is dead for every reader, and its next acknowledgement tells it so."""
    feed = threading.Thread(target=append, args=(pipeline, 60, 0.2))
    follow = command("run", pipeline, "--follow")
    zombie = subprocess.Popen(follow, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    feed.start()
    wait_for(pipeline, ROWS // 6)
    zombie.send_signal(signal.SIGSTOP)
    heir = subprocess.Popen([*follow, "--take-over"], stdout=subprocess.DEVNULL)
    wait_for(pipeline, ROWS // 2)
    zombie.send_signal(signal.SIGCONT)
    said = zombie.communicate(timeout=60)[1]
    assert zombie.returncode == 1 and "the branch is at seq" in said and "of epoch 2" in said, said
    feed.join()
    wait_for(pipeline, ROWS)
    heir.send_signal(signal.SIGTERM)
    assert heir.wait(timeout=60) == 0
    prove(pipeline)
    cursor, dead = Cursor(), []
    for offset, raw in instance_of(pipeline).journal("main").read(0):
        entry = checked_entry(raw, "main", offset, cursor)
        dead += [] if cursor.take(entry) else [entry]
    assert all(isinstance(entry, Step) and entry.epoch == 1 for entry in dead) and cursor.epoch == 2
