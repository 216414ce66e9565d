"""The embedded log: offsets, partitions, retention, several processes, and damage named to the record."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import apsw_rows
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipelines import TIMEOUT_S, fill, make_read_only, small_disk

from millrace.learners.errors import BadInputError
from millrace.streams.errors import DamageError, OffsetsGoneError, StorageError
from millrace.streams.records import Record, checksum, encode_headers, frame
from millrace.streams.sqlite import log as sqlite_log
from millrace.streams.sqlite.database import journal_mode
from millrace.streams.sqlite.log import READ_BYTES, SqliteLog, SqliteSource, choose_partition


def filled(path: Path, values: Sequence[bytes], partitions: int = 1) -> SqliteLog:
    """A log with topic ``t``."""
    log = SqliteLog(path)
    log.create_topic("t", partitions)
    log.append("t", [Record(value) for value in values])
    return log


def everything(log: SqliteLog, topics: Sequence[str] = ("t",), limit: int = 4096) -> dict[str, list[bytes | None]]:
    """All values by partition, read to the end."""
    source, values = SqliteSource(log, topics), {}
    while reads := source.next_batch(limit):
        for read in reads:
            values.setdefault(read.tp, []).extend(event.value for event in read.events)
    return values


def test_a_record_comes_back_with_everything_it_was_appended_with(tmp_path: Path) -> None:
    """Absent and empty keys and values told apart, headers, and a timestamp of its own or the wall clock's."""
    log = SqliteLog(tmp_path / "log.sqlite")
    log.create_topic("t")
    headers = encode_headers((("who", b"till 7"), ("who", b"")))
    records = [Record(b"v", b"k", headers, 5), Record(None, None, b"", 6), Record(b"", b"", b"", -7), Record(b"now")]
    assert log.append("t", records) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    (read,) = SqliteSource(SqliteLog(tmp_path / "log.sqlite"), ["t"]).next_batch(10)
    assert [(e.offset, e.value, e.key, e.headers, e.timestamp_ms) for e in read.events[:3]] == [
        (0, b"v", b"k", headers, 5),
        (1, None, None, b"", 6),
        (2, b"", b"", b"", -7),
    ]
    assert read.events[3].timestamp_ms > 1_700_000_000_000
    assert (read.start, read.stop, read.crc32c) == (0, 4, checksum([frame(event) for event in read.events]))


def test_a_key_chooses_its_partition_and_records_without_one_take_turns(tmp_path: Path) -> None:
    """The same key is always in the same place; offsets count in each partition."""
    log = SqliteLog(tmp_path / "log.sqlite")
    log.create_topic("t", 3)
    keyed = [Record(b"v", b"k%d" % (at % 5)) for at in range(40)]
    stored = log.append("t", keyed[:20]) + log.append("t", keyed[20:])
    assert all(number == zlib.crc32(record.key) % 3 for record, (number, _) in zip(keyed, stored, strict=True))
    for number in range(3):
        offsets = [offset for where, offset in stored if where == number]
        assert offsets == list(range(len(offsets)))
    turns = [number for at in range(9) for number, _ in log.append("t", [Record(b"v")] * (1 + at % 2))]
    assert {turns.count(number) for number in range(3)} in ({4, 5}, {4}, {5})
    assert choose_partition(b"customer 7", 4, 0) == zlib.crc32(b"customer 7") % 4


@pytest.mark.parametrize("limit", [1, 2, 7, 128, 1000])
def test_reads_are_contiguous_and_hold_every_record_once_whatever_their_limit(limit: int, tmp_path: Path) -> None:
    """Over three partitions, to the end, never more than the limit."""
    values = [b"%d" % at for at in range(500)]
    log = filled(tmp_path / "log.sqlite", values, partitions=3)
    source, seen, ends = SqliteSource(log, ["t"]), [], {}
    while reads := source.next_batch(limit):
        assert 0 < sum(len(read.events) for read in reads) <= limit
        for read in reads:
            assert read.start == ends.get(read.tp, 0) and len(read.events) == read.stop - read.start
            ends[read.tp] = read.stop
            seen += [event.value for event in read.events]
            assert source.read(read.tp, read.start, read.stop) == read
    assert sorted(seen) == sorted(values) and source.position == ends == {tp: high for tp, (_, high) in source.bounds().items()}


