"""Streams of bytes with offsets, in memory and in SQLite."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import apsw_rows
import pytest
from either_log import LOGS, EitherLog
from pipelines import TIMEOUT_S, fill, make_read_only, small_disk

from millrace.streams.errors import DamageError, PrunedError, StorageError
from millrace.streams.sqlite.stream import SqliteStream
from millrace.streams.stream import ListStream, Stream


@pytest.mark.parametrize("either", LOGS, indirect=True)
@pytest.mark.parametrize("kind", ["memory", "log"])
def test_values_are_read_in_order_from_any_offset(either: EitherLog, kind: str) -> None:
    """An acknowledgement says where the value lies, and it lies there; the first is at offset 0."""
    stream: Stream = ListStream() if kind == "memory" else either.stream("s")
    assert list(stream.read(0)) == []
    values = [b"%d" % at for at in range(1100)]
    assert [stream.send(value).offset() for value in values] == list(range(1100))
    for start in (0, 1, 1023, 1024, 1025, 1099, 1100, 9999):
        assert list(stream.read(start)) == list(enumerate(values))[start:]


@pytest.mark.parametrize("either", LOGS, indirect=True)
@pytest.mark.parametrize("kind", ["memory", "log"])
def test_what_was_deleted_is_refused_and_every_offset_stays(either: EitherLog, kind: str) -> None:
    """However often and far back it is asked for; the newest value is never deleted, so no offset is given twice."""
    stream: Stream = ListStream() if kind == "memory" else either.stream("s")
    stream.delete_before(5)
    assert stream.first() == 0 and list(stream.read(0)) == []
    values = [(stream.send(b"%d" % at).offset(), b"%d" % at) for at in range(1100)]
    for asked, first in ((3, 3), (1, 3), (1050, 1050), (1050, 1050), (9999, 1099)):
        stream.delete_before(asked)
        assert stream.first() == first and list(stream.read(first)) == values[first:]
        with pytest.raises(PrunedError, match=rf"entries {first - 1} to {first - 1} are not there .* begins at offset {first}"):
            next(stream.read(first - 1))
    assert stream.send(b"next").offset() == 1100 and stream.first() == 1099


def test_a_reader_that_is_overtaken_by_a_deletion_is_told(tmp_path: Path) -> None:
    """What it was given before stands; it is not taken for damage."""
    stream, other = SqliteStream(tmp_path / "s.sqlite"), SqliteStream(tmp_path / "s.sqlite")
    for at in range(2100):
        sent = stream.send(b"%d" % at)
    sent.offset()
    entries = stream.read(0)
    assert [next(entries)[0] for _ in range(1000)] == list(range(1000))
    other.delete_before(2050)
    with pytest.raises(PrunedError, match="entries 1024 to 2049"):
        list(entries)


@pytest.mark.parametrize("either", LOGS, indirect=True)
def test_two_streams_are_two(either: EitherLog) -> None:
    """Nothing is shared by name or class."""
    for first, other in ((ListStream(), ListStream()), (either.stream("a"), either.stream("b"))):
        first.send(b"x").offset()
        assert list(other.read(0)) == [] and other.send(b"y").offset() == 0


@pytest.mark.parametrize("either", LOGS, indirect=True)
def test_a_stream_reads_what_it_has_itself_sent_acknowledged_or_not(either: EitherLog) -> None:
    """In the order of sending."""
    stream = either.stream("s")
    for at in range(20):
        stream.send(b"%d" % at)
        assert [value for _, value in stream.read(0)] == [b"%d" % number for number in range(at + 1)]


def test_closing_waits_for_what_is_on_its_way(tmp_path: Path) -> None:
    """So that nothing that was sent is lost."""
    stream = SqliteStream(tmp_path / "s.sqlite")
    coming = stream.send(b"last")
    stream.close()
    assert coming.offset() == 0 and [value for _, value in SqliteStream(tmp_path / "s.sqlite").read(0)] == [b"last"]


@pytest.mark.parametrize("either", LOGS, indirect=True)
def test_an_acknowledged_value_is_seen_by_another_connection_at_once(either: EitherLog) -> None:
    """A reader in another process sees what a writer was told is stored; offsets count what all writers append."""
    first, other = either.stream("s"), either.stream("s")
    assert [first.send(b"a").offset(), other.send(b"b").offset(), first.send(b"c").offset()] == [0, 1, 2]
    assert [value for _, value in other.read(0)] == [b"a", b"b", b"c"]
    half = other.read(1)
    assert next(half) == (1, b"b")
    assert [value for _, value in first.read(0)] == [b"a", b"b", b"c"] and list(half) == [(2, b"c")]


NUMBERED = "with recursive n(i) as (select 0 union all select i + 1 from n where i < 1599) "


@pytest.mark.parametrize("gap", [1, 3, 1024, 1500])
def test_a_missing_entry_is_damage_named_by_its_offset(gap: int, tmp_path: Path) -> None:
    """The entries before it are still read."""
    path = tmp_path / "s.sqlite"
    stream = SqliteStream(path)
    apsw_rows.change(path, NUMBERED + "insert into entries select i, cast(i as blob) from n")
    assert [value for _, value in stream.read(1598)] == [b"1598", b"1599"]
    apsw_rows.change(path, f"delete from entries where offset = {gap}")
    entries = stream.read(0)
    assert [next(entries)[0] for _ in range(gap)] == list(range(gap))
    with pytest.raises(DamageError, match=f"entry {gap} is missing or not bytes. Restore the file from a copy"):
        next(entries)
    assert [offset for offset, _ in stream.read(gap + 1)] == list(range(gap + 1, 1600))


def test_an_entry_that_is_not_bytes_is_damage(tmp_path: Path) -> None:
    """SQLite would keep anything in any column."""
    stream = SqliteStream(tmp_path / "s.sqlite")
    stream.send(b"a").offset()
    apsw_rows.change(tmp_path / "s.sqlite", "update entries set value = 'a'")
    with pytest.raises(DamageError, match="entry 0 is missing or not bytes"):
        list(stream.read(0))


def test_a_file_that_is_not_a_database_is_damage_and_a_folder_is_not_usable(tmp_path: Path) -> None:
    """Each with its path and what to do."""
    (tmp_path / "s.sqlite").write_bytes(b"not a database at all, but long enough to have a header of its own" * 20)
    with pytest.raises(DamageError, match="s.sqlite: not a sound SQLite database .* Restore it from a copy"):
        SqliteStream(tmp_path / "s.sqlite")
    (tmp_path / "folder.sqlite").mkdir()
    with pytest.raises(StorageError, match="folder.sqlite"):
        SqliteStream(tmp_path / "folder.sqlite")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="file"):
        SqliteStream(tmp_path / "file" / "s.sqlite")


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    """A table of that name with other columns is not ours to append to."""
    apsw_rows.change(tmp_path / "s.sqlite", "create table entries (name text)")
    with pytest.raises(DamageError, match="s.sqlite"):
        SqliteStream(tmp_path / "s.sqlite").send(b"x").offset()


def test_a_full_disk_is_one_sentence_and_every_acknowledged_value_stays(tmp_path: Path) -> None:
    """The same connection goes on when there is room again."""
    with small_disk(tmp_path / "disk", 1024) as disk:
        stream, sent = SqliteStream(disk / "s.sqlite"), 0
        fill(disk, leave=200_000)
        with pytest.raises(StorageError, match="s.sqlite: .*nothing acknowledged was lost. Free space"):  # noqa: PT012 - when it is full nobody knows
            for _ in range(1000):
                stream.send(b"x" * 5000).offset()
                sent += 1
        assert 0 < sent < 1000 and [len(value) for _, value in stream.read(0)] == [5000] * sent
        (disk / "ballast").unlink()
        assert stream.send(b"after").offset() == sent
        stream.close()


def test_a_read_only_folder_is_one_sentence_with_the_choices(tmp_path: Path) -> None:
    """The path, and --home."""
    with small_disk(tmp_path / "disk", 1024) as disk:
        stream = SqliteStream(disk / "s.sqlite")
        stream.send(b"x").offset()
        stream.close()
        make_read_only(disk)
        with pytest.raises(StorageError, match="s.sqlite: .*Make the folder writable, or name another with --home"):
            SqliteStream(disk / "s.sqlite").send(b"y").offset()


APPENDER = """
import sys
from pathlib import Path
from millrace.streams.sqlite.stream import SqliteStream
stream = SqliteStream(Path(sys.argv[1]))
for at in range(int(sys.argv[3])):
    print(stream.send(f"{sys.argv[2]} {at}".encode()).offset())
