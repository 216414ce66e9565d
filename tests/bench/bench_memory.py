"""What an error memory is worth: answers as they were served, with the memory and without, on streams whose labels come late.

Each run drives the product as `millrace up` does (late_stream.py). A recorded answer says what the learner itself answered, so
one run has both sides, and the peer of every line is the same learner without its memory.

python tests/bench/bench_memory.py [--quick] [--seeds 1] [--streams elec2 ...] [--out tests/bench/memory]
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import memory_table
import msgspec
import numpy as np
from late_stream import AT_ONCE, driven
from results import compared, machine, say
from sklearn.metrics import roc_auc_score

from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.learners.memory.abilities import remembering
from millrace.learners.memory.config import MemoryConfig, Remembering
from millrace.learners.memory.scaled import Scaled
from millrace.learners.memory.servable import MemoryServable
from millrace.learners.protocol import Array, Batch, Floats
from millrace.services.config.config import build_pipeline
from millrace.services.config.entities import as_written
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
DAYS = {"elec2": ("day",), "bank_marketing": ("month", "day_of_week")}  # fields that change where a row's day is another
BATCH = 32  # rows of a batch whose time is taken


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
        "fields": [as_written(field) for field in chosen.fields],
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

    def __init__(self, name: str, most: int) -> None:
        chosen = data_set(name)
        lines = [json.loads(line) for _, line in zip(range(most), values(name), strict=False)]
        self.labels = [line.pop(chosen.label.name) for line in lines]
        self.days = days([tuple(line[field] for field in DAYS[name]) for line in lines]) if name in DAYS else None
        pipeline = build_pipeline(
            {
                "name": "bench",
                "fields": [as_written(field) for field in chosen.fields],
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


def days(stamps: Sequence[tuple[Any, ...]]) -> Array:
    """The number of each row's day (n,): a new one begins where a row has another stamp than the one before."""
    changes = [stamp != before for stamp, before in zip(stamps[1:], stamps, strict=False)]
    return np.cumsum([False, *changes])


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
    groups = None if stream.days is None else stream.days[start:]
    figures = {
        side: scored(table(predictions[start:], numbers, classes), y, groups)
        for side, numbers in (
            ("with", [p.scores for p in predictions[start:]]),
            ("without", [p.base for p in predictions[start:]]),
        )
    }
    last = float((y[1:] == y[:-1]).mean())
    ratio = round(figures["without"]["log_loss"] / figures["with"]["log_loss"], 3)
    told = {"rows": len(stream), "last_label": round(last, 4), "s": round(taken_s, 1)}
    return {"bench": "memory"} | asdict(case) | told | figures | {"ratio": ratio}


def table(predictions: list[Prediction], numbers: list[Any], classes: list[str]) -> Floats:
    """Numbers of each answer by all classes (n, C); 0 for one that had no column then."""
    places = {name: at for at, name in enumerate(classes)}
    scores = np.zeros((len(predictions), len(classes)))
    for at, (prediction, row) in enumerate(zip(predictions, numbers, strict=True)):
        scores[at, [places[name] for name in prediction.classes]] = row
    return scores


def scored(scores: Floats, y: Array, groups: Array | None = None) -> dict[str, Any]:
    """Accuracy, AUC of all rows and within ``groups`` (n,), log loss of scores as probabilities."""
    shares = np.clip(scores, LEAST, 1.0)
    shares /= shares.sum(axis=1, keepdims=True)
    return {
        "accuracy": round(float((scores.argmax(axis=1) == y).mean()), 4),
        "auc": round(area(scores, y), 4),
        "auc_by_day": None if groups is None else area_within(scores, y, groups),
        "log_loss": round(float(-np.log(shares[np.arange(len(y)), y]).mean()), 4),
    }


def area(scores: Floats, y: Array) -> float:
    """AUC, each class against the rest, the mean by rows; NaN where all rows have one class."""
    counts = np.bincount(y, minlength=scores.shape[1])
    seen = [at for at in range(scores.shape[1]) if 0 < counts[at] < len(y)]
    areas = [roc_auc_score(y == at, scores[:, at]) for at in seen]
    return float(np.average(areas, weights=counts[seen])) if seen else float("nan")


def area_within(scores: Floats, y: Array, groups: Array) -> float | None:
    """The mean AUC of groups in which two classes occur, by rows; groups (n,) ascend. None where no group has two."""
    cuts = np.flatnonzero(np.diff(groups)) + 1
    pieces = zip(np.split(scores, cuts), np.split(y, cuts), strict=True)
    areas = [(area(part, labels), len(labels)) for part, labels in pieces if len(np.unique(labels)) > 1]
    means, rows = np.array(areas).reshape(-1, 2).T
    return round(float(np.average(means, weights=rows)), 4) if len(rows) else None


class Silent:
    """A learner that costs nothing: it answers 0."""

    classes = ("no", "yes")

    def predict_many(self, batch: Batch) -> Floats:
        """(n, 2)."""
        return np.zeros((len(batch), 2))

    def arrays(self) -> dict[str, Any]:
        """None."""
        return {}