def test_several_partitions_are_read_evenly(tmp_path: Path) -> None:
    """A full one does not starve the others, and what one does not use the others get."""
    log = SqliteLog(tmp_path / "log.sqlite")
    log.create_topic("t", 3)
    keys = {zlib.crc32(b"%d" % at) % 3: b"%d" % at for at in range(20)}
    log.append("t", [Record(b"v", keys[0])] * 600 + [Record(b"v", keys[2])] * 10)
    source = SqliteSource(log, ["t"])
    assert {read.tp: len(read.events) for read in source.next_batch(90)} == {"t:0": 30, "t:2": 10}
    assert {read.tp: len(read.events) for read in source.next_batch(90)} == {"t:0": 30}
    log.append("t", [Record(b"v", keys[1])] * 600 + [Record(b"v", keys[2])] * 600)
    assert {read.tp: len(read.events) for read in source.next_batch(90)} == {"t:0": 30, "t:1": 30, "t:2": 30}


def test_a_read_closes_at_its_bound_of_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large values make short reads; each holds at least one record, so reading goes on; nothing is lost."""
    monkeypatch.setattr(sqlite_log, "READ_BYTES", 50_000)
    log = filled(tmp_path / "log.sqlite", [b"x" * 20_000] * 290 + [b"", b"y" * 200_000] * 5)
    source, sizes = SqliteSource(log, ["t"]), []
    while reads := source.next_batch(4096):
        sizes += [len(read.events) for read in reads]
    assert sizes[:97] == [3] * 96 + [4] and sizes[97:] == [2] * 4
    assert len(source.read("t:0", 0, 300).events) == 300
    assert READ_BYTES == 64 << 20


def test_offsets_are_never_used_again_after_retention(tmp_path: Path) -> None:
    """Not even when every record is gone and the file is opened anew."""
    log = filled(tmp_path / "log.sqlite", [b"a"] * 5)
    log.delete_before("t:0", 3)
    assert log.bounds("t:0") == (3, 5)
    log.delete_before("t:0", 99)
    assert log.bounds("t:0") == (5, 5)
    again = SqliteLog(tmp_path / "log.sqlite")
    assert again.append("t", [Record(b"b")]) == [(0, 5)] and again.bounds("t:0") == (5, 6)
    again.delete_before("t:0", 2)
    assert again.bounds("t:0") == (5, 6)


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_a_reader_whose_position_is_gone_is_told_what_there_is(kept: int, tmp_path: Path) -> None:
    """Whether retention left some records or none at all: never silence, for silence would wait for ever."""
    log = filled(tmp_path / "log.sqlite", [b"v"] * 10)
    source = SqliteSource(log, ["t"])
    source.next_batch(3)
    log.delete_before("t:0", 10 - kept)
    with pytest.raises(OffsetsGoneError, match="Topic t partition 0 no longer has offsets 3 .*--branch NEW"):
        source.next_batch(3)
    with pytest.raises(OffsetsGoneError, match="Restore the log, or start a new branch"):
        source.read("t:0", 2, 9)
    with pytest.raises(OffsetsGoneError):
        source.read("t:0", 9, 11)


@given(st.lists(st.tuples(st.sampled_from("axd"), st.integers(1, 9)), max_size=12))
def test_what_the_log_holds_is_what_a_list_would_hold(acts: list[tuple[str, int]]) -> None:
    """Appends, retention and a restart in any order."""
    with tempfile.TemporaryDirectory() as folder:
        log, held, start = filled(Path(folder) / "log.sqlite", []), [], 0
        for act, n in acts:
            if act == "a":
                log.append("t", [Record(b"%d" % (len(held) + at)) for at in range(n)])
                held += [b"%d" % (len(held) + at) for at in range(n)]
            elif act == "d":
                start = max(start, min(start + n, len(held)))
                log.delete_before("t:0", start)
            else:
                log.close()
                log = SqliteLog(Path(folder) / "log.sqlite")
        assert log.bounds("t:0") == (start, len(held))
        assert everything(log) == ({"t:0": held[start:]} if held[start:] else {})
        assert log.tail("t", 2) == held[start:][-2:]
        log.close()


def test_topics_keep_their_identity_and_their_partitions(tmp_path: Path) -> None:
    """A topic made anew in another file has another id; another number of partitions is refused."""
    log = SqliteLog(tmp_path / "log.sqlite")
    topic = log.create_topic("t", 2)
    assert log.create_topic("t", 2) == topic == SqliteLog(tmp_path / "log.sqlite").topic("t")
    assert SqliteLog(tmp_path / "other.sqlite").create_topic("t", 2).id != topic.id and log.topic("u") is None
    with pytest.raises(BadInputError, match="Topic t in .* has 2 partitions, not 3"):
        log.create_topic("t", 3)
    with pytest.raises(BadInputError, match="There is no topic u in .*; create it first"):
        log.append("u", [Record(b"v")])


def test_an_append_is_all_of_its_records_or_none(tmp_path: Path) -> None:
    """A record that cannot be stored takes back the ones before it, and the log goes on."""
    log = filled(tmp_path / "log.sqlite", [b"a"])
    for bad in (Record(b"c", timestamp_ms=2**70), Record("text")):
        with pytest.raises(Exception):  # noqa: B017 - what type is Python's affair; that nothing was stored is ours
            log.append("t", [Record(b"b"), bad])
        assert everything(log) == {"t:0": [b"a"]}
    assert log.append("t", []) == [] and log.append("t", [Record(b"b")]) == [(0, 1)]


def test_a_flipped_byte_of_a_value_in_the_file_is_named_by_partition_and_offset(tmp_path: Path) -> None:
    """Every record is read against its own checksum; the ones before it are still good."""
    path = tmp_path / "log.sqlite"
    log = filled(path, [b"value number %03d" % at for at in range(300)])
    log.close()
    raw = path.read_bytes()
    at = raw.index(b"value number 217") + 7
    path.write_bytes(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :])
    source = SqliteSource(SqliteLog(path), ["t"])
    assert len(source.read("t:0", 0, 217).events) == 217
    with pytest.raises(DamageError, match=r"the record at t:0 offset 217 is not what was appended .* Restore the log"):
        source.next_batch(4096)


def test_a_record_that_was_deleted_between_others_is_named(tmp_path: Path) -> None:
    """The embedded log has no gaps of its own, so one is damage; retention takes only from the beginning."""
    log = SqliteLog(tmp_path / "log.sqlite")
    log.create_topic("t")
    log.append("t", [Record(b"%d" % at) for at in range(9)])
    table = f"records_{log.create_topic('t').id}_0"
    log.close()
    apsw_rows.change(tmp_path / "log.sqlite", f"delete from {table} where offset = 5")
    with pytest.raises(DamageError, match="t:0 offset 5 is missing"):
        SqliteSource(SqliteLog(tmp_path / "log.sqlite"), ["t"]).next_batch(100)


def test_no_flipped_byte_of_the_file_is_ever_read_as_another_record(tmp_path: Path) -> None:
    """Seeded flips all over the file: what is read is what was appended, or an error of ours says that it is not."""
    path, chance = tmp_path / "log.sqlite", random.Random(11)
    values = [b"%05d" % at * 9 for at in range(400)]
    filled(path, values).close()
    raw, refused = path.read_bytes(), 0
    for _ in range(150):
        at = chance.randrange(len(raw))
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << chance.randrange(8)]) + raw[at + 1 :])
        for beside in ("-wal", "-shm"):
            Path(f"{path}{beside}").unlink(missing_ok=True)
        try:
            log = SqliteLog(path)
            readable = everything(log).get("t:0", [])
            assert values[: len(readable)] == readable
            log.close()
        except (DamageError, OffsetsGoneError, StorageError, BadInputError):
            refused += 1
    assert refused > 20


def test_a_full_disk_is_one_sentence_and_every_appended_record_stays(tmp_path: Path) -> None:
    """An append that failed left nothing; the same connection goes on when there is room again."""
    with small_disk(tmp_path / "disk", 2048) as disk:
        log, sent = filled(disk / "log.sqlite", []), 0
        fill(disk, leave=400_000)
        with pytest.raises(StorageError, match="log.sqlite: .*nothing acknowledged was lost. Free space"):  # noqa: PT012 - as above
            for _ in range(1000):
                log.append("t", [Record(b"x" * 1000)] * 20)
                sent += 20
        assert 0 < sent < 20_000 and len(everything(log)["t:0"]) == sent
        with pytest.raises(StorageError, match="Free space"):
            log.append("t", [Record(b"x" * 300_000)] * 10)
        (disk / "ballast").unlink()
        assert log.append("t", [Record(b"after")]) == [(0, sent)]
        log.close()


def test_what_was_posted_lies_in_order_when_flush_returns(tmp_path: Path) -> None:
    """Among appends that wait, for another connection too; flushing nothing is nothing."""
    log = filled(tmp_path / "log.sqlite", [b"0"])
    log.flush()
    log.post("t", [Record(b"1"), Record(b"2")])
    log.post("t", [Record(b"3")])
    assert log.append("t", [Record(b"4")]) == [(0, 4)]
    log.post("t", [Record(b"5")])
    log.flush()
    assert everything(SqliteLog(tmp_path / "log.sqlite")) == {"t:0": [b"%d" % at for at in range(6)]}
    with pytest.raises(BadInputError, match="There is no topic u"):
        log.post("u", [Record(b"v")])


def test_a_post_that_the_disk_refused_is_an_error_of_the_flush(tmp_path: Path) -> None:
    """Not delivered is never silence; the log goes on afterwards."""
    with small_disk(tmp_path / "disk", 1024) as disk:
        log = filled(disk / "log.sqlite", [b"a"])
        fill(disk, leave=100_000)
        log.post("t", [Record(b"x" * 300_000)])
        with pytest.raises(StorageError, match="log.sqlite: .*nothing acknowledged was lost. Free space"):
            log.flush()
        log.flush()
        assert log.append("t", [Record(b"b")]) == [(0, 1)] and everything(log) == {"t:0": [b"a", b"b"]}
        log.close()


def test_a_read_only_folder_is_one_sentence_with_the_choices(tmp_path: Path) -> None:
    """Not a stack of SQLite's own."""
    with small_disk(tmp_path / "disk", 1024) as disk:
        filled(disk / "log.sqlite", [b"a"]).close()
        make_read_only(disk)
        with pytest.raises(StorageError, match="log.sqlite: .*Make the folder writable, or name another with --home"):
            SqliteLog(disk / "log.sqlite").append("t", [Record(b"b")])


