"""From an event's commit to answers that know it, from every replica, while 1,000 rows a second are learned at d = 1000.

make bench-fresh. Every so often a row brings a class that was never seen, and callers ask until no answer lacks its column. All
rows are learned in batches of 100, each with its solve, so such a row waits as long as any other. The peer reads the same
rows from the same kind of log at the same pace. It is one process that learns and copies, with nobody to tell. With ``--log
kafka`` both are measured once more in the same run, each on a Kafka broker of its own.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from results import compared, machine, say
from served_pipeline import served

from millrace.services.config.config import load_pipeline
from millrace.services.demo.broker import JARS, Broker, running, tables
from millrace.services.pipeline.instance import Instance
from millrace.streams.branch.host import use_threads
from millrace.streams.records import Record
from millrace.streams.source import Log
from millrace.streams.sqlite.log import SqliteLog

HERE = Path(__file__).resolve().parent
D, RATE = 1000, 1000  # rows/s
APPEND_ROWS, MARK = 20, 200  # rows a commit; rows from one new class to the next
SETTLE_S, ASK_S = 3.0, 0.004
AIM_MS = 500.0
SQLITE_GOALS, KAFKA_GOALS = (1 / 1.5, 1 / 2), (1 / 2, 1 / 3)  # of the bare process: p50 and p99 at most so many times its own

PIPELINE = f"""name = "digits"
label = {{ name = "y", type = "integer" }}
learner = {{ kind = "ridge", solve_rows = 100 }}
batch = {{ rows = 100 }}
fields = [{{ name = "x", size = {D} }}]
"""


def pool() -> list[bytes]:
    """Rows without their labels."""
    rng = np.random.default_rng(0)
    return [json.dumps({"x": x})[:-1].encode() for x in rng.normal(size=(300, D)).round(4).tolist()]


def send(log: Log, topic: str, classes: int) -> dict[int, float]:
    """Append at the pace; when the first row of each class was committed. Class 0 is there from the start."""
    rows, committed, start_s = pool(), {}, time.monotonic()
    for at in range(0, classes * MARK, APPEND_ROWS):
        numbers = range(at, at + APPEND_ROWS)
        values = [b'%b, "y": %d}' % (rows[n % len(rows)], n // MARK if n % MARK == 37 else 0) for n in numbers]
        log.append(topic, [Record(value, timestamp_ms=time.time_ns() // 1_000_000) for value in values])
        if at // MARK not in committed and any(n % MARK == 37 for n in numbers):
            committed[at // MARK] = time.monotonic()
        time.sleep(max(0.0, start_s + (at + APPEND_ROWS) / RATE - time.monotonic()))
    return committed


@contextmanager
def asking(port: int) -> Iterator[list[tuple[float, int]]]:
    """Ask all the while; when each answer came, and how many classes it knew."""
    heard: list[tuple[float, int]] = []
    stop = threading.Event()
    thread = threading.Thread(target=ask, args=(port, heard, stop))
    thread.start()
    try:
        yield heard
    finally:
        stop.set()
        thread.join()


def ask(port: int, heard: list[tuple[float, int]], stop: threading.Event) -> None:
    """One caller with a raw tensor on a kept connection; HAProxy hands its requests to the replicas in turn."""
    tensor = {"name": "x", "datatype": "FP64", "shape": [1, D], "parameters": {"binary_data_size": 8 * D}}
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "scores"}]}).encode()
    body, headers = head + np.ones(D).tobytes(), {"Inference-Header-Content-Length": str(len(head))}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    while not stop.is_set():
        connection.request("POST", "/v2/models/digits/infer", body, headers)
        answer = json.loads(connection.getresponse().read())
        if "outputs" in answer:
            heard.append((time.monotonic(), answer["outputs"][0]["shape"][1]))
        stop.wait(ASK_S)
    connection.close()


def ours(folder: Path, classes: int, where: str = "") -> list[float]:
    """Seconds from the commit to the first answer after the last that did not know it, one for each class but the first.

    ``where``: the tables that say where the log lies.
    """
    (folder / "digits.toml").write_text(PIPELINE + where, encoding="utf-8")
    instance = Instance(load_pipeline(folder / "digits.toml"), folder / ".millrace" / "digits")
    send(instance.log(), "digits", 1)  # there is something to answer from
    with served(folder) as up, asking(up.port) as heard:
        committed = send(instance.log(), "digits", classes)
        time.sleep(SETTLE_S)
    return [after(heard, number) - at_s for number, at_s in committed.items() if number]


def after(heard: list[tuple[float, int]], number: int) -> float:
    """When every answer knew class ``number``: every class up to it has a column."""
    last = max(at for at, (_, known) in enumerate(heard) if known <= number)
    assert last + 1 < len(heard), f"class {number} never came into the answers"
    return heard[last + 1][0]


def bare(folder: Path, classes: int) -> list[float]:
    """The same of the peer, whose answers are its own weights."""
    log = SqliteLog(folder / "log.sqlite")
    log.create_topic("digits")
    return peers(log, str(folder / "log.sqlite"), classes)


def bare_on_kafka(folder: Path, classes: int, broker: Broker) -> list[float]:
    """The same of the peer on a broker, whose topic is made as ours is."""
    (folder / "digits.toml").write_text(PIPELINE + tables(broker), encoding="utf-8")
    log = Instance(load_pipeline(folder / "digits.toml"), folder / ".millrace" / "digits").log()
    return peers(log, broker.bootstrap, classes)


def peers(log: Log, place: str, classes: int) -> list[float]:
    """Seconds from the commit until the peer's weights knew each class but the first."""
    command = [sys.executable, HERE / "bare_fresh.py", place, "digits", classes]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    committed = send(log, "digits", classes)
    seen_s = json.loads(process.communicate(timeout=60)[0])
    return [seen_s[str(number)] - at_s for number, at_s in committed.items() if number]


