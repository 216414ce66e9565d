"""The codec of completions takes what was packed, bit for bit, and refuses everything else with its reason."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import tiny_draft
from hypothesis import given
from hypothesis import strategies as st

from millrace.learners.draft.completion import FLAGS, FRAME, HEADER, Completion, pack, unpack
from millrace.streams.formats.completions import CompletionCodec
from millrace.streams.formats.json_rows import has_label
from millrace.streams.records import Event
from millrace.streams.schema import Llm

LLM = Llm("target", "draft", "all", k=tiny_draft.K, top=tiny_draft.TOP, vocabulary=tiny_draft.VOCABULARY)
CODEC = CompletionCodec(LLM, max_bytes=10_000)


def good(seed: int = 1, **header: Any) -> Completion:
    """A completion that is one."""
    return tiny_draft.completion(np.random.default_rng(seed), **header)


def event(value: bytes | None, offset: int = 0) -> Event:
    """A record of tenant a."""
    return Event(offset, 1_000 + offset, b"tenant a", b"", value)


def header_changed(**changes: Any) -> bytes:
    """A packed completion whose header says something else, with the checksum of what it says."""
    value = pack(good())
    length = FRAME.unpack_from(value)[2]
    said = msgspec.msgpack.decode(value[FRAME.size : FRAME.size + length])
    for name, other in changes.items():
        said[HEADER.index(name)] = other
    return sealed(msgspec.msgpack.encode(said), value[FRAME.size + length :])


def nested_flags() -> bytes:
    """A packed completion whose flags are lists in lists."""
    value = pack(good())
    length = FRAME.unpack_from(value)[2]
    said = msgspec.msgpack.decode(value[FRAME.size : FRAME.size + length])
    words = [msgspec.msgpack.encode(word) for word in said]
    words[HEADER.index("flags")] = b"\x91" * 3_000 + b"\x90"
    return sealed(b"\xdc\x00\x10" + b"".join(words), value[FRAME.size + length :])


def sealed(header: bytes, arrays: bytes) -> bytes:
    """Header and arrays in a frame."""
    body = len(header).to_bytes(4, "little") + header + arrays
    return pack(good())[:4] + zlib.crc32(body).to_bytes(4, "little") + body


def arrays_changed(change: Callable[[Completion], dict[str, Any]]) -> bytes:
    """A packed completion with other arrays."""
    completion = good()
    return pack(replace(completion, **change(completion)))


def logs(change: Callable[[np.ndarray], Any]) -> bytes:
    """The same with other log probabilities."""

    def changed(completion: Completion) -> dict[str, Any]:
        values = completion.log_probabilities.copy()
        change(values)
        return {"log_probabilities": values}

    return arrays_changed(changed)


def put(at: Any, value: float) -> Callable[[np.ndarray], None]:
    """Sets a place of an array."""
    return lambda values: values.__setitem__(at, value)


BROKEN: dict[str, tuple[str, bytes | None]] = {
    "no value": ("unreadable", None),
    "empty": ("unreadable", b""),
    "another magic": ("unreadable", b"row\x01" + pack(good())[4:]),
    "cut": ("unreadable", pack(good())[:-1]),
    "longer": ("unreadable", pack(good()) + b"\0"),
    "a bit flipped": ("unreadable", pack(good())[:-3] + bytes([pack(good())[-3] ^ 1]) + pack(good())[-2:]),
    "header is no msgpack": ("unreadable", sealed(b"\xc1", b"")),
    "header is nested without end": ("wrong-type", sealed(b"\x91" * 4_000, b"")),
    "header is nested without end, and long": ("oversized", sealed(b"\x91" * 100_000, b"")),
    "a word of the header is nested without end": ("wrong-type", sealed(b"\xdc\x00\x10" + b"\x91" * 3_000, b"")),
    "flags are nested without end": ("wrong-type", nested_flags()),
    "header is too short": ("wrong-type", sealed(msgspec.msgpack.encode(["id"]), b"")),
    "header has a text for a number": ("wrong-type", header_changed(epoch="1")),
    "header has a flag of no such name": ("wrong-type", header_changed(flags=["lora"])),
    "header has an end of no such name": ("wrong-type", header_changed(ended="done")),
    "more tokens said than there are": ("wrong-shape", header_changed(prompt=good().prompt.size + 1)),
    "more steps said than there are": ("wrong-shape", header_changed(steps=200)),
    "no id": ("out-of-range", header_changed(id="")),
    "half a sha256": ("out-of-range", header_changed(target=b"half")),
    "temperature below 0": ("out-of-range", header_changed(temperature=-0.1)),
    "temperature that is none": ("out-of-range", header_changed(temperature=float("nan"))),
    "temperature below what an engine takes": ("out-of-range", header_changed(temperature=0.009)),
    "temperature above what anybody asks for": ("out-of-range", header_changed(temperature=1e30)),
    "domain that is too long": ("out-of-range", header_changed(domain="d" * 65)),
    "domain that moves the cursor": ("out-of-range", header_changed(domain="\x1b[2J")),
    "id that is a book": ("oversized", header_changed(id="d" * 5_000)),
    "temperature without end": ("out-of-range", header_changed(temperature=float("inf"))),
    "top_p above 1": ("out-of-range", header_changed(top_p=1.5)),
    "top_k below 0": ("out-of-range", header_changed(top_k=-1)),
    "a flag twice": ("out-of-range", header_changed(flags=["image", "image"])),
    "more cached than the prompt has": ("out-of-range", header_changed(cached=99)),
    "no prompt": ("out-of-range", arrays_changed(lambda _: {"prompt": np.zeros(0, np.uint32)})),
    "no log probabilities": ("out-of-range", header_changed(top=0)),
    "negative length": ("out-of-range", header_changed(steps=-1)),
    "log probability that is none": ("not-finite", logs(put((0, 1), np.nan))),
    "log probability without end": ("not-finite", logs(put((0, -1), -np.inf))),
    "log probability above 0": ("not-finite", logs(put((0, 0), 0.5))),
    "less likely before likely": ("out-of-range", logs(put((0, 0), -30.0))),
    "probabilities above 1 together": ("out-of-range", logs(put(0, -0.1))),
    "tokens that are not the likeliest": ("out-of-range", logs(put(slice(None), -12.0))),
    "a likely token twice": ("duplicate-field", arrays_changed(lambda each: {"ids": np.zeros_like(each.ids)})),
    "more accepted than drafted": (
        "out-of-range",
        arrays_changed(lambda each: {"drafted": each.accepted - (each.accepted > 0)}),
    ),
    "more drafted than k": ("out-of-range", arrays_changed(lambda each: {"drafted": each.drafted + 1})),
    "a prompt's token outside the vocabulary": ("out-of-range", arrays_changed(lambda each: {"prompt": each.prompt + 32})),
    "an answer's token outside the vocabulary": ("out-of-range", arrays_changed(lambda each: {"output": each.output + 32})),
    "a likely token outside the vocabulary": ("out-of-range", arrays_changed(lambda each: {"ids": each.ids + 32})),
    "another number of log probabilities": ("wrong-shape", pack(good(top=4))),
    "larger than the pipeline takes": (
        "oversized",
        arrays_changed(lambda each: {"prompt": np.zeros(3_000, np.uint32)}),
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_record_is_refused_with_its_reason_and_harms_no_other(broken: str) -> None:
    """One kind of breakage each; the completions around it are decoded."""
    reason, value = BROKEN[broken]
    rows, refused = CODEC.decode([event(pack(good(2)), 0), event(value, 1), event(pack(good(3)), 2)])
    assert [(each.event.offset, each.reason) for each in refused] == [(1, reason)] and refused[0].detail
    assert rows.sequences is not None
    assert rows.sequences.tolist() == [pack(good(2)), pack(good(3))] and rows.t.tolist() == [1_000, 1_002]


def test_a_completion_comes_back_as_it_was_packed() -> None:
    """Every array and every word of its header."""
    completion = good(4, domain="sql", flags=("swap",), cached=1, ended="length")
    again = unpack(pack(completion))
    for name in ("prompt", "output", "ids", "log_probabilities", "drafted", "accepted"):
        assert np.array_equal(getattr(again, name), getattr(completion, name)), name
    counts = {"prompt": len(completion.prompt), "output": len(completion.output), "top": tiny_draft.TOP}
    assert again.header == replace(completion.header, **counts, steps=len(completion.drafted))


def test_rows_have_no_features_and_are_their_own_label() -> None:
    """x is (n, 0), y is (n, 2), the key is the tenant."""
    rows, _ = CODEC.decode([event(pack(good(seed)), seed) for seed in range(5)])
    batch = rows.batch(rows.plain)
    assert batch.x.shape == (5, 0) and batch.y.shape == (5, 2) and has_label(rows).all()
    assert rows.key.tolist() == [b"tenant a"] * 5 and batch.only(slice(1, 3)).sequences.tolist() == rows.sequences.tolist()[1:3]
    none, _ = CODEC.decode([])
    assert len(none) == 0 and none.y.shape == (0, 2)


def counted(accepted: list[int], drafted: list[int], length: int, **header: Any) -> list[float]:
    """What stands in y for these steps over an answer of so many tokens."""
    completion = good(5)
    at = np.arange(length) % len(completion.output)
    arrays = {name: getattr(completion, name)[at] for name in ("output", "ids", "log_probabilities")}
    steps = {"accepted": np.array(accepted, np.uint8), "drafted": np.array(drafted, np.uint8)}
    said = replace(completion.header, **header)
    rows, refused = CODEC.decode([event(pack(replace(completion, header=said, **arrays, **steps)))])
    assert not refused
    return rows.y[0].tolist()


def test_accepted_and_tested_positions_are_those_of_the_steps() -> None:
    """Worked by hand: position 0 is not tested, a bonus neither, and the last step ends where the answer does."""
    assert counted([0], [3], 2) == [0, 1]  # token 0, then one that was corrected
    assert counted([2], [3], 4) == [2, 3]
    assert counted([3], [3], 5) == [3, 3]  # the bonus was not tested
    assert counted([3], [3], 3) == [2, 2]  # cut: two of its tokens are in the answer
    assert counted([1, 0, 3], [3, 3, 3], 8) == [4, 6]
    assert counted([], [], 1) == [0, 0]


def test_where_counts_and_tokens_do_not_align_nothing_is_said_as_served() -> None:
    """More tokens than steps account for, and steps behind the last token; the completion is learned all the same."""
    for accepted, length in (([1], 5), ([], 2), ([1, 1, 1], 4)):
        assert np.isnan(counted(accepted, [3] * len(accepted), length)).all()


def test_cached_prompts_and_swaps_say_nothing_as_served() -> None:
    """Their drafts had other caches, or were two."""
    assert not np.isnan(counted([0], [3], 2)).any()
    assert np.isnan(counted([0], [3], 2, cached=1)).all() and np.isnan(counted([0], [3], 2, flags=("swap",))).all()


def test_a_record_that_was_let_in_is_let_in_again() -> None:
    """Where log.max_bytes has become less since."""
    value = pack(good())
    assert len(CompletionCodec(LLM, max_bytes=10).decode([event(value)])[1]) == 1
    assert not CompletionCodec(LLM, max_bytes=10).without_limit.decode([event(value)])[1]


@given(st.integers(0, 2**32 - 1), st.integers(1, 32), st.sampled_from(FLAGS), st.text(max_size=64).filter(str.isprintable))
def test_any_completion_comes_back(seed: int, top: int, flag: str, domain: str) -> None:
    """Whatever its sizes and words are."""
    completion = good(seed, top=min(top, tiny_draft.VOCABULARY), flags=(flag,), domain=domain)
    again = unpack(pack(completion))
    assert again.header.domain == domain and np.array_equal(again.ids, completion.ids)


@given(st.data())
def test_no_change_of_bytes_passes_unnoticed(data: st.DataObject) -> None:
    """Bytes set, left out or put in anywhere: refused with a reason, and never another error."""
    value = bytearray(pack(good(data.draw(st.integers(0, 9)))))
    before = bytes(value)
    at = data.draw(st.integers(0, len(value) - 1))
    kind = data.draw(st.sampled_from(["set", "out", "in"]))
    if kind == "set":
        value[at] ^= data.draw(st.integers(1, 255))
    elif kind == "out":
        del value[at : at + data.draw(st.integers(1, 20))]
    else:
        value[at:at] = data.draw(st.binary(min_size=1, max_size=20))
    rows, refused = CODEC.decode([event(bytes(value))])
    assert len(refused) == (bytes(value) != before) and len(rows) == 1 - len(refused)


@given(st.binary(max_size=300))
def test_arrays_of_any_bytes_raise_nothing_else(garbage: bytes) -> None:
    """Behind a header that says what it must, with the right checksum."""
    value = pack(good())
    header = value[FRAME.size : FRAME.size + FRAME.unpack_from(value)[2]]
    room = len(value) - FRAME.size - len(header)
    arrays = (garbage * (room // max(len(garbage), 1) + 1))[:room] if garbage else bytes(room)
    rows, refused = CODEC.decode([event(sealed(header, arrays)), event(sealed(garbage, arrays), 1)])
    assert len(rows) + len(refused) == 2
