"""Numbers that stand for texts and for rows in a state.

A hash is no secret: who reads a state can find a text that they know or can guess, such as a card's number.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from millrace.learners.protocol import Floats

Hashes = NDArray[np.uint64]
GOLDEN, _FIRST, _SECOND = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))  # SplitMix64


def hash64(text: str) -> int:
    """The identity of an id, a label or an entity.

    >>> hash64("request 7/0") == hash64("request 7/0") != hash64("request 7/1")
    True
    """
    return hash64_of(text.encode())


def hashes64(texts: Sequence[str]) -> NDArray[np.int64]:
    """``hash64`` of each (n,)."""
    return np.frombuffer(b"".join([blake2b(text.encode(), digest_size=8).digest() for text in texts]), dtype="<i8")


def hash64_of(content: bytes) -> int:
    """``hash64`` of bytes.

    >>> hash64_of(b"request 7/0") == hash64("request 7/0")
    True
    """
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little", signed=True)


def bits_of(numbers: Floats) -> Hashes:
    """The bits of numbers (n, k) as float64, of which all NaN are one."""
    return np.where(np.isnan(numbers), np.nan, numbers).astype(np.float64, order="C").view(np.uint64)


def mixed(values: Hashes) -> Hashes:
    """SplitMix64's output of each number, modulo 2^64. Source: Steele, Lea and Flood, OOPSLA 2014."""
    z = values + GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return np.asarray(z ^ (z >> np.uint64(31)), dtype=np.uint64)


def mixed_bits(bits: Hashes) -> Hashes:
    """A number (n, k) for each of the bits (n, k) and its column."""
    return mixed(bits ^ mixed(np.arange(1, bits.shape[1] + 1, dtype=np.uint64) * GOLDEN))
