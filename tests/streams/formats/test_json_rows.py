"""The codec at its strictest: what every declared type refuses, and why."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from pipelines import MIXED, ROW, encoded, event, events, mixed_rows

from millrace.streams.branch.outputs import dead_letter
from millrace.streams.formats.json_rows import Codec, Rows
from millrace.streams.formats.meaning import REASONS, label_value
from millrace.streams.records import decode_headers
from millrace.streams.schema import Field, Label, Schema

CODEC = Codec(MIXED, max_bytes=4096)
GOOD = encoded(ROW)


def reason(value: bytes | None, codec: Codec = CODEC) -> str:
    """Why ``value`` alone is refused; "good" if it is not."""
    rows, refused = codec.decode([event(value)])
    assert len(rows) + len(refused) == 1
    return refused[0].reason if refused else "good"


def with_cells(**cells: str) -> bytes:
    """The good row as JSON text with some cells replaced by raw text; None leaves the key out."""
    texts = {name: json.dumps(value) for name, value in ROW.items()} | cells
    return ("{" + ",".join(f'"{name}":{text}' for name, text in texts.items()) + "}").encode()


def without(name: str) -> bytes:
    """The good row with a key left out."""
    return encoded({key: value for key, value in ROW.items() if key != name})


def same(rows: Rows, other: Rows) -> bool:
    """Whether two decoded blocks are equal bit for bit."""
    pairs = zip(
        (*rows.columns, rows.y, rows.weight, rows.key, rows.t),
        (*other.columns, other.y, other.weight, other.key, other.t),
        strict=True,
    )
    return all(
        a.dtype == b.dtype
        and a.shape == b.shape
        and (a.tolist() == b.tolist() if a.dtype == object else a.tobytes() == b.tobytes())
        for a, b in pairs
    )


NUMBERS = ["size", "heat", "wind", "weight"]
BAD_NUMBERS = {
    '"1.5"': "wrong-type",
    "[1.5]": "wrong-type",
    '{"a":1}': "wrong-type",
    "NaN": "unreadable",
    "Infinity": "unreadable",
    "-Infinity": "unreadable",
    "1e999": "not-finite",
    "-1e999": "not-finite",
    "1e101": "not-finite",
    "-1e101": "not-finite",
    "1" * 102: "not-finite",
    "1" * 5000: "oversized",
    "01": "unreadable",
    "+1": "unreadable",
    ".5": "unreadable",
    "0x10": "unreadable",
    "1_000": "unreadable",
    "'1'": "unreadable",
    "": "unreadable",
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(("text", "why"), BAD_NUMBERS.items())
def test_what_is_not_a_finite_number_is_refused_in_a_number_field(name: str, text: str, why: str) -> None:
    """Nothing is coerced: no string, nothing that JSON does not know, nothing too large to square."""
    assert reason(with_cells(**{name: text})) == why


@pytest.mark.parametrize("text", ["1", "-3", "0", "1.5", "-0.0", "1e3", "2E-3", "1e100", "9007199254740993"])
def test_whole_numbers_and_fractions_are_accepted_in_a_number_field(text: str) -> None:
    """And stand in the column as float64."""
    rows, refused = CODEC.decode([event(with_cells(size=text))])
    assert not refused and rows.columns[0].tolist() == [[float(text)]]


@pytest.mark.parametrize("text", ["1.0", "1e2", "1.5", "[]", '["ant"]', "{}", "9223372036854775808"])
@pytest.mark.parametrize("name", ["kind", "site", "who"])
def test_what_is_no_category_is_refused_in_a_categorical_field(name: str, text: str) -> None:
    """A float has no one text, so it is not one; neither is what holds others."""
    assert reason(with_cells(**{name: text})) == "wrong-type"


ARRAYS = {
    "[0,0.5]": "wrong-shape",
    "[0,0.5,1,2]": "wrong-shape",
    "[]": "wrong-shape",
    "[0,0.5,[1]]": "wrong-type",
    "[[0,0.5,1]]": "wrong-type",
    '[0,0.5,"1"]': "wrong-type",
    "[0,0.5,null]": "wrong-type",
    "[0,0.5,1e999]": "not-finite",
    "[0,0.5,1e101]": "not-finite",
    "[0,0.5,NaN]": "unreadable",
    "[0,0.5,1,]": "unreadable",
    "1": "wrong-type",
    '{"0":1}': "wrong-type",
    "null": "missing-field",
}


@pytest.mark.parametrize(("text", "why"), ARRAYS.items())
def test_an_array_of_another_shape_or_content_is_refused(text: str, why: str) -> None:
    """Exactly ``size`` numbers, each of them finite."""
    assert reason(with_cells(pixels=text)) == why


MISSING = {"size": True, "at": True, "pixels": True, "kind": True}
OPTIONAL = ["heat", "wind", "site", "who", "label", "weight"]


@pytest.mark.parametrize("name", MISSING)
def test_a_required_field_may_be_neither_null_nor_absent(name: str) -> None:
    """The policy ``reject`` is the default."""
    assert reason(with_cells(**{name: "null"})) == "missing-field"
    assert reason(without(name)) == "missing-field"


@pytest.mark.parametrize("name", OPTIONAL)
def test_null_and_absent_are_the_same_where_a_field_may_be_missing(name: str) -> None:
    """And both are good."""
    null, refused = CODEC.decode([event(with_cells(**{name: "null"}))])
    absent, _ = CODEC.decode([event(without(name))])
    assert not refused and len(null) == 1 and same(null, absent)


def test_a_missing_number_is_nan_a_missing_category_none_and_a_missing_weight_one() -> None:
    """So that the feature stage can tell."""
    bare = {name: value for name, value in ROW.items() if name not in OPTIONAL}
    rows, refused = CODEC.decode([event(encoded(bare))])
    assert not refused and [math.isnan(rows.columns[at][0, 0]) for at in (2, 3)] == [True, True]
    assert [rows.columns[6][0], rows.columns[7][0], rows.y[0], rows.weight[0]] == [None, None, None, 1.0]


WHOLE = {
    None: "unreadable",
    b"": "unreadable",
    b" ": "unreadable",
    b"null": "wrong-type",
    b"[]": "wrong-type",
    b"7": "wrong-type",
    b'"row"': "wrong-type",
    b"{}": "missing-field",
    b"\xef\xbb\xbf" + GOOD: "unreadable",
    GOOD + b"x": "unreadable",
    GOOD + GOOD: "unreadable",
    GOOD + b"\x00": "unreadable",
    GOOD[:-1]: "unreadable",
    GOOD[1:]: "wrong-type",  # a string stands first
    GOOD.decode().encode("utf-16"): "unreadable",
    GOOD.replace(b"bee", b"b\xffe"): "unreadable",
    GOOD.replace(b"north", b"n\xed\xa0\x80"): "unreadable",
    GOOD.replace(b"north", b"\\ud800"): "unreadable",
    GOOD.replace(b"north", b"a\nb"): "unreadable",
    GOOD.replace(b"bee", b"bat"): "unknown-category",
    GOOD.replace(b"bee", b""): "unknown-category",
    GOOD.replace(b'"size"', b'"Size"'): "unknown-field",
    GOOD.replace(b"{", b'{"extra":1,'): "unknown-field",
    GOOD.replace(b"{", b'{"":null,'): "unknown-field",
    GOOD.replace(b"2.0", b"-0.5"): "negative-weight",
    GOOD.replace(b"{", b"{" + b" " * 4096): "oversized",
    b"[" * 4000: "wrong-type",
    b'{"size":' + b"[" * 4000: "wrong-type",
    b'{"junk":' + b"[" * 4000: "unknown-field",
}


@pytest.mark.parametrize(("value", "why"), WHOLE.items(), ids=lambda part: str(part)[:30])
def test_a_record_that_is_not_one_row_is_refused_with_its_reason(value: bytes | None, why: str) -> None:
    """Not JSON, not UTF-8, not an object, not this schema's keys."""
    assert reason(value) == why


