"""`millrace send --format arrow`: the same file, many rows a message, and the model that single rows lead to."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pipelines import facts, here, json_lines, pipeline_in

from millrace.services.config.config import load_pipeline
from millrace.services.data.send import messages_of
from millrace.services.pipeline.instance import Instance
from millrace.streams.formats.arrow import stream_bytes
from millrace.streams.records import Record


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
    plain, batched = learned(tmp_path / "rows", "rows.jsonl")
    batches, other = learned(tmp_path / "batches", "rows.jsonl", "--format", "arrow", "--rows-per-message", "30")
    assert (plain, batches) == (200, 7)
    for what in ("learned", "passed", "rejected", "waiting", "accuracy"):
        assert batched[what] == other[what], what
    assert here("verify", "digits.toml", cwd=tmp_path / "batches").exit_code == 0


def test_a_parquet_file_can_be_sent_as_batches(tmp_path) -> None:
    """With an array a row."""
    pipeline_in(tmp_path, rows=1)
    rows = {"x": [[1.0, 2.0, 3.0, 4.0]] * 5, "site": ["north"] * 5, "label": ["a", "b", "a", "b", "a"]}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    done = here("send", "digits.toml", "rows.parquet", "--format", "arrow", "--rows-per-message", "2", cwd=tmp_path)
    assert done.exit_code == 0
    assert here("run", "digits.toml", cwd=tmp_path).exit_code == 0 and facts(tmp_path)["learned"] == 5


def test_a_row_that_is_refused_goes_as_it_is_among_the_batches(tmp_path) -> None:
    """In its place, so that it is the dead letter that it is without batches, and what is learned is the same."""
    schema = load_pipeline(pipeline_in(tmp_path, rows=1)).pipeline.schema
    good = b'{"x": [1, 2, 3, 4], "site": "north", "label": "a"}'
    for bad in (b"[1]", b"{", b'{"z": 1}', b'{"x": ["a"]}', good.replace(b"4", b"1e999"), good.replace(b'"a"', b"1.5")):
        messages = list(messages_of([good, good, bad, good], schema, 4))
        assert [getattr(message, "rows", 1) for message in messages] == [2, 1, 1] and messages[1] == bad


def test_served_records_are_not_sent_as_batches(tmp_path) -> None:
    """They are told apart record by record."""
    pipeline_in(tmp_path)
    done = here("send", "digits.toml", "rows.jsonl", "--served", "--format", "arrow", cwd=tmp_path)
    assert done.exit_code == 2 and "leave out --format arrow" in done.stderr


def test_each_bad_row_of_a_message_is_a_dead_letter_of_its_own_and_is_sent_again_alone(tmp_path) -> None:
    """Shown by its row; two rows of one message are not taken for a repetition of one."""
    path = pipeline_in(tmp_path, rows=1)
    columns = {"x": [[float("nan")] * 4, [1.0] * 4, [2.0] * 4], "site": ["north", "north", "moon"], "label": ["a", "b", "c"]}
    arrays = columns | {"x": pa.array(columns["x"], pa.list_(pa.float64()))}
    instance = Instance(load_pipeline(path), tmp_path / ".millrace" / "digits")
    instance.log().append("digits", [Record(stream_bytes(pa.record_batch(arrays)), timestamp_ms=1)])
    assert here("run", "digits.toml", "--set", "worker.stop_share=1.0", cwd=tmp_path).exit_code == 0
    shown = json_lines(here("dead-letters", "list", "digits.toml", "--output", "json", cwd=tmp_path).stdout)
    assert [(letter["record"], letter["reason"]) for letter in shown] == [
        ("digits:0 offset 0 row 0", "wrong-type"),
        ("digits:0 offset 0 row 2", "unknown-category"),
    ]
    done = here("dead-letters", "redrive", "digits.toml", "1", "--reason", "mended", "--yes", cwd=tmp_path)
    assert done.exit_code == 0, done.output
    assert json.loads(instance.log().fetch("digits:0", 1, None, 9)[0][0].value)["site"] == "moon"
    assert facts(tmp_path)["learned"] == 1


def test_a_column_of_another_type_is_told_by_name_and_counts_with_all_its_rows(tmp_path, caplog) -> None:
    """`run` and `status` count rows, as of the other formats; the message stays one dead letter, to be sent again whole."""
    path = pipeline_in(tmp_path, rows=1)
    columns = {"x": pa.array([["1", "2", "3", "4"]] * 3), "site": ["north"] * 3, "label": ["a", "b", "c"]}
    instance = Instance(load_pipeline(path), tmp_path / ".millrace" / "digits")
    instance.log().append("digits", [Record(stream_bytes(pa.record_batch(columns)), timestamp_ms=1)])
    done = here("run", "digits.toml", "--set", "worker.stop_share=1.0", "--output", "json", cwd=tmp_path)
    [told] = json_lines(done.stdout)
    assert done.exit_code == 1 and (told["read"], told["rejected"]) == (3, 3)
    assert "3 of 3 records were refused: wrong-type 3" in caplog.text and "x is list<item: string>" in caplog.text
    assert facts(tmp_path)["rejected"] == 3
    [letter] = json_lines(here("dead-letters", "list", "digits.toml", "--output", "json", cwd=tmp_path).stdout)
    assert (letter["record"], letter["reason"]) == ("digits:0 offset 0", "wrong-type")
