"""Arrow batches as messages: the same rows as JSON, strictly, row by row, and never more than is let in."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from arrows import message, same, table
from pipelines import MIXED, encoded, event, mixed_rows

from millrace.streams.branch.outputs import dead_letter
from millrace.streams.formats.arrow import MOST_ROWS, encode_rows
from millrace.streams.formats.cloudevents import CONTENT_TYPE
from millrace.streams.formats.contents import Contents
from millrace.streams.formats.json_rows import Codec, has_label
from millrace.streams.records import Event, decode_headers, encode_headers
from millrace.streams.schema import Field, Label, Schema

PLAIN = Schema((Field("a"), Field("b")), Label("y", "integer"), weight="w")
ARRAY = Schema((Field("x", size=3),), Label("y", "number"))
CONTENTS = Contents(PLAIN, 4096)


def decoded(value: bytes, schema: Schema = PLAIN, t: int = 1000):
    """What a message comes to."""
    return Contents(schema, 4096).decode([event(value, 7, t)])


def reason(value: bytes, schema: Schema = PLAIN) -> tuple[str, int | None]:
    """Why a message, or its one bad row, is refused."""
    _, refused = decoded(value, schema)
    return (refused[0].reason, refused[0].row) if refused else ("good", None)


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_rows_of_every_kind_give_the_columns_that_json_gives(compression) -> None:
    """Missing numbers and categories, arrays, labels, weights; compressed or not."""
    rows = mixed_rows(200)
    plain, refused = Codec(MIXED, 4096).decode([event(encoded(row)) for row in rows])
    batches = pa.ipc.open_stream(encode_rows(rows, MIXED)).read_all().to_batches()
    ours, bad = decoded(message(batches, compression), MIXED)
    assert not refused and not bad
    same(ours, plain)
    assert (has_label(ours) == has_label(plain)).all()


def test_a_message_of_several_batches_is_its_rows_in_order() -> None:
    """Row numbers count through the message."""
    schema = pa.schema({"a": pa.float64(), "b": pa.float64(), "y": pa.int64()})
    batches = [pa.record_batch([[1.0, float(at)], [2.0, np.nan if at == 1 else 3.0], [1, 2]], schema=schema) for at in range(3)]
    rows, refused = decoded(message(batches))
    assert rows.columns[0][:, 0].tolist() == [1.0, 0.0, 1.0, 1.0, 2.0] and rows.offset.tolist() == [7] * 5
    assert [(bad.row, bad.reason) for bad in refused] == [(3, "missing-field")]


def test_rows_and_messages_may_lie_in_one_read_in_any_order() -> None:
    """Each in its place; a refused record among them is refused alone."""
    row = encoded({"a": 5, "b": 6, "y": 3, "w": 2})
    both = table(a=[1.0, 2.0], b=[0.0, 0.0], y=[1, 2])
    values = [row, both, b"{broken", row, b"\xff\xff\xff\xffbroken", both, row]
    rows, refused = CONTENTS.decode([event(value, at, 1000 + at) for at, value in enumerate(values)])
    assert rows.plain[:, 0].tolist() == [5, 1, 2, 5, 1, 2, 5]
    assert rows.offset.tolist() == [0, 1, 1, 3, 5, 5, 6] and rows.t.tolist() == [1000, 1001, 1001, 1003, 1005, 1005, 1006]
    assert rows.y.tolist() == ["3", "1", "2", "3", "1", "2", "3"]
    assert sorted((bad.event.offset, bad.reason, bad.row) for bad in refused) == [
        (2, "unreadable", None),
        (4, "unreadable", None),
    ]


def test_small_and_narrow_numbers_are_widened() -> None:
    """float32, float16 and integers become the float64 of the same value."""
    for kind in (pa.float32(), pa.float16(), pa.int8(), pa.uint64()):
        rows, refused = decoded(table(a=pa.array(np.array([1, 2]).astype(kind.to_pandas_dtype()), kind), b=[0, 1], y=[1, 1]))
        assert not refused and rows.plain[:, 0].tolist() == [1.0, 2.0] and rows.plain.dtype == np.float64
    third = np.array([1 / 3], dtype=np.float32)
    rows, _ = decoded(table(a=pa.array(third), b=[0], y=[1]))
    assert rows.plain[0, 0] == float(third[0]) != 1 / 3


BAD_ROWS = {
    "not-finite": {"a": [1.0, float("inf"), 3.0]},
    "missing-field": {"a": [1.0, None, 3.0]},
    "negative-weight": {"w": [1.0, -1.0, None]},
}


@pytest.mark.parametrize("why", BAD_ROWS)
def test_a_bad_row_is_refused_by_its_number_and_the_others_are_taken(why) -> None:
    """What is learned is what the message holds but for that row."""
    good = {"a": [1.0, 2.0, 3.0], "b": [0.5, 0.5, 0.5], "y": [1, 2, 3], "w": [1.0, 1.0, 1.0]}
    rows, refused = decoded(table(**(good | BAD_ROWS[why])))
    assert [(bad.reason, bad.row, bad.event.offset) for bad in refused] == [(why, 1, 7)]
    assert rows.y.tolist() == ["1", "3"] and rows.plain[:, 1].tolist() == [0.5, 0.5]


def test_bad_rows_of_other_kinds_are_refused_by_their_number() -> None:
    """Infinity, beyond the range, arrays of another length or with holes, categories nobody declared."""
    assert reason(table(a=[np.inf], b=[1.0], y=[1])) == ("not-finite", 0)
    assert reason(table(a=[1e101], b=[1.0], y=[1])) == ("not-finite", 0)
    lists = pa.array([[1.0, 2.0, 3.0], [1.0]], pa.list_(pa.float64()))
    assert reason(table(x=lists), ARRAY) == ("wrong-shape", 1)
    assert reason(table(x=pa.array([None, [1.0, 2.0, 3.0]], pa.list_(pa.float32(), 3))), ARRAY) == ("missing-field", 0)
    assert reason(table(x=pa.array([[1.0, 2.0, 3.0], [1.0, None, 3.0]], pa.list_(pa.float32(), 3))), ARRAY) == ("wrong-type", 1)
    assert reason(table(x=pa.array([[1.0, 2.0, 3.0]], pa.list_(pa.float32(), 3)), y=[np.inf]), ARRAY) == ("not-finite", 0)
    kinds = Schema((Field("k", type="categorical", categories=("ant", "bee")),), Label("y"))
    assert reason(table(k=["ant", "cow"]), kinds) == ("unknown-category", 1)
    assert reason(table(k=pa.array(["ant", "bee"]).dictionary_encode()), kinds) == ("good", None)


def test_a_message_with_other_columns_is_refused_as_a_whole() -> None:
    """Another name, a name twice, a column that is not there, another type."""
    good = {"a": [1.0], "b": [2.0], "y": [1]}
    assert reason(table(**good)) == ("good", None)
    assert reason(table(**good, c=[1.0])) == ("unknown-field", None)
    assert reason(table(a=[1.0], y=[1])) == ("missing-field", None)
    assert reason(message(pa.record_batch([[1.0], [1.0], [2.0]], names=["a", "a", "b"]))) == ("duplicate-field", None)
    for column in (["1.0"], [b"1"], [[1.0]], pa.array([1], pa.timestamp("ms")), pa.array([{"b": 1}])):
        assert reason(table(**(good | {"a": column}))) == ("wrong-type", None)
    for label in (["1"], [b"1"], [True]):
        assert reason(table(**(good | {"y": label}))) == ("wrong-type", None)
    assert reason(table(x=pa.array([[1.0, 2.0]], pa.list_(pa.float64(), 2))), ARRAY) == ("wrong-shape", None)
    extension = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1], pa.int8()))
    assert reason(table(**(good | {"a": extension}))) == ("wrong-type", None)
    for kind in (pa.json_(pa.string_view()), pa.list_(pa.json_(pa.string()))):  # of which it is not seen how much they hold
        hidden = table(**(good | {"more": pa.nulls(1, kind)}))
        assert reason(hidden) == ("wrong-type", None)


def test_labels_are_those_that_json_gives() -> None:
    """Of every type, null among them; 0, false and "" are labels."""
    for kind, cells in {
        "integer": [0, None, -7],
        "boolean": [False, None, True],
        "string": ["", None, "yes"],
        "number": [0, None, 2.5],
    }.items():
        schema = Schema((Field("a"),), Label("y", kind))
        rows, _ = decoded(table(a=[1.0] * 3, y=cells), schema)
        plain, _ = Codec(schema, 99).decode([event(encoded({"a": 1, "y": cell})) for cell in cells])
        same(rows, plain)


def test_a_row_may_have_a_time_of_its_own_never_past_its_message() -> None:
    """The message's was checked against the wall clock, so no row can move the clock further."""
    times = pa.array([datetime.fromtimestamp(at, UTC) for at in (1, 2, 3)] + [None], pa.timestamp("us"))
    rows, refused = decoded(table(a=[1.0] * 4, b=[1.0] * 4, y=[1] * 4, timestamp=times), t=2500)
    assert rows.t.tolist() == [1000, 2000, 2500] and [(bad.reason, bad.row) for bad in refused] == [("ahead-of-time", 2)]
    assert reason(table(a=[1.0], b=[1.0], timestamp=[5])) == ("wrong-type", None)