"""


@pytest.mark.slow
def test_two_processes_that_append_at_once_lose_nothing(tmp_path: Path) -> None:
    """Offsets have no gap, every acknowledgement is true, and each process's values stand in its own order."""
    path = tmp_path / "s.sqlite"
    SqliteStream(path).close()
    command = [sys.executable, "-c", APPENDER, str(path)]
    running = [subprocess.Popen([*command, name, "150"], stdout=subprocess.PIPE, text=True) for name in "ab"]
    acks = [[int(line) for line in process.communicate(timeout=TIMEOUT_S)[0].split()] for process in running]
    stored = [value.decode().split() for _, value in SqliteStream(path).read(0)]
    assert [process.returncode for process in running] == [0, 0] and sorted(acks[0] + acks[1]) == list(range(300))
    for name, offsets in zip("ab", acks, strict=True):
        assert [stored[offset] for offset in offsets] == [[name, str(at)] for at in range(150)]


APPENDER_UNTIL_TOLD = """
import sys
from pathlib import Path
from millrace.streams.sqlite.stream import SqliteStream
stream, at = SqliteStream(Path(sys.argv[1])), 0
while not Path(sys.argv[2]).exists():
    print(stream.send(f"a {at}".encode()).offset())
    at += 1
"""


def delete_often(stream: SqliteStream, appending: subprocess.Popen[bytes]) -> None:
    """Until twenty deletions took something."""
    firsts, until_s = {0}, time.monotonic() + TIMEOUT_S
    while len(firsts) <= 20:
        assert appending.poll() is None and time.monotonic() < until_s, f"{firsts} is all that came, {appending.returncode}"
        stream.delete_before(max((offset for offset, _ in stream.read(stream.first())), default=0) - 3)
        firsts.add(stream.first())


@pytest.mark.slow
def test_a_process_that_appends_while_another_deletes_keeps_its_offsets(tmp_path: Path) -> None:
    """Every acknowledgement is the next offset, whatever was deleted meanwhile; what is there is what was sent.

    The process appends until twenty deletions took something, however long either waits for the file's lock.
    """
    path, enough = tmp_path / "s.sqlite", tmp_path / "enough"
    stream = SqliteStream(path)
    command = [sys.executable, "-c", APPENDER_UNTIL_TOLD, str(path), str(enough)]
    with (tmp_path / "said").open("w+") as told:  # a pipe would be full, and stop it, where deletions are slow
        appending = subprocess.Popen(command, stdout=told)
        try:
            delete_often(stream, appending)
        finally:
            enough.touch()
            assert appending.wait(timeout=TIMEOUT_S) == 0
        acks = [int(line) for line in (tmp_path / "said").read_text().split()]
    assert acks == list(range(len(acks)))
    assert list(stream.read(stream.first())) == [(at, b"a %d" % at) for at in range(stream.first(), len(acks))]
