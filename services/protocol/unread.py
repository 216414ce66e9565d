"""Why the JSON of a request cannot be read, in words that name the place. Pure.

The fast decoder stops at the first thing that is wrong. It calls NaN an invalid character, and names no key of a table.
What it has refused is read again here, by the standard library, to find the place.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator

import msgspec

_AT_BYTE = re.compile(r"\(byte (\d+)\)")
_TOKEN = re.compile(rb"[\s:,\[]*-?(NaN|Infinity)")
_KINDS = {dict: "an object", list: "a list"}


def why_unread(body: bytes, error: Exception) -> str:
    """What is wrong with ``body``, which raised ``error``, without a full stop.

    >>> why_unread(b'{"id": "a", "label": NaN}', msgspec.DecodeError("JSON is malformed: invalid character (byte 21)"))
    'label is NaN, which JSON does not have; send null for a value that is missing'
    """
    at_byte = _AT_BYTE.search(str(error))
    not_json = at_byte is not None and _TOKEN.match(body, max(0, int(at_byte[1]) - 1)) is not None
    nested = isinstance(error, msgspec.ValidationError) and "parameters[...]" in str(error)
    if not (not_json or nested):
        return str(error)
    try:
        return (_not_finite(body) if not_json else _nested(body)) or str(error)
    except (ValueError, RecursionError):  # not even that can be read
        return str(error)


def _not_finite(body: bytes) -> str | None:
    for path, value in _leaves(json.loads(body), ""):
        if isinstance(value, float) and not math.isfinite(value):
            token = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
            return f"{path} is {token}, which JSON does not have; send null for a value that is missing"
    return None


def _nested(body: bytes) -> str | None:
    for path, value in _leaves(json.loads(body), "", into_parameters=False):
        if isinstance(value, (dict, list)):
            return f"{path} is {_KINDS[type(value)]}; a parameter is a text, a number, true or false"
    return None


def _leaves(value: object, path: str, into_parameters: bool = True) -> Iterator[tuple[str, object]]:
    """Every value that has nothing inside, with its place; of parameters also those that have, unless ``into_parameters``."""
    if isinstance(value, dict):
        for key, inside in value.items():
            place = f"{path}.{key}" if path else key
            if into_parameters or path.rpartition(".")[2] != "parameters":
                yield from _leaves(inside, place, into_parameters)
            else:
                yield place, inside
    elif isinstance(value, list):
        for at, inside in enumerate(value):
            yield from _leaves(inside, f"{path}[{at}]", into_parameters)
    else:
        yield path, value