def test_a_message_that_decodes_to_too_much_is_refused_before_it_is_decompressed() -> None:
    """A few hundred bytes that declare a gigabyte; rows without bytes; a length that lies."""
    zeros = pa.record_batch({"a": np.zeros(60_000), "b": np.zeros(60_000), "y": np.zeros(60_000, dtype=np.int64)})
    bomb = message(zeros, "zstd")
    assert len(bomb) < 4000 and len(Contents(PLAIN, 99).decode([event(bomb)])[0]) == 60_000
    before = pa.total_allocated_bytes()
    _, refused = Contents(PLAIN, 99, 100_000).decode([event(bomb)])
    assert refused[0].reason == "oversized" and "log.max_batch_bytes" in refused[0].detail
    assert pa.total_allocated_bytes() - before < 100_000
    assert reason(message(pa.record_batch({"a": pa.nulls(MOST_ROWS + 1)}))) == ("oversized", None)
    real = (480_000).to_bytes(8, "little")
    assert bomb.count(real) >= 3
    for lie in (1 << 50, -2, 0, 480_001, 8):
        why, _ = reason(bomb.replace(real, lie.to_bytes(8, "little", signed=True)))
        assert why in ("oversized", "unreadable")
    _, refused = Contents(PLAIN, 99, len(bomb) - 1).decode([event(bomb)])
    assert refused[0].reason == "oversized"


