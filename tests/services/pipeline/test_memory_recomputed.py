"""Answers, losses and lambda of an error memory, recomputed by NumPy from the log alone: rows, answers and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from late_stream import AT_ONCE, driven
from remembered import SHARES, WrittenDown

from millrace.learners.memory.config import MemoryConfig
from millrace.services.config.config import build_pipeline
from millrace.services.pipeline.instance import Instance
from millrace.services.training.run import identity_of_worker, serve_first
from millrace.streams.labels.served import LateLabel, Prediction, encode
from millrace.streams.records import Record
from millrace.streams.worker.worker import Worker

ROWS = 2000
NAMES = ("no", "yes")
DECODE = msgspec.json.Decoder(Prediction | LateLabel).decode


def instance_of(home: Path, memory: dict[str, Any], learner: dict[str, Any]) -> Instance:
    """A pipeline of four numbers."""
    raw: dict[str, Any] = {
        "name": "recomputed",
        "seed": 11,
        "fields": [{"name": "x", "size": 4}],
        "label": {"name": "y"},
        "learner": learner,
        "memory": memory,
        "batch": {"rows": AT_ONCE},
        "labels": {},
        "worker": {"step_ms": 0},
    }
    return Instance(build_pipeline(raw), home / "recomputed")


def stream() -> tuple[np.ndarray, list[str]]:
    """Rows whose rule no straight line tells, and which turns over in the end."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(ROWS, 4))
    yes = (x[:, 0] * x[:, 1] > 0) != (np.arange(ROWS) > 1500)
    return x, [NAMES[int(label)] for label in yes != (rng.random(ROWS) < 0.05)]


def by_name(classes: tuple[str, ...], numbers: Any) -> np.ndarray:
    """Numbers of some classes as those of all."""
    told = dict(zip(classes, numbers, strict=True))
    return np.array([told.get(name, 0.0) for name in NAMES])


@pytest.mark.parametrize("delay", [0, 48])
@pytest.mark.parametrize(
    ("memory", "learner"),
    [
        ({"rows": 500}, {"kind": "ridge", "solve_rows": 64}),
        ({"form": "sketch", "gamma": 0.2}, {"kind": "softmax", "warm_up_rows": 64}),
    ],
)
def test_every_answer_follows_from_the_log(memory: dict[str, Any], learner: dict[str, Any], delay: int, tmp_path: Path) -> None:
    """2,000 rows: by what was remembered when a row was asked, to 1e-9; and each lambda and loss that the status shows."""
    instance, (x, labels), figures = instance_of(tmp_path, memory, learner), stream(), []
    for _, worker in driven(instance, [x], labels, delay):
        figures.append((worker.fold.figures(), worker.fold.learner.state_dict().truth["losses"]))
    source = instance.source([instance.loaded.pipeline.served_topic])
    records = [DECODE(event.value or b"") for read in source.next_batch(1 << 20) for event in read.events]
    written, waiting = WrittenDown(MemoryConfig(**memory), 11), dict[str, Prediction]()
    compared, strengths, told = 0, set[float](), iter(figures[delay // AT_ONCE :])
    for at, record in enumerate(records):
        if isinstance(record, Prediction):
            row, answer, error = (
                msgspec.json.decode(record.row)["x"],
                *(by_name(record.classes, n) for n in (record.base, record.error)),
            )
            assert np.allclose(error, written.error(np.array(row), answer) if record.classes else 0.0, rtol=0.0, atol=1e-9)
            assert np.allclose(by_name(record.classes, record.scores), written.answer(answer, error), rtol=0.0, atol=1e-9)
            waiting[record.id], compared = record, compared + 1
        else:
            asked = waiting.pop(record.id)
            row, numbers = msgspec.json.decode(asked.row)["x"], (by_name(asked.classes, n) for n in (asked.base, asked.error))
            written.learn(np.array(row), np.array([name == record.label for name in NAMES], dtype=float), *numbers)
        if at + 1 == len(records) or (isinstance(records[at + 1], Prediction) and not isinstance(record, Prediction)):
            status, losses = next(told)
            assert np.allclose(losses, [written.losses[share] for share in SHARES], rtol=1e-9, atol=0.0)
            assert status == pytest.approx({"strength": written.share} | (written.figures() if written.x else {}), rel=1e-9)
            strengths.add(written.share)
    assert compared == ROWS and len(strengths) > 1


@pytest.mark.parametrize("memory", [{"rows": 100, "warm_up_rows": 40}, {"form": "sketch", "warm_up_rows": 40}])
def test_what_another_branch_answered_is_answered_again_with_base_and_error(memory: dict[str, Any], tmp_path: Path) -> None:
    """Whatever its records say, all that is learned is what a branch learns that gave the answers itself."""
    own, other = (instance_of(tmp_path / name, memory, {"kind": "ridge", "solve_rows": 64}) for name in ("own", "other"))
    x, labels = stream()
    (*_, (_, answering)) = driven(own, [x[:400]], labels[:400], 48)
    serve_first(other, "main")
    worker = Worker(other.fold_spec, other.backends("main"), other.loaded.pipeline.worker, identity_of_worker(other, "main"))
    log, topic = other.log(), own.loaded.pipeline.served_topic
    events = [event for read in own.source([topic]).next_batch(1 << 20) for event in read.events]
    ends = [at for at, event in enumerate(events) if event.key is not None and int(event.key.split()[1]) % AT_ONCE == 0]
    starts = [at for at in ends if isinstance(DECODE(events[at].value or b""), Prediction)]
    for start, stop in zip(starts, [*starts[1:], len(events)], strict=True):
        log.append(topic, [Record(foreign(event.value or b""), event.key, b"") for event in events[start:stop]])
        while sum(1 for _ in worker.step()):
            pass
    learned, expected = (fold.learner.state_dict().truth for fold in (worker.fold, answering.fold))
    assert worker.fold.counts.learned == answering.fold.counts.learned == 352
    for name, value in expected.items():
        assert (
            np.allclose(learned[name], value, rtol=0.0, atol=1e-9) if isinstance(value, np.ndarray) else learned[name] == value
        )


def foreign(value: bytes) -> bytes:
    """A prediction as another branch would have recorded it, which was wrong; a label as it is."""
    record = DECODE(value)
    if isinstance(record, LateLabel):
        return value
    numbers = {"classes": NAMES, "scores": (0.75, 0.25), "base": (0.5, 7.0), "error": (0.25, -6.75)}
    return encode(msgspec.structs.replace(record, branch="elsewhere", **numbers))