def test_nesting_deeper_than_any_stack_is_refused() -> None:
    """It can neither end the process nor reach the other rows."""
    deep = Codec(MIXED, max_bytes=1 << 22)
    for opening in (b"[", b'{"pixels":[', b'{"size":', b'{"junk":[', b'{"pixels":{"a":'):
        assert reason(opening * 200_000, deep) in REASONS


def test_a_value_of_exactly_the_limit_is_read() -> None:
    """One byte more is not."""
    assert reason(GOOD, Codec(MIXED, len(GOOD))) == "good"
    assert reason(GOOD, Codec(MIXED, len(GOOD) - 1)) == "oversized"


LABELS = {
    "string": ({'"a"': "a", '""': "", "1": "1", "true": "true"}, ["1.0", "1.5", "12345678901234567890"]),
    "integer": (
        {"1": "1", "-0": "0", "1.0": "1", "1e2": "100", "-0.0": "0"},
        ["1.5", '"1"', "true", "1e19", "9223372036854775808"],
    ),
    "boolean": ({"true": "true", "false": "false"}, ["1", "0", '"true"']),
    "number": ({"1": 1.0, "-2.5": -2.5, "0": 0.0}, ['"1"', "true", "[1]"]),
}


@pytest.mark.parametrize("kind", LABELS)
def test_a_label_is_of_its_declared_type_and_falsy_labels_are_labels(kind: str) -> None:
    """0, "", false and 0.0 are data; null and absent are rows without a label; the rest is refused."""
    codec = Codec(Schema((Field("x"),), Label("y", kind)), 10_000)
    good, bad = LABELS[kind]
    for text, label in good.items():
        rows, refused = codec.decode([event(b'{"x":1,"y":%s}' % text.encode())])
        assert not refused and rows.y.tolist() == [label]
    for text in bad:
        assert reason(b'{"x":1,"y":%s}' % text.encode(), codec) == "wrong-type"
    for value in (b'{"x":1,"y":null}', b'{"x":1}'):
        rows, _ = codec.decode([event(value)])
        assert rows.y[0] is None or math.isnan(rows.y[0])


