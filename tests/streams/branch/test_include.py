"""An exclusion lasts until an act ends it: from the next step on, for every reader, through any crash."""

from __future__ import annotations

import itertools
from dataclasses import replace

import msgspec
import pytest
from branches import HOST, SMALL, SteppedClock, everything, mark_at_once
from dying_storage import DyingStream
from forks import Forked, forked

from millrace.streams.branch.branch import Backends, in_force
from millrace.streams.branch.verify import verify
from millrace.streams.journal.entries import Act, Step
from millrace.streams.journal.exclusions import left_out
from millrace.streams.journal.journal import Cursor, counted, summarise
from millrace.streams.journal.ledger import Include, append_decision
from millrace.streams.journal.retention import Retention
from millrace.streams.source import CrashError
from millrace.streams.state.exclusion_reader import Excluding
from millrace.streams.stream import ListStream
from millrace.streams.worker.worker import Worker, WorkerIdentity

AFTER = 60  # records read when the operator says so
WHO = {"who": "me", "why": "mended", "when_ms": 5}


class Heeding:
    """A fork whose processes hear of the ledger."""

    def __init__(self, forked_rooms: Forked, ledger: ListStream) -> None:
        self.forked, self.ledger = forked_rooms, ledger

    def worker(self) -> Worker:
        """A new process."""
        backends: Backends = replace(self.forked.backends(), retention=Retention(self.ledger, 0, look_s=0.0))
        self.forked.worker()
        return Worker(self.forked.how, backends, SMALL, WorkerIdentity("mended", HOST, SteppedClock(), emits=False))


def told() -> ListStream:
    """A ledger in which the fork's first exclusion ends; said twice, it counts once."""
    ledger = ListStream()
    for _ in range(2):
        append_decision(ledger, Include(branch="mended", exclusion=0, **WHO))
    return ledger


def finish(forked_rooms: Heeding, end: int) -> Worker:
    """Processes, one after the other, until one has read the log; the operator is heard after ``AFTER`` records."""
    while True:
        try:
            worker = forked_rooms.worker()
            while sum(worker.fold.position.values()) < end:
                if sum(worker.fold.position.values()) >= AFTER:
                    worker.apply_ledger()
                list(worker.step())
                mark_at_once(worker)
            worker.close()
        except CrashError:
            continue
        return worker


def acts(journal: ListStream) -> list[Act]:
    """Of the fork."""
    return [entry for entry in counted(journal, "mended", Cursor()) if isinstance(entry, Act)]


def poison(forked_rooms: Forked, start: int, stop: int) -> int:
    """Records that the fork excludes, in a range of the log."""
    return sum(left_out(forked_rooms.fork().exclude, event, "list:0") for event in forked_rooms.parent.items[start:stop])


@pytest.mark.parametrize("late", [False, True])
def test_from_the_act_on_records_are_no_longer_excluded_and_verify_holds(late):
    """One act; what was passed before it stays passed; folding again agrees."""
    forked_rooms = forked(late)
    end = forked_rooms.parent.items[-1].offset + 1
    plain = finish(Heeding(forked(late), ListStream()), end)
    worker = finish(Heeding(forked_rooms, told()), end)
    (act,) = acts(forked_rooms.journal)
    assert (act.op, act.args, act.cause) == ("include", {"exclusion": 0}, "operator")
    assert worker.fold.records == plain.fold.records == end
    entries = [entry for entry in counted(forked_rooms.journal, "mended", Cursor()) if isinstance(entry, Step)]
    heard = next(read[1] for entry in entries if entry.seq > act.seq for read in entry.reads)
    assert heard >= AFTER and poison(forked_rooms, heard, end) > 0
    assert worker.fold.counts.passed < plain.fold.counts.passed or late
    assert everything(worker)["learner"] != everything(plain)["learner"]
    assert worker.fold.included == {"mended": [0]} and summarise(forked_rooms.journal, "mended").included == {0}
    assert verify(forked_rooms.how, forked_rooms.backends(), "mended", SMALL.keep).findings == []


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_append_changes_nothing(after):
    """The act is journaled once, and the state is that of an undisturbed run."""
    forked_rooms = forked()
    end = forked_rooms.parent.items[-1].offset + 1
    whole = everything(finish(Heeding(forked_rooms, told()), end))
    for at in itertools.count(1):
        again = Forked(forked_rooms.parent, forked_rooms.how, DyingStream(at, after))
        assert everything(finish(Heeding(again, told()), end)) == whole, at
        assert len(acts(again.journal)) == 1
        if again.journal.left > 0:
            break
    assert at > 10


def test_a_fold_that_does_not_heed_the_act_is_noticed(monkeypatch):
    """The broken twin: verification reads as if nothing had been included."""
    forked_rooms = forked()
    finish(Heeding(forked_rooms, told()), forked_rooms.parent.items[-1].offset + 1)
    monkeypatch.setattr("millrace.streams.branch.branch.in_force", lambda reader, fold: reader)
    assert verify(forked_rooms.how, forked_rooms.backends(), "mended", SMALL.keep).findings


def test_a_fork_of_the_branch_has_exclusions_of_its_own():
    """The parent's act says nothing about them, though it is in the state that the fork begins with."""
    forked_rooms = forked()
    worker = finish(Heeding(forked_rooms, told()), forked_rooms.parent.items[-1].offset + 1)
    reader, fork = forked_rooms.how.reader_of(forked_rooms.fork()), forked_rooms.fork()
    another, same = forked_rooms.how.fold(msgspec.structs.replace(fork, branch="another")), forked_rooms.how.fold(fork)
    for fold in (another, same):
        fold.load(worker.fold.parts())
    assert in_force(reader, another) is reader
    assert isinstance(reader, Excluding) and in_force(reader, same) is reader.reader


def test_a_ledger_that_cannot_be_read_ends_no_exclusion(caplog):
    """And stops nobody."""
    ledger = told()
    ledger.values[0] = ledger.values[0].replace(b"mended", b"wended")
    assert Retention(ledger, 0, look_s=0.0).included("mended") == set()
    assert "The ledger was not heeded" in caplog.text
