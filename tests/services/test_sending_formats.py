"""`millrace send` of files as other programs write them: what is learned, refused, or a dead letter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from pipelines import here, json_lines

from millrace.services.config.config import load_pipeline
from millrace.services.data.send import values_of
from millrace.streams.schema import Field, Label, Schema

PIPELINE = """name = "p"
fields = [{ FIELD }, { name = "n" }]
label = { name = "y", type = "LABEL" }
learner = { kind = "ridge", solve_rows = 1 }
[worker]
stop_share = 1.0
"""
GROW = 'name = "f", type = "categorical", categories = "grow", max = 8'
MEAN = 'name = "f", missing = "mean"'


def outcome(folder: Path, file: str, *words: str, field: str = MEAN, label: str = "string") -> dict[str, object]:
    """What `status` counts once the file is learned, and the reasons of its dead letters."""
    (folder / "p.toml").write_text(PIPELINE.replace("FIELD", field).replace("LABEL", label))
    home = ("--home", f"home{len(list(folder.iterdir()))}")
    sent = here("send", "p.toml", file, *words, *home, cwd=folder)
    assert sent.exit_code == 0, sent.stderr
    ended = here("run", "p.toml", *home, cwd=folder).exit_code
    shown = json_lines(here("status", "p.toml", *home, "--output", "json", cwd=folder).stdout)
    facts = {str(line["what"]): line["value"] for line in shown}
    letters = json_lines(here("dead-letters", "list", "p.toml", *home, "--output", "json", cwd=folder).stdout)
    reasons = sorted(str(letter["reason"]) for letter in letters)
    assert ended == (1 if facts["rejected"] == facts["records"] > 0 else 0), "exit status 1 where all of them were refused"
    return {"learned": facts["learned"], "passed": facts["passed"], "reasons": reasons}


def both(folder: Path, file: str, field: str = MEAN, label: str = "string") -> dict[str, object]:
    """The same, sent as rows and as batches alike."""
    rows = outcome(folder, file, field=field, label=label)
    assert outcome(folder, file, "--format", "arrow", "--rows-per-message", "3", field=field, label=label) == rows
    return rows


def test_infinities_of_a_parquet_file_are_dead_letters(tmp_path: Path) -> None:
    """As those of the same rows in CSV are; a NaN is a missing value."""
    f = [1.0, np.inf, 3.0, np.nan, 5.0, -np.inf, 7.0]
    y = [1.0, 2.0, np.inf, 4.0, 5.0, 6.0, np.nan]
    pq.write_table(pa.table({"f": f, "n": np.arange(7.0), "y": y}), tmp_path / "a.parquet")
    lines = ["f,n,y", *(f"{a},{n}.0,{b}" for n, (a, b) in enumerate(zip(f, y, strict=True)))]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    expected = {"learned": 3, "passed": 1, "reasons": ["not-finite"] * 3}
    for file in ("a.parquet", "a.csv"):
        assert both(tmp_path, file, label="number") == expected


def test_integer_labels_that_a_data_frame_made_floats_are_integers(tmp_path: Path) -> None:
    """1.0 and NaN in Parquet, 1.0 and nothing in CSV; what is not whole is refused."""
    pq.write_table(pa.table({"f": [1.0] * 4, "n": np.arange(4.0), "y": [1.0, 2.0, np.nan, 2.5]}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("f,n,y\n1,0,1.0\n1,1,2.0\n1,2,\n1,3,2.5\n")
    for file in ("a.parquet", "a.csv"):
        assert both(tmp_path, file, label="integer") == {"learned": 2, "passed": 1, "reasons": ["wrong-type"]}


@pytest.mark.parametrize(
    "cells", [[True, False, True], [10, 20, 10], [b"spam", b"ham", b"spam"]], ids=["booleans", "integers", "bytes"]
)
def test_categories_and_labels_need_not_be_texts(cells: list, tmp_path: Path) -> None:
    """Booleans, codes, and the binary columns that Impala and Hive write."""
    table = pa.table({"f": cells, "n": np.arange(3.0), "y": cells})
    pq.write_table(table, tmp_path / "a.parquet")
    assert both(tmp_path, "a.parquet", field=GROW) == {"learned": 3, "passed": 0, "reasons": []}
    schema = load_pipeline(tmp_path / "p.toml").pipeline.schema
    sent = [json.loads(value) for value in values_of(tmp_path / "a.parquet", schema)]
    told = [cell.decode() if isinstance(cell, bytes) else cell for cell in cells]
    assert [row["y"] for row in sent] == [row["f"] for row in sent] == told


def test_booleans_of_a_csv_file_are_booleans(tmp_path: Path) -> None:
    """As pandas, Python and spreadsheets write them: numbers, categories and labels."""
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbff,n,y\r\nTrue,1,True\r\nFALSE,TRUE,false\r\n")
    assert both(tmp_path, "a.csv", label="boolean") == {"learned": 2, "passed": 0, "reasons": []}
    assert both(tmp_path, "a.csv", field=GROW, label="boolean") == {"learned": 2, "passed": 0, "reasons": []}


def test_a_mark_before_json_lines_is_passed_over(tmp_path: Path) -> None:
    """And so is the carriage return at their ends."""
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"f":1,"n":1,"y":"u"}\r\n{"f":2,"n":1,"y":"v"}\r\n')
    assert both(tmp_path, "a.jsonl") == {"learned": 2, "passed": 0, "reasons": []}


REFUSED = {
    "an index": (b",f,n,y\n0,1,2,a\n", "column 1 has no name in the heading"),
    "a row that is too short": (b"f,n,y\n1,2,a\n1,2\n", "line 3 has fewer cells than the heading (2, not 3)"),
    "a row that is too long": (b"f,n,y\n1,2,a,b\n", "line 2 has more cells than the heading (4, not 3)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_csv_file_that_is_not_rows_is_refused_at_once(case: str, tmp_path: Path) -> None:
    """It names the line or the column."""
    raw, why = REFUSED[case]
    (tmp_path / "a.csv").write_bytes(raw)
    (tmp_path / "p.toml").write_text(PIPELINE.replace("FIELD", MEAN).replace("LABEL", "string"))
    done = here("send", "p.toml", "a.csv", cwd=tmp_path)
    assert done.exit_code == 2 and why in done.stderr, done.stderr


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_empty_line_of_a_csv_file_is_no_row(end: str, tmp_path: Path) -> None:
    """As other programs read it; a row of one empty cell is written with quotation marks, and is a row."""
    schema = Schema((Field("f", missing="mean"),), Label("y", "number"))
    lines = ["f,y", "", "1.5,2", "", "", '"",3', "4.5,", ""]
    (tmp_path / "a.csv").write_text(end.join(lines) + end, newline="")
    rows = [json.loads(value) for value in values_of(tmp_path / "a.csv", schema)]
    assert rows == [{"f": 1.5, "y": 2}, {"f": None, "y": 3}, {"f": 4.5, "y": None}]
    assert len(pandas.read_csv(tmp_path / "a.csv")) == pyarrow.csv.read_csv(tmp_path / "a.csv").num_rows == len(rows)
    pandas.DataFrame({"f": [1.5, np.nan]}).to_csv(tmp_path / "b.csv", index=False)
    assert [json.loads(value) for value in values_of(tmp_path / "b.csv", schema)] == [{"f": 1.5}, {"f": None}]


def test_columns_that_no_field_takes_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    """Decimal, nested and time, by name and type; an undeclared one is as any unknown field."""
    (tmp_path / "p.toml").write_text(PIPELINE.replace("FIELD", MEAN).replace("LABEL", "string"))
    good = {"f": [1.0], "n": [2.0], "y": ["a"]}
    for kind in (pa.decimal128(9, 2), pa.struct([("a", pa.int8())]), pa.timestamp("ns"), pa.list_(pa.list_(pa.float64()))):
        pq.write_table(pa.table(good | {"n": pa.array([None], kind)}), tmp_path / "a.parquet")
        done = here("send", "p.toml", "a.parquet", cwd=tmp_path)
        assert done.exit_code == 2 and f"The column n is {str(kind)[:5]}" in done.stderr and "Nothing was sent" in done.stderr
    pq.write_table(pa.table(good | {"t": pa.array([0], pa.timestamp("ms"))}), tmp_path / "a.parquet")
    assert both(tmp_path, "a.parquet")["reasons"] == ["unknown-field"]