def speed(form: str) -> dict[str, object]:
    """Reading and writing batches of 32 rows of 16 features, against NumPy's product with 2,000 keys and its partition."""
    rng, config = np.random.default_rng(0), MemoryConfig(form="sketch" if form == "sketch" else "exact")
    memory, pairs = Scaled(config, 16, 0), []
    x, labels = rng.normal(size=(4096, 16)), np.eye(2)[rng.integers(0, 2, 4096)]
    memory.add(x, labels, np.zeros_like(labels), np.ones(4096))
    keys = rng.normal(size=(2000, 17))
    for at in range(0, 4096, BATCH):
        rows, told = x[at : at + BATCH], labels[at : at + BATCH]
        start_s = time.perf_counter()
        served = MemoryServable(Silent(), memory.now(), config, Silent.classes, 0.4, *memory.scale, 0, "classify")
        answers = served.corrected(Batch(rows)).answers
        memory.add(rows, told, answers, np.ones(BATCH))
        taken_s = time.perf_counter() - start_s
        queries = np.pad(rows, ((0, 0), (0, 1)))
        start_s = time.perf_counter()
        np.partition(queries @ keys.T, 2000 - 70, axis=1)
        pairs.append((taken_s / BATCH * 1e6, (time.perf_counter() - start_s) / BATCH * 1e6))
    line = compared(
        "memory", f"{form}, 32 rows of 16 features", "us a row", pairs, ("product with 2,000 keys, partition", 1 / 1.5)
    )
    return {name: value for name, value in line.items() if name != "ratios"}


def taught(rows: int) -> tuple[Any, Any, Iterator[Batch]]:
    """A ridge with a memory around it and the same ridge alone, both after so many rows; and batches of 32 to go on with."""
    rng, config = np.random.default_rng(0), RidgeConfig()
    x, names = rng.normal(size=(rows + 4096, 16)), np.array(Silent.classes, dtype=object)
    y = names[(x[:, 0] + rng.normal(size=len(x)) > 0.0).astype(int)]
    memory = remembering(Ridge(config, 16, 0), Remembering(config, MemoryConfig(strength=0.4)), 16, 0)
    alone = Ridge(config, 16, 0)
    for learner in (memory, alone):
        learner.learn_many(Batch(x[:rows], y[:rows]))
    return memory, alone, (Batch(x[at : at + BATCH], y[at : at + BATCH]) for at in range(rows, len(x), BATCH))


def whole() -> Iterator[dict[str, object]]:
    """Learning as a whole, and answering a row, with a ridge inside; the peer is that ridge, the product and the partition."""
    memory, alone, batches = taught(4096)
    keys, learned, answered = np.random.default_rng(1).normal(size=(2000, 17)), [], []
    for batch in batches:
        one, queries, peer_of = Batch(batch.x[:1]), np.pad(batch.x, ((0, 0), (0, 1))), alone.servable().predict_many
        answered.append((timed(memory.servable().corrected, one), timed(peer_of, one) + timed(largest, keys, queries[:1])))
        learned.append((timed(memory.learn_many, batch), timed(alone.learn_many, batch) + timed(largest, keys, queries)))
    peer = ("the ridge alone, product with 2,000 keys, partition", None)
    for what, rows, pairs in (("one row answered", 1, answered), ("32 rows learned", BATCH, learned)):
        micros = [(ours / rows * 1e6, theirs / rows * 1e6) for ours, theirs in pairs]
        line = compared("memory", f"exact around a ridge, 16 features: {what}", "us a row", micros, peer)
        yield {name: value for name, value in line.items() if name != "ratios"}


def largest(keys: Floats, queries: Floats) -> Floats:
    """The product with all keys, the 70 largest of each row last."""
    return np.partition(queries @ keys.T, len(keys) - 70, axis=1)


def timed(call: Callable[..., object], *arguments: object) -> float:
    """Seconds that a call takes."""
    start_s = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start_s


def lines_of(streams: Sequence[str], quick: bool, seeds: int) -> Iterator[dict[str, Any]]:
    """One a run."""
    for name in streams:
        stream = Stream(name, 4000 if quick else 1 << 30)
        delays = DELAYS[::2] if quick else DELAYS
        for arm in product(BASES, (True, False), delays, FORMS, range(seeds)):
            yield measured(Case(name, *arm), stream)


def main() -> None:
    """Print one JSON line a run; the table and the picture of all lines go into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4,000 rows of each stream, two delays")
    parser.add_argument("--speed", action="store_true", help="only what it costs")
    parser.add_argument("--seeds", type=int, default=1, help="of a sketch's planes")
    parser.add_argument("--streams", nargs="*", default=STREAMS)
    parser.add_argument("--out", type=Path, default=Path("tests/bench/memory"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    use_threads(1)
    say(machine("memory"))
    for form in FORMS:
        say(speed(form))
    for line in whole():
        say(line)
    if arguments.speed:
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = []
    for line in lines_of(arguments.streams, arguments.quick, arguments.seeds):
        say(line)
        lines.append(line)
        (arguments.out / "memory.jsonl").write_text("".join(json.dumps(done) + "\n" for done in lines), encoding="utf-8")
    (arguments.out / "memory.md").write_text(memory_table.markdown(lines), encoding="utf-8")
    memory_table.picture(lines, arguments.out / "memory.png")


if __name__ == "__main__":
    main()