@pytest.mark.parametrize(
    ("version", "mode"), [("3.40.1", "delete"), ("3.51.2", "delete"), ("3.51.3", "wal"), ("3.100.0", "wal")]
)
def test_the_write_ahead_log_is_used_only_where_it_is_safe(version: str, mode: str) -> None:
    """Older releases can corrupt it when several processes reset it."""
    assert journal_mode(version) == mode


APPENDER = """
import json, sys
from pathlib import Path
from millrace.streams.records import Record
from millrace.streams.sqlite.log import SqliteLog
log, name, count = SqliteLog(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
log.create_topic("t", 2)
print("ready", flush=True)
for at in range(count):
    records = [Record(json.dumps([name, at, one, "x" * 50]).encode()) for one in range(5)]
    print(json.dumps([at, log.append("t", records)]), flush=True)
"""


def appender(path: Path, name: str, count: int) -> tuple[subprocess.Popen[bytes], Path]:
    """Another process that appends five records at a time, and the file in which it says where each lies."""
    words = path.with_name(f"{name}.words")
    with words.open("wb") as said:
        return subprocess.Popen([sys.executable, "-c", APPENDER, str(path), name, str(count)], stdout=said), words


def told(output: str, name: str) -> dict[tuple[int, int], list[object]]:
    """Partition and offset of every acknowledged record, and what it must hold."""
    lines = [json.loads(line) for line in output[: output.rfind("\n") + 1].splitlines() if line != "ready"]
    return {(number, offset): [name, at, one] for at, stored in lines for one, (number, offset) in enumerate(stored)}


