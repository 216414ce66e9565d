"""The table of what values mean: the page and the code are one, older branches keep theirs, and nobody is flooded by views."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from arrows import message, table
from house_rules import ROOT
from other_writers import avro_bytes
from pipelines import event, events

from millrace.streams.formats.avro import Registry
from millrace.streams.formats.contents import Contents
from millrace.streams.formats.meaning import REVISION, TAKES, RecordError, cell_of, label_value
from millrace.streams.schema import Field, Label, Schema

PAGE = ROOT / "docs/how-to/values-and-types.md"
KINDS = Schema((Field("k", type="categorical", categories="grow", max=4, missing="category"),), Label("y", "number"))
NUMBER = Schema((Field("n", missing="mean"),), Label("y", "integer"))


def test_the_page_has_the_table_of_the_code() -> None:
    """Every declared type, and each kind of value that it takes and no other."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.read_text().splitlines() if line[:1] == "|"]
    kinds = rows[0][1:]
    told = {row[0].strip("`"): {kind for kind, cell in zip(kinds, row[1:], strict=True) if cell != "-"} for row in rows[2:]}
    assert told == {declared: set(taken) for declared, taken in TAKES.items()}


def test_a_branch_of_the_first_revision_reads_what_it_read() -> None:
    """Integers beyond int64 are numbers and class names, and a NaN in a row of a batch is refused; both have changed since."""
    row = b'{"n": 18446744073709551615, "y": 12345678901234567890}'
    old, new = (Contents(NUMBER, 999).of_revision(revision) for revision in (1, REVISION))
    rows, refused = old.decode([event(row)])
    assert not refused and rows.columns[0].tolist() == [[2.0**64]] and rows.y.tolist() == ["12345678901234567890"]
    assert [bad.reason for bad in new.decode([event(row)])[1]] == ["wrong-type"]
    batch = table(n=[1.0, np.nan, 3.0], y=[1, 2, 3])
    assert [(bad.row, bad.reason) for bad in old.decode([event(batch)])[1]] == [(1, "not-finite")]
    assert len(new.decode([event(batch)])[0]) == 3
    large = table(n=pa.array([1 << 63], pa.uint64()), y=pa.array([1 << 63], pa.uint64()))
    assert (
        old.decode([event(large)])[0].y.tolist() == [str(1 << 63)] and new.decode([event(large)])[1][0].reason == "wrong-type"
    )
    for codec, length in ((old, 1), (new, 0)):
        assert len(codec.without_limit.decode([event(large)])[0]) == length, "the limit and the revision are apart"


def test_a_boolean_is_the_text_that_csv_had_for_a_branch_of_the_first_revision(tmp_path: Path) -> None:
    """So that what pandas wrote goes on as the category that it was; a label of type boolean never changed."""
    row = event(b'{"k": true, "y": 1}')
    batch = event(table(k=[True], y=[1.0]))
    for revision, text in ((1, "True"), (REVISION, "true")):
        for record in (row, batch):
            assert Contents(KINDS, 999).of_revision(revision).decode([record])[0].columns[0].tolist() == [text]
        assert label_value(Label("y"), True, revision) == text and label_value(Label("y", "boolean"), True, revision) == "true"
        boolean = Contents(Schema((Field("a"),), Label("y", "boolean")), 999).of_revision(revision)
        for record in (event(b'{"a": 1, "y": true}'), event(table(a=[1.0], y=[True]))):
            assert boolean.decode([record])[0].y.tolist() == ["true"]


def test_avro_bytes_are_their_text_and_were_base64(tmp_path: Path) -> None:
    """In a column that takes text; what is not UTF-8 is refused."""
    fields = [{"name": "k", "type": "bytes"}, {"name": "y", "type": "double"}]
    (tmp_path / "1.avsc").write_text(str({"type": "record", "name": "R", "fields": fields}).replace("'", '"'))
    contents = Contents(KINDS, 999, registry=Registry("http://127.0.0.1:9", tmp_path))
    schema = {"type": "record", "name": "R", "fields": fields}
    values = [struct.pack(">bI", 0, 1) + avro_bytes(schema, {"k": cell, "y": 1.0}) for cell in (b"spam", b"\xff")]
    rows, refused = contents.decode(events(values))
    assert rows.columns[0].tolist() == ["spam"] and [(bad.event.offset, bad.reason) for bad in refused] == [(1, "wrong-type")]
    assert contents.of_revision(1).decode(events(values))[0].columns[0].tolist() == ["c3BhbQ==", "/w=="]


