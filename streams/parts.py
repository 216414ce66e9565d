"""State as bytes: arrays and plain values in one safetensors blob, the same bytes for the same state.

Nothing is unpickled. Arrays go in as they are; plain values as sorted JSON in the header; object arrays of strings or bytes
(labels, keys) as JSON lists. A format number stands in the header.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from millrace.learners.protocol import Value
from millrace.streams.errors import DamageError

FORMAT = "1"


def pack(state: Mapping[str, Value]) -> bytes:
    """The bytes of a state.

    >>> sorted(unpack(pack({"w": np.ones(2), "rows": 3}), "here").items())
    [('rows', 3), ('w', array([1., 1.]))]
    """
    arrays = {name: value for name, value in state.items() if _is_numeric(value)}
    plain = {name: _plain(value) for name, value in state.items() if name not in arrays}
    header = {"format": FORMAT, "plain": json.dumps(plain, sort_keys=True, allow_nan=False)}
    return save({name: np.asarray(value, order="C") for name, value in arrays.items()}, _one_entry(header))


def unpack(blob: bytes, where: str) -> dict[str, Value]:
    """The state that ``pack`` was given. Raises: DamageError naming ``where``."""
    try:
        length = int.from_bytes(blob[:8], "little")
        header = json.loads(json.loads(blob[8 : 8 + length])["__metadata__"]["millrace"])
        if (written := header["format"]) != FORMAT:
            raise DamageError(f"{where} has format {written}, this release reads {FORMAT}. Use the release that wrote it.")
        plain = {name: _restored(value) for name, value in json.loads(header["plain"]).items()}
        return {**load(blob), **plain}
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamageError(f"{where} is not a state of ours ({error}). Restore it from a copy.") from error


def sha256(blob: bytes) -> str:
    """The name of a blob."""
    return hashlib.sha256(blob).hexdigest()


def _one_entry(header: dict[str, str]) -> dict[str, str]:
    return {"millrace": json.dumps(header, sort_keys=True)}  # several entries would come out in random order


def _is_numeric(value: Value) -> bool:
    return isinstance(value, np.ndarray) and value.dtype != object


def _plain(value: Value) -> Value:
    if isinstance(value, np.ndarray):
        return {"objects": [_text(item) for item in value.tolist()]}
    return {"value": value}


def _text(item: str | bytes | None) -> Value:
    return {"b": base64.b64encode(item).decode()} if isinstance(item, bytes) else item


def _restored(value: dict[str, Value]) -> Value:
    if "value" in value:
        return value["value"]
    items = [base64.b64decode(item["b"]) if isinstance(item, dict) else item for item in value["objects"]]
    return np.array(items, dtype=object)
