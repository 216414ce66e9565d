"""The folder that the release before wrote, tests/recorded/before, and what is appended to its pipelines."""

from __future__ import annotations

import json
import random
from pathlib import Path

from millrace.services.pipeline.instance import Instance
from millrace.streams.labels.served import LateLabel, encode
from millrace.streams.records import Record

BEFORE = Path(__file__).parents[2] / "recorded" / "before"


def flowers(count: int) -> bytes:
    """Rows of ``flowers``, as lines."""
    chance = random.Random(11)
    row = {"site": "north", "age": None, "town": "Ulm", "w": 4, "kind": "rose"}
    return b"".join(json.dumps(row | {"x": [chance.randrange(9) for _ in range(4)]}).encode() + b"\n" for _ in range(count))


def label(instance: Instance) -> None:
    """A label for a prediction that waits in the folder, as if it had come a millisecond after the newest record."""
    source = instance.source([instance.loaded.pipeline.served_topic])
    ((tp, (_, end)),) = source.bounds().items()
    (newest,) = source.read(tp, end - 1, end).events
    late = LateLabel("mail 7", True)
    record = Record(encode(late), late.id.encode(), timestamp_ms=newest.timestamp_ms + 1)
    instance.log().append(instance.loaded.pipeline.served_topic, [record])
