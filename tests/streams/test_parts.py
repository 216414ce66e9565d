"""State as bytes: the same bytes for the same state, and no way to read a damaged one as whole."""

from __future__ import annotations

import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from millrace.streams.errors import DamageError
from millrace.streams.parts import pack, sha256, unpack

NUMBERS = st.sampled_from([np.float64, np.float32, np.int64, np.int32, np.uint8, np.bool_]).flatmap(
    lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)
OBJECTS = st.lists(st.none() | st.text(max_size=4) | st.binary(max_size=4), max_size=4).map(
    lambda items: np.array([*items, None], dtype=object)[:-1]
)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
STATES = st.dictionaries(st.text(max_size=6), NUMBERS | OBJECTS | PLAIN, max_size=5)


def equal(value: object, other: object) -> bool:
    """Whether two values are the same, arrays by dtype, shape and bits."""
    if isinstance(value, np.ndarray) and isinstance(other, np.ndarray):
        same = value.dtype == other.dtype and value.shape == other.shape
        return same and (value.tolist() == other.tolist() if value.dtype == object else value.tobytes() == other.tobytes())
    return type(value) is type(other) and (value == other or value != value)


def equal_states(state: dict[str, object], other: dict[str, object]) -> bool:
    """Whether two states are the same."""
    return set(state) == set(other) and all(equal(state[name], other[name]) for name in state)


@given(STATES)
def test_a_state_comes_back_as_it_was(state: dict[str, object]) -> None:
    """Arrays of any shape, labels, keys and plain values, under any name."""
    assert equal_states(unpack(pack(state), "here"), state)


@given(STATES, st.randoms(use_true_random=False))
def test_the_same_state_gives_the_same_bytes_whatever_its_order(state: dict[str, object], chance) -> None:
    """Its hash is its name, so no byte may depend on how it was put together."""
    names = list(state)
    chance.shuffle(names)
    assert pack({name: state[name] for name in names}) == pack(state)


def test_how_an_array_lies_in_memory_does_not_show() -> None:
    """Fortran order, strides and views give the bytes of the plain copy."""
    whole = np.arange(24.0).reshape(4, 6)
    plain = pack({"w": whole[::2, ::3].copy()})
    assert pack({"w": whole[::2, ::3]}) == plain == pack({"w": np.asfortranarray(whole[::2, ::3])})
    assert sha256(pack({"w": np.zeros((2, 3)), "rows": 3})) == PINNED


PINNED = "ec3f4f8903632114351f7d68e1fb7770e0bbd80b0cba386f2c2682cd7a048e9b"

STATE: dict[str, object] = {
    "G": np.arange(4.0).reshape(2, 2),
    "n": np.array([3, 0], dtype=np.int64),
    "names": np.array(["a", b"\x00k", None], dtype=object),
    "plain": {"rows": 3, "window": [1.5, None, True, "x"]},
}


@pytest.mark.parametrize("bit", range(8))
def test_a_single_flipped_bit_is_refused_or_gives_another_state(bit: int) -> None:
    """Every bit of every byte; DamageError is the only error, so recovery can go back to the checkpoint before."""
    blob = pack(STATE)
    refused = []
    for at in range(len(blob)):
        flipped = blob[:at] + bytes([blob[at] ^ 1 << bit]) + blob[at + 1 :]
        try:
            assert not equal_states(unpack(flipped, "here"), STATE), at
        except DamageError as error:
            refused.append(str(error))
    assert len(refused) > 100 and all(sentence.startswith("here ") for sentence in refused)


def test_a_part_cut_anywhere_is_refused() -> None:
    """And so is one with bytes behind it."""
    blob = pack(STATE)
    for end in range(len(blob)):
        with pytest.raises(DamageError, match=r"here .*Restore it from a copy"):
            unpack(blob[:end], "here")
    with pytest.raises(DamageError):
        unpack(blob + b"\x00", "here")


@given(st.binary(max_size=80))
def test_any_bytes_are_refused_as_damage(blob: bytes) -> None:
    """Whatever lies where a part should lie."""
    with pytest.raises(DamageError):
        unpack(blob, "here")


def with_header(header: object) -> bytes:
    """A blob without arrays that says ``header`` in our place."""
    raw = json.dumps({"__metadata__": {"millrace": header if isinstance(header, str) else json.dumps(header)}}).encode()
    return struct.pack("<Q", len(raw)) + raw


FOREIGN = [
    "not json",
    [],
    3,
    {},
    {"format": "1"},
    {"plain": "{}"},
    {"format": "1", "plain": "not json"},
    {"format": "1", "plain": "[]"},
    {"format": "1", "plain": '{"x": 3}'},
    {"format": "1", "plain": '{"x": {}}'},
    {"format": "1", "plain": '{"x": {"objects": 3}}'},
    {"format": "1", "plain": '{"x": {"objects": [{"b": 3}]}}'},
    {"format": "1", "plain": '{"x": {"objects": [{"b": "\u00e9"}]}}'},
    {"format": "1", "plain": 7},
]


@pytest.mark.parametrize("header", FOREIGN, ids=str)
def test_a_sound_safetensors_file_that_is_not_ours_is_refused(header: object) -> None:
    """Each level of the header is checked before it is used."""
    with pytest.raises(DamageError, match="here"):
        unpack(with_header(header), "here")


def test_a_newer_format_names_what_to_do() -> None:
    """It is not damage that a copy would mend."""
    with pytest.raises(DamageError, match="here has format 2, this release reads 1. Use the release that wrote it"):
        unpack(with_header({"format": "2", "plain": "{}"}), "here")


PICKLE = "cbuiltins\nexit\n(S'a pickle was loaded'\ntR."  # what an attacker would store


def test_a_pickle_is_never_loaded() -> None:
    """Neither as a part nor inside of one; loading it would end this process."""
    for blob in (PICKLE.encode(), with_header(PICKLE), with_header({"format": "1", "plain": PICKLE})):
        with pytest.raises(DamageError):
            unpack(blob, "here")


def test_a_number_that_json_cannot_say_is_refused_when_packed() -> None:
    """Plain values are JSON; NaN belongs into an array."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        pack({"mean": math.nan})
    assert math.isnan(unpack(pack({"mean": np.array([math.nan])}), "here")["mean"][0])
