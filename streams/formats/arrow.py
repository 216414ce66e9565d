"""The one door to pyarrow: Arrow IPC streams to record batches and back, and Parquet files.

A message is refused before anything of it is decompressed where it declares more than the pipeline lets in. What is let in is
validated in full before a value is looked at: pyarrow follows lengths and indices in the bytes otherwise.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from millrace.learners.errors import BadInputError
from millrace.streams.formats.flatbuffer import extent
from millrace.streams.formats.json_rows import RecordError
from millrace.streams.schema import Field, Schema

CONTENT_TYPE = b"application/vnd.apache.arrow.stream"
MAGIC = b"\xff\xff\xff\xff"  # how every stream begins, and no JSON
MOST_ROWS = 65_536  # of one Arrow message
BATCH_BYTES = 8 << 20  # of one message, as it lies in the log and decompressed
CHUNK_ROWS = 1000  # of a Parquet file at a time

Batch = Any  # pyarrow.RecordBatch: pyarrow has no types


def _pyarrow(what: str) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise BadInputError(f"{what} needs pyarrow; pip install 'millrace[parquet]'.") from error
    return pyarrow


def read_batches(value: bytes, most_bytes: int, names: frozenset[str] | None = None) -> list[Batch]:
    """The record batches of an Arrow IPC stream, validated. ``names``: of the columns that are read; None: every.

    Raises: RecordError where the bytes are not such a stream or declare too much; BadInputError where pyarrow is missing.
    """
    if len(value) > most_bytes:
        raise RecordError("oversized", f"over {most_bytes} bytes, the pipeline's log.max_batch_bytes")
    arrow = _pyarrow("An Arrow batch in the log")
    try:
        _check_extent(arrow, value, most_bytes)
        options = arrow.ipc.IpcReadOptions(use_threads=False)
        with arrow.ipc.open_stream(arrow.py_buffer(value), options=options) as stream:
            _check_schema(stream.schema, names)
            batches = list(stream)
        for batch in batches:
            batch.validate(full=True)
    except (arrow.ArrowException, OSError, ValueError, struct.error, IndexError) as error:  # ValueError: names not UTF-8
        raise RecordError("unreadable", f"not an Arrow IPC stream: {str(error)[:200]}") from error
    return batches


def _check_extent(arrow: Any, value: bytes, most_bytes: int) -> None:
    """Refuse what declares more rows or bytes than are let in, before anything is decompressed or allocated."""
    rows = decoded = 0
    reader = arrow.ipc.MessageReader.open_stream(arrow.py_buffer(value))
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            break
        if message.type not in ("record batch", "dictionary"):
            continue
        size = extent(message.metadata.to_pybytes(), memoryview(message.body))
        if size.negative:
            raise ValueError("a length below 0")
        rows += size.rows if message.type == "record batch" else 0
        decoded += size.buffer_bytes
        if rows > MOST_ROWS:
            raise RecordError("oversized", f"over {MOST_ROWS} rows in one message")
        if decoded > most_bytes or size.longest > most_bytes:
            raise RecordError("oversized", f"decodes to over {most_bytes} bytes, the pipeline's log.max_batch_bytes")


def _check_schema(schema: Any, names: frozenset[str] | None) -> None:
    """Names that stand once, and no extension types: what those hold is for whoever registered them."""
    if len(set(schema.names)) < len(schema.names):
        raise RecordError("duplicate-field", "a column's name stands twice")
    for field in schema:
        if (names is None or field.name in names) and (field.metadata or {}).get(b"ARROW:extension:name"):
            raise RecordError("wrong-type", f"{field.name} is of an extension type")


@lru_cache(maxsize=256)
def kind_of(kind: Any) -> str:
    """What an Arrow type is to us: integer, number, text, boolean, bytes, timestamp, list, or "" for what we do not take."""
    types = _pyarrow("An Arrow batch").types
    if types.is_dictionary(kind):
        return "text" if kind_of(kind.value_type) == "text" else ""
    tests = {
        "integer": types.is_integer,
        "number": types.is_floating,
        "text": lambda it: types.is_string(it) or types.is_large_string(it),
        "boolean": types.is_boolean,
        "bytes": lambda it: types.is_binary(it) or types.is_large_binary(it),
        "timestamp": types.is_timestamp,
        "list": lambda it: types.is_list(it) or types.is_large_list(it) or types.is_fixed_size_list(it),
    }
    return next((name for name, test in tests.items() if test(kind)), "")


def milliseconds(column: Any) -> Any:
    """A column of timestamps as int64 milliseconds since 1970, rounded down; null stays."""
    arrow = _pyarrow("An Arrow batch")
    ticks = column.cast(arrow.int64())
    per_ms = {"s": (1000, 1), "ms": (1, 1), "us": (1, 1000), "ns": (1, 1_000_000)}[column.type.unit]
    times = ticks.to_numpy(zero_copy_only=False) if not column.null_count else ticks.fill_null(0).to_numpy()
    return times // per_ms[1] * per_ms[0]


def encode_rows(rows: Sequence[Mapping[str, Any]], schema: Schema) -> bytes:
    """Rows as one Arrow IPC stream, one column a declared key that any of them has.

    Raises: BadInputError where a row has another key, or a value is not of its field's type.
    """
    arrow = _pyarrow("Sending Arrow batches")
    types = {field.name: _type_of(arrow, field) for field in schema.fields}
    types[schema.label.name] = {
        "string": arrow.string(),
        "integer": arrow.int64(),
        "boolean": arrow.bool_(),
        "number": arrow.float64(),
    }[schema.label.type]
    types |= {schema.weight: arrow.float64()} if schema.weight else {}
    unknown = sorted({name for row in rows for name in row} - set(types))
    if unknown:
        raise BadInputError(f"{unknown[0]}: no field of the pipeline has this name, so it cannot be a column.")
    present = [name for name in types if any(name in row for row in rows)]
    columns = []
    for name in present:
        try:
            cells = [row.get(name) for row in rows]
            if types[name] == arrow.binary():  # as JSON has them
                cells = [base64.b64decode(cell, validate=True) if isinstance(cell, str) else cell for cell in cells]
            columns.append(arrow.array(cells, types[name]))
        except (arrow.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise BadInputError(f"{name}: a value is not of type {types[name]} ({error}).") from error
    return stream_bytes(arrow.record_batch(columns, names=present))


def _type_of(arrow: Any, field: Field) -> Any:
    if field.type != "numeric":
        return arrow.string() if field.type == "categorical" else arrow.binary()
    return arrow.list_(arrow.float64(), field.size) if field.size > 1 else arrow.float64()


def stream_bytes(batch: Batch) -> bytes:
    """A record batch as an Arrow IPC stream."""
    arrow = _pyarrow("Sending Arrow batches")
    sink = arrow.BufferOutputStream()
    with arrow.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return bytes(sink.getvalue())


def columns_of(exporter: Any) -> tuple[list[str], list[list[Any]]]:
    """Names and columns of what hands itself over as Arrow (``__arrow_c_stream__``, ``__arrow_c_array__``), as Python values.

    Null is None. Raises: BadInputError where pyarrow is missing or cannot take the object over.
    """
    arrow = _pyarrow("Taking rows over from an Arrow table or a data frame")
    try:
        table = arrow.table(exporter)
        return list(table.column_names), [column.to_pylist() for column in table.columns]
    except (arrow.ArrowException, TypeError, ValueError) as error:
        raise BadInputError(f"rows: pyarrow cannot take the {type(exporter).__name__} over: {error}.") from error


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file. Raises: BadInputError where pyarrow is missing; OSError, ValueError as pyarrow does."""
    for batch in _parquet(path).ParquetFile(path).iter_batches(CHUNK_ROWS):
        yield from batch.to_pylist()


def parquet_table(path: Path) -> Any:
    """A whole Parquet file as a pyarrow.Table. Raises: BadInputError where pyarrow is missing."""
    return _parquet(path).read_table(path)


def _parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise BadInputError(f"{path}: reading Parquet needs pyarrow; pip install 'millrace[parquet]'.") from error
    return parquet
