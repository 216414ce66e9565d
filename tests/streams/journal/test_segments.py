"""A journal is segments and a tail: every version has the entries since its parent, and what it has may be deleted."""

from __future__ import annotations

import os

import msgspec
import pytest
from branches import HOST, SMALL, Rooms, fold_spec, mark_at_once, run_to_end
from hypothesis import given
from hypothesis import strategies as st
from pruned_branch import EVENTS, ROWS, Older, segments

from millrace.streams.branch.branch import load_checkpoint, manifest_of
from millrace.streams.branch.verify import verify
from millrace.streams.checksummed import seal
from millrace.streams.errors import DamageError
from millrace.streams.journal.entries import Act, decode_entry
from millrace.streams.journal.journal import summarise
from millrace.streams.journal.segments import LEVELS, WIDTH, entries_of, gathered, packed, unpacked
from millrace.streams.journal.store import ListStore, Run, VersionName

# Packing


@given(st.lists(st.binary(max_size=300)))
def test_what_is_packed_is_unpacked_to_the_byte(entries: list[bytes]) -> None:
    """However many, empty ones too."""
    assert unpacked(packed(entries), "here") == entries


def test_entries_are_deflated_where_that_is_smaller() -> None:
    """Journal entries are alike; noise is not."""
    alike, noise = [b'{"kind":"step","seq":%d}' % at for at in range(100)], [os.urandom(200)]
    assert len(packed(alike)) < sum(map(len, alike)) / 3 and len(packed(noise)) == 1 + 4 + 200


@pytest.mark.parametrize("blob", [b"", b"\x02", b"\x00\x00", b"\x00\x00\x00\x00\x05ab", b"\x01not deflated", b"\x01"])
def test_a_blob_that_is_none_of_ours_is_damage(blob: bytes) -> None:
    """Named."""
    with pytest.raises(DamageError, match="here .*Restore it from a copy"):
        unpacked(blob, "here")


@given(st.lists(st.integers(0, 3), max_size=700))
def test_a_long_history_is_few_runs_and_the_same_entries(counts: list[int]) -> None:
    """Whatever the segments' sizes: the runs follow one another and hold every entry, to the byte and in order."""
    store, runs, ever = ListStore(), [], []
    for count in counts:
        entries = [b"%d" % (len(ever) + at) for at in range(count)]
        first, ever = len(ever), ever + entries
        runs = [*gathered(store, "main", runs), Run(store.put("main", packed(entries)), first, len(ever), len(ever), 1, HOST)]
    assert [entry for run in runs for entry in entries_of(store, "main", run)] == ever
    assert [run.first for run in runs] == [0, *(run.stop for run in runs)][: len(runs)]
    assert len(runs) <= WIDTH * (LEVELS + 1) + len(counts) // WIDTH**LEVELS
    assert [run.level for run in runs] == sorted((run.level for run in runs), reverse=True)


def test_runs_that_cannot_be_read_stay_apart(caplog: pytest.LogCaptureFixture) -> None:
    """A version is made all the same, and nothing that was there is given up."""
    store = ListStore()
    runs = [Run(store.put("main", packed([b"%d" % at])), at, at + 1, at + 1, 1, HOST) for at in range(WIDTH)]
    del store.blobs["main", runs[3].sha256]
    assert gathered(store, "main", runs) == runs and "Segments stay apart" in caplog.text


# What a version has


def test_every_version_has_the_entries_since_its_parent_to_the_byte() -> None:
    """One after the other they are the journal, dead entries and opens too, up to the newest version's state."""
    rooms = Rooms(EVENTS)
    for rows in (30, 55, ROWS):
        run_to_end(rooms.worker(), rows)
        rooms.journal.send(seal(msgspec.structs.replace(summarise(rooms.journal, "main").marks[-1], seq=2, epoch=1)))  # dead
    versions = [mark for mark in summarise(rooms.journal, "main").marks if mark.version]
    at, parent = 0, None
    for mark in versions:
        segment = manifest_of(rooms.store, mark).segment
        assert (segment.entries.first, segment.entries.seq, segment.parent) == (at, mark.state_seq, parent)
        at = segment.entries.stop
        have = [raw for run in segment.runs for raw in entries_of(rooms.store, "main", run)]
        assert have == rooms.journal.values[:at]
        assert decode_entry(have[-1], "here").seq == mark.state_seq
        assert segment.fork == decode_entry(have[0], "here") and segment.entries.host == HOST
        counts = load_checkpoint(rooms.store, mark)["counts"]
        assert (segment.position, segment.learned) == (counts["position"], counts["counts"]["learned"])
        assert segment.scores["scores"]["rows"] == load_checkpoint(rooms.store, mark)["scores"]["totals"]["rows"]
        parent = VersionName(str(mark.version), mark.state_sha256)
    assert len(versions) >= 4


def test_a_version_says_why_it_was_made() -> None:
    """So many records, the end of a run, or the newest act since its parent."""
    rooms = Rooms(EVENTS)
    worker = rooms.worker()
    run_to_end(worker, 60)
    worker.close()
    worker = rooms.worker()
    act = Act(
        branch="main", seq=worker.seq + 1, epoch=worker.epoch, op="version", cause="operator", evidence="before the holidays"
    )
    worker._writer.append(act)
    worker.fold.act(act)
    worker._acted = True
    mark_at_once(worker)
    run_to_end(worker, ROWS)
    causes = [segment.cause for segment in segments(rooms).values()]
    assert causes == [
        *["worker.version_rows = 23"] * 2,
        "run ended",
        "operator: version, before the holidays",
        *["worker.version_rows = 23"] * 3,
    ]


def test_versions_of_older_releases_stay_what_they_were() -> None:
    """Without a segment they are read and verified; the next version's begins at the fork, its parent is the last of them."""
    rooms = Rooms(EVENTS)
    worker = rooms.worker(Older)
    run_to_end(worker, 60)
    old = [mark for mark in summarise(rooms.journal, "main").marks if mark.version]
    assert b"segment" not in rooms.store.get("main", old[-1].checkpoint) and segments(rooms)[old[-1].version] is None
    run_to_end(rooms.worker(), ROWS)
    new = list(segments(rooms).values())[len(old) :]
    assert new[0].entries.first == 0 and new[0].parent == VersionName(str(old[-1].version), old[-1].state_sha256)
    assert verify(fold_spec(), rooms.backends(), "main", SMALL.keep).findings == []
