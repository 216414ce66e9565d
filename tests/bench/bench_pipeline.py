"""Rows per second through the whole worker on Kafka, against kafka-python, a parser and a NumPy matrix of the same topics.

make bench-pipeline. One broker, whose topics are filled once; then our worker, put together from a pipeline file as
`millrace run` does it, and the peer in turns, both from connecting to the last row. Late labels: the peer reads both topics,
parses all records and joins labels to rows by their id. Arrow: float32, messages near 1 MB; with the default [batch] and with
the larger one that learning in bulk asks for.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
from kafka import KafkaConsumer, TopicPartition
from results import Pairs, compared, machine, say

from millrace.services.config.config import load_pipeline
from millrace.services.demo.broker import JARS, Broker, running, tables
from millrace.services.pipeline.instance import Instance
from millrace.services.training.run import identity_of_worker
from millrace.streams.branch.host import use_threads
from millrace.streams.formats.arrow import stream_bytes
from millrace.streams.labels.served import LateLabel, Prediction, ServedCodec, encode, encode_row
from millrace.streams.records import Record
from millrace.streams.worker.worker import Worker

D = 64
CLASSES = tuple(map(str, range(10)))
MESSAGE_ROWS = 3840  # of 64 float32 each: near 1 MB
POLL_ROWS = 4096
LATER = 2000  # after so many others comes a row's label
APPEND_ROWS = 4096  # records an append
START_MS = 1_700_000_000_000

ARRAY = 'fields = [{ name = "x", size = 64 }]\n'
NAMED = "fields = [" + ", ".join(f'{{ name = "f{at}" }}' for at in range(D)) + "]\n"
BULK = "\n[batch]\nrows = 4096\n"
LATE = "\n[labels]\nhorizon_ms = 3600000\n"

Matrices = tuple[np.ndarray, np.ndarray]  # x (n, 64) and y (n,)


@dataclass(frozen=True)
class Case:
    """One kind of topic, and who parses it."""

    name: str
    fields: str  # of the pipeline file
    fill: Callable[[str, np.ndarray, np.ndarray], Iterator[tuple[str, Record]]]  # the pipeline's name, x, y -> topic, record
    parse: Callable[[Peer, list[bytes]], Matrices]
    peer: str
    goal: float | None
    settings: tuple[tuple[str, str], ...] = (("", ""),)  # what is measured: its name, and what it adds to the file
    late: bool = False


class Peer:
    """kafka-python with our own worker's settings of it, a parser and matrices; nothing else."""

    def __init__(self, broker: Broker, topics: Sequence[str], parse: Callable[[Peer, list[bytes]], Matrices]) -> None:
        self.rows: dict[str, list[float]] = {}  # of late labels: rows by id
        self._broker, self._topics, self._parse = broker, topics, parse

    def seconds(self, rows: int) -> float:
        """From the connection to the last of so many rows in a matrix."""
        start_s, seen = time.perf_counter(), 0
        consumer = KafkaConsumer(
            bootstrap_servers=self._broker.bootstrap,
            enable_auto_commit=False,
            fetch_max_bytes=16 << 20,
            max_partition_fetch_bytes=4 << 20,
            metrics_enabled=False,
        )
        consumer.assign(places := [TopicPartition(topic, 0) for topic in self._topics])
        consumer.seek_to_beginning(*places)
        while seen < rows:
            for polled in consumer.poll(500, POLL_ROWS).values():
                seen += len(self._parse(self, [record.value for record in polled])[1])
        seconds = time.perf_counter() - start_s
        consumer.close()
        return seconds


def array_rows(_: Peer, values: list[bytes]) -> Matrices:
    """JSON rows with an array."""
    rows = [orjson.loads(value) for value in values]
    return np.array([row["x"] for row in rows]), np.array([row["y"] for row in rows])


def late_rows(peer: Peer, values: list[bytes]) -> Matrices:
    """Predictions and labels: the rows whose label has come, with it."""
    x, y = [], []
    for value in values:
        record = orjson.loads(value)
        if record["kind"] == "prediction":
            peer.rows[record["id"]] = record["row"]["x"]
        else:
            x.append(peer.rows.pop(record["id"]))
            y.append(record["label"])
    return np.array(x), np.array(y)


