"""The one door to pyarrow: Arrow IPC streams to record batches and back, and Parquet files.

A message is refused before anything of it is decompressed where it declares more than the pipeline lets in. What is let in is
validated in full before a value is looked at: pyarrow follows lengths and indices in the bytes otherwise.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from millrace.learners.distribution import how_to_get
from millrace.learners.errors import BadInputError
from millrace.streams.formats.flatbuffer import declared_size
from millrace.streams.formats.meaning import JSON_TYPES, TAKES, RecordError, as_row, cell_of, declared_types, moment_of
from millrace.streams.schema import Field, Schema

CONTENT_TYPE = b"application/vnd.apache.arrow.stream"
MAGIC = b"\xff\xff\xff\xff"  # how every stream begins, and no JSON
MOST_ROWS = 65_536  # of one Arrow message
BATCH_BYTES = 8 << 20  # of one message, as it lies in the log and decompressed
CHUNK_ROWS = 1000  # of a Parquet file at a time
BINARY = ("binary", "large_binary", "binary_view")  # types of bytes of any length

Batch = Any  # pyarrow.RecordBatch: pyarrow has no types


def _pyarrow(what: str) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise BadInputError(f"{what} needs pyarrow. {how_to_get('parquet')}") from error
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
            viewed = _check_schema(stream.schema, names)
            batches = list(stream)
        if viewed:
            _check_views(batches, most_bytes)
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
        size = declared_size(message.metadata.to_pybytes(), memoryview(message.body))
        if size.negative:
            raise ValueError("a length below 0")
        rows += size.rows if message.type == "record batch" else 0
        decoded += size.buffer_bytes
        if rows > MOST_ROWS:
            raise RecordError("oversized", f"over {MOST_ROWS} rows in one message")
        if decoded > most_bytes or size.longest > most_bytes:
            raise RecordError("oversized", f"decodes to over {most_bytes} bytes, the pipeline's log.max_batch_bytes")


def _check_views(batches: Sequence[Batch], most_bytes: int) -> None:
    """Refuse texts and bytes that are much longer than what is sent: many views may lie on the same bytes."""
    total = 0
    for batch in batches:
        for column in batch.columns:
            views = column.dictionary if hasattr(column, "dictionary") else column
            if str(views.type) in ("string_view", "binary_view"):
                total += _viewed_bytes(views)
            elif "_view" in str(views.type):
                raise RecordError("wrong-type", f"a column is {views.type}, which no field takes")
    if total > most_bytes:
        raise RecordError("oversized", f"decodes to over {most_bytes} bytes, the pipeline's log.max_batch_bytes")


def _viewed_bytes(views: Any) -> int:
    """What the views of a column that is not validated yet add up to: each begins with its length, of 16 bytes that it has."""
    stop, buffer = views.offset + len(views), views.buffers()[1]
    if not len(views):
        return 0
    if buffer is None or buffer.size < 16 * stop:
        raise ValueError("views past the end of their buffer")
    lengths = np.frombuffer(buffer, "<i4", 4 * stop)[4 * views.offset :: 4]
    if lengths.min() < 0:
        raise ValueError("a length below 0")
    return int(lengths.sum(dtype=np.int64))


def _check_schema(schema: Any, names: frozenset[str] | None) -> bool:
    """Names that stand once, and no extension types: what those hold is for whoever registered them, and not seen from outside.

    Gives whether a column has views, or is a dictionary of some.
    """
    if len(set(schema.names)) < len(schema.names):
        raise RecordError("duplicate-field", "a column's name stands twice")
    viewed = False
    for field in schema:
        viewed = viewed or "_view" in str(field.type)
        metadata, is_read = field.metadata, names is None or field.name in names
        if (metadata and is_read and metadata.get(b"ARROW:extension:name")) or _hides(field.type):
            raise RecordError("wrong-type", f"{field.name} is of an extension type")
    return viewed


@lru_cache(maxsize=256)
def _hides(kind: Any) -> bool:
    """Whether an extension type that pyarrow knows stands in it with views, or deeper than it is looked for."""
    held = str(getattr(kind, "storage_type", kind))
    return "extension<" in held or ("_view" in held and "_view" not in str(kind))


@lru_cache(maxsize=256)
def kind_of(kind: Any) -> str:
    """Of which kind the values of an Arrow type are, as ``meaning.TAKES`` has it; "null", "timestamp", or "" for any other.

    Small, large and view types are one kind; a dictionary is what it holds.
    """
    types = _pyarrow("An Arrow batch").types
    if types.is_dictionary(kind):
        inner = kind_of(kind.value_type)
        return "" if inner == "list" else inner
    tests = {
        "null": types.is_null,
        "integer": types.is_integer,
        "number": types.is_floating,
        "text": lambda it: types.is_string(it) or types.is_large_string(it) or types.is_string_view(it),
        "boolean": types.is_boolean,
        "bytes": lambda it: str(it) in BINARY or types.is_fixed_size_binary(it),
        "timestamp": types.is_timestamp,
        "list": lambda it: types.is_list(it) or types.is_large_list(it) or types.is_fixed_size_list(it),
    }
    return next((name for name, test in tests.items() if test(kind)), "")


def settled(column: Any, takes: Container[str] = ()) -> Any:
    """A column without views, and without a dictionary unless it is one of texts, which are looked at once each.

    One that is all null is of the type null, whatever its type. So is one that is all NaN, which pandas writes for a column of
    None, unless it ``takes`` numbers.
    """
    arrow, kind = _pyarrow("An Arrow batch"), kind_of(column.type)
    if column.null_count == len(column):
        return arrow.nulls(len(column))
    if hasattr(column, "dictionary"):
        if kind not in ("text", "bytes"):
            return settled(column.dictionary_decode(), takes)
        return arrow.DictionaryArray.from_arrays(column.indices, _without_views(arrow, column.dictionary))
    if kind == "number" and kind not in takes and np.isnan(column.to_numpy(zero_copy_only=False)).all():
        return arrow.nulls(len(column))
    return _without_views(arrow, column) if kind in ("text", "bytes") else column


def _without_views(arrow: Any, column: Any) -> Any:
    plain = {"string_view": arrow.large_string(), "binary_view": arrow.large_binary()}.get(str(column.type))
    return column if plain is None else column.cast(plain)


def integers(column: Any) -> Any:
    """A column of timestamps as int64 in its own unit; null stays."""
    return column.cast(_pyarrow("An Arrow batch").int64())


def milliseconds(column: Any) -> Any:
    """A column of timestamps as int64 milliseconds since 1970, rounded down; null stays."""
    ticks = integers(column)
    per_ms = {"s": (1000, 1), "ms": (1, 1), "us": (1, 1000), "ns": (1, 1_000_000)}[column.type.unit]
    times = ticks.to_numpy(zero_copy_only=False) if not column.null_count else ticks.fill_null(0).to_numpy()
    return times // per_ms[1] * per_ms[0]


def encode_rows(rows: Sequence[Mapping[str, Any]], schema: Schema) -> bytes:
    """Rows as one Arrow IPC stream, one column a declared key that any of them has.

    Raises: BadInputError where a row has another key, or a value is not of its field's type.
    """
    arrow = _pyarrow("Sending Arrow batches")
    declared = declared_types(schema)
    times = {field.name: partial(_moment, field) for field in schema.fields if field.type == "time"}
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
            cells = [times[name](row.get(name)) if name in times else cell_of(declared[name], row.get(name)) for row in rows]
            columns.append(arrow.array(cells, types[name]))
        except (RecordError, arrow.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise BadInputError(f"{name}: a value is not of type {types[name]} ({error}).") from error
    return stream_bytes(arrow.record_batch(columns, names=present))


def _moment(field: Field, cell: Any) -> float | None:
    return None if cell is None else moment_of(field, cell)


def _type_of(arrow: Any, field: Field) -> Any:
    if not field.is_number:
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


def parquet_rows(path: Path, schema: Schema) -> Iterator[bytes]:
    """The rows of a Parquet file as JSON rows of the same meaning.

    Raises: BadInputError where pyarrow is missing, or naming a declared column that no JSON row can hold; OSError, ValueError
    as pyarrow does.
    """
    file, types = _parquet(path).ParquetFile(path), declared_types(schema)
    for column in file.schema_arrow:
        if column.name in types:
            _check_parquet_column(column, types[column.name])
    for batch in file.iter_batches(CHUNK_ROWS):
        for at, column in enumerate(file.schema_arrow):
            if types.get(column.name) == "time" and kind_of(column.type) == "timestamp":
                batch = batch.set_column(at, column.name, _iso(batch.column(at)))
        yield from (as_row(row, types) for row in batch.to_pylist())


def _iso(column: Any) -> Any:
    """A column of timestamps as text of ISO 8601, with Z where they are instants."""
    arrow = _pyarrow("A Parquet file")
    ticks = column.cast(arrow.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    texts = np.datetime_as_string(ticks.view(f"datetime64[{column.type.unit}]")).tolist()
    zone, absent = "Z" if column.type.tz else "", column.is_null().to_pylist()
    return arrow.array([None if gone else text + zone for text, gone in zip(texts, absent, strict=True)], arrow.string())


def _check_parquet_column(column: Any, declared: str) -> None:
    kind = kind_of(column.type)
    inner = kind_of(column.type.value_type) if kind == "list" else kind
    if inner not in ("null", *JSON_TYPES, "bytes", *(("timestamp",) if declared == "time" else ())):
        raise BadInputError(
            f"The column {column.name} is {column.type}, and {declared} takes {', '.join(TAKES[declared])}. Cast it to one of "
            "these before it is sent."
        )


def parquet_table(path: Path) -> Any:
    """A whole Parquet file as a pyarrow.Table. Raises: BadInputError where pyarrow is missing."""
    return _parquet(path).read_table(path)


def _parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise BadInputError(f"{path}: reading Parquet needs pyarrow. {how_to_get('parquet')}") from error
    return parquet
