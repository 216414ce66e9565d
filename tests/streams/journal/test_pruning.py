"""What versions hold may go from a journal: nobody misses it, whoever reads, writes or dies meanwhile."""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from branches import Rooms, everything, fold_spec, make_events, run_to_end
from hypothesis import given
from hypothesis import strategies as st
from pruned_branch import EVENTS, PRUNING, ROWS, Older, Remembering, here, pruned_rooms, segments, whole

from millrace.streams.branch.branch import manifest_of
from millrace.streams.branch.verify import verify, verify_version
from millrace.streams.errors import DamageError, ReplacedError
from millrace.streams.journal.entries import Mark
from millrace.streams.journal.journal import Cursor, Summary, counted, entries_after, extend, summarise
from millrace.streams.journal.ledger import Alias, append_decision
from millrace.streams.journal.retention import Retention
from millrace.streams.journal.segments import WIDTH, entries_of, packed
from millrace.streams.journal.store import GRACE_S, FolderStore, Run
from millrace.streams.records import Read, make_read
from millrace.streams.source import CrashError, ListSource
from millrace.streams.stream import ListStream
from millrace.streams.worker.config import WorkerConfig
from millrace.streams.worker.versions import VersionLog, oldest_kept
from millrace.streams.worker.worker import Worker, WorkerIdentity

# A journal that has lost its beginning


def test_every_offset_of_a_pruned_journal_reads_as_it_was() -> None:
    """From wherever, in whatever order, to the byte."""
    rooms = pruned_rooms()
    assert rooms.journal.first() > 20
    for start in range(len(rooms.journal.ever) + 1):
        assert list(rooms.whole_journal().read(start)) == list(enumerate(rooms.journal.ever))[start:]


def test_what_a_version_says_of_the_past_is_what_the_past_comes_to() -> None:
    """Fork, cursor, position, and the marks of every checkpoint that is kept."""
    rooms = pruned_rooms()
    quick, slow = summarise(rooms.whole_journal(), "main"), whole(rooms)
    assert (quick.fork, quick.end, quick.position) == (slow.fork, slow.end, slow.position)
    released = rooms.retention.released()
    assert [mark for mark in slow.marks if mark.version and mark.version not in released] == [
        mark for mark in quick.marks if mark.version and mark.version not in released
    ]
    assert quick.marks[-2:] == slow.marks[-2:] and len(quick.marks) < len(slow.marks)
    for seq in range(slow.end.seq + 1):
        ever = [entry for entry in counted(rooms.whole_journal(), "main", Cursor()) if entry.seq > seq]
        assert list(entries_after(rooms.whole_journal(), "main", seq)) == ever


def test_a_branch_whose_journal_is_pruned_learns_as_one_whose_is_not() -> None:
    """The same state to the byte; it opens, goes on, and everything is proved from the fork."""
    plain, rooms = Rooms(EVENTS), pruned_rooms(60)
    run_to_end(plain.worker(config=replace(PRUNING, journal_keep_entries=0)), ROWS)
    worker = here(rooms)
    run_to_end(worker, ROWS)
    uninterrupted = plain.worker(config=replace(PRUNING, journal_keep_entries=0))
    assert everything(worker) == everything(uninterrupted) == everything(rooms.worker(config=PRUNING))
    assert rooms.journal.first() > 30 and worker.epoch == 2
    report = verify(fold_spec(), rooms.backends(), "main", PRUNING.keep)
    assert (report.findings, report.base, report.records) == ([], "fork", ROWS)
    assert len(report.proved) == len(whole(rooms).marks)


def test_a_version_before_the_pruned_point_is_folded_again_from_segments() -> None:
    """Where its checkpoint is kept, as a name keeps it; from its parent, or from the fork where that was let go."""
    rooms = pruned_rooms(30)
    oldest = next(iter(segments(rooms)))
    named = Alias(who="", why="", when_ms=0, name="pinned", before=None, to=oldest)
    append_decision(rooms.retention.stream, named)
    run_to_end(rooms.worker(config=PRUNING), ROWS)
    assert rooms.journal.first() > 20 > segments(rooms)[oldest].entries.stop
    for nearest in (False, True):
        report = verify_version(fold_spec(), rooms.backends(), oldest, nearest, lambda: False)
        assert [mark.version for mark in report.proved] == [oldest] and report.findings == []


def test_a_follower_that_is_overtaken_misses_nothing() -> None:
    """A cursor that stands where the journal has nothing any more goes on through segments."""
    rooms = Rooms(EVENTS, journal=Remembering(), retention=Retention(ListStream(), 2))
    worker = rooms.worker(config=PRUNING)
    run_to_end(worker, 20)
    summary = summarise(rooms.whole_journal(), "main")
    run_to_end(worker, ROWS)
    assert rooms.journal.first() > summary.end.offset
    extend(summary, rooms.whole_journal(), "main")
    assert summary.end == whole(rooms).end and summary.marks == whole(rooms).marks