def arrow_rows(_: Peer, values: list[bytes]) -> Matrices:
    """Arrow batches."""
    tables = [pa.ipc.open_stream(value).read_all() for value in values]
    x = np.concatenate([one_matrix(table) for table in tables])
    return x, np.concatenate([table["y"].to_numpy() for table in tables])


def one_matrix(table: pa.Table) -> np.ndarray:
    """x (n, 64) as float64."""
    if "x" in table.column_names:
        return table["x"].combine_chunks().flatten().to_numpy().reshape(-1, D).astype(np.float64)
    return np.column_stack([table[name].to_numpy() for name in table.column_names[:-1]]).astype(np.float64)


def fill_array(name: str, x: np.ndarray, y: np.ndarray) -> Iterator[tuple[str, Record]]:
    """JSON rows."""
    for at, (row, label) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
        yield name, Record(orjson.dumps({"x": row, "y": label}), timestamp_ms=START_MS + at)


def fill_late(name: str, x: np.ndarray, y: np.ndarray) -> Iterator[tuple[str, Record]]:
    """Predictions, and each one's label after ``LATER`` others."""
    scores = (0.1,) * len(CLASSES)
    for at in range(len(x) + LATER):
        if at < len(x):
            row = encode_row({"x": x[at].tolist()})
            told = Prediction(f"request {at}/0", row, "main", 1, 2, CLASSES, scores)
            yield f"{name}.served", Record(encode(told), told.id.encode(), timestamp_ms=START_MS + at)
        if at >= LATER:
            label = LateLabel(f"request {at - LATER}/0", int(y[at - LATER]))
            yield f"{name}.served", Record(encode(label), label.id.encode(), timestamp_ms=START_MS + at)


def fill_arrow(name: str, x: np.ndarray, y: np.ndarray) -> Iterator[tuple[str, Record]]:
    """Arrow batches of one list column."""
    for at in range(0, len(x), MESSAGE_ROWS):
        part, labels = x[at : at + MESSAGE_ROWS].astype(np.float32), pa.array(y[at : at + MESSAGE_ROWS])
        batch = pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(part.ravel(), D), "y": labels})
        yield name, Record(stream_bytes(batch), timestamp_ms=START_MS + at)


def fill_named(name: str, x: np.ndarray, y: np.ndarray) -> Iterator[tuple[str, Record]]:
    """Arrow batches of a column a field."""
    for at in range(0, len(x), MESSAGE_ROWS):
        part = x[at : at + MESSAGE_ROWS].astype(np.float32)
        columns = {f"f{number}": pa.array(part[:, number]) for number in range(D)}
        batch = pa.record_batch(columns | {"y": pa.array(y[at : at + MESSAGE_ROWS])})
        yield name, Record(stream_bytes(batch), timestamp_ms=START_MS + at)


DEFAULT_AND_BULK = (("batch.rows = 4096", BULK), ("the default batch.rows", ""))
ORJSON, PYARROW = "kafka-python + orjson + NumPy matrix", "kafka-python + pyarrow + NumPy matrix"
CASES = (
    Case("JSON, labels in the row", ARRAY, fill_array, array_rows, ORJSON, 0.7),
    Case("JSON, late labels", ARRAY, fill_late, late_rows, ORJSON + ", both topics", 0.7, (("", LATE),), True),
    Case("Arrow, array of 64", ARRAY, fill_arrow, arrow_rows, PYARROW, 0.5, DEFAULT_AND_BULK),
    Case("Arrow, 64 named fields", NAMED, fill_named, arrow_rows, PYARROW, 0.5, DEFAULT_AND_BULK),
)


