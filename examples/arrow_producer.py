"""Append Arrow batches to the topic of kafka.toml, with pyarrow and kafka-python alone: python3 arrow_producer.py [HOST:PORT].

One message is one Arrow IPC stream; its columns are the fields and the label that the pipeline declares, no more and no less.
"""

import random
import sys

import pyarrow as pa
from kafka import KafkaProducer

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "localhost:9092"
TOPIC, BATCHES, ROWS = "clicks", 3, 500
KIND = ("content-type", b"application/vnd.apache.arrow.stream")


def batch(chance: random.Random) -> pa.RecordBatch:
    """Some visits, and whether each ended with a purchase."""
    seconds = [chance.uniform(0, 90) for _ in range(ROWS)]
    pages = [float(chance.randrange(7)) for _ in range(ROWS)]
    return pa.RecordBatch.from_pydict({"seconds": seconds, "pages": pages, "bought": [count > 3 for count in pages]})


def message(rows: pa.RecordBatch) -> bytes:
    """The batch as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_batch(rows)
    return sink.getvalue().to_pybytes()


def main() -> None:
    """Send each batch and wait until the broker has it: what is not acknowledged is an error."""
    producer, chance = KafkaProducer(bootstrap_servers=ADDRESS, acks="all"), random.Random(5)
    waited_for = [producer.send(TOPIC, message(batch(chance)), headers=[KIND]) for _ in range(BATCHES)]
    for sent in waited_for:
        sent.get(timeout=60)
    producer.close()
    print(f"{BATCHES} messages of {ROWS} rows in {TOPIC}")


main()