def lines(mine: list[float], theirs: list[float]) -> Iterator[dict[str, object]]:
    """Quantiles of both, and of ours against what we aim for."""
    yield from quantiles("vs bare", mine, theirs, ("one process: poll, dsyrk, dposv, copy", SQLITE_GOALS))
    p99 = float(np.quantile(mine, 0.99)) * 1000
    yield compared("fresh", "p99, vs the aim", "ms", [(p99, AIM_MS)], ("500 ms", 1.0)) | {"events": len(mine)}


def quantiles(
    what: str, mine: list[float], theirs: list[float], peer: tuple[str, tuple[float, float] | None]
) -> Iterator[dict[str, object]]:
    """p50 and p99 of both; ``peer``: whose ``theirs`` are, and what the two ratios are to be."""
    name, goals = peer
    for at, (label, q) in enumerate((("p50", 0.5), ("p99", 0.99))):
        pair = (float(np.quantile(mine, q)) * 1000, float(np.quantile(theirs, q)) * 1000)
        yield compared("fresh", f"{label}, {what}", "ms", [pair], (name, None if goals is None else goals[at]))


def on_kafka(jars: Path, classes: int, mine: list[float]) -> Iterator[dict[str, object]]:
    """The same on Kafka, against the bare process there, ``mine`` on SQLite, and the aim."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "broker", jars) as broker:
        on_broker = ours(Path(folder), classes, tables(broker))
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "broker", jars) as broker:
        theirs = bare_on_kafka(Path(folder), classes, broker)
    yield from quantiles("on Kafka, vs bare", on_broker, theirs, ("one process: poll, dsyrk, dposv, copy", KAFKA_GOALS))
    yield from quantiles("on Kafka, vs on SQLite", on_broker, mine, ("the same on SQLite", None))
    p99 = float(np.quantile(on_broker, 0.99)) * 1000
    yield compared("fresh", "p99, on Kafka, vs the aim", "ms", [(p99, AIM_MS)], ("500 ms", 1.0)) | {"events": len(on_broker)}


def main() -> None:
    """Print one JSON line a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=150, help="events that are timed, five a second")
    parser.add_argument("--log", choices=("sqlite", "kafka"), default="sqlite", help="kafka: there too")
    parser.add_argument("--jars", type=Path, default=Path(JARS))
    arguments = parser.parse_args()
    use_threads(1)
    say(machine("fresh"))
    with tempfile.TemporaryDirectory() as folder:
        mine = ours(Path(folder), arguments.classes)
    with tempfile.TemporaryDirectory() as folder:
        theirs = bare(Path(folder), arguments.classes)
    for line in lines(mine, theirs):
        say(line)
    if arguments.log == "kafka":
        for line in on_kafka(arguments.jars, arguments.classes, mine):
            say(line)


if __name__ == "__main__":
    main()
