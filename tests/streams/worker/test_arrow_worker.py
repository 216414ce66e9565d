"""Arrow messages through the worker: the learner that JSON rows lead to, through crashes, proofs and forks."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from arrows import in_messages, message
from branches import (
    SCHEMA,
    SMALL,
    START_MS,
    Rooms,
    everything,
    fold_spec,
    make_events,
    run_to_end,
)
from forks import POISON
from hypothesis import given, settings
from hypothesis import strategies as some
from pipelines import encoded

from millrace.streams.branch.branch import reread
from millrace.streams.branch.verify import verify
from millrace.streams.errors import DamageError, TooManyRejectedError
from millrace.streams.formats.contents import Contents
from millrace.streams.journal.entries import Step
from millrace.streams.journal.exclusions import Header
from millrace.streams.journal.journal import Cursor, counted
from millrace.streams.records import Event, decode_headers
from millrace.streams.source import Crash, CrashError
from millrace.streams.state.exclusion_reader import Excluding
from millrace.streams.worker.config import WorkerConfig

ROWS = 60
CONTENTS = Contents(SCHEMA, 4096)
ALL = ("learner", "derived", "features", "batches", "scores", "serve")  # parts that do not count messages


def rows_of(seed: int) -> tuple[list[dict], list[int]]:
    """Rows as ``make_events`` has them, some with a number beyond every range, and their times."""
    events = [event for event in make_events(ROWS, seed) if event.value != b"{broken"]
    rows = [json.loads(event.value) for event in events]
    for row in rows[4::11]:
        row["age"] = 1e200
    return rows, [event.timestamp_ms for event in events]


def sizes_of(count: int, seed: int) -> list[int]:
    """Sizes of messages, of 1 to 17 rows, that add up."""
    chance, sizes = random.Random(seed), []
    while (left := count - sum(sizes)) > 0:
        sizes.append(min(left, chance.randrange(1, 18)))
    return sizes


def folded(items, how=None, read_rows: int = 5):
    """A worker at the end of these events."""
    rooms = Rooms(items, read_rows=read_rows)
    worker = rooms.worker(how=how or replace(fold_spec(), codec=CONTENTS))
    run_to_end(worker, items[-1].offset + 1)
    return worker, rooms


def parts(worker) -> dict[str, bytes]:
    """What was learned, as bytes."""
    return {name: part for name, part in everything(worker).items() if name in ALL}


@settings(max_examples=40, deadline=None)
@given(seed=some.integers(0, 10_000), cut=some.integers(0, 10_000), read_rows=some.integers(1, 9))
def test_the_same_rows_in_any_split_into_messages_give_the_learner_of_json(seed, cut, read_rows) -> None:
    """Bit for bit, bad rows among them, however many messages a step reads; and the four counts add up in rows."""
    rows, t = rows_of(seed)
    plain, _ = folded([Event(at, t[at], None, b"", encoded(row)) for at, row in enumerate(rows)], fold_spec())
    ours, _ = folded(in_messages(rows, t, SCHEMA, sizes_of(len(rows), cut)), read_rows=read_rows)
    assert parts(ours) == parts(plain)
    assert ours.fold.counts == plain.fold.counts and ours.fold.records == len(rows)
    assert ours.fold.counts.rejected == len(rows[4::11])


def mixed_items(seed: int) -> list[Event]:
    """Messages, rows, a broken message and a broken row in one log."""
    rows, t = rows_of(seed)
    items, at = [], 0
    for size in sizes_of(len(rows), seed):
        part = in_messages(rows[at : at + size], t[at : at + size], SCHEMA, [size])
        items += part if size > 3 else [Event(0, t[at + k], None, b"", encoded(rows[at + k])) for k in range(size)]
        at += size
    items[3:3] = [Event(0, t[0], None, b"", b"\xff\xff\xff\xffbroken"), Event(0, t[0], None, b"", b"{broken")]
    return [Event(offset, item.timestamp_ms, item.key, item.headers, item.value) for offset, item in enumerate(items)]


def test_a_branch_of_messages_is_proved_from_the_log() -> None:
    """Bad rows stand in the journal by offset and row, and verify finds them bad again."""
    items = mixed_items(2)
    worker, rooms = folded(items)
    rejected = [bad for entry in counted(rooms.journal, "main", Cursor()) if isinstance(entry, Step) for bad in entry.rejected]
    assert {row is None for _, _, row, _ in rejected} == {True, False}
    assert verify(replace(fold_spec(), codec=CONTENTS), rooms.backends(), "main", SMALL.keep).findings == []
    letters = [dict(decode_headers(record.headers)) for record in rooms.producer.records["small.dead-letters"]]
    from_letters = [
        (int(head["millrace.offset"]), int(head["millrace.row"]) if "millrace.row" in head else None) for head in letters
    ]
    assert (
        from_letters == [(offset, row) for _, offset, row, _ in rejected] and len(from_letters) == worker.fold.counts.rejected
    )


def test_a_step_that_names_other_rows_than_are_bad_is_damage() -> None:
    """A row more or a row less: either says that this release reads the message differently."""
    items = mixed_items(2)
    _, rooms = folded(items)
    steps = [entry for entry in counted(rooms.journal, "main", Cursor()) if isinstance(entry, Step)]
    step = next(entry for entry in steps if any(row is not None for _, _, row, _ in entry.rejected))
    source = rooms.backends().source
    assert reread(source, CONTENTS, step)
    rows = [bad for bad in step.rejected if bad[2] is not None]
    fewer = msgspec.structs.replace(step, rejected=[bad for bad in step.rejected if bad != rows[0]])
    more = msgspec.structs.replace(step, rejected=[*step.rejected, (rows[0][0], rows[0][1], rows[0][2] + 1000, "not-finite")])
    with pytest.raises(DamageError, match="was readable when"):
        reread(source, CONTENTS, fewer)
    with pytest.raises(DamageError, match="row 10.. was rejected when"):
        reread(source, CONTENTS, more)


@pytest.mark.parametrize("at", range(11))
def test_a_crash_before_any_message_changes_nothing(at) -> None:
    """The worker dies there, another goes on, and the state is that of one that never died."""
    items = mixed_items(3)
    whole, _ = folded(items)
    rooms = Rooms([*items[:at], Crash(), *items[at:]])
    how = replace(fold_spec(), codec=CONTENTS)
    with pytest.raises(CrashError):
        run_to_end(rooms.worker(how=how), items[-1].offset + 1)
    after = rooms.worker(how=how)
    run_to_end(after, items[-1].offset + 1)
    assert everything(after) == everything(whole)


def test_what_a_fork_excludes_is_left_out_message_by_message() -> None:
    """By the message's header; its rows are passed, and its bad rows are rejected as ever."""
    rows, t = rows_of(5)
    items = in_messages(rows, t, SCHEMA, sizes_of(len(rows), 5))
    marked = [Event(item.offset, item.timestamp_ms, None, POISON if item.offset % 2 else b"", item.value) for item in items]
    reader = Excluding(CONTENTS, (Header("producer", "till-7"),))
    piece, refused = reader.decode(marked, "list:0")
    kept, bad = CONTENTS.decode([event for event in marked if not event.offset % 2])
    every, _ = CONTENTS.decode(marked)
    assert 0 < len(kept) < len(every) and piece.left_out == len(every) - len(kept)
    assert piece.t.tolist() == kept.t.tolist() and piece.columns[0].tobytes() == kept.columns[0].tobytes()
    assert len(refused) > len(bad) and len(piece) + piece.left_out + len(refused) == len(rows)


