"""The cells of one tensor of the Open Inference Protocol v2, JSON or binary: numbers, booleans, names and bytes. Pure.

A boolean and an integer mean what they mean in a record (``streams/formats/meaning.py``): a boolean is 1 or 0 to a number, and
either is a name to a category.
Source: open-inference-protocol, specification/protocol/inference_rest.md; Triton's extension_binary_data.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
import numpy as np

from millrace.learners.errors import BadInputError
from millrace.learners.protocol import Array, Floats
from millrace.streams.formats.meaning import INT64, text_of

NUMBERS = {
    "FP64": "<f8",
    "FP32": "<f4",
    "FP16": "<f2",
    "INT64": "<i8",
    "INT32": "<i4",
    "INT16": "<i2",
    "INT8": "<i1",
    "UINT64": "<u8",
    "UINT32": "<u4",
    "UINT16": "<u2",
    "UINT8": "<u1",
}
BOOL = "BOOL"  # a byte a boolean, 0 or 1
DTYPES = NUMBERS | {BOOL: "|u1"}
WHOLE = tuple(name for name in NUMBERS if "INT" in name)

# Below these a number is one of the datatype once it is rounded; at them it would be infinite.
BEYOND = {"FP16": 65520.0, "FP32": (2.0 - 2.0**-24) * 2.0**127}

Scalar = bool | int | float | str
Parameters = dict[str, Scalar | None] | None  # null is the same as absent


class Tensor(msgspec.Struct, frozen=True):
    """An input as the JSON part of a request declares it."""

    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET  # of null: there is none


def has_data(tensor: Tensor) -> bool:
    """Whether a tensor has JSON data."""
    return tensor.data is not msgspec.UNSET and bytes(memoryview(tensor.data)[:5]) != b"null"


def given(parameters: Parameters, name: str) -> Scalar | None:
    """A parameter, or None where it is absent or null."""
    return None if parameters is None else parameters.get(name)


_FLAT = msgspec.json.Decoder(list[float | None])
_NESTED = msgspec.json.Decoder(list[list[float | None]])
_FLAGS = msgspec.json.Decoder(list[bool | None])
_NESTED_FLAGS = msgspec.json.Decoder(list[list[bool | None]])
_TEXTS = msgspec.json.Decoder(list[str | None])
_NESTED_TEXTS = msgspec.json.Decoder(list[list[str | None]])


def _bounds(datatype: str) -> tuple[int, int]:
    """The least and the largest integer of a datatype that a record may hold."""
    kind = np.iinfo(NUMBERS[datatype])
    return int(kind.min), min(int(kind.max), INT64 - 1)


BOUNDS = {datatype: _bounds(datatype) for datatype in WHOLE}


def _whole(datatype: str) -> tuple[msgspec.json.Decoder[list[Any]], msgspec.json.Decoder[list[list[Any]]]]:
    """Decoders, flat and nested, that refuse an integer which the datatype does not have."""
    low, high = BOUNDS[datatype]
    cell = Annotated[int, msgspec.Meta(ge=low, le=high)] | float | None
    return msgspec.json.Decoder(list[cell]), msgspec.json.Decoder(list[list[cell]])


_OVER = re.compile(r"`(?:int|float)` ([<>]=?)")  # how the decoder says that a number is out of bounds


def _within(beyond: float) -> tuple[msgspec.json.Decoder[list[Any]], msgspec.json.Decoder[list[list[Any]]]]:
    """Decoders, flat and nested, that refuse a number which a float of fewer bits does not have."""
    cell = Annotated[float, msgspec.Meta(gt=-beyond, lt=beyond)] | None
    return msgspec.json.Decoder(list[cell]), msgspec.json.Decoder(list[list[cell]])


_WITHIN = {datatype: _within(beyond) for datatype, beyond in BEYOND.items()}
_EXACT = {datatype: _whole(datatype) for datatype in WHOLE}


def numbers_of(tensor: Tensor, payload: bytes | None, width: int, booleans: bool) -> Floats:
    """A tensor's numbers (n, width), a boolean as 1 or 0 where ``booleans`` are taken."""
    rows, allowed = tensor.shape[0], DTYPES if booleans else NUMBERS
    if tensor.shape[1:] not in ([width], [] if width == 1 else [width]):
        raise BadInputError(f"{tensor.name}: shape {tensor.shape} must be [n, {width}]{' or [n]' if width == 1 else ''}.")
    if tensor.datatype not in allowed:
        raise BadInputError(f"{tensor.name}: datatype {tensor.datatype} must be one of {', '.join(allowed)}.")
    if payload is None:
        numbers = np.array([math.nan if cell is None else cell for cell in _json_cells(tensor)], dtype=np.float64)
    else:
        with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
            numbers = _binary_cells(tensor, payload, width).astype(np.float64)
    return numbers.reshape(rows, width)


def _json_cells(tensor: Tensor) -> list[Any]:
    """The numbers or booleans of JSON data, row-major. Raises: BadInputError, also for a number beyond the datatype."""
    if tensor.datatype == BOOL:
        return _cells(tensor, _FLAGS, _NESTED_FLAGS)
    if tensor.datatype not in WHOLE:
        return _cells(tensor, *_WITHIN.get(tensor.datatype, (_FLAT, _NESTED)))
    cells = _cells(tensor, *_EXACT[tensor.datatype])
    low, high = BOUNDS[tensor.datatype]
    if any(isinstance(cell, float) and not low <= cell <= high for cell in cells):
        raise _not_within(tensor, any(isinstance(cell, float) and cell > high for cell in cells))
    return cells