def held(log: SqliteLog) -> dict[tuple[int, int], list[object]]:
    """Partition and offset of every record in the log, and what it holds; offsets must have no gap."""
    records = {
        (number, offset): json.loads(value)[:3]
        for number in range(2)
        for offset, value in enumerate(everything(log).get(f"t:{number}", []))
    }
    assert [log.bounds(f"t:{n}") for n in range(2)] == [(0, sum(1 for where, _ in records if where == n)) for n in range(2)]
    return records


@pytest.mark.slow
def test_two_processes_that_append_at_once_lose_nothing_while_a_third_reads(tmp_path: Path) -> None:
    """Offsets have no gap, each lies where its writer was told, and what was read on the way is what is there in the end."""
    path = tmp_path / "log.sqlite"
    log = filled(path, [], partitions=2)
    running = {name: appender(path, name, 200) for name in "ab"}
    source, seen = SqliteSource(log, ["t"]), {}
    while any(process.poll() is None for process, _ in running.values()) or source.position != {
        tp: high for tp, (_, high) in source.bounds().items()
    }:
        for read in source.next_batch(50):
            seen |= {(int(read.tp[-1]), event.offset): json.loads(event.value)[:3] for event in read.events}
    expected = {where: row for name, (_, words) in running.items() for where, row in told(words.read_text(), name).items()}
    assert [process.returncode for process, _ in running.values()] == [0, 0] and len(expected) == 2000
    assert held(log) == expected == seen


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_an_appender_killed_at_any_time_leaves_every_acknowledged_record_and_a_readable_log(seed: int, tmp_path: Path) -> None:
    """kill -9 after a seeded number of acknowledgements and a seeded part of the next append; the next writer goes on."""
    path, chance = tmp_path / "log.sqlite", random.Random(seed)
    (process, words), least = appender(path, "a", 1 << 62), 1 + chance.randrange(40)
    try:
        while words.read_bytes().count(b"\n") < least:
            assert process.poll() is None
        for _ in range(chance.randrange(30_000)):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=TIMEOUT_S) == -signal.SIGKILL
    said = told(words.read_text(), "a")
    log = SqliteLog(path)
    there = held(log)
    assert said.items() <= there.items() and (len(there) - len(said)) in (0, 5)
    follower, words = appender(path, "b", 3)
    assert follower.wait(timeout=TIMEOUT_S) == 0
    said |= told(words.read_text(), "b")
    assert said.items() <= held(log).items() and len(held(log)) == len(there) + 15


def test_bytes_that_are_no_longer_text_are_damage(tmp_path: Path) -> None:
    """A flipped type of a column makes SQLite hand out text that is none."""
    path = tmp_path / "log.sqlite"
    log = filled(path, [b"00000"])
    (table,) = log._connection.execute("select log_table from partitions").fetchone()
    log._connection.execute(f"update {table} set value = cast(x'fe' as text)")
    with pytest.raises(DamageError, match="where text should"):
        everything(log)