def test_a_label_too_large_to_write_down_is_refused() -> None:
    """Python refuses to print whole numbers past 4300 digits; a record must not be able to raise that."""
    codec = Codec(Schema((Field("x"),), Label("y", "integer")), 100_000)
    assert reason(b'{"x":1,"y":%s}' % (b"9" * 4400), codec) in REASONS
    codec = Codec(Schema((Field("x"),), Label("y", "number")), 100_000)
    assert [reason(b'{"x":1,"y":%s}' % text, codec) for text in (b"1e999", b"1e101", b"NaN")] == [
        "not-finite",
        "not-finite",
        "unreadable",
    ]


def test_a_value_that_its_scale_makes_too_large_is_refused() -> None:
    """Behind the codec no learner may meet a feature it must refuse: the step would be journaled and never fold again."""
    for missing in ("indicator", "mean"):
        codec = Codec(Schema((Field("x", center=5.0, scale=1e-6, missing=missing),), Label("y")), 1000)
        reasons = [reason(b'{"x":%s}' % text, codec) for text in (b"1e99", b"-2e94", b"null", b"1e90", b"-9.99e93")]
        assert reasons == ["not-finite", "not-finite", "good", "good", "good"]
    codec = Codec(Schema((Field("x", size=2, scale=1e-6),), Label("y")), 1000)
    assert [reason(b'{"x":[0,%s]}' % text, codec) for text in (b"1e99", b"1e90")] == ["not-finite", "good"]


