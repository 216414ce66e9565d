"""A full disk under the worker's own folder: checkpoints cannot be written, and nothing is lost."""

from __future__ import annotations

import pytest
from rooms import fill, small_disk
from scene import Ground, Scene, Told

from millrace.services.config import load_pipeline
from millrace.services.instance import Instance


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
    said = scene.last_words()
    full = code == 1 and "No space left" in said
    told.shown = [("I8", full, f"stopped: ...{said.rpartition('/')[2] if full else said}")]
    (disk / "ballast").unlink()
    code = scene.learn()
    told.shown += [*scene.proofs(), ("I9", code == 0, "lag 0 once there was room")]