def test_what_was_let_in_once_is_read_again_under_a_lower_limit() -> None:
    """A refold must not depend on what the pipeline file says by now."""
    value = table(a=[1.0] * 100, b=[1.0] * 100, y=[1] * 100)
    low = Contents(PLAIN, 9, 10)
    assert low.decode([event(value)])[1] and len(low.without_limit.decode([event(value)])[0]) == 100


def test_a_header_can_say_that_it_is_arrow_and_then_it_must_be() -> None:
    """The header is what other programs go by; the first bytes are enough for us."""
    headers = encode_headers(((CONTENT_TYPE, b"application/vnd.apache.arrow.stream"), ("producer", b"till-7")))
    good = Event(0, 1, None, headers, table(a=[1.0], b=[1.0], y=[1]))
    rows, refused = CONTENTS.decode([good, Event(1, 1, None, headers, b'{"a": 1, "b": 2}')])
    assert len(rows) == 1 and [(bad.reason, bad.row, bad.event.offset) for bad in refused] == [("unreadable", None, 1)]


def test_the_dead_letter_of_a_row_is_that_row_alone() -> None:
    """Sent again, it is one JSON row; it says topic, partition, offset and row, and no longer that it is Arrow."""
    headers = encode_headers(((CONTENT_TYPE, b"application/vnd.apache.arrow.stream"), ("producer", b"till-7")))
    value = table(a=[1.0, np.inf, 2.0], b=[1.0, 2.0, 3.0], y=[1, 2, 3])
    _, refused = CONTENTS.decode([Event(9, 5, b"k", headers, value)])
    letter = dead_letter("digits:3", refused[0])
    by_name = dict(decode_headers(letter.headers))
    assert (by_name["millrace.offset"], by_name["millrace.row"], by_name["millrace.partition"]) == (b"9", b"1", b"3")
    assert by_name["producer"] == b"till-7" and CONTENT_TYPE not in by_name and letter.key == b"k"
    assert json.loads(letter.value) == {"a": float("inf"), "b": 2.0, "y": 2}
    assert CONTENTS.decode([Event(0, 5, None, letter.headers, letter.value)])[1][0].reason == "not-finite"
    mended = letter.value.replace(b"1e999", b"4")
    assert len(CONTENTS.decode([Event(0, 5, None, letter.headers, mended)])[0]) == 1
