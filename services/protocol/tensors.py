"""Tensors of the Open Inference Protocol v2, JSON or Triton's binary form, to columns of a schema and back. Pure.

One tensor a field, named like it; or one tensor ``x`` [n, d] where all fields are numeric. A number that is missing, where the
field allows that, is NaN (or null in JSON) or its tensor is left out; a missing category is null or left out. Scores go out as
FP64, which is what the learner computed: an answer can be compared bit for bit with the state it names.
Source: open-inference-protocol, specification/protocol/inference_rest.md; Triton's extension_binary_data.md.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import msgspec
import numpy as np

from millrace.learners.errors import BadInputError
from millrace.learners.protocol import Array, Floats
from millrace.services.config.sections import ServingConfig
from millrace.services.errors import TooLargeError
from millrace.streams.formats.images import UnreadableImageError, check
from millrace.streams.formats.json_rows import number_range, outside_range, range_words
from millrace.streams.schema import Field, Schema

PACKED = "x"  # all numbers of a row in one tensor
IDS = "id"
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
LARGEST_SIDE = 1 << 31  # a side of a tensor is smaller

MOST_PICTURES = 1024  # pictures of a request: each goes through a network

Scalar = bool | int | float | str


class Tensor(msgspec.Struct, frozen=True):
    """An input as the JSON part of a request declares it."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Scalar] = {}
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Wanted(msgspec.Struct, frozen=True):
    """An output that a caller asks for."""

    name: str
    parameters: dict[str, Scalar] = {}


class Inference(msgspec.Struct, frozen=True):
    """The JSON part of a request."""

    inputs: list[Tensor]
    id: str = ""
    parameters: dict[str, Scalar] = {}
    outputs: list[Wanted] = []


@dataclass(frozen=True, slots=True)
class Question:
    """Rows to answer."""

    columns: tuple[Array, ...]  # one a field, as the codec gives them
    rows: int
    ids: tuple[str, ...]  # of the rows, from the client; empty: none given


_REQUEST = msgspec.json.Decoder(Inference)
_FLAT = msgspec.json.Decoder(list[float | None])
_NESTED = msgspec.json.Decoder(list[list[float | None]])
_TEXTS = msgspec.json.Decoder(list[str | None])
_NESTED_TEXTS = msgspec.json.Decoder(list[list[str | None]])


def read_request(body: bytes, json_bytes: int | None) -> tuple[Inference, bytes]:
    """The JSON part of a body, and the bytes of the binary tensors behind it.

    Raises: BadInputError.
    """
    if json_bytes is not None and not 0 < json_bytes <= len(body):
        raise BadInputError(
            f"Inference-Header-Content-Length is {json_bytes} and the body has {len(body)} bytes; it must be within them."
        )
    cut = len(body) if json_bytes is None else json_bytes
    try:
        return _REQUEST.decode(body[:cut]), body[cut:]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInputError(f"The request's JSON cannot be read: {error}.") from error


def refuse_too_many(inputs: int, schema: Schema, limits: ServingConfig) -> None:
    """Raises: TooLargeError where a request has more inputs than are let in: naming one that is unknown takes long then."""
    most = max(limits.max_inputs, len(schema.fields) + 1)  # the ids
    if inputs > most:
        raise TooLargeError(
            f"The request has {inputs} inputs; this endpoint takes at most {most} (serving.max_inputs). Put rows in one tensor."
        )


def question(inputs: Sequence[Tensor], payloads: Mapping[str, bytes], schema: Schema, limits: ServingConfig) -> Question:
    """The columns of a request's rows; ``payloads`` has the bytes of tensors that are not JSON.

    Raises: BadInputError naming the tensor, TooLargeError where there are more rows than ``limits`` let in.
    """
    by_name = {tensor.name: tensor for tensor in inputs}
    if len(by_name) < len(inputs):
        raise BadInputError("A tensor stands twice among the inputs; give each name once.")
    rows = _common_rows(inputs)
    if rows > limits.max_rows:
        raise TooLargeError(
            f"The request has {rows} rows; this endpoint takes at most {limits.max_rows} at a time (serving.max_rows). Send "
            "them in several requests."
        )
    names = [field.name for field in schema.fields]
    packed = PACKED in by_name and PACKED not in names
    _refuse_unknown(by_name, names, packed)
    if packed:
        columns = _packed(by_name[PACKED], payloads.get(PACKED), schema)
    else:
        columns = tuple(
            _field_column(field, by_name.get(field.name), payloads.get(field.name), rows) for field in schema.fields
        )
    return Question(columns, rows, _ids(by_name, payloads, schema))