def test_a_message_full_of_bad_rows_stops_the_worker_by_their_share_of_rows() -> None:
    """A message counts as many rows as it has: 40 bad of 100 are too many though it is one record."""
    columns = {"x": pa.array([[1.0, 2.0, 3.0]] * 100, pa.list_(pa.float64(), 3)), "age": [np.inf] * 40 + [1.0] * 60}
    bad = message(pa.record_batch({**columns, "kind": ["a"] * 100}))
    rooms = Rooms([Event(0, START_MS, None, b"", bad)])
    how = replace(fold_spec(), codec=CONTENTS)
    config = WorkerConfig(step_ms=0, window_rows=100)
    worker = rooms.worker(config=config, how=how)
    with pytest.raises(TooManyRejectedError, match="40 of the last 100"):
        list(worker.step())
    assert worker.fold.counts.rejected == 40


@pytest.mark.parametrize("fault", ["wrong type", "unknown column", "missing column"])
def test_a_message_that_is_refused_whole_counts_with_all_its_rows(fault: str) -> None:
    """In the step's entry, the counts and the reasons; it is one dead letter, and folding again counts the same."""
    columns = {"x": pa.array([[1.0, 2.0, 3.0]] * 100, pa.list_(pa.float64(), 3)), "age": [1.0] * 100, "kind": ["a"] * 100}
    good = message(pa.record_batch(columns))
    columns |= {"wrong type": {"age": ["old"] * 100}, "unknown column": {"rank": [1] * 100}, "missing column": {}}[fault]
    columns = {name: cells for name, cells in columns.items() if fault != "missing column" or name != "x"}
    rooms = Rooms([Event(at, START_MS, None, b"", value) for at, value in enumerate((message(pa.record_batch(columns)), good))])
    how = replace(fold_spec(), codec=CONTENTS)
    worker = rooms.worker(config=WorkerConfig(step_ms=0, stop_share=1.0), how=how)
    run_to_end(worker, 2)
    reason = {"wrong type": "wrong-type", "unknown column": "unknown-field", "missing column": "missing-field"}[fault]
    assert worker.rejects.by_reason == {reason: 100} and worker.fold.counts.rejected == 100 and worker.fold.records == 200
    assert "100 rows" in worker.rejects.first[reason]
    [step] = [entry for entry in counted(rooms.journal, "main", Cursor()) if isinstance(entry, Step) and entry.rejected]
    assert len(step.rejected) == 1 and step.refused_with == 99, "a step stays small, however many rows a message has"
    again = rooms.worker(how=how)
    assert again.fold.counts == worker.fold.counts and everything(again) == everything(worker)
    strict = Rooms([Event(0, START_MS, None, b"", message(pa.record_batch(columns)))])
    with pytest.raises(TooManyRejectedError, match="100 of the last 100"):
        list(strict.worker(config=WorkerConfig(step_ms=0, window_rows=100), how=how).step())
