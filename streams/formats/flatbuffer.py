"""What an Arrow message says of its own size, read from its metadata before anything of its body is touched.

Only the few fields that are needed of Arrow's Message.fbs; pyarrow has verified the metadata before it is read here.
Source: Apache Arrow, format/Message.fbs; FlatBuffers, "Internals".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_I32, _U16, _I64 = struct.Struct("<i"), struct.Struct("<H"), struct.Struct("<q")
HEADER, DICTIONARY = 2, 2  # the slot of a message's header, and its type of a dictionary
LENGTH, NODES, BUFFERS, COMPRESSION = 0, 1, 2, 3  # slots of a record batch
NODE_BYTES = BUFFER_BYTES = 16  # two int64 each


@dataclass(frozen=True, slots=True)
class DeclaredSize:
    """What the metadata of a record batch or dictionary declares."""

    rows: int
    longest: int  # cells of its longest column, children of lists included
    buffer_bytes: int  # of all buffers, decompressed

    @property
    def negative(self) -> bool:
        """Whether a length is below 0, which no writer means."""
        return min(self.rows, self.longest, self.buffer_bytes) < 0


def declared_size(metadata: bytes, body: bytes | memoryview) -> DeclaredSize:
    """The size of a record batch or dictionary as it declares it. Raises: struct.error where the bytes are no such thing."""
    message = _I32.unpack_from(metadata, 0)[0]
    header = _table(metadata, message, HEADER)
    if metadata[_slot(metadata, message, HEADER - 1)] == DICTIONARY:
        header = _table(metadata, header, 1)
    rows = _I64.unpack_from(metadata, at)[0] if (at := _slot(metadata, header, LENGTH)) else 0
    cells = [length for length, _ in _pairs(metadata, header, NODES)]
    compressed = _slot(metadata, header, COMPRESSION) != 0
    sizes = [_size(body, start, length, compressed) for start, length in _pairs(metadata, header, BUFFERS)]
    return DeclaredSize(rows, max(cells, default=0), -1 if min(sizes, default=0) < 0 else sum(sizes))


def _size(body: bytes | memoryview, start: int, length: int, compressed: bool) -> int:
    """A buffer's bytes: where it is compressed they stand before it; -1 there says that it is not."""
    if not compressed or not length:
        return length
    unpacked = int(_I64.unpack_from(body, start)[0])
    return length if unpacked == -1 else unpacked


def _slot(raw: bytes, table: int, number: int) -> int:
    """Where a field of a table stands; 0: it is left out."""
    listed = table - _I32.unpack_from(raw, table)[0]
    at = 4 + 2 * number
    if at + 2 > _U16.unpack_from(raw, listed)[0]:
        return 0
    offset = int(_U16.unpack_from(raw, listed + at)[0])
    return table + offset if offset else 0


def _table(raw: bytes, table: int, number: int) -> int:
    """The table that a field points to."""
    at = _slot(raw, table, number)
    return at + int(_I32.unpack_from(raw, at)[0])


def _pairs(raw: bytes, table: int, number: int) -> Iterator[tuple[int, int]]:
    """A vector of structs of two int64."""
    if not _slot(raw, table, number):
        return
    vector = _table(raw, table, number)
    for at in range(_I32.unpack_from(raw, vector)[0]):
        start, length = struct.unpack_from("<qq", raw, vector + 4 + NODE_BYTES * at)
        yield start, length