def _ids(by_name: dict[str, Tensor], payloads: Mapping[str, bytes], schema: Schema) -> tuple[str, ...]:
    if IDS not in by_name or IDS in {field.name for field in schema.fields}:
        return ()
    ids = _texts(by_name[IDS], payloads.get(IDS))
    if None in ids:
        raise BadInputError("id: null is not an id; give every row one, or leave the tensor out.")
    return tuple(str(name) for name in ids)


def binary_payloads(inputs: Sequence[Tensor], binary: bytes) -> dict[str, bytes]:
    """The bytes of each binary tensor of an HTTP request, in the order of the inputs. Raises: BadInputError."""
    payloads, at = {}, 0
    for tensor in inputs:
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            continue
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(binary) - at:
            raise BadInputError(f"{tensor.name}: binary_data_size is {size!r} and {len(binary) - at} bytes are left.")
        if tensor.data is not msgspec.UNSET:
            raise BadInputError(f"{tensor.name}: has both data and binary_data_size; send one.")
        payloads[tensor.name] = binary[at : at + size]
        at += size
    if at != len(binary):
        raise BadInputError(f"{len(binary) - at} bytes behind the JSON belong to no tensor; name them by binary_data_size.")
    return payloads


def _common_rows(inputs: Sequence[Tensor]) -> int:
    if not inputs:
        raise BadInputError("The request has no inputs.")
    for tensor in inputs:
        if not 1 <= len(tensor.shape) <= 2 or not all(0 <= side < LARGEST_SIDE for side in tensor.shape):
            raise BadInputError(f"{tensor.name}: shape {tensor.shape} must be [n] or [n, numbers].")
    sizes = {tensor.name: tensor.shape[0] for tensor in inputs}
    if len(set(sizes.values())) > 1:
        raise BadInputError(f"The inputs differ in their number of rows: {sizes}.")
    return inputs[0].shape[0]


def _refuse_unknown(tensor_names: Iterable[str], names: Sequence[str], packed: bool) -> None:
    allowed = {PACKED, IDS} if packed else {*names, IDS}
    for name in tensor_names:
        if name not in allowed:
            close = get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join([*names, IDS])}."
            raise BadInputError(f"{name}: this model has no such input. {hint}")


def _packed(tensor: Tensor, payload: bytes | None, schema: Schema) -> tuple[Array, ...]:
    if any(not field.is_number for field in schema.fields):
        raise BadInputError("x: some fields of this model are not numbers; send one tensor a field.")
    sizes = [field.size for field in schema.fields]
    block = _numbers(tensor, payload, sum(sizes))
    ends = np.cumsum([0, *sizes]).tolist()
    return tuple(
        _checked(field, block[:, start:stop]) for field, start, stop in zip(schema.fields, ends, ends[1:], strict=False)
    )


def _field_column(field: Field, tensor: Tensor | None, payload: bytes | None, rows: int) -> Array:
    if tensor is None:
        if field.missing == "reject":
            raise BadInputError(f"{field.name}: this input is required and was not sent.")
        return np.full((rows, 1), np.nan) if field.is_number else np.full(rows, None, dtype=object)
    if field.is_number:
        return _checked(field, _numbers(tensor, payload, field.size))
    if field.type == "image":
        return _pictures(field, tensor, payload)
    return _categories(field, _texts(tensor, payload))


def _checked(field: Field, block: Floats) -> Floats:
    """Raise where a number is missing that must be there, or is out of range."""
    low, high = number_range(field)
    if (outside := outside_range(field, block)) is not None:
        raise BadInputError(f"{range_words(field)}: row {int(np.flatnonzero(outside)[0])}.")
    if block.size and low <= block.min() and block.max() <= high:  # NaN is in no range
        return block
    absent = np.isnan(block)
    if field.missing == "reject" and absent.any():
        raise BadInputError(f"{field.name}: row {int(np.argwhere(absent)[0][0])} has no number (NaN or null).")
    out_of_range = ~absent & ~((low <= block) & (block <= high))
    if out_of_range.any():
        raise BadInputError(f"{field.name}: row {int(np.argwhere(out_of_range)[0][0])} is not within {low:g} to {high:g}.")
    return block


def _categories(field: Field, names: Sequence[str | None]) -> Array:
    if field.missing == "reject" and None in names:
        raise BadInputError(f"{field.name}: row {names.index(None)} is null.")
    if isinstance(field.categories, tuple) and (unknown := set(names) - {*field.categories, None}):
        raise BadInputError(f"{field.name}: {sorted(map(str, unknown))[0]!r} is none of {', '.join(field.categories)}.")
    column = np.empty(len(names), dtype=object)
    column[:] = names
    return column


