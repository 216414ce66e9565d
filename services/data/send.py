"""`millrace send`: a file or a built-in data set into the log."""

from __future__ import annotations

import csv
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from millrace.learners.errors import BadInputError, MillraceError
from millrace.services.pipeline.instance import Instance
from millrace.streams.formats.arrow import encode_rows, parquet_rows
from millrace.streams.records import Headers, Record, encode_headers
from millrace.streams.schema import Schema, Unknown

log = logging.getLogger("millrace")

COMMIT_ROWS = 1000  # records a commit, where they are not paced
PACED_ROWS = 64  # at most, where they are
JSON_SCALAR = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?|true|false")  # 007, nan and 1_000 are text


class _Keyed(msgspec.Struct):
    id: str


def send(
    instance: Instance,
    values: Iterable[bytes],
    rows_per_s: float,
    served: bool = False,
    headers: Headers = (),
    rows_each: int = 1,
) -> int:
    """Append each value as a record; returns how many. ``rows_per_s`` 0: as fast as the log takes them.

    ``served``: the values are served predictions and labels, and go to their own topic under their ids. Every record carries
    the ``headers``. ``rows_each``: of the file, in a record.

    Raises: StorageError, BadInputError where the log refuses or the values cannot be read; what was appended before stays,
    and the message says how much that is.
    """
    store, topic = instance.log(), topic_of(instance, served)
    values, key, header_bytes = iter(values), _id_of if served else _no_key, encode_headers(headers)
    count, start_s = 0, time.monotonic()
    try:
        while chunk := list(islice(values, PACED_ROWS if rows_per_s else COMMIT_ROWS)):
            now_ms = time.time_ns() // 1_000_000
            store.append(topic, [Record(value, key(value), header_bytes, now_ms) for value in chunk])
            count += len(chunk)
            if rows_per_s:
                time.sleep(max(0.0, start_s + count / rows_per_s - time.monotonic()))
    except MillraceError as error:
        raise type(error)(f"{error} {_in_the_log(count, rows_each)}") from error
    _retain(instance)
    return count


def _in_the_log(count: int, rows_each: int) -> str:
    """How much of a file that could not be sent whole has been."""
    if not count:
        return "Nothing was sent."
    batch_size = "" if rows_each == 1 else f" of {rows_each} rows each"
    return f"The first {count} records{batch_size} are in the log; leave them out when you send the rest."


def topic_of(instance: Instance, served: bool) -> str:
    """Where `send` appends. Raises: BadInputError where the pipeline takes no late labels."""
    pipeline = instance.loaded.pipeline
    if served and pipeline.labels is None:
        raise BadInputError(f"Pipeline {pipeline.name} has no table [labels], so nothing would read {pipeline.served_topic}.")
    return pipeline.served_topic if served else pipeline.topic


def _id_of(value: bytes) -> bytes | None:
    """The key that keeps the records of an id in order; none where a record has no id, which the worker will refuse."""
    try:
        return msgspec.json.decode(value, type=_Keyed).id.encode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _no_key(_value: bytes) -> None:
    """Events have none."""


def _retain(instance: Instance) -> None:
    """The embedded log has no process of its own, so whoever appends lets retention pass."""
    hours = instance.loaded.pipeline.log.retention_hours
    if hours:
        store = instance.log()
        oldest_ms = time.time_ns() // 1_000_000 - int(hours * 3_600_000)
        for topic in instance.loaded.pipeline.topics:
            for number in range(instance.loaded.pipeline.log.partitions):
                store.expire(f"{topic}:{number}", oldest_ms)


def values_of(path: Path, schema: Schema) -> Iterator[bytes]:
    """The records of a file: JSON lines as they stand, CSV and Parquet rows as JSON objects.

    Raises: BadInputError where the file cannot be read or its ending is none of .jsonl, .csv, .parquet.
    """
    readers: dict[str, Callable[[Path], Iterator[bytes]]] = {
        ".jsonl": _json_lines,
        ".csv": partial(_csv_rows, schema),
        ".parquet": _parquet_rows,
    }
    if path.suffix not in readers:
        raise BadInputError(f"{path}: the ending must be one of {', '.join(readers)}.")
    try:
        yield from readers[path.suffix](path)
    except (OSError, ValueError, csv.Error) as error:  # ValueError: not UTF-8, or not Parquet
        raise BadInputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def _json_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from (line.strip() for line in file if line.strip())


def _csv_rows(schema: Schema, path: Path) -> Iterator[bytes]:
    """Empty cells become null, cells that are JSON numbers or booleans stay that, unless the column is declared as text."""
    text = {field.name for field in schema.fields if field.type == "categorical"}
    text |= {schema.label.name} if schema.label.type == "string" else set()
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        names = rows.fieldnames or []
        if len(set(names)) < len(names):
            raise csv.Error("a name stands twice in its heading")
        for row in rows:
            if None in row:
                raise csv.Error(f"line {rows.line_num} has more cells than the heading")
            yield b"{%b}" % b",".join(_member(name, cell, name in text) for name, cell in row.items())


def _member(name: str, cell: str | None, is_text: bool) -> bytes:
    key = msgspec.json.encode(name)
    if not cell:
        return key + b":null"
    return key + b":" + (cell.encode() if not is_text and JSON_SCALAR.fullmatch(cell) else msgspec.json.encode(cell))


def _parquet_rows(path: Path) -> Iterator[bytes]:
    return map(msgspec.json.encode, parquet_rows(path))


def as_arrow(
    instance: Instance, values: Iterable[bytes], rows_per_s: float, served: bool, rows: int
) -> tuple[Iterator[bytes], float]:
    """Values as Arrow batches, and at how many of these a second. Raises: BadInputError for what is no row of an event."""
    if served:
        raise BadInputError("Served predictions and labels travel one a message; leave out --format arrow.")
    pipeline = instance.loaded.pipeline
    return messages_of(values, pipeline.schema, rows, pipeline.unknown), rows_per_s / rows


def messages_of(values: Iterable[bytes], schema: Schema, rows: int, unknown: Unknown = "reject") -> Iterator[bytes]:
    """JSON rows as Arrow batches, ``rows`` of them (>= 1) a message; keys that are ignored are left out.

    Raises: BadInputError naming the first row that is no JSON object, or the column that a message's rows do not make.
    """
    values, count = iter(values), 0
    while chunk := list(islice(values, rows)):
        try:
            decoded = [msgspec.json.decode(value, type=dict[str, Any]) for value in chunk]
            if unknown == "ignore":
                decoded = [{name: cell for name, cell in row.items() if name in schema.names} for row in decoded]
            yield encode_rows(decoded, schema)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadInputError) as error:
            raise BadInputError(f"Among rows {count + 1} to {count + len(chunk)}: {str(error).rstrip('.')}.") from error
        count += len(chunk)