def test_a_writer_that_was_frozen_while_its_entries_were_deleted_is_told_that_it_was_replaced() -> None:
    """It reads on through segments and finds the higher epoch; its append is dead."""
    rooms = Rooms(EVENTS, journal=Remembering(), retention=Retention(ListStream(), 2))
    frozen = rooms.worker(config=PRUNING)
    run_to_end(frozen, 10)
    run_to_end(rooms.worker(config=PRUNING), 110)
    assert rooms.journal.first() > frozen._writer.cursor.offset
    with pytest.raises(ReplacedError, match="epoch 2"):
        list(frozen.step())
    assert list(rooms.whole_journal().read(0)) == list(enumerate(rooms.journal.ever))


# What may go


@given(st.lists(st.sampled_from([True, False]), max_size=30), st.integers(2, 5), st.integers(0, 4))
def test_nothing_goes_that_a_kept_state_goes_on_with(kinds: list[bool], checkpoints: int, versions: int) -> None:
    """The newest checkpoints, and the newest versions: two of them at least, all where nothing lets versions go."""
    marks = [
        Mark(
            branch="main",
            seq=2 * at + 2,
            epoch=1,
            state_seq=2 * at + 1,
            state_sha256="",
            checkpoint="",
            version=f"main.{2 * at + 1}" if kind else None,
        )
        for at, kind in enumerate(kinds)
    ]
    oldest = oldest_kept(marks, checkpoints, versions)
    named = [mark for mark in marks if mark.version]
    assert all(mark.state_seq >= oldest for mark in marks[-checkpoints:])
    assert len([mark for mark in named if mark.state_seq >= oldest]) >= min(len(named), max(2, versions) if versions else 99)


def test_nothing_is_deleted_unless_somebody_says_so() -> None:
    """The key is off by default, however many versions were let go."""
    rooms = pruned_rooms(config=replace(PRUNING, journal_keep_entries=0))
    assert rooms.retention.released() and rooms.journal.first() == 0


def test_nothing_is_deleted_that_segments_do_not_hold_to_the_byte(caplog: pytest.LogCaptureFixture) -> None:
    """A segment that is missing, and one that says something else: the journal stays, and learning goes on."""
    rooms = pruned_rooms(60, config=replace(PRUNING, journal_keep_entries=0))
    segment = list(segments(rooms).values())[-1]
    del rooms.store.blobs["main", segment.before[1].sha256]
    run_to_end(rooms.worker(config=PRUNING), ROWS)
    assert rooms.journal.first() == 0 and "Nothing was deleted from the journal of branch main" in caplog.text


def test_a_sweep_keeps_segments_and_takes_those_that_no_kept_version_names(tmp_path: Path) -> None:
    """After an hour's grace; an orphan segment of a crash goes, and so do those that were gathered into another."""
    store = FolderStore(tmp_path)
    rooms = Rooms(make_events(500), journal=Remembering(), store=store, retention=Retention(ListStream(), 2))
    run_to_end(rooms.worker(config=PRUNING), 450)
    orphan = store.put("main", packed([b"of a crash"]))
    then = time.time() - GRACE_S - 60
    for path in (tmp_path / "main").iterdir():
        os.utime(path, (then, then))
    rooms.worker(Patient, PRUNING).close()
    assert not store.path("main", orphan).exists()
    files = {path.name for path in (tmp_path / "main").iterdir()}
    needed = {run.sha256 for segment in segments(rooms).values() for run in segment.runs}
    assert needed <= files and any(run.level for segment in segments(rooms).values() for run in segment.runs)
    assert list(rooms.whole_journal().read(0)) == list(enumerate(rooms.journal.ever))
    assert verify(fold_spec(), rooms.backends(), "main", PRUNING.keep).findings == []


class Patient(Worker):
    """Its wall clock is the real one, so that its sweeps see how old files are."""

    def __init__(self, how, backends, config, opening) -> None:
        super().__init__(how, backends, config, WorkerIdentity(opening.branch, opening.host))
        self._unversioned = True


# Damage


def test_a_missing_segment_is_named_with_what_can_no_longer_be_proved() -> None:
    """What comes after it still is, from the oldest checkpoint there."""
    rooms = pruned_rooms(keep=4)
    runs = list(segments(rooms).values())[-1].runs
    lost = runs[1]
    del rooms.store.blobs["main", lost.sha256]
    report = verify(fold_spec(), rooms.backends(), "main", PRUNING.keep)
    words = "\n".join(map(str, report.findings))
    assert f"journal entries at offsets {lost.first} to {lost.stop - 1} (up to seq {lost.seq}) cannot be read" in words
    assert f"nothing that was learned up to seq {lost.seq} can be folded again" in words
    assert report.proved and all(mark.state_seq >= lost.seq for mark in report.proved)
    assert report.proved[-1] == whole_after(rooms, lost).marks[-1]


def whole_after(rooms: Rooms, lost: Run) -> Summary:
    """What the journal comes to after a run."""
    summary = Summary(end=Cursor.after(lost))
    extend(summary, rooms.whole_journal(), "main")
    return summary