@dataclass(frozen=True)
class Town:
    """A case's topics, filled."""

    folder: Path
    broker: Broker
    case: Case
    topic: str  # of events; late labels and their predictions: ``TOPIC.served``

    @property
    def topics(self) -> list[str]:
        """What the peer reads."""
        return [self.topic, f"{self.topic}.served"] if self.case.late else [self.topic]

    def instance(self, turn: str, added: str) -> Instance:
        """A pipeline on these topics whose journal, scores and store are its own."""
        name = f"{self.topic}-{turn}"
        head = f'name = "{name}"\nlabel = {{ name = "y", type = "integer" }}\nlearner = {{ kind = "ridge" }}\n'
        log = tables(self.broker).replace("[log]\n", f'[log]\ntopic = "{self.topic}"\n')
        path = self.folder / f"{name}.toml"
        path.write_text(head + self.case.fields + added + log, encoding="utf-8")
        return Instance(load_pipeline(path), self.folder / ".millrace" / name)

    def fill(self, rows: int) -> int:
        """Rows into the topics; how many records there are, of Arrow rows."""
        rng, log = np.random.default_rng(0), self.instance("fill", "").log()
        x = rng.normal(size=(rows, D)).round(6)
        records = list(self.case.fill(self.topic, x, x[:, :10].argmax(axis=1)))
        for topic in self.topics:
            log.create_topic(topic)
            values = [record for name, record in records if name == topic]
            for at in range(0, len(values), APPEND_ROWS):
                log.append(topic, values[at : at + APPEND_ROWS])
        return len(records) if self.case.late else rows

    def ours(self, turn: str, added: str, records: int) -> float:
        """Seconds of the whole worker, once its branch is open, from the connection until every record is folded."""
        instance, folded_s = self.instance(turn, added), list[float]()
        fold_spec, backends = instance.fold_spec, instance.backends("main")
        if fold_spec.served is not None:  # the topic is named after the pipeline, and here it is shared
            fold_spec = replace(fold_spec, served=ServedCodec(fold_spec.schema, 1 << 20, self.topics[1], fold_spec.codec))
            backends = replace(backends, source=instance.source(self.topics))

        def enough(worker: Worker) -> bool:
            if worker.fold.records >= records:
                folded_s.append(time.perf_counter())
            return bool(folded_s)

        worker = Worker(fold_spec, backends, instance.loaded.pipeline.worker, identity_of_worker(instance, "main"))
        start_s = time.perf_counter()
        worker.run(enough)
        assert worker.fold.counts.rejected == 0
        return folded_s[0] - start_s

    def peer(self, rows: int) -> float:
        """Seconds of the peer."""
        return Peer(self.broker, self.topics, self.case.parse).seconds(rows)


def measured(town: Town, rows: int, repeats: int) -> Iterator[tuple[float, dict[str, object]]]:
    """Our rows/s, and what is printed, setting by setting."""
    records = town.fill(rows)
    town.peer(rows)  # the broker has the topics in memory from here on, for both
    for at, (setting, added) in enumerate(town.case.settings):
        seconds = [(town.ours(f"{at}-{turn}", added, records), town.peer(rows)) for turn in range(repeats)]
        pairs: Pairs = [(rows / mine, rows / theirs) for mine, theirs in seconds]
        name = f"{town.case.name}, {setting}" if setting else town.case.name
        speed = statistics.median(mine for mine, _ in pairs)
        yield speed, compared("pipeline", name, "rows/s", pairs, (town.case.peer, town.case.goal))


def results(folder: Path, jars: Path, rows: int, repeats: int) -> Iterator[dict[str, object]]:
    """Every case, and Arrow beside our own JSON."""
    with running(folder / "broker", jars) as broker:
        json_speed = 0.0
        for number, case in enumerate(CASES):
            arrow = case.parse is arrow_rows
            for speed, line in measured(Town(folder, broker, case, f"bench{number}"), 4 * rows if arrow else rows, repeats):
                yield line
                json_speed = json_speed or speed
                if arrow:
                    name = f"{line['case']}, vs our JSON"
                    yield compared("pipeline", name, "rows/s", [(speed, json_speed)], ("our JSON rows", 10.0))


def main() -> None:
    """Print one JSON line a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=65_536, help="of JSON; four times as many of Arrow")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--jars", type=Path, default=Path(JARS))
    arguments = parser.parse_args()
    use_threads(1)
    say(machine("pipeline"))
    with tempfile.TemporaryDirectory() as folder:
        for line in results(Path(folder), arguments.jars, arguments.rows, arguments.repeats):
            say(line)


if __name__ == "__main__":
    main()