def _binary_cells(tensor: Tensor, payload: bytes, width: int) -> Array:
    """The numbers or booleans of binary data (n width,). Raises: BadInputError."""
    kind, rows = np.dtype(DTYPES[tensor.datatype]), tensor.shape[0]
    if len(payload) != rows * width * kind.itemsize:
        raise BadInputError(f"{tensor.name}: {len(payload)} bytes are not {rows} x {width} of {tensor.datatype}.")
    cells: Array = np.frombuffer(payload, kind)
    if tensor.datatype == BOOL and cells.max(initial=0) > 1:
        raise BadInputError(f"{tensor.name}: a byte of {BOOL} is {cells.max()}, and must be 0 or 1.")
    if tensor.datatype == "UINT64" and cells.max(initial=0) >= INT64:
        raise _beyond_int64(tensor)
    return cells


def _not_within(tensor: Tensor, beyond: bool) -> BadInputError:
    """``beyond``: whether it is too large, and not too small."""
    if tensor.datatype in BEYOND:
        return BadInputError(f"{tensor.name}: a number does not fit into {tensor.datatype}.")
    low, high = BOUNDS[tensor.datatype]
    if tensor.datatype == "INT64" or (tensor.datatype == "UINT64" and beyond):
        return _beyond_int64(tensor)
    return BadInputError(f"{tensor.name}: a number does not fit into {tensor.datatype}, which has {low} to {high}.")


def _beyond_int64(tensor: Tensor) -> BadInputError:
    return BadInputError(f"{tensor.name}: an integer is beyond int64; send a float where it is a number.")


def names_of(tensor: Tensor, payload: bytes | None) -> list[str | None]:
    """A tensor's category names: texts, booleans as true and false, integers as their decimal digits."""
    if tensor.shape[1:] not in ([], [1]) or tensor.datatype not in ("BYTES", BOOL, *WHOLE):
        raise BadInputError(f"{tensor.name}: is {tensor.datatype} {tensor.shape}, must be BYTES, {BOOL} or integers [n].")
    if tensor.datatype == "BYTES":
        return texts_of(tensor, payload)
    cells = _json_cells(tensor) if payload is None else _binary_cells(tensor, payload, 1).tolist()
    if tensor.datatype == BOOL:
        return [None if cell is None else text_of(bool(cell)) for cell in cells]
    if any(isinstance(cell, float) for cell in cells):
        raise BadInputError(f"{tensor.name}: a category is an integer, and a value has a fraction.")
    return [None if cell is None else text_of(cell) for cell in cells]


def texts_of(tensor: Tensor, payload: bytes | None) -> list[str | None]:
    """A tensor's texts (n,); null is None. Raises: BadInputError."""
    if tensor.shape[1:] not in ([], [1]) or tensor.datatype != "BYTES":
        raise BadInputError(f"{tensor.name}: is {tensor.datatype} {tensor.shape}, must be BYTES [n].")
    if payload is None:
        return _cells(tensor, _TEXTS, _NESTED_TEXTS)
    return binary_texts_of(tensor, payload)


def _cells(tensor: Tensor, flat: msgspec.json.Decoder[list[Any]], nested: msgspec.json.Decoder[list[list[Any]]]) -> list[Any]:
    """The JSON data of a tensor, row-major; nested or flat are both legal."""
    raw = b"null" if tensor.data is msgspec.UNSET else bytes(tensor.data)
    if raw == b"null":
        raise BadInputError(f"{tensor.name}: has neither data nor binary_data_size.")
    try:
        if not raw.lstrip()[1:].lstrip().startswith(b"["):
            cells = flat.decode(raw)
        else:
            rows = nested.decode(raw)
            if {len(row) for row in rows} != {math.prod(tensor.shape[1:])}:
                raise BadInputError(f"{tensor.name}: its rows are not all of shape {tensor.shape[1:]}.")
            cells = [cell for row in rows for cell in row]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if bound := _OVER.search(str(error)):
            raise _not_within(tensor, beyond=bound[1][0] == "<") from error
        raise BadInputError(f"{tensor.name}: {error}.") from error
    if len(cells) != math.prod(tensor.shape):
        raise BadInputError(f"{tensor.name}: {len(cells)} values do not make the shape {tensor.shape}.")
    return cells


def binary_texts_of(tensor: Tensor, payload: bytes) -> list[str | None]:
    """Strings, each behind its length in four bytes."""
    texts: list[str | None] = []
    for raw in strings_of(tensor, payload):
        try:
            texts.append(raw.decode())
        except UnicodeDecodeError as error:
            raise BadInputError(f"{tensor.name}: string {len(texts)} is not UTF-8.") from error
    return texts


def strings_of(tensor: Tensor, payload: bytes) -> list[bytes]:
    """The bytes of strings, each behind its length in four bytes."""
    strings: list[bytes] = []
    at = 0
    while at < len(payload):
        length = int.from_bytes(payload[at : at + 4], "little")
        if at + 4 + length > len(payload):
            raise BadInputError(f"{tensor.name}: string {len(strings)} goes past the tensor's bytes.")
        strings.append(payload[at + 4 : at + 4 + length])
        at += 4 + length
    if len(strings) != tensor.shape[0]:
        raise BadInputError(f"{tensor.name}: {len(strings)} strings do not make the shape {tensor.shape}.")
    return strings


def binary_texts(texts: Iterable[bytes]) -> bytes:
    """Strings as Triton's binary form has them, each behind its length in four bytes."""
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
