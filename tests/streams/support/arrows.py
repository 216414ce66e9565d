"""Arrow messages for tests: columns, or rows as JSON has them, as IPC streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from millrace.streams.formats.arrow import encode_rows
from millrace.streams.records import Event
from millrace.streams.schema import Schema


def message(batches: Sequence[pa.RecordBatch] | pa.RecordBatch, compression: str | None = None) -> bytes:
    """One or more record batches of one schema as an IPC stream."""
    batches = [batches] if isinstance(batches, pa.RecordBatch) else batches
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as stream:
        for batch in batches:
            stream.write_batch(batch)
    return sink.getvalue().to_pybytes()


def table(**columns: Any) -> bytes:
    """Named columns as a message."""
    arrays = {name: column if isinstance(column, pa.Array) else pa.array(column) for name, column in columns.items()}
    return message(pa.record_batch(arrays))


def in_messages(rows: Sequence[Mapping[str, object]], t: Sequence[int], schema: Schema, sizes: Sequence[int]) -> list[Event]:
    """The rows, each with its own time, ``sizes`` of them a message."""
    messages, at = [], 0
    for offset, size in enumerate(sizes):
        batch = pa.ipc.open_stream(encode_rows(rows[at : at + size], schema)).read_next_batch()
        times = pa.array(t[at : at + size], pa.timestamp("ms"))
        messages.append(Event(offset, max(t[at : at + size]), None, b"", message(batch.append_column("timestamp", times))))
        at += size
    return messages


def same(ours, theirs) -> None:
    """Two decoded reads are the same, bit for bit."""
    for column, other in zip([*ours.columns, ours.y, ours.weight], [*theirs.columns, theirs.y, theirs.weight], strict=True):
        assert column.dtype == other.dtype and column.shape == other.shape
        assert column.tolist() == other.tolist() if column.dtype == object else column.tobytes() == other.tobytes()
