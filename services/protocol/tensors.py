"""Tensors of the Open Inference Protocol v2, JSON or Triton's binary form, to columns of a schema and back. Pure.

One tensor a field, named like it; or one tensor ``x`` [n, d] where all fields are numeric. A number that is missing, where the
field allows that, is NaN (or null in JSON) or its tensor is left out; a missing category is null or left out. Scores go out as
FP64, which is what the learner computed: an answer can be compared bit for bit with the state it names. What the cells of one
tensor are stands in cells.py.
Source: open-inference-protocol, specification/protocol/inference_rest.md; Triton's extension_binary_data.md.
"""

from __future__ import annotations

import base64
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
from millrace.services.protocol.cells import (
    Parameters,
    Tensor,
    binary_texts,
    given,
    has_data,
    names_of,
    numbers_of,
    strings_of,
    texts_of,
)
from millrace.services.protocol.unread import why_unread
from millrace.streams.formats.images import UnreadableImageError, check
from millrace.streams.formats.json_rows import number_range, outside_range, range_words
from millrace.streams.formats.meaning import TAKES
from millrace.streams.schema import Field, Schema

PACKED = "x"  # all numbers of a row in one tensor
IDS = "id"
LARGEST_SIDE = 1 << 31  # a side of a tensor is smaller

MOST_PICTURES = 1024  # pictures of a request: each goes through a network


class Wanted(msgspec.Struct, frozen=True):
    """An output that a caller asks for."""

    name: str
    parameters: Parameters = None


class Inference(msgspec.Struct, frozen=True):
    """The JSON part of a request. Null is the same as absent wherever absent is allowed."""

    inputs: list[Tensor]
    id: str | None = None
    parameters: Parameters = None
    outputs: list[Wanted] | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """Rows to answer."""

    columns: tuple[Array, ...]  # one a field, as the codec gives them
    rows: int
    ids: tuple[str, ...]  # of the rows, from the client; empty: none given


_REQUEST = msgspec.json.Decoder(Inference)


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
        raise BadInputError(f"The request's JSON cannot be read: {why_unread(body[:cut], error)}.") from error


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
    ids = texts_of(by_name[IDS], payloads.get(IDS))
    if None in ids:
        raise BadInputError("id: null is not an id; give every row one, or leave the tensor out.")
    return tuple(str(name) for name in ids)


def binary_payloads(inputs: Sequence[Tensor], binary: bytes) -> dict[str, bytes]:
    """The bytes of each binary tensor of an HTTP request, in the order of the inputs. Raises: BadInputError."""
    payloads, at = {}, 0
    for tensor in inputs:
        size = given(tensor.parameters, "binary_data_size")
        if size is None:
            continue
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(binary) - at:
            raise BadInputError(f"{tensor.name}: binary_data_size is {size!r} and {len(binary) - at} bytes are left.")
        if has_data(tensor):
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
    block = numbers_of(tensor, payload, sum(sizes), all(_takes_booleans(field) for field in schema.fields))
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
        return _checked(field, numbers_of(tensor, payload, field.size, _takes_booleans(field)))
    if field.type == "image":
        return _pictures(field, tensor, payload)
    return _categories(field, names_of(tensor, payload))


def _takes_booleans(field: Field) -> bool:
    return "boolean" in TAKES[field.type]


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
    for row, cell in enumerate(texts_of(tensor, None) if payload is None else strings_of(tensor, payload)):
        try:
            pictures.append(cell if isinstance(cell, bytes) else base64.b64decode(cell or "", validate=True))
            check(pictures[-1])
        except (ValueError, UnreadableImageError) as error:  # ValueError: no base64
            raise BadInputError(f"{field.name}: row {row}: {error}.") from error
    column = np.empty(len(pictures), dtype=object)
    column[:] = pictures
    return column


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
