"""The least that keeps answers fresh: one process reads the log, adds up, solves and copies the weights.

python bare_fresh.py LOG TOPIC CLASSES, where LOG is a file of SQLite, or HOST:PORT of a Kafka broker. No checks, no journal, no
checkpoints, and nobody else has to hear of it: what a reader in the same process would see. It says when it reads, then prints,
for each class, when weights that know it were ready, and ends with the last of them.
"""

from __future__ import annotations

import json
import sys
import time

import apsw
import numpy as np
import orjson
from kafka import KafkaConsumer
from scipy.linalg import blas, lapack
from threadpoolctl import threadpool_limits

D, ROWS = 1000, 100  # rows from one solve to the next
POLL_S = 0.01
GAMMA = 1.0


def batches(path: str, topic: str):
    """ROWS values at a time, as soon as they are there."""
    connection = apsw.Connection(path)
    connection.set_busy_timeout(5000)
    table = connection.execute("select log_table from partitions where tp = ?", (f"{topic}:0",)).fetchall()[0][0]
    query, at = f"select value from {table} where offset >= ? order by offset limit {ROWS}", 0
    while True:
        rows = connection.execute(query, (at,)).fetchall()
        if len(rows) < ROWS:
            time.sleep(POLL_S)
            continue
        at += len(rows)
        yield [orjson.loads(value) for (value,) in rows]


def batches_of_kafka(bootstrap: str, topic: str):
    """The same from a topic of one partition."""
    consumer, values = KafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest"), []
    while True:
        for records in consumer.poll(timeout_ms=int(1000 * POLL_S)).values():
            values += [record.value for record in records]
        while len(values) >= ROWS:
            rows, values = values[:ROWS], values[ROWS:]
            yield [orjson.loads(value) for value in rows]


def main(path: str, topic: str, wanted: int) -> None:
    """Until every class is known."""
    gram, cross, known = np.zeros((D, D), order="F"), np.zeros((D, wanted)), {}
    source = batches_of_kafka(path, topic) if ":" in path else batches(path, topic)
    print("ready", flush=True)
    for rows in source:
        x = np.array([row["x"] for row in rows])
        blas.dsyrk(1.0, x.T, beta=1.0, c=gram, lower=1, overwrite_c=1)
        columns = [int(row["y"]) for row in rows]
        cross += x.T @ np.eye(wanted)[columns]
        weights = lapack.dposv(gram + GAMMA * np.eye(D), cross, lower=1)[1].copy()
        assert weights.shape == cross.shape
        now_s = time.monotonic()
        known |= {column: now_s for column in columns if column not in known}
        if len(known) == wanted:
            break
    print(json.dumps(known))


if __name__ == "__main__":
    with threadpool_limits(1):
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