@pytest.mark.parametrize(("center", "scale"), [(1e101, 1.0), (1.0, 1e-101), (float("nan"), 1.0), (1e300, 1e99)])
def test_a_center_or_scale_that_carries_zero_out_of_range_is_refused(center: float, scale: float) -> None:
    """A missing number before the first is 0, and 0 must stay a number that learners take."""
    with pytest.raises(ValueError, match="scale above 0"):
        Field("x", center=center, scale=scale)


@pytest.mark.parametrize("bad_at", [0, 1, 499, 998, 999])
def test_one_bad_record_among_a_thousand_harms_no_neighbour(bad_at: int) -> None:
    """The good rows' columns are those decoded without it, bit for bit."""
    values: list[bytes | None] = [encoded(row) for row in mixed_rows(1000)]
    whole = events(values)
    for bad in (None, b"", GOOD[:-1], GOOD.replace(b"{", b'{"size":1,'), GOOD.replace(b"1.5", b"1e101")):
        values[bad_at] = bad
        rows, refused = CODEC.decode(events(values))
        alone, none = CODEC.decode([record for record in whole if record.offset != bad_at])
        assert [rejection.event.offset for rejection in refused] == [bad_at] and not none
        assert same(rows, alone)


def test_two_broken_records_never_join_to_good_ones() -> None:
    """A row cut anywhere is two refusals, whatever stands beside the halves."""
    for cut in range(1, len(GOOD)):
        rows, refused = CODEC.decode(events([GOOD, GOOD[:cut], GOOD[cut:], GOOD]))
        assert [rejection.event.offset for rejection in refused] == [1, 2] and len(rows) == 2


def test_any_split_of_the_events_gives_the_same_rows() -> None:
    """Columns do not depend on how events were grouped."""
    stored = events([encoded(row) for row in mixed_rows(200, seed=5)])
    whole, refused = CODEC.decode(stored)
    assert not refused
    for size in (1, 7, 64):
        pieces = [CODEC.decode(stored[at : at + size])[0] for at in range(0, 200, size)]
        columns = zip(*((*piece.columns, piece.y, piece.weight, piece.key, piece.t) for piece in pieces), strict=True)
        joined = [np.concatenate(column) for column in columns]
        assert same(Rows(tuple(joined[:-4]), *joined[-4:]), whole)


def test_no_events_are_no_rows() -> None:
    """Of the right widths, so that what follows need not ask."""
    rows, refused = CODEC.decode([])
    assert len(rows) == 0 and not refused
    assert [column.shape for column in rows.columns[:5]] == [(0, 1), (0, 1), (0, 1), (0, 1), (0, 3)]


def test_a_dead_letter_holds_the_record_as_it_was_and_says_why_and_from_where() -> None:
    """Its own headers first, then reason, detail, topic, partition, offset, timestamp."""
    _, refused = CODEC.decode([event(b'{"\xff', offset=41, t=99)])
    record = dead_letter("a:b:3", refused[0])
    headers = dict(decode_headers(record.headers))
    assert record.value == b'{"\xff' and headers["millrace.reason"] == b"unreadable" and headers["millrace.detail"]
    assert (headers["millrace.topic"], headers["millrace.partition"], headers["millrace.offset"]) == (b"a:b", b"3", b"41")
    assert headers["millrace.timestamp_ms"] == b"99"


def test_every_reason_that_the_codec_gives_is_in_the_table_once() -> None:
    """Operators alert on these words."""
    given = {*BAD_NUMBERS.values(), *ARRAYS.values(), *WHOLE.values()}
    assert given <= set(REASONS) and len(set(REASONS)) == len(REASONS)
    others = {"duplicate-field", "ahead-of-time", "malformed-envelope", "unreadable-image", "unknown-schema", "out-of-range"}
    assert set(REASONS) - given == others  # those have tests of their own


def test_there_is_one_zero_among_labels() -> None:
    """-0.0 and 0.0 are one label, so that none of the two contradicts the other."""
    assert [str(label_value(Label("y", "number"), zero)) for zero in (0.0, -0.0, 0)] == ["0.0"] * 3
