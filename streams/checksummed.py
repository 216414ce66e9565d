"""JSON that carries the checksum of its own bytes: how journal and ledger entries lie in their streams."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from crc32c import crc32c

from millrace.streams.errors import DamageError

T = TypeVar("T")

_SEAL = b',"crc32c":'


def seal(entry: msgspec.Struct) -> bytes:
    """The entry as a JSON object whose last field is the crc32c of the object without it."""
    body = msgspec.json.encode(entry)
    return body[:-1] + _SEAL + str(crc32c(body)).encode() + b"}"


def unseal(raw: bytes, decoder: msgspec.json.Decoder[T], where: str) -> T:
    """The entry that ``seal`` wrote.

    Raises: DamageError naming ``where`` if a byte differs, or if a newer release wrote what is unknown here.
    """
    body, separator, crc = raw.rpartition(_SEAL)
    body += b"}"
    if not separator or crc != str(crc32c(body)).encode() + b"}":
        raise DamageError(f"{where} is damaged: its bytes do not match its crc32c. Restore it from a copy.")
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamageError(f"{where} was written by another release ({error}). Use the release that wrote it.") from error
