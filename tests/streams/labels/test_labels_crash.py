"""Late labels through crashes: before every event, after every phase, at every blob; and the twins that lose something."""

from __future__ import annotations

import numpy as np
import pytest
from branches import SMALL, Rooms, everything
from crashes import CrashRuns
from dying_storage import DyingStore
from late_labels import late_fold_spec, make_late_events
from lossy import LossyWorker

from millrace.streams.branch.branch import refold
from millrace.streams.branch.verify import verify
from millrace.streams.journal.journal import Cursor, counted, summarise
from millrace.streams.parts import pack
from millrace.streams.records import decode_headers

ROWS = 60
EVENTS = make_late_events(ROWS, seed=3)
RUNS = CrashRuns(EVENTS, late_fold_spec)


class WithoutJoin(LossyWorker):
    """Broken: its checkpoints forget who waits."""

    @staticmethod
    def lose(parts):
        """All but them."""
        kept = {name: value for name, value in parts["join"].items() if name != "x"}
        return parts | {"join": kept | {"pending": []}}


class WithoutIdentities(LossyWorker):
    """Broken: its checkpoints forget who was settled."""

    @staticmethod
    def lose(parts):
        """All but them."""
        nobody = {"known_open": np.zeros((3, 0), dtype=np.int64), "known_closed": []}
        return parts | {"join": parts["join"] | nobody}


WHOLE_ROOMS = Rooms(EVENTS)
WHOLE = everything(RUNS.survive(WHOLE_ROOMS))


def letters(rooms: Rooms) -> set[bytes]:
    """Offsets of the dead letters."""
    return {dict(decode_headers(letter.headers))["millrace.offset"] for letter in rooms.producer.records["small.dead-letters"]}


@pytest.mark.parametrize("event", range(ROWS + 1))
def test_a_crash_before_any_record_changes_nothing_of_the_join(event):
    """Who waits, who is remembered, what was learned and both scores are those of the uninterrupted run."""
    rooms = RUNS.crash_before(event)
    assert rooms.result == WHOLE
    assert letters(rooms) == letters(WHOLE_ROOMS)


@pytest.mark.parametrize("phase", range(1, 100))
def test_a_crash_after_any_phase_changes_nothing_of_the_join(phase):
    """Wherever the process ends; and every conflict reaches the dead letters all the same."""
    rooms = RUNS.crash_after_phase(phase)
    assert rooms.result == WHOLE
    assert letters(rooms) == letters(WHOLE_ROOMS)


@pytest.mark.parametrize("blob", range(1, 41, 3))
def test_a_crash_while_a_join_is_stored_changes_nothing(blob):
    """Orphan parts do not count."""
    assert everything(RUNS.survive(Rooms(EVENTS, store=DyingStore(blob)))) == WHOLE


@pytest.mark.parametrize("twin", [WithoutJoin, WithoutIdentities])
def test_a_worker_that_loses_who_waits_fails_these_tests(twin):
    """The comparison notices a broken twin."""
    assert not all(RUNS.crash_before(event, twin).result == WHOLE for event in range(ROWS))


def test_folding_the_journal_again_gives_every_marked_join():
    """`verify` finds nothing, and a fold from the fork is the same state, byte for byte."""
    rooms = Rooms(EVENTS)
    RUNS.survive(rooms)
    report = verify(late_fold_spec(), rooms.backends(), "main", SMALL.keep)
    assert report.findings == [] and len(report.proved) >= 3
    fold = late_fold_spec().fold(summarise(rooms.journal, "main").fork)
    list(refold(fold, counted(rooms.journal, "main", Cursor()), rooms.backends().source, late_fold_spec().reader))
    assert {name: pack(part) for name, part in fold.parts().items()} == WHOLE


def test_the_fates_of_all_records_add_up_at_every_step():
    """Learned, passed, rejected, waiting, and labels that did their work."""
    worker = Rooms(EVENTS).worker(how=late_fold_spec())
    while sum(worker.fold.position.values()) < ROWS:
        list(worker.step())
        assert worker.fold.records == sum(worker.fold.position.values())


def test_an_idle_clock_ends_horizons():
    """With nothing more to read, time passes by empty steps and the default label applies."""
    rooms = Rooms(EVENTS[:20])
    worker = rooms.worker(how=late_fold_spec())
    worker.run(lambda running: not running.fold.waiting and sum(running.fold.position.values()) == 20)
    assert worker.fold.labels.counts.defaulted > 0 and not worker.fold.labels.waiting