def _pictures(field: Field, tensor: Tensor, payload: bytes | None) -> Array:
    """The bytes of each picture (n,): base64 in JSON, as they stand in binary."""
    if tensor.shape[0] > MOST_PICTURES:
        raise BadInputError(f"{field.name}: {tensor.shape[0]} pictures in one request; send at most {MOST_PICTURES}.")
    pictures: list[bytes] = []
    for row, cell in enumerate(_texts(tensor, None) if payload is None else _strings(tensor, payload)):
        try:
            pictures.append(cell if isinstance(cell, bytes) else base64.b64decode(cell or "", validate=True))
            check(pictures[-1])
        except (ValueError, UnreadableImageError) as error:  # ValueError: no base64
            raise BadInputError(f"{field.name}: row {row}: {error}.") from error
    column = np.empty(len(pictures), dtype=object)
    column[:] = pictures
    return column


def _numbers(tensor: Tensor, payload: bytes | None, width: int) -> Floats:
    """A tensor's numbers (n, width)."""
    rows = tensor.shape[0]
    if tensor.shape[1:] not in ([width], [] if width == 1 else [width]):
        raise BadInputError(f"{tensor.name}: shape {tensor.shape} must be [n, {width}]{' or [n]' if width == 1 else ''}.")
    if tensor.datatype not in NUMBERS:
        raise BadInputError(f"{tensor.name}: datatype {tensor.datatype} must be one of {', '.join(NUMBERS)}.")
    if payload is None:
        cells = _cells(tensor, _FLAT, _NESTED)
        numbers = np.array([math.nan if cell is None else cell for cell in cells], dtype=np.float64)
    else:
        kind = np.dtype(NUMBERS[tensor.datatype])
        if len(payload) != rows * width * kind.itemsize:
            raise BadInputError(f"{tensor.name}: {len(payload)} bytes are not {rows} x {width} of {tensor.datatype}.")
        with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
            numbers = np.frombuffer(payload, kind).astype(np.float64)
    return numbers.reshape(rows, width)


def _texts(tensor: Tensor, payload: bytes | None) -> list[str | None]:
    if tensor.shape[1:] not in ([], [1]) or tensor.datatype != "BYTES":
        raise BadInputError(f"{tensor.name}: is {tensor.datatype} {tensor.shape}, must be BYTES [n].")
    if payload is None:
        return _cells(tensor, _TEXTS, _NESTED_TEXTS)
    return binary_texts_of(tensor, payload)


def _cells(tensor: Tensor, flat: msgspec.json.Decoder[list[Any]], nested: msgspec.json.Decoder[list[list[Any]]]) -> list[Any]:
    """The JSON data of a tensor, row-major; nested or flat are both legal."""
    if tensor.data is msgspec.UNSET:
        raise BadInputError(f"{tensor.name}: has neither data nor binary_data_size.")
    raw = bytes(tensor.data)
    try:
        if not raw.lstrip()[1:].lstrip().startswith(b"["):
            cells = flat.decode(raw)
        else:
            rows = nested.decode(raw)
            if {len(row) for row in rows} != {math.prod(tensor.shape[1:])}:
                raise BadInputError(f"{tensor.name}: its rows are not all of shape {tensor.shape[1:]}.")
            cells = [cell for row in rows for cell in row]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadInputError(f"{tensor.name}: {error}.") from error
    if len(cells) != math.prod(tensor.shape):
        raise BadInputError(f"{tensor.name}: {len(cells)} values do not make the shape {tensor.shape}.")
    return cells


def binary_texts_of(tensor: Tensor, payload: bytes) -> list[str | None]:
    """Strings, each behind its length in four bytes."""
    texts: list[str | None] = []
    for raw in _strings(tensor, payload):
        try:
            texts.append(raw.decode())
        except UnicodeDecodeError as error:
            raise BadInputError(f"{tensor.name}: string {len(texts)} is not UTF-8.") from error
    return texts


def _strings(tensor: Tensor, payload: bytes) -> list[bytes]:
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


def output_tensor(name: str, value: Floats | Sequence[str], binary: bool) -> tuple[dict[str, Any], bytes]:
    """An output's declaration with its data, or with their size and the bytes themselves.

    >>> output_tensor("label", ["a", "bc"], binary=True)[1]
    b'\\x01\\x00\\x00\\x00a\\x02\\x00\\x00\\x00bc'
    """
    if isinstance(value, np.ndarray):
        declared: dict[str, Any] = {"name": name, "datatype": "FP64", "shape": list(value.shape)}
        flat: Any = value.ravel().tolist()
    else:
        declared = {"name": name, "datatype": "BYTES", "shape": [len(value)]}
        flat = value
    if not binary:
        return declared | {"data": flat}, b""
    if isinstance(value, np.ndarray):
        payload = value.astype("<f8", copy=False).tobytes()
    else:
        payload = binary_texts([text.encode() for text in value])
    return declared | {"parameters": {"binary_data_size": len(payload)}}, payload


def binary_texts(texts: Iterable[bytes]) -> bytes:
    """Strings as Triton's binary form has them, each behind its length in four bytes."""
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
