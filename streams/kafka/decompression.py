"""Kafka's four compressions, decoded up to a limit: what a fetch may hold says nothing about what it becomes.

A batch of a few hundred KiB may decode to gigabytes, and fetch limits count what lies on the broker. Each function here stops
once more than ``DECODED_BYTES`` have come out, having held about as many.

Source: the framings are those of Kafka's own clients: gzip, raw and xerial snappy, LZ4 frames, Zstandard frames.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from millrace.streams.errors import DamageError

DECODED_BYTES = 64 << 20  # of one batch of records, at most: twice the largest record that a topic made here takes
READ_BYTES = 256 << 10  # decoded at a time
XERIAL = b"\x82SNAPPY\0"  # begins a stream of snappy blocks
XERIAL_HEADER = 16  # bytes, the two version numbers included
GZIP = 31  # zlib's window bits for a gzip header and the largest window

Decode = Callable[[Any], bytes]


def joined(chunks: Iterable[bytes]) -> bytes:
    """All of them as one. Raises: DamageError once they are more than ``DECODED_BYTES``."""
    pieces, size = list[bytes](), 0
    for chunk in chunks:
        size += len(chunk)
        refuse_beyond(size)
        pieces.append(chunk)
    return b"".join(pieces)


def refuse_beyond(size: int) -> None:
    """Raises: DamageError for more bytes than a batch may have."""
    if size > DECODED_BYTES:
        raise DamageError(f"a compressed batch of records decodes to more than {DECODED_BYTES >> 20} MiB")


def gzip_decode(payload: bytes) -> bytes:
    """Of one or more gzip members.

    >>> import gzip
    >>> gzip_decode(gzip.compress(b"ab") + gzip.compress(b"c"))
    b'abc'
    """
    return joined(_gzip_chunks(payload))


def _gzip_chunks(payload: bytes) -> Iterator[bytes]:
    compressed = bytes(payload)
    while compressed:
        member = zlib.decompressobj(GZIP)
        while not member.eof:
            chunk = member.decompress(compressed, READ_BYTES)
            compressed = member.unused_data if member.eof else member.unconsumed_tail
            if not chunk and not compressed and not member.eof:
                raise EOFError("the gzip stream ends too early")
            yield chunk


def snappy_decode(payload: bytes) -> bytes:
    """Of one block, or of xerial's many. A block says its decoded size in its first bytes, and is not decoded beyond it."""
    from snappy import decompress

    sizes = 0
    blocks = []
    for block in _snappy_blocks(payload):
        sizes += _declared(block)
        refuse_beyond(sizes)
        blocks.append(block)
    return joined(map(decompress, blocks))


def _snappy_blocks(payload: bytes) -> Iterator[bytes]:
    if not payload.startswith(XERIAL):
        yield payload
        return
    at = XERIAL_HEADER
    while at < len(payload):
        start = at + 4
        at = start + int.from_bytes(payload[at:start], "big")
        yield payload[start:at]


def _declared(block: bytes) -> int:
    """The decoded size that a snappy block begins with, a varint of at most five bytes.

    >>> _declared(bytes([0xAC, 0x02, 7, 7]))
    300
    """
    size = 0
    for at, byte in enumerate(block[:5]):
        size |= (byte & 0x7F) << 7 * at
        if byte < 0x80:
            break
    return size


def lz4_decode(payload: bytes) -> bytes:
    """Of one LZ4 frame."""
    from lz4.frame import LZ4FrameDecompressor

    return joined(_lz4_chunks(LZ4FrameDecompressor(), payload))


def _lz4_chunks(frame: Any, payload: bytes) -> Iterator[bytes]:
    yield frame.decompress(payload, READ_BYTES)
    while not frame.eof:
        if frame.needs_input:
            raise EOFError("the LZ4 frame ends too early")
        yield frame.decompress(b"", READ_BYTES)


def zstd_decode(payload: bytes) -> bytes:
    """Of one or more Zstandard frames."""
    from zstandard import ZstdDecompressor

    with ZstdDecompressor().stream_reader(io.BytesIO(payload), read_across_frames=True) as reader:
        return joined(iter(lambda: reader.read(READ_BYTES), b""))


DECODERS: dict[str, Decode] = {
    "gzip_decode": gzip_decode,
    "snappy_decode": snappy_decode,
    "lz4_decode": lz4_decode,
    "zstd_decode": zstd_decode,
}  # by the names that kafka-python calls
