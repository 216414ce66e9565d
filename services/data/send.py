"""`millrace send`: a file or a built-in data set into the log."""

from __future__ import annotations

import csv
import logging
import re
import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import msgspec

from millrace.learners.errors import BadInputError, MillraceError
from millrace.services.pipeline.expiry import expire
from millrace.services.pipeline.instance import Instance
from millrace.streams.formats.arrow import encode_rows, parquet_rows
from millrace.streams.formats.json_rows import Codec
from millrace.streams.records import Event, Headers, Record, encode_headers
from millrace.streams.schema import Schema, Unknown

log = logging.getLogger("millrace")

COMMIT_ROWS = 1000  # records a commit, where they are not paced
PACED_ROWS = 64  # at most, where they are
JSON_SCALAR = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?|true|false")  # 007 and 1_000 are text
BOOLEANS = {"True": b"true", "False": b"false", "TRUE": b"true", "FALSE": b"false"}  # as pandas, R and spreadsheets write them
NAN = re.compile(r"[-+]?nan", re.IGNORECASE)
INFINITY = re.compile(r"([-+]?)inf(inity)?", re.IGNORECASE)  # as Python, pandas and polars write it
MARK = b"\xef\xbb\xbf"  # the byte-order mark of UTF-8


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
    the ``headers``. ``rows_each``: of the file, at most, in a record.

    Raises: StorageError, BadInputError where the log refuses or the values cannot be read; what was appended before stays,
    and the message says how much that is.
    """
    instance.refuse_completions("Sending rows")
    store, topic = instance.log(), topic_of(instance, served)
    values, key, header_bytes = iter(values), _id_of if served else _no_key, encode_headers(headers)
    sent, rows, start_s = 0, 0, time.monotonic()
    try:
        while chunk := list(islice(values, PACED_ROWS if rows_per_s else COMMIT_ROWS)):
            now_ms = time.time_ns() // 1_000_000
            store.append(topic, [Record(value, key(value), header_bytes, now_ms) for value in chunk])
            sent, rows = sent + len(chunk), rows + sum(getattr(value, "rows", 1) for value in chunk)
            if rows_per_s:
                time.sleep(max(0.0, start_s + sent / rows_per_s - time.monotonic()))
    except MillraceError as error:
        raise type(error)(f"{error} {_in_the_log(sent, rows if rows_each > 1 else sent)}") from error
    expire(instance)  # the embedded log has no process of its own
    return sent


def _in_the_log(sent: int, rows: int) -> str:
    """How much of a file that could not be sent whole has been."""
    if not sent:
        return "Nothing was sent."
    held = "" if rows == sent else f", which hold its first {rows} rows,"
    return f"The first {sent} records{held} are in the log; leave them out when you send the rest."


def topic_of(instance: Instance, served: bool) -> str:
    """Where `send` appends. Raises: BadInputError where the pipeline takes no late labels."""
    pipeline = instance.loaded.pipeline
    if served and pipeline.labels is None:
        raise BadInputError(f"Pipeline {pipeline.name} has no table [labels], so nothing would read {pipeline.served_topic}.")
    return pipeline.served_topic if served else pipeline.topic


def _id_of(value: bytes) -> bytes | None:
    """The key that keeps the records of an id in order. A record without an id has none, and the worker will refuse it."""
    try:
        return msgspec.json.decode(value, type=_Keyed).id.encode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _no_key(_value: bytes) -> None:
    """Events have none."""


def values_of(path: Path, schema: Schema) -> Iterator[bytes]:
    """The records of a file: JSON lines as they stand, CSV and Parquet rows as JSON objects.

    Raises: BadInputError where the file cannot be read or its ending is none of .jsonl, .csv, .parquet.
    """
    readers: dict[str, Callable[[Path], Iterator[bytes]]] = {
        ".jsonl": _json_lines,
        ".csv": partial(_csv_rows, schema),
        ".parquet": partial(parquet_rows, schema=schema),
    }
    if path.suffix not in readers:
        raise BadInputError(f"{path}: the ending must be one of {', '.join(readers)}.")
    try:
        yield from readers[path.suffix](path)
    except (OSError, ValueError, csv.Error) as error:  # ValueError: not UTF-8, or not Parquet
        raise BadInputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def _json_lines(path: Path) -> Iterator[bytes]:
    """Lines that are not empty, without a byte-order mark before the first."""
    with path.open("rb") as file:
        if file.read(len(MARK)) != MARK:
            file.seek(0)
        yield from (line.strip() for line in file if line.strip())


def _csv_rows(schema: Schema, path: Path) -> Iterator[bytes]:
    """Empty cells become null; what else a cell becomes depends on whether its column is declared as text."""
    names_kept = {field.name: field.categories for field in schema.fields if field.type == "categorical"}
    text = {**names_kept, **({schema.label.name: ()} if schema.label.type == "string" else {})}
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)
        names = next(rows, [])
        _check_heading(names)
        keys = [msgspec.json.encode(name) for name in names]
        for row in rows:
            if row and len(row) != len(names):
                than = "more" if len(row) > len(names) else "fewer"
                raise csv.Error(f"line {rows.line_num} has {than} cells than the heading ({len(row)}, not {len(names)})")
            cells = [
                b"null" if not cell else _text(cell, text[name]) if name in text else _value(cell)
                for name, cell in zip(names, row, strict=False)
            ]
            if cells:
                yield b"{%b}" % b",".join(key + b":" + cell for key, cell in zip(keys, cells, strict=True))


def _check_heading(names: list[str]) -> None:
    if len(set(names)) < len(names):
        raise csv.Error("a name stands twice in its heading")
    if "" in names:
        raise csv.Error(
            f"column {names.index('') + 1} has no name in the heading; if it is the index of a data frame, write the file "
            "without it (pandas: to_csv(..., index=False))"
        )


def _text(cell: str, categories: Container[str]) -> bytes:
    """A cell of a column declared as text: as it stands, but a boolean unless a category is declared by that very name."""
    if cell in ("True", "False") and (isinstance(categories, str) or cell not in categories):
        return BOOLEANS[cell]
    return msgspec.json.encode(cell)


def _value(cell: str) -> bytes:
    """A cell of any other column: a number or boolean where it is written as one, NaN as null, else text, which is refused."""
    if JSON_SCALAR.fullmatch(cell):
        return cell.encode()
    if cell in BOOLEANS:
        return BOOLEANS[cell]
    if NAN.fullmatch(cell):
        return b"null"
    infinity = INFINITY.fullmatch(cell)
    return msgspec.json.encode(cell) if infinity is None else b"-1e999" if infinity[1] == "-" else b"1e999"


def as_arrow(
    instance: Instance, values: Iterable[bytes], rows_per_s: float, served: bool, rows: int
) -> tuple[Iterator[bytes], float]:
    """Values as Arrow batches, and at how many of these a second. Raises: BadInputError for what is no row of an event."""
    if served:
        raise BadInputError("Served predictions and labels travel one a message; leave out --format arrow.")
    pipeline = instance.loaded.pipeline
    return messages_of(values, pipeline.schema, rows, pipeline.unknown), rows_per_s / rows


class Message(bytes):
    """An Arrow message, and how many rows of the file it holds."""

    rows = 1


def messages_of(values: Iterable[bytes], schema: Schema, rows: int, unknown: Unknown = "reject") -> Iterator[bytes]:
    """JSON rows as Arrow batches, ``rows`` of them (>= 1) a message; keys that are ignored are left out.

    A row that the pipeline will refuse goes as it is, in its place, and becomes the dead letter that it is in either format.
    """
    values, codec = iter(values), Codec(schema, sys.maxsize, unknown)
    while chunk := list(islice(values, rows)):
        _, refused = codec.decode([Event(at, 0, None, b"", value) for at, value in enumerate(chunk)])
        bad = {rejection.event.offset for rejection in refused}
        for is_bad, places in groupby(range(len(chunk)), key=bad.__contains__):
            run = [chunk[at] for at in places]
            if is_bad:
                yield from run
                continue
            decoded = [msgspec.json.decode(value, type=dict[str, Any]) for value in run]
            if unknown == "ignore":
                decoded = [{name: cell for name, cell in row.items() if name in schema.names} for row in decoded]
            message = Message(encode_rows(decoded, schema))
            message.rows = len(run)
            yield message
