"""Avro records in a schema registry's wire format, as named cells: a zero byte, the schema's id in four bytes, the record.

The one door to fastavro. A schema never changes under its id, so each is asked for once and kept in the pipeline's folder.
Folding is the same years later, without the registry. Only flat records of what a row can hold are read: numbers, booleans,
texts, bytes, enumerations, arrays of numbers, and any of them or null.

Source: Avro 1.12 specification, binary encoding; Confluent Schema Registry, wire format and GET /schemas/ids/ID.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

from millrace.learners.distribution import how_to_get
from millrace.learners.errors import BadInputError
from millrace.streams.errors import StorageError
from millrace.streams.formats.meaning import RecordError

MAGIC = 0
HEAD = struct.Struct(">bI")
TIMEOUT_S = 10.0  # for the registry's answer
LARGEST_SCHEMA = 1 << 20  # bytes
NUMBERS = {"int", "long", "float", "double"}
CELLS = NUMBERS | {"null", "boolean", "string", "bytes", "enum"}
ITEMS = NUMBERS | {"boolean"}  # of an array; beside null in a union, where null takes a byte
TIMES = ("timestamp-millis", "timestamp-micros", "local-timestamp-millis", "local-timestamp-micros")  # of a long
BROKEN = (ArithmeticError, EOFError, LookupError, MemoryError, TypeError, ValueError, struct.error)  # of a record's bytes


@dataclass(frozen=True)
class Registry:
    """The schemas of a registry, kept in a folder."""

    url: str  # such as http://127.0.0.1:8081
    folder: Path
    names: frozenset[str] | None = None  # of the columns that are read, the others being ignored; None: every
    _known: dict[tuple[int, bool], Any] = field(default_factory=dict)  # by id: a schema as fastavro takes it, or what is wrong

    @cached_property
    def _fastavro(self) -> Any:
        try:
            import fastavro
        except ImportError as error:
            raise BadInputError(f"Avro records in the log need fastavro. {how_to_get('avro')}") from error
        return fastavro

    def cells(self, value: bytes) -> dict[str, Any]:
        """The named values of a record.

        Raises: RecordError where it cannot be read; StorageError where the registry does not answer; BadInputError without
        fastavro.
        """
        if len(value) < HEAD.size:
            raise RecordError("unreadable", "an Avro record of fewer bytes than its schema's id takes")
        schema, body = self._schema(HEAD.unpack_from(value)[1]), BytesIO(value[HEAD.size :])
        try:
            cells: dict[str, Any] = self._fastavro.schemaless_reader(body, schema, None)
        except BROKEN as error:
            raise RecordError("unreadable", f"not an Avro record of its schema ({error!r})") from error
        if body.read(1):
            raise RecordError("unreadable", "bytes follow the Avro record")
        return cells if self.names is None else {name: cell for name, cell in cells.items() if name in self.names}

    def _schema(self, number: int) -> Any:
        key = (number, self.names is None)
        if key not in self._known:
            text = self._text(number)
            try:
                schema = self._fastavro.parse_schema(json.loads(text))
                _check(schema, self.names)
                self._known[key] = schema
            except RecordError as error:
                self._known[key] = error
            except (self._fastavro.schema.SchemaParseException, self._fastavro.schema.UnknownType, *BROKEN) as error:
                self._known[key] = RecordError("unknown-schema", f"schema {number} cannot be read ({error!r})")
        cached = self._known[key]
        if isinstance(cached, RecordError):
            raise RecordError(cached.reason, cached.detail)
        return cached

    def _text(self, number: int) -> str:
        """A schema as the registry has it, from the folder where it was asked for before."""
        path = self.folder / f"{number}.avsc"
        try:
            if path.exists():
                return path.read_text(encoding="utf-8")
            text = self._asked(number)
            self.folder.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(f".{os.getpid()}")
            draft.write_text(text, encoding="utf-8")
            draft.replace(path)
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}. Free space or make the folder writable.") from error
        return text

    def _asked(self, number: int) -> str:
        from urllib.error import HTTPError  # http, ssl and email come with these, for which every command would wait
        from urllib.request import urlopen

        try:
            with urlopen(f"{self.url.rstrip('/')}/schemas/ids/{number}", timeout=TIMEOUT_S) as reply:
                answer = json.loads(reply.read(LARGEST_SCHEMA))
        except OSError as error:
            if isinstance(error, HTTPError) and error.code == 404:
                raise RecordError("unknown-schema", f"the registry has no schema {number}") from error
            raise StorageError(f"{self.url} does not give schema {number} ({error}). Start the registry, and go on.") from error
        except ValueError as error:
            raise StorageError(f"{self.url} gave something else than a schema for {number} ({error}).") from error
        if answer.get("schemaType", "AVRO") != "AVRO" or answer.get("references") or not isinstance(answer.get("schema"), str):
            raise RecordError("unknown-schema", f"schema {number} is not an Avro schema that stands for itself")
        return str(answer["schema"])


def _check(schema: Any, names: frozenset[str] | None) -> None:
    """Only flat rows are read; an array whose items take no bytes could be endless.

    Raises: RecordError for another schema; wrong-type, as in every format, where it is for a column that no field takes.
    """
    if schema["type"] != "record":
        raise RecordError("unknown-schema", f"its schema is of type {schema['type']}, not record")
    for column in schema["fields"]:
        if names is not None and column["name"] not in names:
            _check_ends(column["type"], column["name"])
            continue
        for kind in column["type"] if isinstance(column["type"], list) else [column["type"]]:
            name = kind["type"] if isinstance(kind, dict) else kind
            items = kind.get("items") if isinstance(kind, dict) else None
            logical = kind.get("logicalType") if isinstance(kind, dict) else None
            if logical in TIMES and name == "long":
                continue
            if logical or not (name in CELLS or (name == "array" and _are_numbers(items))):
                shown = logical or (f"array of {items}" if name == "array" else name)
                raise RecordError("wrong-type", f"{column['name']} is of type {shown}, which no field takes")


def _are_numbers(items: Any) -> bool:
    """Whether an array's items are numbers or booleans, and null among them."""
    union = items if isinstance(items, list) else [items]
    return all(isinstance(item, str) and (item in ITEMS or (item == "null" and len(union) > 1)) for item in union)


def _check_ends(kind: Any, name: str) -> None:
    """Raises: RecordError where a column that is ignored has an array of items that may take no bytes."""
    if isinstance(kind, list):
        for choice in kind:
            _check_ends(choice, name)
    elif isinstance(kind, dict):
        if kind["type"] == "array" and not _takes_bytes(kind["items"]):
            raise RecordError("unknown-schema", f"{name} is an array of items that may take no bytes")
        for part in [kind.get("items"), kind.get("values"), *(field["type"] for field in kind.get("fields", []))]:
            _check_ends(part, name)


def _takes_bytes(kind: Any) -> bool:
    """Whether every value of a type takes at least one byte; a type that is named alone may be one that does not."""
    if isinstance(kind, list):
        return True  # a union begins with which of its types it is
    if isinstance(kind, str):
        return kind in CELLS - {"null"}
    if kind["type"] == "record":
        return any(_takes_bytes(field["type"]) for field in kind["fields"])
    return bool(kind.get("size", 1) > 0 and kind["type"] != "null")
