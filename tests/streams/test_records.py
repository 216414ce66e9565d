"""Records as bytes: the frame that a checksum covers, headers, partition names."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from millrace.streams.records import (
    Event,
    checksum,
    decode_headers,
    encode_headers,
    frame,
    make_read,
    split_tp,
    tp_name,
)

BYTES = st.none() | st.binary(max_size=6)
EVENTS = st.builds(
    Event,
    offset=st.just(0),
    timestamp_ms=st.integers(-(2**63), 2**63 - 1),
    key=BYTES,
    headers=st.lists(st.tuples(st.text(max_size=3), st.binary(max_size=3)), max_size=2).map(
        lambda pairs: encode_headers(tuple(pairs))
    ),
    value=BYTES,
)


@given(EVENTS, EVENTS)
def test_two_different_records_never_have_the_same_frame(event: Event, other: Event) -> None:
    """Lengths stand first, so nothing can move from the key into the value, and absent is not empty."""
    assume(event != other)
    assert frame(event) != frame(other)


@given(st.binary(max_size=4), st.binary(max_size=4), st.integers(0, 4))
def test_bytes_that_move_between_key_and_value_change_the_frame(key: bytes, value: bytes, cut: int) -> None:
    """The joined bytes are the same; the frames are not."""
    joined = key + value
    assume(cut <= len(joined) and cut != len(key))
    assert frame(Event(0, 1, key, b"", value)) != frame(Event(0, 1, joined[:cut], b"", joined[cut:]))


def test_an_absent_key_or_value_is_told_from_an_empty_one() -> None:
    """None and b"" are four different records."""
    kinds = [(None, None), (None, b""), (b"", None), (b"", b"")]
    assert len({frame(Event(0, 1, key, b"", value)) for key, value in kinds}) == 4


@given(st.lists(st.binary(min_size=1, max_size=5), max_size=6), st.randoms(use_true_random=False))
def test_a_read_has_another_checksum_when_its_records_change_places(values: list[bytes], chance) -> None:
    """Order is part of what was read."""
    events = [Event(at, 5, None, b"", value) for at, value in enumerate(values)]
    mixed = list(events)
    chance.shuffle(mixed)
    assume([event.value for event in mixed] != values)
    assert make_read("t:0", 0, 9, mixed).crc32c != make_read("t:0", 0, 9, events).crc32c


def test_the_checksum_of_a_known_record_is_pinned() -> None:
    """It stands in journals already written; another value would make every one of them damaged."""
    known = Event(3, 1_700_000_000_000, b"k", encode_headers((("h", b"1"),)), b'{"x":1}')
    assert checksum([frame(known)]) == PINNED
    assert checksum([]) == 0


PINNED = 3723968242  # crc32c of the frame


@given(st.lists(st.tuples(st.text(), st.binary(max_size=20)), max_size=5))
def test_headers_come_back_as_they_were(pairs: list[tuple[str, bytes]]) -> None:
    """Names twice, empty names, empty values and their order included."""
    assert decode_headers(encode_headers(tuple(pairs))) == tuple(pairs)


@given(st.text(min_size=1), st.integers(0, 10_000))
def test_a_partition_name_gives_topic_and_number_back(topic: str, number: int) -> None:
    """Topics with colons in them too."""
    assert split_tp(tp_name(topic, number)) == (topic, number)
