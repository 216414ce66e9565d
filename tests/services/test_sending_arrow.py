"""`millrace send --format arrow`: the same file, many rows a message, and the model that single rows lead to."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rooms import facts, here, json_lines, pipeline_in

from millrace.learners.errors import BadInputError
from millrace.services.config import load_pipeline
from millrace.services.sending import messages_of


def learned(folder: Path, *words: str) -> tuple[int, dict[str, object]]:
    """Messages sent, and what `status` says once they are learned."""
    folder.mkdir()
    pipeline_in(folder)
    sent = here("send", "digits.toml", *words, "--output", "json", cwd=folder)
    assert sent.exit_code == 0, sent.output
    assert here("run", "digits.toml", cwd=folder).exit_code == 0
    return int(str(json_lines(sent.stdout)[0]["sent"])), facts(folder)


def test_rows_sent_as_batches_are_learned_as_rows_are(tmp_path) -> None:
    """200 rows in 7 messages: the same counts and scores; `verify` proves them."""
    plain, one = learned(tmp_path / "rows", "rows.jsonl")
    batches, other = learned(tmp_path / "batches", "rows.jsonl", "--format", "arrow", "--rows-per-message", "30")
    assert (plain, batches) == (200, 7)
    for what in ("learned", "passed", "rejected", "waiting", "accuracy"):
        assert one[what] == other[what], what
    assert here("verify", "digits.toml", cwd=tmp_path / "batches").exit_code == 0


def test_a_parquet_file_can_be_sent_as_batches(tmp_path) -> None:
    """With an array a row."""
    pipeline_in(tmp_path, rows=1)
    rows = {"x": [[1.0, 2.0, 3.0, 4.0]] * 5, "site": ["north"] * 5, "label": ["a", "b", "a", "b", "a"]}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    done = here("send", "digits.toml", "rows.parquet", "--format", "arrow", "--rows-per-message", "2", cwd=tmp_path)
    assert done.exit_code == 0
    assert here("run", "digits.toml", cwd=tmp_path).exit_code == 0 and facts(tmp_path)["learned"] == 5


def test_what_cannot_be_a_column_is_said_with_its_rows(tmp_path) -> None:
    """Before anything of that message is sent."""
    schema = load_pipeline(pipeline_in(tmp_path, rows=1)).pipeline.schema
    good = b'{"x": [1, 2, 3, 4], "site": "north", "label": "a"}'
    for bad, why in ((b"[1]", "Expected `object`"), (b'{"z": 1}', "z: no field"), (b'{"x": ["a"]}', "x: a value is not")):
        messages = messages_of([good, good, good, bad], schema, 2)
        next(messages)
        with pytest.raises(BadInputError, match=f"Among rows 3 to 4: .*{why}"):
            next(messages)


def test_served_records_are_not_sent_as_batches(tmp_path) -> None:
    """They are told apart record by record."""
    pipeline_in(tmp_path)
    done = here("send", "digits.toml", "rows.jsonl", "--served", "--format", "arrow", cwd=tmp_path)
    assert done.exit_code == 2 and "leave out --format arrow" in done.stderr