def test_a_journal_whose_beginning_nobody_has_is_damage_and_nobody_goes_on() -> None:
    """Deleted by a hand, or with every version's manifest gone."""
    rooms = Rooms(EVENTS, journal=Remembering())
    run_to_end(rooms.worker(Older), 60)
    rooms.journal.delete_before(2)
    with pytest.raises(DamageError, match="begins at offset 2, and no version there that can be read has the entries before"):
        rooms.worker()
    assert "no version there that can be read" in str(verify(fold_spec(), rooms.backends(), "main", 2).findings[0])


def test_the_newest_version_damaged_the_one_before_has_the_past() -> None:
    """Two versions stand in a journal after entries were deleted from it."""
    rooms = pruned_rooms(keep=1)
    newest = [mark for mark in summarise(rooms.whole_journal(), "main").marks if mark.version][-1]
    rooms.store.blobs["main", newest.checkpoint] = b"{"
    assert list(rooms.whole_journal().read(0)) == list(enumerate(rooms.journal.ever))
    worker = rooms.worker(config=PRUNING)
    worker.close()
    segment = manifest_of(rooms.store, worker._version_log.marks[-1]).segment
    have = [raw for run in segment.runs for raw in entries_of(rooms.store, "main", run)]
    assert have == rooms.journal.ever[: segment.entries.stop]


# Crashes


class Dying(Remembering):
    """A journal whose process dies at its ``at``-th append or deletion, before it or just after."""

    def __init__(self, at: int, after: bool) -> None:
        super().__init__()
        self.left, self.after = at, after

    def send(self, value: bytes):
        self._dies(not self.after)
        sent = super().send(value)
        self._dies(self.after, 0)
        return sent

    def delete_before(self, offset: int) -> None:
        self._dies(not self.after)
        super().delete_before(offset)
        self._dies(self.after, 0)

    def _dies(self, here: bool, by: int = 1) -> None:
        self.left -= by
        if self.left == 0 and here:
            self.left = -1
            raise CrashError


def survived(journal: Remembering) -> tuple[Rooms, dict[str, bytes]]:
    """The rooms, and the state, after workers died on that journal until one reached the end."""
    rooms = Rooms(EVENTS[:80], journal=journal, retention=Retention(ListStream(), 1))
    while True:
        try:
            worker = rooms.worker(config=PRUNING)
            run_to_end(worker, 80)
        except CrashError:
            continue
        return rooms, everything(worker)


def test_a_crash_at_any_append_or_deletion_changes_nothing() -> None:
    """Before and after each; what was deleted is in segments, and a fresh process proves the journal from the fork."""
    _, whole_state = survived(Remembering())
    for at, after in ((at, after) for at in itertools.count(1) for after in (False, True)):
        journal = Dying(at, after)
        rooms, state = survived(journal)
        assert state == whole_state
        assert list(rooms.whole_journal().read(0)) == list(enumerate(journal.ever))
        if at % 5 == 0:
            assert verify(fold_spec(), rooms.backends(), "main", PRUNING.keep).findings == []
        if journal.left > 0:
            break
    assert at > 30


class Careless(VersionLog):
    """Broken: deletes up to the newest version's mark, whatever versions have."""

    def _prune(self) -> None:
        self._backends.journal.delete_before(1 << 60)


def test_a_writer_that_deletes_what_no_version_holds_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same facts do not hold for a broken twin, so they prove something."""
    monkeypatch.setattr("millrace.streams.worker.worker.VersionLog", Careless)
    with pytest.raises(DamageError, match="no version there that can be read has the entries before"):
        pruned_rooms()


# For years


class Sliced(ListSource):
    """A source whose offsets are places in its list, so that a read of one record does not look at all of them."""

    def read(self, tp: str, start: int, stop: int) -> Read:
        return make_read(tp, start, stop, self._events[start:stop])


@pytest.mark.slow
def test_a_long_journal_stays_bounded_opens_fast_and_is_proved_from_the_fork() -> None:
    """20,000 entries in small steps: the journal and what opening reads stay small, and every entry is proved."""
    rows = 21_000
    config = WorkerConfig(
        step_rows=1,
        step_ms=0,
        checkpoint_rows=120,
        version_rows=300,
        keep=2,
        stop_share=1.0,
        window_rows=10,
        journal_keep_entries=100,
    )
    rooms = Rooms(make_events(rows), journal=Remembering(), read_rows=1, retention=Retention(ListStream(), 3))
    how = fold_spec("chain")
    held = []
    for end in range(1500, rows + 1, 1500):
        rooms.journal.reads = 0
        worker = here(rooms, config, how)
        held.append((len(rooms.journal.values), rooms.journal.reads))
        run_to_end(worker, end)
    assert len(rooms.journal.ever) > 20_000
    assert max(length for length, _ in held) < 4 * 400 and max(reads for _, reads in held) < 3 * 4 * 400
    assert len(list(segments(rooms).values())[-1].runs) < 2 * WIDTH
    report = verify(how, replace(rooms.backends(), source=Sliced(rooms.items)), "main", config.keep)
    assert (report.findings, report.base, report.records) == ([], "fork", rows)
    assert report.entries == worker.seq and len(report.proved) > 150
