"""What an error memory is worth: answers as they were served, with the memory and without, on streams whose labels come late.

Each run drives the product as `millrace up` does (late_stream.py). A recorded answer says what the learner itself answered, so
one run has both sides, and the peer of every line is the same learner without its memory.

python tests/bench/bench_memory.py [--quick] [--seeds 1] [--out tests/bench/memory] [--only elec2]
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
from late_stream import AT_ONCE, driven
from results import machine, say
from sklearn.metrics import roc_auc_score

from millrace.learners.protocol import Array, Floats
from millrace.services.config.config import build_pipeline
from millrace.services.data.datasets import data_set, values
from millrace.services.pipeline.instance import Instance
from millrace.streams.branch.host import use_threads
from millrace.streams.formats.json_rows import Codec
from millrace.streams.labels.served import Prediction
from millrace.streams.records import Event

FREEZE_SHARE = 0.3  # of the stream, after which a frozen base learns no more, and from which on answers are scored
LEAST = 0.001  # of a probability, where losses are compared: ridge's scores are none
STREAMS = ("elec2", "nsl_kdd", "phishing", "spam", "bank_marketing")
DELAYS = (0, 1, 48, 336)
BASES: dict[str, dict[str, Any]] = {"ridge": {"solve_rows": 64}, "softmax": {}}
FORMS = ("exact", "sketch")


@dataclass(frozen=True)
class Case:
    """One run."""

    stream: str
    base: str
    frozen: bool
    delay: int
    form: str
    seed: int


def instance_of(case: Case, rows: int, home: Path) -> Instance:
    """The pipeline of a case; labels wait as long as they have to."""
    chosen = data_set(case.stream)
    keys = BASES[case.base] | ({"decay": chosen.ridge["decay"]} if case.base == "ridge" and "decay" in chosen.ridge else {})
    memory = {"form": case.form} | ({"freeze_base_rows": int(rows * FREEZE_SHARE)} if case.frozen else {})
    raw: dict[str, Any] = {
        "name": "bench",
        "seed": case.seed,
        "fields": msgspec.to_builtins(list(chosen.fields)),
        "label": msgspec.to_builtins(chosen.label),
        "learner": {"kind": case.base} | keys,
        "memory": memory,
        "batch": {"rows": AT_ONCE},
        "labels": {"memory_rows": 1_000_000},
        "worker": {"step_ms": 0},
    }
    loaded = build_pipeline(raw)
    return Instance(loaded, home / "bench")


class Stream:
    """Rows and labels of a data set, decoded as an endpoint decodes them."""

    def __init__(self, name: str, seed: int, most: int) -> None:
        chosen = data_set(name)
        lines = [json.loads(line) for _, line in zip(range(most), values(name, seed), strict=False)]
        self.labels = [line.pop(chosen.label.name) for line in lines]
        pipeline = build_pipeline(
            {
                "name": "bench",
                "fields": msgspec.to_builtins(list(chosen.fields)),
                "label": msgspec.to_builtins(chosen.label),
                "learner": {"kind": "softmax"},
            }
        ).pipeline
        events = [Event(at, 1_700_000_000_000 + at, None, b"", msgspec.json.encode(line)) for at, line in enumerate(lines)]
        rows, refused = Codec(pipeline.schema, 1 << 20).decode(events)
        assert not refused, refused[0]
        self.columns = rows.columns

    def __len__(self) -> int:
        return len(self.labels)


def predictions_of(case: Case, stream: Stream) -> Iterator[Prediction]:
    """Every answer, in order, as it was recorded."""
    decode = msgspec.json.Decoder(Prediction).decode
    with TemporaryDirectory() as home:
        instance = instance_of(case, len(stream), Path(home))
        for records, _ in driven(instance, stream.columns, stream.labels, case.delay):
            yield from (decode(record.value or b"") for record in records)


def measured(case: Case, stream: Stream) -> dict[str, Any]:
    """Scores of the answers after the first rows, with the memory and without."""
    start, begun_s = int(len(stream) * FREEZE_SHARE), time.process_time()
    predictions = list(predictions_of(case, stream))
    taken_s = time.process_time() - begun_s
    classes = sorted(
        {name for prediction in predictions[start:] for name in prediction.classes} | set(map(str, stream.labels[start:]))
    )
    y = np.array([classes.index(str(label)) for label in stream.labels[start:]])
    sides = {"with": [p.scores for p in predictions[start:]], "without": [p.base for p in predictions[start:]]}
    figures = {}
    for side, numbers in sides.items():
        scores = np.zeros((len(y), len(classes)))
        for at, (prediction, row) in enumerate(zip(predictions[start:], numbers, strict=True)):
            for name, score in zip(prediction.classes, row, strict=True):
                scores[at, classes.index(name)] = score
        figures[side] = scored(scores, y)
    last = float((y[1:] == y[:-1]).mean())
    return asdict(case) | {"rows": len(stream), "last_label": round(last, 4), "s": round(taken_s, 1)} | figures


def scored(scores: Floats, y: Array) -> dict[str, float]:
    """Accuracy, AUC (each class against the rest, the mean by rows), log loss of scores as probabilities."""
    shares = np.clip(scores, LEAST, 1.0)
    shares /= shares.sum(axis=1, keepdims=True)
    counts = np.bincount(y, minlength=scores.shape[1])
    seen = [at for at in range(scores.shape[1]) if 0 < counts[at] < len(y)]
    areas = [roc_auc_score(y == at, scores[:, at]) for at in seen]
    return {
        "accuracy": round(float((scores.argmax(axis=1) == y).mean()), 4),
        "auc": round(float(np.average(areas, weights=counts[seen])), 4),
        "log_loss": round(float(-np.log(shares[np.arange(len(y)), y]).mean()), 4),
    }


def main() -> None:
    """Print one JSON line a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--rows", type=int, default=1 << 30)
    parser.add_argument("--forms", default="exact,sketch")
    parser.add_argument("--delays", default="0,1,48,336")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    use_threads(1)
    say(machine("memory"))
    for name in [arguments.only] if arguments.only else STREAMS:
        stream = Stream(name, 0, 4000 if arguments.quick else arguments.rows)
        for base, frozen, delay, form, seed in product(
            BASES, (True, False), map(int, arguments.delays.split(",")), arguments.forms.split(","), range(arguments.seeds)
        ):
            say(measured(Case(name, base, frozen, delay, form, seed), stream))


if __name__ == "__main__":
    main()
