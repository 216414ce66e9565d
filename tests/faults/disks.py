"""Full disks: under the worker's own folder, where checkpoints cannot be written, and under the broker. Nothing is lost."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from pipelines import fill, small_disk
from scene import Ground, Scene, Told, patiently, until

from millrace.services.config.config import load_pipeline
from millrace.services.demo.broker import Broker
from millrace.services.pipeline.instance import Instance
from millrace.streams.errors import StorageError


def fill_up(ground: Ground, scene: Scene) -> Told:
    """The folder fills up between two checkpoints; once there is room the next worker goes on."""
    told = Told("disk full", "the worker's folder, a disk of 2 MiB, filled up between two checkpoints")
    try:
        with small_disk(scene.folder / "small", 2048) as disk:
            _play(scene, told, disk)
    except pytest.skip.Exception as error:
        told.skipped = str(error)
    return told


def _play(scene: Scene, told: Told, disk) -> None:
    scene.home = disk
    loaded = load_pipeline(scene.pipeline)
    scene.instance = Instance(loaded, disk / loaded.pipeline.name)
    scene.send(1000)
    scene.learn()
    fill(disk)
    scene.send(2000)
    code = scene.learn()
    stderr = scene.last_words()
    full = code == 1 and "No space left" in stderr
    told.shown = [("I8", full, f"stopped: ...{stderr.rpartition('/')[2] if full else stderr}")]
    (disk / "ballast").unlink()
    code = scene.learn()
    told.shown += [*scene.proofs(), ("I9", code == 0, "lag 0 once there was room")]


def fill_broker_up(ground: Ground, scene: Scene) -> Told:
    """The disk of a broker fills up while rows come and are learned; it ends itself. Once there is room all goes on."""
    told = Told("broker disk full", "the broker's folder, a disk of 64 MiB, filled up by another's file while rows came")
    try:
        with small_disk(scene.folder / "small", 64 << 10) as disk:
            broker = Broker(disk / "broker", Path(ground.broker._classes).parent)
            broker.start()
            try:
                with closing(Scene(replace(ground, broker=broker), "broker-disk-full", patience_s=30.0)) as own:
                    _play_broker(own, told, disk)
            finally:
                broker.kill()
    except pytest.skip.Exception as error:
        told.skipped = str(error)
    return told


def _play_broker(scene: Scene, told: Told, disk: Path) -> None:
    scene.send(1000)
    worker = scene.worker()
    scene.wait_read(1000)
    fill(disk)
    sender = _refused(scene)
    until(lambda: worker.poll() is not None, "the worker ends")
    clear = "does not answer or refuses" in sender and "look at" in scene.last_words().lower()
    told.shown = [("I8", clear, f"the sender was told: {sender[:120]}"), ("I8", worker.returncode == 1, scene.last_words())]
    acknowledged = set(scene.sent)
    (disk / "ballast").unlink()
    scene.broker.kill()
    scene.broker.start()
    patiently(lambda: scene.link.topics([scene.name]))
    source = scene.instance.source([scene.name])
    logged = scene.ids([(tp, low, high) for tp, (low, high) in source.bounds().items()])
    kept = acknowledged <= set(logged) and logged == list(range(len(logged)))
    told.shown.append(("I1", kept, f"{len(acknowledged)} rows were acknowledged, {len(logged)} are there, each once"))
    scene.sent = logged
    scene.send(1000)
    code = scene.learn()
    told.shown += [*scene.proofs(), ("I9", code == 0, "lag 0 once there was room")]


def _refused(scene: Scene) -> str:
    """Send until the broker takes no more; what the sender is told."""
    try:
        while len(scene.sent) < 1_000_000:
            scene.send(100)
    except StorageError as error:
        return str(error)
    return "everything was taken"