def test_late_labels_mean_what_the_labels_of_rows_do() -> None:
    """Of every type; the first revision took any integer."""
    assert [label_value(Label("y"), cell) for cell in ("a", True, 3)] == ["a", "true", "3"]
    assert [label_value(Label("y", "integer"), cell) for cell in (3, 1.0, -0.0)] == ["3", "1", "0"]
    assert label_value(Label("y", "integer"), 1 << 70, revision=1) == str(1 << 70)
    for kind, cell in (
        ("string", 1.5),
        ("integer", 1.5),
        ("integer", True),
        ("integer", 1 << 70),
        ("boolean", 1),
        ("number", True),
    ):
        with pytest.raises(RecordError, match="wrong-type"):
            label_value(Label("y", kind), cell)


def test_what_a_typed_column_cannot_hold_is_never_coerced() -> None:
    """pyarrow makes True an integer or a float by itself."""
    for declared in ("label integer", "label number", "weight"):
        with pytest.raises(RecordError, match="wrong-type"):
            cell_of(declared, True)
    assert (cell_of("numeric", True), cell_of("categorical", True), cell_of("numeric list", [True, 2])) == (
        1.0,
        "true",
        [1.0, 2.0],
    )


def test_many_views_of_the_same_long_text_are_refused_before_they_are_read() -> None:
    """A message of a megabyte that would decode to sixty gigabytes."""
    rows, text = 60_000, b"a" * 1_000_000
    view = struct.pack("<i4sii", len(text), text[:4], 0, 0)
    column = pa.Array.from_buffers(pa.string_view(), rows, [None, pa.py_buffer(view * rows), pa.py_buffer(text)])
    bomb = message(pa.record_batch({"k": column, "y": np.zeros(rows)}))
    assert len(bomb) < 4_000_000
    before = pa.total_allocated_bytes()
    _, refused = Contents(KINDS, 999).decode([event(bomb)])
    assert refused[0].reason == "oversized" and "log.max_batch_bytes" in refused[0].detail
    coded = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 9, pa.uint32()), column.slice(0, 2))
    assert len(Contents(KINDS, 999).decode([event(message(pa.record_batch({"k": coded, "y": np.zeros(18)})))])[0]) == 18
    assert pa.total_allocated_bytes() - before < 100_000_000


@pytest.mark.parametrize("damage", [b"\xff\xff\xff\xff", struct.pack("<i", 1 << 30), b"\x0d\x00\x00\x00"])
def test_damaged_views_end_in_a_reason(damage: bytes) -> None:
    """A length below 0, one past every buffer, one that makes an inline text a place."""
    good = message(pa.record_batch({"k": pa.array(["abc", "abc", "d" * 20], pa.string_view()), "y": np.zeros(3)}))
    at = [match.start() for match in re.finditer(re.escape(struct.pack("<i", 3) + b"abc"), good)]
    assert len(at) == 2 and len(Contents(KINDS, 999).decode([event(good)])[0]) == 3
    _, refused = Contents(KINDS, 999).decode([event(good[: at[0]] + damage + good[at[0] + 4 :])])
    assert refused[0].reason in ("unreadable", "oversized")


def test_views_within_other_types_are_refused_by_name() -> None:
    """Nothing else can look at how long they are."""
    nested = pa.array([{"a": "b"}], pa.struct([("a", pa.string_view())]))
    assert Contents(KINDS, 999).decode([event(message(pa.record_batch({"k": nested})))])[1][0].reason == "wrong-type"


def test_a_label_column_that_is_all_null_is_rows_without_labels() -> None:
    """Of the type null, of any other type, or NaN as pandas has it; a field that must be there is missing from each row."""
    for nothing in (
        pa.nulls(2),
        pa.array([None, None], pa.string()),
        pa.array([np.nan] * 2),
        pa.array([None] * 2, pa.date32()),
    ):
        for kind in ("string", "integer", "boolean", "number"):
            schema = Schema((Field("a"),), Label("y", kind))
            rows, refused = Contents(schema, 999).decode([event(table(a=[1.0, 2.0], y=nothing))])
            assert not refused and len(rows) == 2 and all(cell is None or cell != cell for cell in rows.y.tolist())
        if nothing.type != pa.float64():
            _, refused = Contents(schema, 999).decode([event(table(a=nothing, y=[1.0, 2.0]))])
            assert [(bad.row, bad.reason) for bad in refused] == [(0, "missing-field"), (1, "missing-field")]
